"""Training data that a frozen network has encoded once, instead of images."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vae_lightning.batch import Batch
from vae_lightning.distributed import total

_CHUNK = 256
_IN_MEMORY = 2**29
"""Bytes of features above which they are kept in a file."""


class Features(Dataset[Batch]):
    """Data set of features, with the labels and the order of the images.

    Args:
        images: Number of images; the features are given later, to `fill`.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.x: Tensor | None = None
        self.y: Tensor | None = None

    def fill(self, x: Tensor, y: Tensor | None) -> None:
        """Set the features, (N, ...), and the classes, int64, (N,), None without labels."""
        self.x, self.y = x, y

    def __len__(self) -> int:
        return self.images

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        assert self.x is not None
        index = torch.as_tensor(indices)
        return Batch(self.x[index], None if self.y is None else self.y[index], index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


def encode_images(
    dataset: Any, encode: Callable[[Batch], Tensor], rank: int = 0, processes: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Encode every image of a data set. Each process encodes a part, and all get the whole.

    Args:
        dataset: A data set whose ``__getitems__`` returns batches.
        encode: Map from such a batch to features, (B, ...), of any device.
        rank: Index of this process.
        processes: Number of processes.

    Returns:
        The features, on the CPU: in memory, or in a temporary file if they are large; and the
        classes, None without labels.
    """
    store, labels = None, []
    n, step = len(dataset), _CHUNK * processes
    hidden = True if rank else None  # None: hidden if the output is not a terminal
    for start in tqdm(range(0, n, step), "Encoding images", delay=3, leave=False, disable=hidden):
        end = min(start + step, n)
        batch: Batch = dataset.__getitems__(range(start, end))
        parts = list(batch.split(_CHUNK))
        found = encode(parts[min(rank, len(parts) - 1)])
        if processes > 1:
            # As int64, because not every backend can add small integers.
            wide = found.dtype if found.is_floating_point() else torch.int64
            joined = found.new_zeros(end - start, *found.shape[1:], dtype=wide)
            if rank < len(parts):
                joined[rank * _CHUNK :][: len(found)] = found.to(wide)
            found = total(joined).to(found.dtype)
        if store is None:
            store = _store((n, *found.shape[1:]), found.dtype)
        store[start:end] = found.cpu()
        if batch.y is not None:
            labels.append(batch.y)
    assert store is not None
    return store, torch.cat(labels) if labels else None


def _store(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor, mapped from a temporary file if it is large."""
    empty = torch.empty(0, dtype=dtype)
    if empty.element_size() * np.prod(shape, dtype=np.int64) <= _IN_MEMORY:
        return torch.empty(shape, dtype=dtype)
    # The file has no name, and is deleted when it is no longer mapped.
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, empty.numpy().dtype, "w+", shape=shape))
