"""Networks of a hierarchy of convolutional latents: a bottom-up and a top-down pass.

No layer is normalized: residual blocks start small instead, so that the variance of a map does not
grow with the depth.

References:
    Child (2021), Very deep VAEs generalize autoregressive models and can outperform them on images,
    https://arxiv.org/abs/2011.10650
    Vahdat and Kautz (2020), NVAE: a deep hierarchical variational autoencoder,
    https://arxiv.org/abs/2007.03898
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vae_lightning.nets.base import ImageShape, concatenate, halved_sizes
from vae_lightning.nets.layers import UpConv, channels_last, convolution, he_initialize

_SMALL = 0.1
"""Factor of the initial weights of what a group's prior and posterior return: both start near
N(0, I), and the KL near 0."""


class GroupShape(NamedTuple):
    """Where a group of latents is.

    Attributes:
        resolution: Number of times that the image is halved, at least 1.
        channels: Channels of its map.
        height: Height of its map.
        width: Width of its map.
    """

    resolution: int
    channels: int
    height: int
    width: int


def group_shapes(
    image_shape: ImageShape, groups: Sequence[int], latent_channels: int
) -> list[GroupShape]:
    """Return the shapes of all groups of latents, from the lowest (the largest map) to the top.

    Args:
        image_shape: Shape of an image, (C, H, W).
        groups: Number of groups at each resolution, from half of the image's on.
        latent_channels: Channels of each map.

    Example:
        >>> [shape[2:] for shape in group_shapes((1, 28, 28), [1, 2], 4)]
        [(14, 14), (7, 7), (7, 7)]
    """
    sizes = halved_sizes(*image_shape[1:], len(groups))[1:]
    return [
        GroupShape(resolution, latent_channels, *size)
        for resolution, (size, number) in enumerate(zip(sizes, groups, strict=True), 1)
        for _ in range(number)
    ]


class Bottleneck(nn.Module):
    """Four convolutions with SiLU before each: 1x1 to fewer channels, two of 3x3, and 1x1.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels in between.
        scale: Factor of the initial weights of the last convolution.
        is_signal: Whether maps are signals, with a height of 1; see `convolution`.
    """

    def __init__(
        self, channels: int, out_channels: int, hidden: int, scale: float, is_signal: bool = False
    ) -> None:
        super().__init__()
        last = nn.Conv2d(hidden, out_channels, 1)
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, hidden, 1),
            nn.SiLU(),
            convolution(hidden, hidden, 3, is_signal=is_signal),
            nn.SiLU(),
            convolution(hidden, hidden, 3, is_signal=is_signal),
            nn.SiLU(),
            last,
        )
        he_initialize(self.layers)
        nn.init.normal_(last.weight, std=scale * (2 / hidden) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, out_channels, h, w)."""
        output: Tensor = self.layers(x)
        return output


