"""Two-layer VAE (Burda et al., 2016), https://arxiv.org/abs/1509.00519."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import (
    DiagonalGaussian,
    Draws,
    LatentDistribution,
    Latents,
)
from vae_lightning.models.hierarchy import Choose, Hierarchy
from vae_lightning.randomness import Noise


class HierarchicalVAE(Hierarchy):
    """VAE with two stochastic layers: p(z_2) p(z_1|z_2) p(x|z_1) and q(z_1|x) q(z_2|z_1).

    Latents are pairs (z_1, z_2). The prior is one of z_2. The posterior goes from the image
    upwards; `LadderVAE` has one that goes down, as the prior does.

    Args:
        latent_dim: Size of z_1.
        top_dim: Size of z_2.
        hidden: Sizes of the hidden layers between z_1 and z_2, in both directions, with tanh.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``top_dim`` is not positive, or prior and posterior do not fit.

    References:
        Burda et al. (2016), Importance weighted autoencoders, https://arxiv.org/abs/1509.00519

    Example:
        >>> z_1, z_2 = HierarchicalVAE(latent_dim=8, top_dim=4).embed(torch.rand(3, 1, 28, 28))
        >>> z_1.shape, z_2.shape
        (torch.Size([3, 8]), torch.Size([3, 4]))
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
        self.level_sizes = latent_dim, top_dim
        super().__init__(latent_dim=latent_dim, **kwargs)
        self.inference_net = _tanh_mlp([latent_dim, *hidden, 2 * top_dim])
        self.generative_net = _tanh_mlp([top_dim, *reversed(hidden), 2 * latent_dim])
        self.attach_top()

    @property
    def decoded_sizes(self) -> tuple[int, ...]:
        """See `Hierarchy.decoded_sizes`: z_1 only."""
        return self.level_sizes[:1]

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> LatentDistribution:
        """See `VAE.posterior`."""
        return TwoLayerPosterior(super().posterior(x, condition), self.inference_net)

    def top_down(self, choose: Choose, n: int, condition: Tensor | None) -> Tensor:
        """See `Hierarchy.top_down`; returns z_1."""
        nothing = torch.empty(n, 0, device=self.device)
        z_2 = choose(1, None, nothing)
        return choose(0, _gaussian(self.generative_net, z_2), nothing)

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """See `GenerativeModel.likelihood_params`; needs no other level."""
        return self.decode_state(z[0], condition)


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
