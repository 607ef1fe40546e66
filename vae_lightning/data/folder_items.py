"""Images in files, read as they are needed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.batch import Batch
from vae_lightning.data.datasets import Images
from vae_lightning.errors import UserError
from vae_lightning.images.folder_listing import Paths
from vae_lightning.images.reading import Unreadable
from vae_lightning.nets import ImageShape

Read = Callable[[Path, Sequence[int]], Iterator[Tensor]]
"""Function that reads frames of a file, (C, H, W)."""


class Files(Dataset[Batch]):
    """Data set of images that are read from disk on demand.

    Args:
        files: Files of the N images.
        frames: Numbers of their frames, (N,).
        y: Classes, int64, (N,), or None.
        image_shape: Shape of an image, (C, H, W).
        read: Function that reads frames of a file.
    """

    def __init__(
        self,
        files: Paths,
        frames: Tensor,
        y: Tensor | None,
        image_shape: ImageShape,
        read: Read,
    ) -> None:
        self.files = files
        self.frames = frames
        self.y = y
        self.image_shape = image_shape
        self.read = read

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        try:
            x = torch.stack(list(self._read(indices)))
        except Unreadable as error:  # torch knows no other error of a worker process
            raise UserError(
                f"{error}, or --data.skip_unreadable true trains on the rest"
            ) from error
        return Batch(x, None if self.y is None else self.y[index], index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def read_all(self) -> Images:
        """Read all images, in several threads because decoding releases the GIL.

        Raises:
            UserError: If an image cannot be decoded.
        """
        x = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)

        def read_from(start: int) -> None:
            indices = range(start, min(start + 64, len(self)))
            for i, image in zip(indices, self._read(indices), strict=True):
                x[i] = image

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read_from, range(0, len(self), 64)):
                pass
        return Images(x, self.y)

    def _read(self, indices: Sequence[int]) -> Iterator[Tensor]:
        return read_runs(self.files, self.frames, indices, self.read)


class FolderItems:
    """See `RawItems`: images in the units of their files.

    Args:
        files: Files of the N images.
        frames: Numbers of their frames, (N,).
        shape: Shape of an image, (C, H, W).
        dtype: Type of the values in the files.
        read: Function that reads frames of a file.
    """

    def __init__(
        self,
        files: Paths,
        frames: Tensor,
        shape: ImageShape,
        dtype: np.dtype[Any],
        read: Read,
    ) -> None:
        self.files = files
        self.frames = frames
        self.shape = shape
        self.dtype = dtype
        self.function = read
        self.kept: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def keep(self) -> None:
        """Read all images into memory, in several threads, so that each is decoded once."""
        parts = np.array_split(np.arange(len(self)), max(1, len(self) // 64))
        with ThreadPoolExecutor() as pool:
            self.kept = np.concatenate([*pool.map(self.read, parts)])

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """See `RawItems.read`."""
        if self.kept is not None:
            return self.kept[indices]
        images = read_runs(self.files, self.frames, indices.tolist(), self.function)
        return torch.stack(list(images)).numpy()

    def name(self, index: int) -> str:
        """Return the path of an image in the folder, with the number of a later frame."""
        frame = int(self.frames[index])
        name = self.files[index].relative_to(self.files.root)
        return f"{name}[{frame}]" if frame else str(name)


def read_runs(files: Paths, frames: Tensor, indices: Sequence[int], read: Read) -> Iterator[Tensor]:
    """Read images, and open a file once for successive frames."""

    def run(place: int) -> tuple[Path, int]:
        # Successive frames of a file have increasing numbers, like their places.
        return files[indices[place]], int(frames[indices[place]]) - place

    for (path, _), places in groupby(range(len(indices)), run):
        yield from read(path, [int(frames[indices[place]]) for place in places])
