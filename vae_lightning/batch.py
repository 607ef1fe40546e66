"""The batch that this package's data modules yield and its models take."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Images with what is known about them.

    Attributes:
        x: Images in [0, 1], float, (B, C, H, W); uint8 in [0, 255] before they reach the model.
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
        """Accept what other data modules yield as well: ``x``, ``(x, y)`` or a `Batch`.

        Args:
            batch: A batch.
            first_index: Index of the first image, for batches that carry no indices.

        Raises:
            TypeError: If it is none of the three.
        """
        if isinstance(batch, cls):
            return batch
        x, y = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
        if not isinstance(x, Tensor) or not (y is None or isinstance(y, Tensor)):
            raise TypeError(
                f"a batch must be images, (images, labels) or a Batch, got {type(batch).__name__}"
            )
        return cls(x, y, torch.arange(first_index, first_index + len(x), device=x.device))
