"""Wasserstein autoencoder with MMD (Tolstikhin et al., 2018), https://arxiv.org/abs/1711.01558."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vae_lightning.distributed import join_rows
from vae_lightning.distributions.posteriors import DeterministicPosterior, Posterior
from vae_lightning.models.base import Terms
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import Noise

Kernel = Literal["imq", "rbf"]

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class WAETerms(Terms):
    """The two terms of the objective.

    Attributes:
        reconstruction: -log p(x|z) in nats, (B,).
        mmd: Squared maximum mean discrepancy of the joined batch from the prior, ().
    """

    mmd: Tensor

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return "squared MMD" if name == "mmd" else super().unit(name)


class WAE(LatentVariableModel):
    """Autoencoder whose latents, over a batch, are pulled to the prior by a kernel distance.

    -log p(x|z) + mmd_weight MMD^2(q(z), p(z)). With the default, deterministic encoder there is no
    density of images, and none is reported.

    Args:
        mmd_weight: Weight of the squared MMD, in nats.
        kernel: ``imq`` (inverse multiquadratic, the paper's choice) or ``rbf`` (Gaussian), each
            summed over seven scales around the one that suits N(0, I).
        posterior: The family of q(z|x): deterministic or Gaussian.
        **kwargs: See `LatentVariableModel`.

    Raises:
        ValueError: If ``mmd_weight`` is negative or the kernel is unknown.
    """

    def __init__(
        self,
        mmd_weight: float = 500.0,
        kernel: Kernel = "imq",
        posterior: Callable[[int], Posterior] = DeterministicPosterior,
        **kwargs: Any,
    ) -> None:
        super().__init__(posterior=posterior, **kwargs)
        if not mmd_weight >= 0:
            raise ValueError(f"mmd_weight must not be negative, got {mmd_weight}")
        if kernel not in ("imq", "rbf"):
            raise ValueError(f"kernel must be imq or rbf, got {kernel!r}")
        self.mmd_weight = mmd_weight
        self.kernel: Kernel = kernel

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> WAETerms:
        """See `BaseVAE.terms`."""
        draws = self.posterior(x, condition).rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        prior = self.joined_prior_samples(len(x), condition, noise)
        joined = join_rows(draws.z[:, 0])
        return WAETerms(-log_likelihood.mean(1), squared_mmd(joined, prior, self.kernel))

    def objective(self, terms: Terms) -> Tensor:
        """Return reconstruction + mmd_weight MMD^2, (B,)."""
        assert isinstance(terms, WAETerms)
        return terms.reconstruction + self.mmd_weight * terms.mmd


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel = "imq") -> Tensor:
    r"""Estimate the squared maximum mean discrepancy of two samples, without bias.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n(n-1)} \sum_{i \ne j}
        k(y_i, y_j) - \frac{2}{n^2} \sum_{i, j} k(x_i, y_j)

    with k(x, y) = C / (C + |x - y|^2) (imq) or exp(-|x - y|^2 / C) (rbf), summed over C = 2 L s for
    seven scales s from 0.1 to 10.

    Args:
        x: Sample, (n, L).
        y: Sample of the same shape.
        kernel: ``imq`` or ``rbf``.

    Returns:
        A scalar; it can be negative. 0 for n < 2, from which nothing can be estimated.

    References:
        Gretton et al. (2012), A kernel two-sample test, section 2.2,
        https://jmlr.org/papers/v13/gretton12a.html
    """
    n, size = x.shape
    if n < 2:
        return 0 * x.sum()
    distances = [_squared_distances(a, b) for a, b in ((x, x), (y, y), (x, y))]
    total = x.new_zeros(())
    off_diagonal = 1 - torch.eye(n, device=x.device)
    for scale in _SCALES:
        c = 2.0 * size * scale
        k_xx, k_yy, k_xy = (c / (c + d) if kernel == "imq" else (-d / c).exp() for d in distances)
        within = ((k_xx + k_yy) * off_diagonal).sum() / (n * (n - 1))
        total = total + within - 2 * k_xy.mean()
    return total


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2, (n, m)."""
    x, y = x.float(), y.float()
    return (x[:, None] - y[None]).square().sum(2)
