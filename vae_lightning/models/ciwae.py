"""CIWAE (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_lightning.models.iwae import IWAE, IWAETerms
from vae_lightning.models.vae import ELBOTerms
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class CIWAETerms(IWAETerms):
    """The terms of the ELBO and of the bounds, each (B,).

    Attributes:
        mean_log_weight: The mean of the log-weights: the ELBO with the KL term estimated from the
            draws.
    """

    mean_log_weight: Tensor


class CIWAE(IWAE):
    r"""VAE trained on a convex combination of the ELBO and the importance-weighted bound.

    .. math:: -\beta \, \frac{1}{K} \sum_k \log w_k - (1 - \beta) \log \frac{1}{K} \sum_k w_k, \quad
        w_k = \frac{p(x|z_k) \, p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    The first term keeps the gradient of the encoder from vanishing in noise as K grows. beta = 0 is
    `IWAE`, beta = 1 the VAE with K draws and an estimated KL term. Use it as a small change of
    `IWAE` with many samples.

    Args:
        beta: Weight of the ELBO, in [0, 1].
        num_samples: Number of importance samples K.
        **kwargs: See `IWAE`.

    Raises:
        ValueError: If ``beta`` is outside [0, 1].

    References:
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better,
        https://arxiv.org/abs/1802.04537

    Example:
        >>> CIWAE(beta=0.5, num_samples=64, latent_dim=2).num_samples
        64
    """

    def __init__(self, beta: float = 0.05, num_samples: int = 64, **kwargs: Any) -> None:
        super().__init__(num_samples=num_samples, **kwargs)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        self.beta = beta

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> CIWAETerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_draws)
        weights = self.weigh(x, draws, condition)
        return CIWAETerms(
            **self.iwae_terms(q, draws, weights, condition),
            mean_log_weight=weights.log_weights.mean(1),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the combination of the two negative bounds, (B,)."""
        assert isinstance(terms, CIWAETerms)
        return (1 - self.beta) * terms.negative_iwae_bound - self.beta * terms.mean_log_weight
