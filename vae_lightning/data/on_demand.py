"""Images that stay on disk: data sets that read a batch at a time, and files that serve it fast."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.batch import Batch
from vae_lightning.data.base import Images
from vae_lightning.data.cache import cache_folder
from vae_lightning.errors import UserError
from vae_lightning.nets import ImageShape

_ROWS = 64
"""Images that a thread reads at once."""


class OnDemand(Dataset[Batch]):
    """Data set that reads images when they are asked for.

    Args:
        read: Function that returns the images at positions (n,), uint8, (n, C, H, W). It is sent to
            the processes that load images, so it should hold no images.
        positions: Position of each image, int64, (N,).
        y: Classes, int64, (N,), or None.
    """

    def __init__(
        self, read: Callable[[Tensor], Tensor], positions: Tensor, y: Tensor | None = None
    ) -> None:
        self.read = read
        self.positions = positions
        self.y = y

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        x = self.read(self.positions[index])
        return Batch(x, None if self.y is None else self.y[index], index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def read_all(self, image_shape: ImageShape) -> Images:
        """Read all images, in several threads because decoding releases the GIL."""
        x = torch.empty(len(self), *image_shape, dtype=torch.uint8)

        def read_from(start: int) -> None:
            x[start : start + _ROWS] = self.read(self.positions[start : start + _ROWS])

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read_from, range(0, len(self), _ROWS)):
                pass
        return Images(x, self.y)


@dataclass(frozen=True)
class StoredImages:
    """Uncompressed images in one file, which is mapped into memory.

    Memory holds only the images that are asked for. The operating system keeps the others as far as
    there is room, once for all processes.

    Attributes:
        path: NumPy file, uint8, (N, bytes of an image).
        image_shape: Shape of an image, (C, H, W).
        is_binary: Whether pixels are 0 or 255 and stored with one bit.
    """

    path: Path
    image_shape: ImageShape
    is_binary: bool = False

    @classmethod
    def store(
        cls,
        name: str,
        size: int,
        image_shape: ImageShape,
        is_binary: bool,
        parts: Callable[[], Iterable[NDArray[np.uint8]]],
    ) -> "StoredImages":
        """Store images in the cache folder unless they are there.

        Args:
            name: Name of the file, which has to change with everything that the images depend on.
            size: Number of images.
            image_shape: Shape of an image, (C, H, W).
            is_binary: Whether pixels are 0 or 255.
            parts: Function that yields the images in their order, a few at a time, uint8,
                (n, C, H, W).

        Raises:
            ValueError: If there are more or fewer images, or they have another shape.
            UserError: If the file cannot be written.
        """
        stored = cls(cache_folder() / f"{name}.npy", image_shape, is_binary)
        pixels = math.prod(image_shape)
        shape = (size, -(-pixels // 8) if is_binary else pixels)
        if not _is_complete(stored.path, shape):
            gigabytes = f"{math.prod(shape) / 1e9:.1f} GB"
            _write(stored.path, shape, gigabytes, (stored._rows(part) for part in parts()))
        return stored

    def __call__(self, positions: Tensor) -> Tensor:
        """Return the images at positions (n,), uint8, (n, C, H, W)."""
        # Mapped again every time, so that nothing but the path is sent to other processes.
        rows = np.load(self.path, mmap_mode="r")[positions.numpy()]
        if self.is_binary:
            rows = 255 * np.unpackbits(rows, axis=1, count=math.prod(self.image_shape))
        return torch.from_numpy(rows).view(-1, *self.image_shape)

    def _rows(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if images.shape[1:] != self.image_shape or images.dtype != np.uint8:
            raise ValueError(f"found {images.dtype} images of shape {images.shape[1:]}")
        rows = images.reshape(len(images), -1)
        if not self.is_binary:
            return rows
        if ((rows > 0) & (rows < 255)).any():
            raise ValueError("found pixels that are neither black nor white")
        return np.packbits(rows, axis=1)


def _is_complete(path: Path, shape: tuple[int, int]) -> bool:
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):  # missing or damaged
        return False


def _close(file: IO[bytes]) -> None:
    """Close a file that has been flushed, or could not be, which closing it would say again."""
    with contextlib.suppress(OSError):
        file.close()


def _write(
    path: Path, shape: tuple[int, int], gigabytes: str, parts: Iterable[NDArray[np.uint8]]
) -> None:
    """Write rows so that the file is either complete or missing."""

    @contextlib.contextmanager
    def writing() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{path} ({gigabytes}) could not be written ({error.strerror}): set "
                "XDG_CACHE_HOME to a folder with enough space"
            ) from error

    partial = path.with_name(f"{path.name}.{os.getpid()}")
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    count = 0
    try:
        with contextlib.ExitStack() as stack:
            with writing():
                path.parent.mkdir(parents=True, exist_ok=True)
                # Not a memory map: a full disk would kill the process.
                file = open(partial, "wb")  # noqa: SIM115
                stack.callback(_close, file)
                np.lib.format.write_array_header_1_0(file, header)
            for rows in parts:  # whose errors are not about this file
                if not count:
                    print(f"Unpacking to {path} ({gigabytes}, once)", flush=True)
                count += len(rows)
                with writing():
                    file.write(rows.tobytes())
            with writing():
                file.flush()
        if count != shape[0]:
            raise ValueError(f"found {count} images instead of {shape[0]}")
        with writing():
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
