"""Log-likelihood by importance sampling."""

import math

from vae_lightning.batch import Batch
from vae_lightning.metrics.base import Metric, check_positive
from vae_lightning.models.capabilities import Capability
from vae_lightning.results import Mean, Result
from vae_lightning.training.module import LitVAE


class LogLikelihood(Metric):
    r"""Negative log-likelihood by importance sampling from the posterior.

    .. math:: -\log p(x) \approx -\log \frac{1}{K} \sum_{k=1}^K \frac{p(x|z_k) p(z_k)}{q(z_k|x)},
        \quad z_k \sim q(z|x)

    The estimate is an upper bound in expectation, which decreases with K. Memory does not grow
    with K. The same formula of a likelihood that is not normalized is reported as
    ``importance_weighted_cross_entropy``, or with the name of another loss.

    Args:
        num_samples: Number of importance samples K per image. Papers usually use 5000.
        rows: Number of latents decoded at once. By default 256 on a CPU, so that they fit in its
            caches, and 16,384 elsewhere, scaled down in proportion for images above 28x28 pixels.

    Raises:
        ValueError: If a number is not positive.

    References:
        Burda et al. (2016), Importance weighted autoencoders, https://arxiv.org/abs/1509.00519
    """

    name = "log_likelihood"
    requires = (Capability.DENSITY,)

    def __init__(self, num_samples: int = 64, rows: int | None = None) -> None:
        super().__init__()
        check_positive(self, num_samples=num_samples, rows=1 if rows is None else rows)
        self.num_samples = num_samples
        self.rows = rows

    def start(self, module: LitVAE) -> None:
        """See `Metric.start`."""
        self.mean = Mean()

    def update(self, module: LitVAE, batch: Batch) -> None:
        """See `Metric.update`."""
        pixels = math.prod(module.vae.image_shape)
        images = 256 if batch.x.device.type == "cpu" else 16_384
        rows = self.rows or max(1, images * 784 // pixels)
        noise = module.evaluation_noise(batch, "importance")
        log_prob = module.vae.log_marginal(
            batch.x, module.condition(batch), noise, self.num_samples, rows
        )
        self.mean.update(-log_prob)

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        normalized = module.is_normalized
        name = "negative_log_likelihood"
        if not normalized:
            name = f"importance_weighted_{_identifier(module.vae.likelihood.loss_name)}"
        found = {name: self.mean.result(module.vae.bound_unit, normalized)}
        if module.vae.samples_likelihood:
            found["importance_samples"] = Result(self.num_samples, "draws per image")
        return found


def _identifier(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
