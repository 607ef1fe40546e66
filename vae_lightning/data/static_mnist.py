"""Statically binarized MNIST.

References:
    Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks (the
    binarization), https://doi.org/10.1145/1390156.1390266
    Larochelle and Murray (2011), The neural autoregressive distribution estimator (the
    files), https://proceedings.mlr.press/v15/larochelle11a.html
"""

import hashlib
import http.client
import urllib.request
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.batch import Batch
from vae_lightning.data.base import ImageData, Images, InMemory, data_root
from vae_lightning.data.cache import cached
from vae_lightning.errors import UserError
from vae_lightning.files import read_data_file
from vae_lightning.images.folder_listing import Split
from vae_lightning.nets import ImageShape

SOURCE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"

_PIXELS = 28 * 28


class _File(NamedTuple):
    name: str
    images: int
    sha256: str


FILES: dict[Split, _File] = {
    "train": _File(
        "binarized_mnist_train.amat",
        50_000,
        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    ),
    "val": _File(
        "binarized_mnist_valid.amat",
        10_000,
        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    ),
    "test": _File(
        "binarized_mnist_test.amat",
        10_000,
        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    ),
}
"""The published files, with the SHA-256 of their content."""


class StaticMNIST(ImageData):
    """Statically binarized MNIST: 50,000 / 10,000 / 10,000 images in {0, 1}, without labels.

    The data set of most published likelihoods. Its split, order and binarization are those of the
    files ``<root>/binarized_mnist/binarized_mnist_{train,valid,test}.amat``, optionally gzipped,
    which are downloaded from their author's site if they are missing. They are read once and then
    kept in the user's cache folder (``$XDG_CACHE_HOME/vae_lightning``), with one bit per pixel.

    Args:
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        **kwargs: See `ImageData`. ``binarization`` has no effect, because the files are binary.
    """

    image_shape: ImageShape = (1, 28, 28)
    num_classes: int = 0
    is_binary = True

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = data_root(root)
        self._packed: dict[str, Tensor] = {}

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        return FILES[split].images

    def prepare_data(self) -> None:
        """Read the files and cache the images; called in one process only."""
        self._pack()

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If a file is missing and cannot be downloaded, or has other content than
                the published one.
        """
        bits = np.unpackbits(self._pack()[split].numpy(), axis=1)
        return InMemory(Images(torch.from_numpy(bits * 255).view(-1, *self.image_shape), None))

    def _pack(self) -> dict[str, Tensor]:
        """Return the images of each split with eight pixels per byte, uint8, (N, 98)."""
        if not self._packed:
            name = f"binarized_mnist-{FILES['train'].sha256[:12]}.pt"
            self._packed = cached(name, lambda: {s: self._read(f) for s, f in FILES.items()})
        return self._packed

    def _read(self, file: _File) -> Tensor:
        source, text = self._find(file.name)
        digest = hashlib.sha256(text).hexdigest()
        if digest != file.sha256:
            raise UserError(
                f"{source} is not the published file "
                f"(SHA-256 {digest[:12]}..., expected {file.sha256[:12]}...): download it again "
                f"from {SOURCE}"
            )
        # Every pixel is a digit followed by a space or newline.
        pixels = np.frombuffer(text, np.uint8)[::2].reshape(file.images, _PIXELS) - ord("0")
        return torch.from_numpy(np.packbits(pixels, axis=1))

    def _find(self, name: str) -> tuple[str, bytes]:
        """Return the location of a file and its content."""
        path = self.root / "binarized_mnist" / name
        for found in path, path.with_name(f"{name}.gz"):
            if found.is_file():
                return str(found), read_data_file(found)
        print(f"Downloading {SOURCE}{name}", flush=True)
        try:
            with urllib.request.urlopen(f"{SOURCE}{name}", timeout=60) as response:
                return f"{SOURCE}{name}", response.read()
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"{path} (or {name}.gz) is missing and could not be downloaded from {SOURCE} "
                f"({error}): put it there, or set --data.root or VAE_DATA_ROOT to the folder that "
                "contains binarized_mnist"
            ) from error
