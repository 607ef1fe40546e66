"""Sliced-Wasserstein autoencoder (Kolouri et al., 2018), https://arxiv.org/abs/1804.01947."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_lightning.discrepancies import random_directions, squared_sliced_wasserstein
from vae_lightning.distributed import join_rows
from vae_lightning.distributions.posteriors import DeterministicPosterior, Posterior
from vae_lightning.models.base import Terms
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class SlicedWAETerms(Terms):
    """The two terms of the objective.

    Attributes:
        reconstruction: -log p(x|z) in nats, (B,).
        sliced_wasserstein: Squared sliced Wasserstein-2 distance of the joined batch from the
            prior, ().
    """

    sliced_wasserstein: Tensor

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        if name == "sliced_wasserstein":
            return "squared sliced Wasserstein-2 distance"
        return super().unit(name)


class SlicedWAE(LatentVariableModel):
    r"""Autoencoder whose latents are pulled to the prior by the sliced Wasserstein distance.

    .. math:: -\log p(x|z) + w \, SW_2^2(q(z), p(z))

    The latents of the joined batch of all processes and as many draws from the prior are projected
    onto random directions, and sorted; see `discrepancies.squared_sliced_wasserstein`. It costs
    n log n in the size n of the batch, where the kernels of `WAE` cost n squared, and needs no
    kernel. The prior needs samples only. With the default, deterministic encoder there is no
    density of images, and none is reported.

    Args:
        sliced_weight: Weight w of the squared distance, in nats.
        num_directions: Number of random directions for each batch; the paper takes 50.
        posterior: The family of q(z|x): deterministic or Gaussian.
        **kwargs: See `LatentVariableModel`.

    Raises:
        ValueError: If ``sliced_weight`` is negative or ``num_directions`` is not positive.

    References:
        Kolouri et al. (2018), Sliced-Wasserstein auto-encoders, https://arxiv.org/abs/1804.01947

    Example:
        >>> SlicedWAE(latent_dim=2).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        sliced_weight: float = 100.0,
        num_directions: int = 50,
        posterior: Callable[[int], Posterior] = DeterministicPosterior,
        **kwargs: Any,
    ) -> None:
        super().__init__(posterior=posterior, **kwargs)
        if not sliced_weight >= 0:
            raise ValueError(f"sliced_weight must not be negative, got {sliced_weight}")
        if num_directions < 1:
            raise ValueError(f"num_directions must be positive, got {num_directions}")
        self.sliced_weight = sliced_weight
        self.num_directions = num_directions

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> SlicedWAETerms:
        """See `BaseVAE.terms`; the distance is that of the first draw of each image."""
        draws = self.posterior(x, condition).rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        prior = self.joined_prior_samples(len(x), condition, noise)
        joined = join_rows(draws.z[:, 0])
        directions = random_directions(
            self.num_directions, self.latent_dim, noise.generator("directions")
        ).to(joined.device)
        distance = squared_sliced_wasserstein(joined, prior, directions)
        return SlicedWAETerms(-log_likelihood.mean(1), distance)

    def objective(self, terms: Terms) -> Tensor:
        """Return reconstruction + sliced_weight times the squared distance, (B,)."""
        assert isinstance(terms, SlicedWAETerms)
        return terms.reconstruction + self.sliced_weight * terms.sliced_wasserstein