class BottomUp(nn.Module):
    """Deterministic pass from the image up: a map for every resolution.

    Args:
        image_shape: Shape of an image, (C, H, W).
        out_features: Channels of all maps.
        cond_features: Size of the condition (a one-hot class), 0 without a condition. It is
            appended as constant input channels.
        hidden: Channels inside the residual blocks.
        blocks: Number of residual blocks at each resolution, from half of the image's on.

    Example:
        >>> maps = BottomUp((1, 28, 28), 16, blocks=(1, 1))(torch.rand(2, 1, 28, 28))
        >>> [tuple(x.shape) for x in maps]
        [(2, 16, 14, 14), (2, 16, 7, 7)]
    """

    def __init__(
        self,
        image_shape: ImageShape,
        out_features: int,
        cond_features: int = 0,
        hidden: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        is_signal = image_shape[1] == 1
        scale = max(sum(blocks), 1) ** -0.5
        before = image_shape[0] + cond_features
        self.halvings = nn.ModuleList(
            convolution(out_features if i else before, out_features, 3 if i else 5, 2, is_signal)
            for i in range(len(blocks))
        )
        he_initialize(self.halvings)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                Bottleneck(out_features, out_features, hidden, scale, is_signal)
                for _ in range(number)
            )
            for number in blocks
        )

    def forward(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the maps of images (B, C, H, W), from the largest to the smallest."""
        x = channels_last(concatenate(x, condition))
        maps = []
        for halving, blocks in zip(self.halvings, self.blocks, strict=True):
            x = halving(x)
            for block in cast(nn.ModuleList, blocks):
                x = x + block(x)
            maps.append(x)
        return maps


class Group(nn.Module):
    """What belongs to one group of latents in the top-down pass.

    Args:
        shape: Shape of its map.
        channels: Channels of the state.
        hidden: Channels inside the residual blocks.
        scale: Factor of the initial weights of the last convolution of a residual branch.
        has_prior: Whether the group has a prior given the state; the top one has not.
        is_signal: Whether maps are signals, with a height of 1.
    """

    def __init__(
        self,
        shape: GroupShape,
        channels: int,
        hidden: int,
        scale: float,
        has_prior: bool,
        is_signal: bool,
    ) -> None:
        super().__init__()
        self.shape = shape
        size = 2 * shape.channels
        # What is known of z beforehand adds to the state, too, so the prior has more outputs.
        self.prior = (
            Bottleneck(channels, size + channels, hidden, _SMALL, is_signal) if has_prior else None
        )
        self.posterior = Bottleneck(2 * channels, size, hidden, _SMALL, is_signal)
        self.project = nn.Conv2d(shape.channels, channels, 1)
        nn.init.normal_(self.project.weight, std=scale / shape.channels**0.5)
        self.block = Bottleneck(channels, channels, hidden, scale, is_signal)

    def prior_of(self, state: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the parameters of the prior, (B, 2 L), None for the top, and the state after."""
        if self.prior is None:
            return None, state
        parameters, more = self.prior(state).split([2 * self.shape.channels, state.shape[1]], 1)
        return parameters.flatten(1), state + more

    def posterior_of(self, state: Tensor, features: Tensor) -> Tensor:
        """Return the parameters of the posterior, (B, 2 L), given a map of `BottomUp`."""
        parameters: Tensor = self.posterior(torch.cat([state, features], 1))
        return parameters.flatten(1)

    def add(self, state: Tensor, z: Tensor) -> Tensor:
        """Return the state after the latents z, (B, L)."""
        state = state + self.project(channels_last(z.unflatten(1, self.shape[1:])))
        after: Tensor = state + self.block(state)
        return after


class TopDown(nn.Module):
    """Pass from the top level down to the image: a state that the groups of latents add to.

    Args:
        params_shape: Shape of the parameters of the likelihood, (C, H, W).
        in_features: Number of latents of all groups; not used.
        cond_features: Size of the condition (a one-hot class), 0 without a condition. It adds to
            the state at each resolution.
        channels: Channels of the state at all resolutions.
        hidden: Channels inside the residual blocks.
        groups: Shapes of the groups, the lowest first.
        resolutions: Number of resolutions.
    """

    def __init__(
        self,
        params_shape: ImageShape,
        in_features: int,
        cond_features: int = 0,
        channels: int = 32,
        hidden: int = 16,
        groups: Sequence[GroupShape] = (),
        resolutions: int = 3,
    ) -> None:
        super().__init__()
        out_channels, height, width = params_shape
        is_signal = height == 1
        self.sizes = halved_sizes(height, width, resolutions)
        scale = max(len(groups), 1) ** -0.5
        self.groups = nn.ModuleList(
            Group(shape, channels, hidden, scale, i < len(groups) - 1, is_signal)
            for i, shape in enumerate(groups)
        )
        self.start = nn.Parameter(0.1 * torch.randn(channels, *self.sizes[-1]))
        self.doublings = nn.ModuleList(
            UpConv(channels, channels if i else hidden, is_signal) for i in range(resolutions)
        )
        he_initialize(self.doublings)
        self.conditions = nn.ModuleList(
            nn.Linear(cond_features, channels, bias=False)
            for _ in range(resolutions if cond_features else 0)
        )
        self.head = nn.Sequential(
            nn.SiLU(), convolution(hidden, out_channels, 3, is_signal=is_signal)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels, height, width))

    def begin(self, n: int, condition: Tensor | None) -> Tensor:
        """Return the state before the top level, (n, channels, h, w)."""
        state = channels_last(self.start.expand(n, -1, -1, -1))
        return self._conditioned(state, len(self.sizes) - 1, condition)

    def enlarge(self, state: Tensor, resolution: int, condition: Tensor | None) -> Tensor:
        """Return the state at a resolution, given that at the next smaller one."""
        height, width = self.sizes[resolution]
        up = self.doublings[resolution](state)[:, :, :height, :width]
        return self._conditioned(up, resolution, condition) if resolution else up

    def _conditioned(self, state: Tensor, resolution: int, condition: Tensor | None) -> Tensor:
        if condition is None:
            return state
        return state + self.conditions[resolution - 1](condition)[:, :, None, None]

    def parameters_of(self, state: Tensor) -> Tensor:
        """Return the parameters of the likelihood, (B, C, H, W), given the state below all levels.

        Args:
            state: The state at half of the resolution of the image.
        """
        params: Tensor = self.head(self.enlarge(state, 0, None))
        return params + self.bias

    def start_at(self, params: Tensor) -> None:
        """See `Decoder.start_at`."""
        self.bias.data.copy_(params)
