"""Importance-weighted autoencoder (Burda et al., 2016), https://arxiv.org/abs/1509.00519."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_lightning.functional import log_mean_exp
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class IWAETerms(ELBOTerms):
    """The terms of the bound with one draw, and the bound with several, each (B,).

    Attributes:
        negative_bound: -log of the mean of the importance weights, an upper bound of -log p(x).
    """

    negative_bound: Tensor


class IWAE(VAE):
    r"""VAE trained on a tighter bound: -log of the mean of K importance weights.

    .. math:: -\log \frac{1}{K} \sum_k \frac{p(x|z_k) p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    With K = 1 it is the VAE, whose KL term is then a draw instead of a closed form; the bound
    rises with K towards log p(x).

    Args:
        samples: Importance samples K in training and in the reported bound.
        **kwargs: See `VAE`.
    """

    def __init__(self, samples: int = 5, **kwargs: Any) -> None:
        super().__init__(samples=samples, **kwargs)

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> IWAETerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        z = q.sample(noise, self.samples)
        log_likelihood = self.log_likelihood(x, z, condition)
        log_weights = log_likelihood + q.log_ratio(z)
        return IWAETerms(
            reconstruction=-log_likelihood.mean(1),
            kl=q.kl().sum(1),
            negative_bound=-log_mean_exp(log_weights, 1),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """The negative importance-weighted bound, (B,)."""
        assert isinstance(terms, IWAETerms)
        return terms.negative_bound
