"""Importance-weighted autoencoder (Burda et al., 2016), https://arxiv.org/abs/1509.00519."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_lightning.functional import log_mean_exp
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class IWAETerms(ELBOTerms):
    """The terms of the bound with one draw, and the bound with several, each (B,).

    Attributes:
        negative_iwae_bound: -log of the mean importance weight, an upper bound of -log p(x).
    """

    negative_iwae_bound: Tensor


class IWAE(VAE):
    r"""VAE trained on a tighter bound: -log of the mean of K importance weights.

    .. math:: -\log \frac{1}{K} \sum_k \frac{p(x|z_k) p(z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    With K = 1 it is the VAE with a Monte Carlo estimate of the KL term. The bound rises towards
    log p(x) with K.

    Args:
        num_samples: Number of importance samples K in training and in the reported bound.
        **kwargs: See `VAE`.

    Raises:
        MissingCapabilityError: If posterior and prior have no density.
        ValueError: If draws in training have none.
    """

    def __init__(self, num_samples: int = 5, **kwargs: Any) -> None:
        super().__init__(num_samples=num_samples, **kwargs)
        self.require(Capability.DENSITY)
        if self.posterior_family.relaxed_in_training:
            name = type(self.posterior_family).__name__
            raise ValueError(
                f"IWAE weighs draws by their density, but those of {name} have none in training: "
                "choose another posterior, such as GaussianPosterior"
            )

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> IWAETerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        log_ratio = self.log_ratio(draws, condition)
        return IWAETerms(
            reconstruction=-log_likelihood.mean(1),
            kl=self.kl(q, draws, condition, log_ratio),
            negative_iwae_bound=-log_mean_exp(log_likelihood + log_ratio, 1),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the negative importance-weighted bound, (B,)."""
        assert isinstance(terms, IWAETerms)
        return terms.negative_iwae_bound
