"""MIWAE (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_lightning.functional import log_mean_exp
from vae_lightning.models.iwae import IWAE, IWAETerms
from vae_lightning.models.vae import ELBOTerms
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class MIWAETerms(IWAETerms):
    """The terms of the ELBO and of two importance-weighted bounds, each (B,).

    Attributes:
        negative_iwae_bound: The bound with all M K draws.
        negative_miwae_bound: The mean of the M bounds with K draws each.
    """

    negative_miwae_bound: Tensor


class MIWAE(IWAE):
    r"""VAE trained on the mean of M importance-weighted bounds of K samples each.

    .. math:: -\frac{1}{M} \sum_m \log \frac{1}{K} \sum_k w_{mk}, \quad
        w_{mk} = \frac{p(x|z_{mk}) \, p(z_{mk})}{q(z_{mk}|x)}, \quad z_{mk} \sim q(z|x)

    The signal-to-noise ratio of the encoder's gradient falls with K, as :math:`1 / \sqrt K`, and
    rises with M. M = 1 is `IWAE`, K = 1 is the VAE with M draws. Use it where `IWAE` with as many
    draws trains its encoder badly; `PIWAE` keeps the tighter bound for the decoder.

    Args:
        num_samples: Number of importance samples K in each bound.
        num_bounds: Number of bounds M. Each image is decoded M K times.
        **kwargs: See `IWAE`.

    Raises:
        ValueError: If ``num_bounds`` is not positive.

    References:
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better,
        https://arxiv.org/abs/1802.04537

    Example:
        >>> MIWAE(num_bounds=4, num_samples=16, latent_dim=2).num_draws
        64
    """

    def __init__(self, num_samples: int = 8, num_bounds: int = 8, **kwargs: Any) -> None:
        if num_bounds < 1:
            raise ValueError(f"num_bounds must be positive, got {num_bounds}")
        super().__init__(num_samples=num_samples, **kwargs)
        self.num_bounds = num_bounds

    @property
    def num_draws(self) -> int:
        """See `IWAE.num_draws`: M K."""
        return self.num_bounds * self.num_samples

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> MIWAETerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_draws)
        weights = self.weigh(x, draws, condition)
        return MIWAETerms(
            **self.iwae_terms(q, draws, weights, condition),
            negative_miwae_bound=-self.mean_bound(weights.log_weights),
        )

    def mean_bound(self, log_weights: Tensor) -> Tensor:
        """Return the mean of the M bounds, given the log-weights of all draws, (B, M K) -> (B,)."""
        groups = log_weights.unflatten(1, (self.num_bounds, self.num_samples))
        return log_mean_exp(groups, 2).mean(1)

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the mean of the negative bounds, (B,)."""
        assert isinstance(terms, MIWAETerms)
        return terms.negative_miwae_bound
