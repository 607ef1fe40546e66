"""The batch that this package's data modules yield and its models take."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_KEYS = ("x", "image", "images"), ("y", "label", "labels")
"""Keys of images and labels in batches that are dictionaries."""


class Batch(NamedTuple):
    """Images with what is known about them.

    Attributes:
        x: Images as the model sees them, float, (B, C, H, W), usually in [0, 1]; before they reach
            it, they may be uint8 in [0, 255].
        y: Class of each image, int64, (B,); None for data without labels.
        indices: Place of each image in its split, int64, (B,).
    """

    x: Tensor
    y: Tensor | None
    indices: Tensor

    def split(self, size: int) -> "Iterator[Batch]":
        """Batches of ``size`` images, the last one of what is left."""
        for start in range(0, len(self.x), size):
            part = slice(start, start + size)
            yield Batch(self.x[part], None if self.y is None else self.y[part], self.indices[part])

    @classmethod
    def of(cls, batch: Any, first_index: int = 0) -> "Batch":
        """Accept what other loaders yield as well.

        Args:
            batch: ``x``, ``(x,)``, ``(x, y)``, a dictionary with ``x`` or ``image`` and, with
                labels, ``y`` or ``label``, or a `Batch`.
            first_index: Index of the first image, for batches that carry no indices.

        Raises:
            TypeError: If it is none of these.
        """
        if isinstance(batch, cls):
            return batch
        if isinstance(batch, Mapping):
            parts = [batch[key] for keys in _KEYS for key in keys if key in batch]
            if not any(key in batch for key in _KEYS[0]):
                parts = []
        else:
            parts = list(batch) if isinstance(batch, tuple | list) else [batch]
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(
                "a batch must be images, (images, labels), a dictionary with x and y, or a Batch, "
                f"all of them tensors, got {_described(batch)}: let the data set return these"
            )
        x, y = (*parts, None)[:2]
        return cls(x, y, torch.arange(first_index, first_index + len(x), device=x.device))


def _described(batch: Any) -> str:
    """Return what a batch is made of, for messages."""
    name = type(batch).__name__
    if isinstance(batch, tuple | list):
        return f"a {name} of ({', '.join(type(part).__name__ for part in batch)})"
    if isinstance(batch, dict):
        return f"a {name} with {', '.join(map(str, batch))}"
    return f"a {name}"
