"""Log-likelihood by importance sampling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vae_lightning.data.batch import Batch
from vae_lightning.metrics.measure import Mean, Measure
from vae_lightning.metrics.result import Result

if TYPE_CHECKING:
    from vae_lightning.models import BaseVAE


class LogLikelihood(Measure):
    r"""Negative log-likelihood by importance sampling from the posterior.

    .. math:: -\log p(x) \approx -\log \frac{1}{K} \sum_{k=1}^K \frac{p(x|z_k) p(z_k)}{q(z_k|x)},
        \quad z_k \sim q(z|x)

    An upper bound in expectation, which falls with K. Memory does not grow with K.

    Args:
        samples: K. 5000 is usual in papers.
        rows: Latents decoded at once; by default 256 on a CPU, whose caches they fit, and 16,384
            elsewhere, and fewer the more pixels an image has beyond 28x28.

    Raises:
        ValueError: If a number is not positive.

    References:
        Burda et al. (2016), Importance weighted autoencoders, https://arxiv.org/abs/1509.00519
    """

    name = "log_likelihood"

    def __init__(self, samples: int = 64, rows: int | None = None) -> None:
        super().__init__()
        for option, value in {"samples": samples, "rows": 1 if rows is None else rows}.items():
            if not value or value < 1:
                raise ValueError(f"metrics.log_likelihood.{option} must be positive, got {value}")
        self.samples = samples
        self.rows = rows

    def applies_to(self, model: BaseVAE, data: Any) -> bool:
        """Models with a Gaussian posterior and a prior."""
        return model.latent_dim is not None

    def start(self, model: BaseVAE) -> None:
        """See `Measure.start`."""
        self.mean = Mean()

    def update(self, model: BaseVAE, batch: Batch) -> None:
        """See `Measure.update`."""
        pixels = math.prod(model.image_shape)
        images = 256 if batch.x.device.type == "cpu" else 16_384
        rows = self.rows or max(1, images * 784 // pixels)
        self.mean.update(-model.log_marginal(batch, self.samples, rows))

    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """See `Measure.compute`."""
        normalised = model.is_normalised
        name = "negative_log_likelihood" if normalised else "importance_weighted_cross_entropy"
        return {
            name: self.mean.result(model.bound_unit, normalised),
            "importance_samples": Result(self.samples, "draws per image"),
        }
