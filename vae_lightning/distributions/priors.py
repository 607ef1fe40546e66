"""Priors p(z), or p(z|y) of conditional models."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from vae_lightning import randomness
from vae_lightning.distributions.posteriors import REAL, LatentDistribution
from vae_lightning.distributions.variables import Kind, Variable, variables
from vae_lightning.functional import standard_normal_log_prob

_QUANTILE_SAMPLES = 20_000


class TrainingImages(Protocol):
    """What can be asked about the training images before the first update."""

    def mean_image(self) -> Tensor:
        """Return the mean of the training images, float32, (C, H, W)."""

    def random_images(self, n: int, seed: int) -> Tensor:
        """Return ``n`` training images, each at most once if there are enough, (n, C, H, W)."""

    def random_indices(self, n: int, seed: int) -> Tensor | None:
        """Return the places in the training split of the images that `random_images` returns.

        Returns:
            (n,), in the order of the images; None if they are not known.
        """


class Prior(nn.Module, ABC):
    """A distribution over latents.

    Subclasses take ``latent_dim`` and ``cond_features`` first, then their own arguments.

    Args:
        latent_dim: Size L of the latent vector.
        cond_features: Number of classes of a conditional model, else 0. A prior may ignore it: then
            p(z|y) = p(z).

    Attributes:
        has_density: Whether `log_prob` is defined.
        support: What a latent is. A posterior must have the same support.
        radius: Radius of the sphere or ball about the origin that holds all latents, None if they
            have no bound.
        bounded: Whether images are in [0, 1]; set by the model.
    """

    bounded: bool = True
    has_density: bool = True
    support: str = REAL
    radius: float | None = None

    def __init__(self, latent_dim: int, cond_features: int = 0) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.cond_features = cond_features

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The latent variables: one of each dimension, unless latents are not real vectors."""
        if self.support == REAL:
            return variables(Kind.NUMBER, self.latent_dim)
        return variables(Kind.POINT, self.latent_dim, self.latent_dim)

    @abstractmethod
    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return log p(z), or log p(z|y).

        Args:
            z: Latents, (B, n, L).
            condition: One-hot classes, (B, cond_features), of a conditional model.

        Returns:
            Nats, (B, n).
        """

    @abstractmethod
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw latents.

        Args:
            n: Number of latents.
            condition: One-hot classes, (n, cond_features), of a conditional model.
            generator: A CPU generator; by default torch's global one.

        Returns:
            (n, L), on the device of the prior where it has parameters.
        """

    def kl(self, q: LatentDistribution, condition: Tensor | None = None) -> Tensor | None:
        """Return KL(q(z|x) || p(z)), or KL(q(z|x, y) || p(z|y)), of each latent variable.

        Args:
            q: Posterior of a batch.
            condition: One-hot classes, (B, cond_features), of a conditional model.

        Returns:
            Nats, (B, L), or one value for each variable of several dimensions.
            None if there is no closed form. The model then estimates the KL from its draws.
        """
        return None

    def marginal_log_prob(self, z: Tensor) -> Tensor | None:
        """Return log p(z_j) of each latent variable, if they are independent of each other.

        Args:
            z: Latents, (B, n, L).

        Returns:
            Nats, (B, n, V), whose sum over the variables is `log_prob`. None for other priors.
        """
        return None

    def marginal_quantiles(self, p: Tensor) -> Tensor:
        """Return quantiles of each latent dimension, for pictures of the latent space.

        Args:
            p: Probabilities, (P,).

        Returns:
            (P, L), estimated from samples unless a subclass knows better.
        """
        condition = None
        if self.cond_features:
            classes = torch.arange(_QUANTILE_SAMPLES) % self.cond_features
            condition = nn.functional.one_hot(classes, self.cond_features).float()
        generator = randomness.generator("quantiles", self.latent_dim)
        with torch.no_grad():
            samples = self.sample(_QUANTILE_SAMPLES, condition, generator).float().cpu()
        return samples.quantile(p.to(samples), dim=0)

    def project(self, z: Tensor) -> Tensor:
        """Return the points of the support that are nearest to vectors, such as means of latents.

        Args:
            z: Vectors, (..., L).

        Returns:
            (..., L): the vectors themselves, unless latents lie in a part of the space only.
        """
        return z

    def geodesic(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor | None:
        """Return latents on the shortest paths between latents, at constant speed.

        Args:
            start: Latents, (..., L).
            end: Latents, (..., L).
            t: Fractions of the way, broadcast with the latents, (..., 1).

        Returns:
            (..., L). None where the space is flat, and a path is a straight line.
        """
        return None

    def tempered(
        self, z: Tensor, temperature: float, condition: Tensor | None = None
    ) -> Tensor | None:
        """Scale the deviations of draws from the mean of the prior by a temperature.

        Args:
            z: What `sample` returned, (n, L).
            temperature: Factor of every standard deviation.
            condition: The classes given to `sample`.

        Returns:
            (n, L). None if that is not defined for this prior.
        """
        return None

    def attach(
        self,
        posterior: Callable[[Tensor], LatentDistribution],
        image_shape: tuple[int, int, int],
    ) -> None:
        """Receive the posterior and the image shape of the model, once, when it is built.

        Args:
            posterior: Map from images (B, C, H, W) to q(z|x), with gradients.
            image_shape: (C, H, W).

        Raises:
            ValueError: If the prior does not suit the model.
        """

    def init_from_data(self, images: TrainingImages) -> None:
        """Initialize the parameters from the training images, before the first update."""


class StandardNormal(Prior):
    """N(0, I).

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`; ignored.

    Example:
        >>> prior = StandardNormal(latent_dim=2)
        >>> prior.sample(5).shape
        torch.Size([5, 2])
        >>> prior.log_prob(torch.zeros(8, 1, 2)).shape
        torch.Size([8, 1])
    """

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`."""
        return standard_normal_log_prob(z)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        return randomness.standard_normal(n, self.latent_dim, generator)

    def tempered(
        self, z: Tensor, temperature: float, condition: Tensor | None = None
    ) -> Tensor | None:
        """See `Prior.tempered`."""
        return temperature * z

    def kl(self, q: LatentDistribution, condition: Tensor | None = None) -> Tensor | None:
        """See `Prior.kl`; exact for Gaussians."""
        return q.standard_normal_kl()

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """See `Prior.marginal_log_prob`."""
        return standard_normal_log_prob(z[..., None])

    def marginal_quantiles(self, p: Tensor) -> Tensor:
        """See `Prior.marginal_quantiles`; exact."""
        return torch.special.ndtri(p)[:, None].expand(-1, self.latent_dim)
