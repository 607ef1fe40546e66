"""What every encoder and decoder has in common, and the pieces they share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ImageShape = tuple[int, int, int]
"""Channels, height, width."""


class Encoder(nn.Module, ABC):
    """Maps images to features; subclasses take these three arguments first, then their own.

    Args:
        image_shape: (C, H, W) of the images.
        features: Size of the output.
        condition_features: Size of the condition (a one-hot class), 0 if there is none.
    """

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Encode images (B, C, H, W), seen with a condition (B, condition_features).

        Returns:
            (B, features), or (B, features, h, w) from encoders that keep a map.
        """


class Decoder(nn.Module, ABC):
    """Maps latents to the parameters of a likelihood; arguments as for `Encoder`.

    Args:
        image_shape: (C, H, W) of the output; C counts the parameters of the likelihood.
        features: Size of the latent.
        condition_features: Size of the condition (a one-hot class), 0 if there is none.
    """

    @abstractmethod
    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Decode latents (B, features) or (B, features, h, w) to (B, C, H, W)."""

    def start_at(self, params: Tensor) -> None:
        """Set the bias of the last layer, so that an untrained decoder returns about ``params``.

        Args:
            params: Parameters of the likelihood for one image, (C, H, W).

        Raises:
            ValueError: If this decoder cannot.
        """
        raise ValueError(
            f"{type(self).__name__} cannot start at the mean image, having no bias for each pixel: "
            "leave out start_at_mean, or choose MLPDecoder"
        )


def positive(owner: object, **sizes: int | Sequence[int]) -> None:
    """Check that sizes given by a user are positive.

    Raises:
        ValueError: With the class and the name of the first size that is not.
    """
    for name, size in sizes.items():
        values = [size] if isinstance(size, int) else size
        if not values or any(value < 1 for value in values):
            raise ValueError(f"{type(owner).__name__}: {name} must be positive, got {size}")


def concatenate(x: Tensor, condition: Tensor | None) -> Tensor:
    """Append a condition (B, K) to features (B, N), or as constant channels to maps (B, C, H, W).

    Without a condition, ``x`` comes back as it is.
    """
    if condition is None:
        return x
    condition = condition.to(x.dtype)
    if x.ndim == 4:
        condition = condition[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, condition], dim=1)


def halved_sizes(height: int, width: int, times: int) -> list[tuple[int, int]]:
    """Sizes of a map after 0, 1, ... ``times`` layers with stride 2, odd sizes rounded up."""
    sizes = [(height, width)]
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes
