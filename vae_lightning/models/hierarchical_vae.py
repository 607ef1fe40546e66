"""Two-layer VAE (Burda et al., 2016), https://arxiv.org/abs/1509.00519."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import (
    REAL,
    DiagonalGaussian,
    Draws,
    LatentDistribution,
    Latents,
)
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.vae import VAE
from vae_lightning.randomness import Noise


class HierarchicalVAE(VAE):
    """VAE with two stochastic layers: p(z_2) p(z_1|z_2) p(x|z_1) and q(z_1|x) q(z_2|z_1).

    Latents are pairs (z_1, z_2). The prior is one of z_2.

    Args:
        latent_dim: Size of z_1.
        top_dim: Size of z_2.
        hidden: Sizes of the hidden layers between z_1 and z_2, in both directions, with tanh.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``top_dim`` is not positive, or prior and posterior do not fit.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        top_dim: int = 50,
        hidden: Sequence[int] = (100, 100),
        **kwargs: Any,
    ) -> None:
        if top_dim < 1:
            raise ValueError(f"top_dim must be positive, got {top_dim}")
        self._top_dim = top_dim
        super().__init__(latent_dim=latent_dim, **kwargs)
        self.inference_net = _tanh_mlp([latent_dim, *hidden, 2 * top_dim])
        self.generative_net = _tanh_mlp([top_dim, *reversed(hidden), 2 * latent_dim])
        if self.prior.support != REAL:
            raise ValueError(
                f"HierarchicalVAE has {REAL} as latents, but {type(self.prior).__name__} is a "
                f"distribution of {self.prior.support}: choose another prior and posterior"
            )
        super().attach_prior()

    has_closed_form_kl = False

    def attach_prior(self) -> None:
        """Wait until the networks between z_1 and z_2 are there."""

    @property
    def prior_dim(self) -> int:
        """See `VAE.prior_dim`."""
        return self._top_dim

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `GenerativeModel.capabilities`; the latent is a pair, not a vector."""
        return super().capabilities - {
            Capability.LATENT_VECTOR,
            Capability.CONTINUOUS_LATENT,
            Capability.KL_PER_DIMENSION,
        }

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> LatentDistribution:
        """See `VAE.posterior`."""
        return TwoLayerPosterior(super().posterior(x, condition), self.inference_net)

    def log_prior(self, z: Latents, condition: Tensor | None = None) -> Tensor:
        """Return log p(z_2) + log p(z_1|z_2), (B, n)."""
        z_1, z_2 = z
        given = _gaussian(self.generative_net, z_2.flatten(0, 1))
        log_prob: Tensor = self.prior.log_prob(z_2, condition)
        return log_prob + given.log_prob(z_1.flatten(0, 1)[:, None]).view(log_prob.shape)

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """See `GenerativeModel.likelihood_params`; only z_1 matters."""
        return super().likelihood_params(z[0], condition)

    def lower_level(self, z_2: Tensor, epsilon: Tensor) -> Tensor:
        """Return the z_1 that p(z_1|z_2) draws with standard normal noise.

        Args:
            z_2: Latents of the top, (B, top_dim).
            epsilon: Noise, (B, latent_dim); zeros for the mean.
        """
        z_1: Tensor = _gaussian(self.generative_net, z_2).draws_at(epsilon[:, None]).z[:, 0]
        return z_1

    def lower_noise(self, z_1: Tensor, z_2: Tensor) -> Tensor:
        """Return the noise with which `lower_level` gives z_1, (B, latent_dim)."""
        given = _gaussian(self.generative_net, z_2)
        return (z_1 - given.mu) * (-0.5 * given.log_var).exp()

    def sample_latents(
        self, n: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> Latents:
        """See `GenerativeModel.sample_latents`."""
        z_2 = self.prior.sample(n, condition, generator).to(self.device)
        epsilon = torch.randn(n, self.latent_dim, generator=generator).to(self.device)
        return self.lower_level(z_2, epsilon), z_2


class TwoLayerPosterior(LatentDistribution):
    """The distribution q(z_1|x) q(z_2|z_1).

    Args:
        first: q(z_1|x).
        net: Network from z_1 to mu and log_var of z_2.
    """

    def __init__(self, first: LatentDistribution, net: nn.Module) -> None:
        self.first = first
        self.net = net

    @property
    def mean(self) -> Latents:  # type: ignore[override]
        """The mean of z_1, and the mean of z_2 given that."""
        return self.first.mean, _gaussian(self.net, self.first.mean).mu

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """See `LatentDistribution.rsample`."""
        below = self.first.rsample(noise, n, first)
        top = _gaussian(self.net, below.z.flatten(0, 1))
        size = top.mu.shape[1]
        epsilon = noise.normal(n * size, first * size).view(-1, n, size)
        drawn = top.draws_at(epsilon.flatten(0, 1)[:, None])

        def log_prob() -> Tensor:
            return below.log_prob + drawn.log_prob.view(below.log_prob.shape)

        return Draws((below.z, drawn.z.view_as(epsilon)), log_prob)

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters of q(z_1|x), and ``z_2``, the mean given the mean of z_1."""
        return {**self.first.parameters(), "z_2": self.mean[1]}


def _tanh_mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        linear = nn.Linear(before, after)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _gaussian(net: nn.Module, z: Tensor) -> DiagonalGaussian:
    dtype = next(net.parameters()).dtype
    return DiagonalGaussian(*net(z.to(dtype)).float().chunk(2, dim=1))
