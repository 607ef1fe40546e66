"""MNIST and data sets in the same file format.

References:
    LeCun et al. (1998), Gradient-based learning applied to document recognition (MNIST)
    Xiao et al. (2017), Fashion-MNIST, https://arxiv.org/abs/1708.07747
    Clanuwat et al. (2018), Deep learning for classical Japanese literature (KMNIST),
    https://arxiv.org/abs/1812.01718
"""

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.batch import Batch
from vae_lightning.data.base import (
    ImageData,
    Images,
    InMemory,
    data_root,
    size_of_split,
    split_indices,
)
from vae_lightning.errors import UserError
from vae_lightning.files import read_data_file
from vae_lightning.images.folder_listing import Split
from vae_lightning.nets import ImageShape

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class MNIST(ImageData):
    """Handwritten digits, 28x28 gray: 55,000 / 5,000 / 10,000 images.

    The files are those of torchvision, ``<root>/MNIST/raw/*-ubyte``, optionally gzipped. Missing
    files are downloaded once. If all files exist, nothing is written or downloaded.

    Args:
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        val_size: Number of images of the training file that are used for validation.
        **kwargs: See `ImageData`.
    """

    source: type[torchvision.datasets.MNIST] = torchvision.datasets.MNIST
    image_shape: ImageShape = (1, 28, 28)
    num_classes: int = 10
    class_names: Sequence[str] = tuple("0123456789")

    def __init__(self, root: str | None = None, val_size: int = 5000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = data_root(root)
        self.val_size = val_size

    @property
    def folder(self) -> Path:
        """Folder of the files, in torchvision's layout."""
        return self.root / self.source.__name__ / "raw"

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        return size_of_split(split, 60_000, self.val_size, 10_000)

    def prepare_data(self) -> None:
        """Download missing files; called in one process only."""
        if all(self._find(name) for names in _FILES.values() for name in names):
            return
        # To a temporary folder, so that an interrupted download leaves no partial files and
        # existing files are not overwritten.
        with tempfile.TemporaryDirectory() as temporary:
            try:
                self.source(temporary, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{self.folder} lacks files of {self.source.__name__}, and they "
                    f"could not be downloaded ({str(error).strip().splitlines()[0].rstrip(':')}): "
                    f"put {', '.join(f'{name}.gz' for name in sum(_FILES.values(), ()))} there, "
                    f"set --data.root or VAE_DATA_ROOT to the folder that contains "
                    f"{self.source.__name__}/raw, or use --data Digits, which needs no files"
                ) from error
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in sum(_FILES.values(), ()):
                if self._find(name) is None:
                    path = self.folder / name
                    partial = path.with_name(f"{name}.{os.getpid()}")
                    shutil.copyfile(Path(temporary, self.source.__name__, "raw", name), partial)
                    partial.replace(path)

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If a file is missing, truncated or corrupt.
        """
        images_file, labels_file = (
            self._path(name) for name in _FILES["test" if split == "test" else "train"]
        )
        x, y = read_idx(images_file), read_idx(labels_file).long()
        if x.shape[1:] != self.image_shape[1:] or y.ndim != 1:
            raise UserError(
                f"{images_file} and {labels_file} have arrays of shape {tuple(x.shape)} and "
                f"{tuple(y.shape)}, not images of {self.image_shape[1:]} and one label each; "
                "download both files again"
            )
        if len(x) != len(y) or y.max() >= self.num_classes:
            raise UserError(
                f"{labels_file} does not match {images_file}: {len(y)} labels up to "
                f"{int(y.max())} for {len(x)} images of {self.num_classes} classes; download both "
                "files again"
            )
        images = Images(x[:, None], y)
        if split != "test":
            train, val = split_indices(len(x), self.val_size, self.split_seed)
            images = images.take(train if split == "train" else val)
        return InMemory(images)

    def _find(self, name: str) -> Path | None:
        candidates = [self.folder / name, self.folder / f"{name}.gz"]
        return next((path for path in candidates if path.is_file()), None)

    def _path(self, name: str) -> Path:
        path = self._find(name)
        if path is None:
            raise UserError(f"{self.folder / name} (or {name}.gz) is missing; download it again")
        return path


class FashionMNIST(MNIST):
    """Fashion-MNIST: images of clothes, 28x28 gray, ten classes; arguments as for `MNIST`."""

    source = torchvision.datasets.FashionMNIST
    class_names = tuple(torchvision.datasets.FashionMNIST.classes)


class KMNIST(MNIST):
    """KMNIST: cursive Japanese characters, 28x28 gray, ten classes; arguments as for `MNIST`."""

    source = torchvision.datasets.KMNIST
    class_names = tuple(torchvision.datasets.KMNIST.classes)


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes, gzipped if its name ends in ``.gz``.

    Returns:
        The array, uint8, with the shape in the header.

    Raises:
        UserError: If the file cannot be read or its length does not match its header.
    """
    data = read_data_file(path)
    # Header: two zero bytes, 8 for unsigned bytes, the number of dimensions, then the sizes.
    ndim = data[3] if len(data) > 3 and data[:3] == b"\0\0\x08" else 0
    header = 4 + 4 * ndim
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    if not ndim or not math.prod(shape) or len(data) != header + math.prod(shape):
        raise UserError(
            f"{path} is corrupt: it is not an IDX file of bytes, or its length does not match its "
            "header; download it again"
        )
    # A bytearray, because torch warns about read-only memory.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)
