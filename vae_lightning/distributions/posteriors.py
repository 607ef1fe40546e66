"""Approximate posteriors q(z|x).

A `Posterior` is a family: a module that maps the features of an encoder to the distribution of a
batch, a `LatentDistribution`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.functional import soft_clamp, standard_normal_kl, standard_normal_log_prob
from vae_lightning.randomness import Noise

REAL = "real vectors"
"""Support of continuous latents; a posterior and a prior have to agree on it."""


Latents = Tensor | tuple[Tensor, ...]
"""Latents of a batch: one tensor (B, ...), or one for each level of a hierarchy."""


class Draws:
    """Latents drawn from q(z|x) and their log-densities.

    Args:
        z: Latents, (B, n, L), or one tensor for each level; gradients flow through them.
        log_prob: Function that returns log q(z|x) in nats, (B, n); called when it is needed.
    """

    def __init__(self, z: Latents, log_prob: Callable[[], Tensor]) -> None:
        self.z: Any = z
        self._log_prob = log_prob

    @cached_property
    def log_prob(self) -> Tensor:
        """Log q(z|x) in nats, (B, n)."""
        return self._log_prob()


class LatentDistribution(ABC):
    """The distribution q(z|x) of the latents of a batch."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of z, (B, L); a point estimate where the mean has no closed form."""

    @property
    def point_estimate(self) -> Latents:
        """The latent that stands for an image when no noise is wanted, (B, L)."""
        return self.mean

    @abstractmethod
    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """Draw reparameterized latents.

        Args:
            noise: Source of all random numbers.
            n: Number of draws per image.
            first: Index of the first draw. Calls with consecutive ``first`` and equal ``noise``
                return the same draws as one call.

        Returns:
            Latents (B, n, L) and their log-densities (B, n).
        """

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters by name, each (B, ...), as ``vae predict`` writes them."""

    def log_prob(self, z: Tensor) -> Tensor | None:
        """Return log q(z|x) of any latents, not only of draws from this distribution.

        Args:
            z: Latents, (B, n, L).

        Returns:
            Nats, (B, n). None if it cannot be computed; measures of the aggregate posterior are
            then left out.
        """
        return None

    def marginal_log_prob(self, z: Tensor) -> Tensor | None:
        """Return the log-densities of the marginals q(z_j|x) of any latents.

        Args:
            z: Latents, (B, n, L).

        Returns:
            Nats of each latent variable, (B, n, V), with V = L unless variables have several
            dimensions. None if they cannot be computed.
        """
        return None

    def normal_kl(self, mu: Tensor, log_var: Tensor) -> Tensor | None:
        """Return KL(q(z|x) || N(mu, diag(exp(log_var)))) of each latent dimension.

        Args:
            mu: Means, (B, L) or (L,).
            log_var: Logarithms of the variances, of the same shape.

        Returns:
            Nats, (B, L), whose sum over the dimensions is the KL. None if it has no closed form.
        """
        return None

    def standard_normal_kl(self) -> Tensor | None:
        """Return KL(q(z|x) || N(0, I)) of each latent dimension, see `normal_kl`."""
        return None


class Posterior(nn.Module, ABC):
    """A family of approximate posteriors.

    Subclasses take ``latent_dim`` first, then their own arguments.

    Args:
        latent_dim: Size L of the latent vector.

    Attributes:
        has_density: Whether `Draws.log_prob` is a density with respect to the prior's measure.
        relaxed_in_training: Whether draws in training mode are relaxed and have no density, unlike
            those in evaluation mode.
        support: What a latent is. A prior must have the same support.
    """

    has_density: bool = True
    relaxed_in_training: bool = False
    support: str = REAL

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Number of features that the encoder has to provide."""

    @abstractmethod
    def forward(self, features: Tensor) -> LatentDistribution:
        """Return q(z|x) for the features of a batch, float32, (B, in_features)."""


