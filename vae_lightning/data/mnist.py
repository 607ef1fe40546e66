"""MNIST and the data sets that share its file format.

References:
    LeCun et al. (1998), Gradient-based learning applied to document recognition (MNIST)
    Xiao et al. (2017), Fashion-MNIST, https://arxiv.org/abs/1708.07747
    Clanuwat et al. (2018), Deep learning for classical Japanese literature (KMNIST),
    https://arxiv.org/abs/1812.01718
"""

import gzip
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.data.base import ImageData, Images, InMemory, Split, split_indices
from vae_lightning.data.batch import Batch
from vae_lightning.errors import UserError
from vae_lightning.nets import ImageShape

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class MNIST(ImageData):
    """Handwritten digits, 28x28 grey: 55,000 / 5,000 / 10,000 images.

    The files are those of torchvision, ``<root>/MNIST/raw/*-ubyte``, gzip'd or not. If they are
    there, nothing is written and nothing downloaded; otherwise they are downloaded once.

    Args:
        root: Folder of data sets; by default what the environment variable ``VAE_DATA_ROOT`` says,
            else ``data``.
        val_size: Images of the training file that are kept for validation.
        **kwargs: See `ImageData`.
    """

    source: type[torchvision.datasets.MNIST] = torchvision.datasets.MNIST
    image_shape: ImageShape = (1, 28, 28)
    num_classes: int = 10
    class_names: Sequence[str] = tuple("0123456789")

    def __init__(self, root: str | None = None, val_size: int = 5000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root or os.environ.get("VAE_DATA_ROOT") or "data")
        self.val_size = val_size

    @property
    def folder(self) -> Path:
        """Where the files are, in torchvision's layout."""
        return self.root / self.source.__name__ / "raw"

    def prepare_data(self) -> None:
        """Download the files unless they are there; Lightning calls this in one process only."""
        if all(self._find(name) for names in _FILES.values() for name in names):
            return
        # Elsewhere first: an interrupted download leaves nothing, and nothing is written over.
        with tempfile.TemporaryDirectory() as elsewhere:
            try:
                self.source(elsewhere, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"the {self.source.__name__} files are not in {self.folder}, or not all, and "
                    f"could not be downloaded ({str(error).strip().splitlines()[0].rstrip(':')}): "
                    f"put {', '.join(f'{name}.gz' for name in sum(_FILES.values(), ()))} there, "
                    "point --data.root or VAE_DATA_ROOT to the folder above, or use the bundled "
                    "digits, which need no files: --data Digits"
                ) from error
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in sum(_FILES.values(), ()):
                if self._find(name) is None:
                    path = self.folder / name
                    partial = path.with_name(f"{name}.{os.getpid()}")
                    shutil.copyfile(Path(elsewhere, self.source.__name__, "raw", name), partial)
                    partial.replace(path)

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If a file is missing, truncated or corrupt; the message names it.
        """
        images_file, labels_file = (
            self._path(name) for name in _FILES["test" if split == "test" else "train"]
        )
        x, y = read_idx(images_file), read_idx(labels_file).long()
        if x.shape[1:] != self.image_shape[1:] or y.ndim != 1:
            raise UserError(
                f"{images_file} and {labels_file} hold arrays {tuple(x.shape)} and "
                f"{tuple(y.shape)}, not images of {self.image_shape[1:]} and a label for each; "
                "get both files again"
            )
        if len(x) != len(y) or y.max() >= self.num_classes:
            raise UserError(
                f"{labels_file} does not fit {images_file}: {len(y)} labels up to {int(y.max())} "
                f"for {len(x)} images of {self.num_classes} classes; get both files again"
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
            raise UserError(f"{self.folder / name} is missing, gzip'd or not; get it again")
        return path


class FashionMNIST(MNIST):
    """Pictures of clothes, 28x28 grey, in the place of MNIST's digits; arguments as for `MNIST`."""

    source = torchvision.datasets.FashionMNIST
    class_names = tuple(torchvision.datasets.FashionMNIST.classes)


class KMNIST(MNIST):
    """Cursive Japanese characters, 28x28 grey, ten classes; arguments as for `MNIST`."""

    source = torchvision.datasets.KMNIST
    class_names = tuple(torchvision.datasets.KMNIST.classes)


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes, gzip'd if its name ends in .gz.

    Returns:
        uint8, the shape that the header states.

    Raises:
        UserError: If the file cannot be read, or its length is not what its header states.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or cannot be read ({error}): get it again") from error
    # Header: two zero bytes, 8 for unsigned bytes, the number of dimensions, then each size.
    ndim = data[3] if len(data) > 3 and data[:3] == b"\0\0\x08" else 0
    header = 4 + 4 * ndim
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    if not ndim or not math.prod(shape) or len(data) != header + math.prod(shape):
        raise UserError(
            f"{path} is corrupt: it is no IDX file of bytes, or not as long as its header says; "
            "get it again"
        )
    # A bytearray, because torch warns of memory that must not be written to.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)
