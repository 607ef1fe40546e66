"""Importance-weighted autoencoder (Burda et al., 2016), https://arxiv.org/abs/1509.00519."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from vae_lightning.distributions.posteriors import Draws, LatentDistribution
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


@dataclass(frozen=True)
class ImportanceWeights:
    """The two parts of the log importance weights of draws from q(z|x), each (B, n).

    Attributes:
        log_likelihood: log p(x|z).
        log_ratio: log p(z) - log q(z|x).
    """

    log_likelihood: Tensor
    log_ratio: Tensor

    @cached_property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z|x) in nats, (B, n)."""
        return self.log_likelihood + self.log_ratio


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
                f"{type(self).__name__} weighs draws by their density, but those of {name} have "
                "none in training: choose another posterior, such as GaussianPosterior"
            )

    @property
    def num_draws(self) -> int:
        """Number of draws per image."""
        return self.num_samples

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> IWAETerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_draws)
        weights = self.weigh(x, draws, condition)
        return IWAETerms(**self.iwae_terms(q, draws, weights, condition))

    def weigh(self, x: Tensor, draws: Draws, condition: Tensor | None) -> ImportanceWeights:
        """Return the importance weights of draws from q(z|x).

        Args:
            x: Images, (B, C, H, W).
            draws: Draws for each of them.
            condition: One-hot classes, (B, num_classes), of a conditional model.
        """
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        return ImportanceWeights(log_likelihood, self.log_ratio(draws, condition))

    def iwae_terms(
        self,
        q: LatentDistribution,
        draws: Draws,
        weights: ImportanceWeights,
        condition: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the arguments of `IWAETerms`, given draws from ``q`` and their weights."""
        return {
            "reconstruction": -weights.log_likelihood.mean(1),
            "kl": self.kl(q, draws, condition, weights.log_ratio),
            "negative_iwae_bound": -log_mean_exp(weights.log_weights, 1),
        }

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the negative importance-weighted bound, (B,)."""
        assert isinstance(terms, IWAETerms)
        return terms.negative_iwae_bound


def reweight_gradient(x: Tensor, weights: Tensor) -> None:
    """Multiply the gradient with respect to a tensor (B, n, ...) by weights (B, n), in place.

    The weights may depend on what has been computed from the tensor, because only the backward
    pass needs them. Pass a view to leave the gradients of other uses of the same tensor alone.

    Example:
        >>> import torch
        >>> parameter = torch.ones(2, 3, requires_grad=True)
        >>> x = parameter.view_as(parameter)
        >>> reweight_gradient(x, torch.tensor([[1.0, 2.0, 3.0]]).expand(2, 3))
        >>> x.sum().backward()
        >>> parameter.grad
        tensor([[1., 2., 3.],
                [1., 2., 3.]])
    """
    if x.requires_grad:
        weights = weights.view(*weights.shape, *[1] * (x.ndim - weights.ndim))
        x.register_hook(lambda gradient: gradient * weights)