class DiagonalGaussian(LatentDistribution):
    """N(mu, diag(exp(log_var))).

    Args:
        mu: Means, (B, L).
        log_var: Logarithms of the variances, (B, L); beyond +-30, bounded smoothly to +-40.

    References:
        Kingma and Welling (2014), section 2.4, https://arxiv.org/abs/1312.6114

    Example:
        >>> q = DiagonalGaussian(mu=torch.zeros(8, 2), log_var=torch.zeros(8, 2))
        >>> draws = q.rsample(Noise(torch.arange(8), "example"), n=5)
        >>> draws.z.shape, draws.log_prob.shape
        (torch.Size([8, 5, 2]), torch.Size([8, 5]))
    """

    def __init__(self, mu: Tensor, log_var: Tensor) -> None:
        self.mu = mu
        self.log_var = soft_clamp(log_var)

    @property
    def mean(self) -> Tensor:
        """See `LatentDistribution.mean`."""
        return self.mu

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """Draw z = mu + sigma * epsilon; see `LatentDistribution.rsample`."""
        size = self.mu.shape[1]
        return self.draws_at(noise.normal(n * size, first * size).view(-1, n, size))

    def draws_at(self, epsilon: Tensor) -> Draws:
        """Return the draws mu + sigma * epsilon for standard normal noise, (B, n, L)."""
        z = torch.addcmul(self.mu[:, None], (0.5 * self.log_var).exp()[:, None], epsilon)
        # From epsilon itself: (z - mu) / sigma loses digits where sigma is small.
        return Draws(z, lambda: self._log_prob(epsilon))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of any latents (B, n, L) in nats, (B, n)."""
        return self._log_prob((z - self.mu[:, None]) * (-0.5 * self.log_var).exp()[:, None])

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z_j|x) of any latents (B, n, L) in nats, (B, n, L)."""
        epsilon = (z - self.mu[:, None]) * (-0.5 * self.log_var).exp()[:, None]
        constant = 0.5 * (self.log_var + math.log(2 * math.pi))
        return -0.5 * epsilon.square() - constant[:, None]

    def _log_prob(self, epsilon: Tensor) -> Tensor:
        return standard_normal_log_prob(epsilon) - 0.5 * self.log_var.sum(1, keepdim=True)

    def normal_kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        """Return KL(q(z|x) || N(mu, diag(exp(log_var)))) of each dimension in nats, (B, L)."""
        return standard_normal_kl((self.mu - mu) * (-0.5 * log_var).exp(), self.log_var - log_var)

    def standard_normal_kl(self) -> Tensor:
        """Return KL(q(z|x) || N(0, I)) of each dimension in nats, (B, L)."""
        return standard_normal_kl(self.mu, self.log_var)

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mu`` and ``log_var``, each (B, L)."""
        return {"mu": self.mu, "log_var": self.log_var}


class GaussianPosterior(Posterior):
    """Gaussian with a diagonal covariance; the encoder provides mu and log_var.

    Args:
        latent_dim: See `Posterior`.

    Example:
        >>> posterior = GaussianPosterior(latent_dim=10)
        >>> posterior(torch.zeros(8, posterior.in_features)).mean.shape
        torch.Size([8, 10])
    """

    @property
    def in_features(self) -> int:
        """Twice the latent size."""
        return 2 * self.latent_dim

    def forward(self, features: Tensor) -> DiagonalGaussian:
        """See `Posterior.forward`."""
        return DiagonalGaussian(*features.chunk(2, dim=1))


class Point(LatentDistribution):
    """All mass on one latent: the code of a deterministic encoder.

    Args:
        z: Latents, (B, L).

    Example:
        >>> Point(torch.ones(8, 2)).mean.shape
        torch.Size([8, 2])
    """

    def __init__(self, z: Tensor) -> None:
        self.z = z

    @property
    def mean(self) -> Tensor:
        """See `LatentDistribution.mean`."""
        return self.z

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """Return the same latent ``n`` times; see `LatentDistribution.rsample`."""

        def no_density() -> Tensor:
            raise ValueError("a deterministic encoder has no density q(z|x)")

        return Draws(self.z[:, None].expand(-1, n, -1), no_density)

    def parameters(self) -> dict[str, Tensor]:
        """Return ``z``, (B, L)."""
        return {"z": self.z}


class DeterministicPosterior(Posterior):
    """No distribution at all: the encoder provides z itself. Such a model has no density.

    Args:
        latent_dim: See `Posterior`.

    Example:
        >>> posterior = DeterministicPosterior(latent_dim=10)
        >>> posterior.in_features, posterior.has_density
        (10, False)
    """

    has_density = False

    @property
    def in_features(self) -> int:
        """The latent size."""
        return self.latent_dim

    def forward(self, features: Tensor) -> Point:
        """See `Posterior.forward`."""
        return Point(features)
