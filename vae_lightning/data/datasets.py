"""Data sets that return whole batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.batch import Batch


class Images(NamedTuple):
    """Images held in memory.

    Attributes:
        x: uint8 in [0, 255], or float32 as the model sees them, (N, C, H, W).
        y: Classes, int64, (N,); None without labels.
    """

    x: Tensor
    y: Tensor | None

    def take(self, indices: Tensor) -> "Images":
        """Return the images at ``indices``, (n,)."""
        return Images(self.x[indices], None if self.y is None else self.y[indices])


class InMemory(Dataset[Batch]):
    """Data set that indexes whole batches of one tensor, without work per image.

    Args:
        images: The images.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.x)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        return Batch(*self.images.take(index), index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


class Joined(Dataset[Batch]):
    """Concatenation of two data sets that return whole batches.

    Args:
        first: The first images.
        second: The images after them. Their indices continue those of ``first``.
    """

    def __init__(self, first: Dataset[Batch], second: Dataset[Batch]) -> None:
        self.parts: tuple[Any, Any] = (first, second)

    def __len__(self) -> int:
        return len(self.parts[0]) + len(self.parts[1])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        start = len(self.parts[0])
        places = [(index < start).nonzero()[:, 0], (index >= start).nonzero()[:, 0]]
        batches = [
            part.__getitems__(index[place] - offset)
            for part, place, offset in zip(self.parts, places, (0, start), strict=True)
            if len(place)
        ]
        order = torch.cat(places).argsort()
        labels = [batch.y for batch in batches if batch.y is not None]
        x = torch.cat([batch.x for batch in batches])[order]
        return Batch(x, torch.cat(labels)[order] if labels else None, index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


def to_float(x: Tensor) -> Tensor:
    """Return images as floats: those of 8 bits divided by 255, others as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
