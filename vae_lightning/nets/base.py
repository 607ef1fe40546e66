"""Base classes of encoders and decoders, and functions that they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

_FEWEST_LEVELS = 2
_LARGEST_MAP = 64
"""Limits of `levels_for`: the fewest levels, and the most positions of the smallest map."""


class Encoder(nn.Module, ABC):
    """Map images to features.

    Subclasses take the three arguments below first, then their own.

    Args:
        image_shape: Shape of an image, (C, H, W).
        out_features: Number of output features.
        cond_features: Size of the condition (a one-hot class), 0 without a condition.
    """

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            x: Images, (B, C, H, W).
            condition: Condition of each image, (B, cond_features).

        Returns:
            Features, (B, out_features), or a feature map, (B, out_features, h, w).
        """


class Decoder(nn.Module, ABC):
    """Map latents to the parameters of a likelihood.

    Subclasses take the three arguments below first, then their own.

    Args:
        image_shape: Shape of the output, (C, H, W), where C includes all parameters per channel.
        in_features: Size of the latent.
        cond_features: Size of the condition (a one-hot class), 0 without a condition.
    """

    @abstractmethod
    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Decode latents.

        Args:
            z: Latents, (B, in_features) or (B, in_features, h, w).
            condition: Condition of each latent, (B, cond_features).

        Returns:
            Parameters of the likelihood, (B, C, H, W).
        """

    def start_at(self, params: Tensor) -> None:
        """Set the bias of the last layer, so that an untrained decoder returns about ``params``.

        Args:
            params: Parameters of the likelihood for one image, (C, H, W).

        Raises:
            ValueError: If the decoder has no bias per pixel.
        """
        raise ValueError(
            f"{type(self).__name__} cannot start at the mean image, because it has no bias for "
            "each pixel: leave out init_bias_from_data, or use MLPDecoder"
        )


def positive(owner: object, **sizes: int | Sequence[int]) -> None:
    """Check that arguments of a module are positive.

    Args:
        owner: The module, whose class is named in the error message.
        **sizes: Sizes, or sequences of sizes, by name.

    Raises:
        ValueError: If a size is not positive or a sequence is empty.
    """
    for name, size in sizes.items():
        values = [size] if isinstance(size, int) else size
        if not values or any(value < 1 for value in values):
            raise ValueError(f"{type(owner).__name__}: {name} must be positive, got {size}")


def concatenate(x: Tensor, condition: Tensor | None) -> Tensor:
    """Append a condition to features, or as constant channels to maps.

    Args:
        x: Features, (B, N), or maps, (B, C, H, W).
        condition: Condition, (B, K), or None to return ``x`` unchanged.

    Returns:
        (B, N + K) or (B, C + K, H, W).

    Example:
        >>> concatenate(torch.rand(2, 3, 8, 8), torch.eye(2)).shape
        torch.Size([2, 5, 8, 8])
    """
    if condition is None:
        return x
    condition = condition.to(x.dtype)
    if x.ndim == 4:
        condition = condition[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, condition], dim=1)


def levels_for(height: int, width: int) -> int:
    """Return how often a convolutional network halves an image before a linear layer.

    The map at the end has at most 64 positions, 8x8 for a square image, so that the linear layer
    does not grow with the image. Signals (height 1) end with up to 64 positions, too: the layer has
    the same size, and the network is less deep than one that goes on to 8. Images up to 32x32 are
    halved twice.

    Example:
        >>> [levels_for(size, size) for size in (8, 28, 32, 64, 128, 256)]
        [2, 2, 2, 3, 4, 5]
        >>> levels_for(1, 10_000)
        8
    """
    levels = _FEWEST_LEVELS
    while math.prod(halved_sizes(height, width, levels)[-1]) > _LARGEST_MAP:
        levels += 1
    return levels


def halved_sizes(height: int, width: int, times: int) -> list[tuple[int, int]]:
    """Return the sizes of a map after 0, 1, ... ``times`` halvings, with odd sizes rounded up.

    Example:
        >>> halved_sizes(28, 28, 3)
        [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    sizes = [(height, width)]
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes
