"""From images to tiles: how large they are, and what they look like."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.plotting.channels import to_rgb
from vae_lightning.plotting.checks import check_images
from vae_lightning.plotting.signals import MAX_OVERLAID, draw_signals, is_signal
from vae_lightning.plotting.style import (
    GAP,
    MAX_HEIGHT,
    MAX_TILE,
    MAX_WIDTH,
    MISSING,
    Pixels,
    styled,
)

_LONG = 256
"""Number of values from which signals get wider tiles."""

# Sizes of the tiles of signals in pixels.
_MAX_HEIGHT = 88
_MIN_HEIGHT, _MIN_WIDTH = 16, 24
_MAX_WIDTH, _MAX_WIDTH_LONG = 132, 264
_LANE, _MAX_HEIGHT_OF_LANES = 15, 264  # of channels one above the other


def is_long(images: Tensor) -> bool:
    """Return whether images (..., C, H, W) are signals that need wide tiles."""
    return is_signal(images) and images.shape[-1] > _LONG


class Scale(ABC):
    """The size of the tiles of images."""

    gap: int
    """Space between tiles, in pixels."""
    seam: int
    """Space between tiles that make up one picture."""

    @abstractmethod
    def tiles(self, images: Tensor) -> Pixels:
        """Convert images (..., C, H, W) to RGB tiles (..., h, w, 3) in figure pixels."""

    @staticmethod
    def fit(images: Tensor, rows: int, columns: int, width: int, height: int) -> Scale:
        """Return the largest scale at which rows x columns images fit into width x height."""
        if is_signal(images):
            return CurveScale.fill(images, width // columns, height // rows)
        width, height = max(1, width - GAP * columns), max(1, height - GAP * rows)
        total_height, total_width = images.shape[-2] * rows, images.shape[-1] * columns
        zoom = min(width // total_width, height // total_height, MAX_TILE // max(images.shape[-2:]))
        if zoom >= 1:
            return PixelScale(zoom=zoom)
        shrink = max(math.ceil(total_width / width), math.ceil(total_height / height))
        return PixelScale(shrink=shrink)


@dataclass(frozen=True)
class PixelScale(Scale):
    """Integer factors between image pixels and figure pixels, of which at least one is 1."""

    zoom: int = 1
    shrink: int = 1
    gap = GAP
    seam = 0

    def tiles(self, images: Tensor) -> Pixels:
        """See `Scale.tiles`. The colors are those of `to_rgb`."""
        flat = to_rgb(images.reshape(-1, *images.shape[-3:]).clamp(0, 1))
        if self.shrink > 1:
            flat = F.avg_pool2d(flat, self.shrink, ceil_mode=True)
        values = flat.movedim(1, -1).numpy()
        missing = np.isnan(values).any(axis=-1)
        tiles = np.rint(np.nan_to_num(values) * 255).astype(np.uint8)
        tiles[missing] = MISSING
        tiles = tiles.repeat(self.zoom, axis=1).repeat(self.zoom, axis=2)
        return tiles.reshape(*images.shape[:-3], *tiles.shape[1:])


@dataclass(frozen=True)
class CurveScale(Scale):
    """The size of the tiles of signals in pixels."""

    width: int
    height: int
    gap = seam = 4  # curves that touch would look like one

    def tiles(self, images: Tensor) -> Pixels:
        """See `Scale.tiles`; the images have one row."""
        signals = images.reshape(-1, images.shape[-3], images.shape[-1]).double().numpy()
        tiles = draw_signals(signals, self.width, self.height)
        return tiles.reshape(*images.shape[:-3], *tiles.shape[1:])

    @classmethod
    def fill(cls, images: Tensor, width: int, height: int) -> CurveScale:
        """Return the size of tiles of (..., C, 1, D) that fill width x height, up to a maximum."""
        channels = images.shape[-3]
        max_width = _MAX_WIDTH_LONG if is_long(images) else _MAX_WIDTH
        max_height = _MAX_HEIGHT
        if channels > MAX_OVERLAID:
            max_height = min(max(_LANE * channels, _MAX_HEIGHT), _MAX_HEIGHT_OF_LANES)
        width = max(_MIN_WIDTH, min(width - cls.gap, max_width))
        max_height = min(max_height, round(width * max_height / _MAX_WIDTH))
        height = max(_MIN_HEIGHT, min(height - cls.gap, max_height))
        return cls(min(width, 3 * height), height)

    def overlaid(self, originals: Tensor, reconstructed: Tensor) -> Pixels:
        """Draw signals (N, C, 1, D) in front of their originals, as tiles (N, h, w, 3)."""
        behind, front = (x[:, :, 0].double().numpy() for x in (originals, reconstructed))
        return draw_signals(front, self.width, self.height, behind)


@styled
def pictures(images: Tensor, *, zoom: int = 1) -> Pixels:
    """Convert each image to the pixels that figures show of it, such as for a file of its own.

    Args:
        images: Images in [0, 1], (N, C, H, W). Signals, which have H = 1, become curves on 132 x 88
            pixels, or 264 x 88 if they are long.
        zoom: Factor by which images are enlarged; curves keep their size.

    Returns:
        Red, green and blue, uint8, (N, h, w, 3).

    Raises:
        ValueError: If the shape or dtype of ``images`` is wrong or ``zoom`` is less than 1.

    Example:
        >>> import torch
        >>> pictures(torch.rand(5, 4, 28, 28), zoom=2).shape
        (5, 56, 56, 3)
        >>> pictures(torch.rand(5, 1, 1, 100)).shape
        (5, 88, 132, 3)
    """
    images = check_images("pictures", "images", images, "N C H W")
    if zoom < 1:
        raise ValueError(f"pictures: zoom is {zoom}, pass at least 1.")
    if is_signal(images):
        return CurveScale.fill(images, MAX_WIDTH, MAX_HEIGHT).tiles(images)
    return PixelScale(zoom=zoom).tiles(images)
