"""Omniglot: handwritten characters of fifty alphabets.

References:
    Lake et al. (2015), Human-level concept learning through probabilistic program induction,
    https://doi.org/10.1126/science.aab3050, https://github.com/brendenlake/omniglot
    Burda et al. (2016), Importance weighted autoencoders (the images of 28x28 and their split),
    https://arxiv.org/abs/1509.00519, https://github.com/yburda/iwae
"""

import io
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision.datasets
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.utils import download_url

from vae_lightning.data.base import Images
from vae_lightning.data.published import Published
from vae_lightning.data.train_test import TrainTestData
from vae_lightning.nets import ImageShape
from vae_lightning.randomness import Noise

SIZES = {"burda": (24_345, 8_070), "lake": (19_280, 13_180)}
"""Numbers of training and test images of each split."""

_BURDA = "chardata.mat"
_BURDA_URL = "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat"


class Omniglot(TrainTestData):
    """Handwritten characters, 28x28, in {0, 1}, without labels: 23,000 / 1,345 / 8,070 images.

    There are two splits. In ``burda``, which published likelihoods are for, characters of all
    alphabets are in the training and in the test images; the file is
    ``<root>/OMNIGLOT/chardata.mat``. In ``lake``, training images are those of the 30 "background"
    alphabets and test images those of the 20 "evaluation" alphabets (17,935 / 1,345 / 13,180
    images); the files are those of torchvision, ``<root>/omniglot-py/images_*.zip``, whose images
    of 105x105 are scaled by averaging.

    Pixels are drawn once, 1 with a probability equal to the gray value. Burda et al. draw them
    again in every epoch: ``static=False, binarization="dynamic"``.

    Args:
        split: ``burda`` or ``lake``.
        static: Whether pixels are drawn once, with ``split_seed``. ``binarization`` then has no
            effect.
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        val_size: Number of training images that are used for validation.
        **kwargs: See `ImageData`.

    Raises:
        ValueError: If there is no such split.
    """

    image_shape: ImageShape = (1, 28, 28)
    num_classes: int = 0

    def __init__(
        self,
        split: Literal["burda", "lake"] = "burda",
        static: bool = True,
        root: str | None = None,
        val_size: int = 1345,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, val_size, **kwargs)
        if split not in SIZES:
            raise ValueError(f"data.split must be one of {', '.join(SIZES)}, got {split}")
        self.split = split
        self.static = static

    @property
    def is_binary(self) -> bool:
        """See `ImageData.is_binary`."""
        return self.static or super().is_binary

    @property
    def published_sizes(self) -> tuple[int, int]:
        """See `TrainTestData.published_sizes`."""
        return SIZES[self.split]

    @property
    def files(self) -> Published:
        """See `TrainTestData.files`."""
        if self.split == "burda":
            return Published.find(self.root, ("OMNIGLOT", "."), {_BURDA: None}, _BURDA_URL)
        source = torchvision.datasets.Omniglot
        md5 = {f"{name}.zip": checksum for name, checksum in source.zips_md5.items()}
        return Published(self.root, source.folder, md5, source.download_url_prefix)

    def download(self, folder: Path) -> Path:
        """See `TrainTestData.download`."""
        if self.split == "burda":
            download_url(_BURDA_URL, folder)
            return folder
        for name, md5 in self.files.md5.items():
            download_url(f"{self.files.url}/{name}", folder, md5=md5)
        return folder

    def read(self, train: bool) -> Images:
        """See `TrainTestData.read`."""
        x = self._read_burda(train) if self.split == "burda" else self._read_lake(train)
        if self.static:
            x = _binarized(x, self.split_seed, "train" if train else "test")
        return Images(x, None)

    def _read_burda(self, train: bool) -> Tensor:
        # Imported here, because it takes time that other commands should not wait for.
        from scipy.io import loadmat  # type: ignore[import-untyped]

        name = "data" if train else "testdata"
        gray = loadmat(self.files.folder / _BURDA, variable_names=[name])[name]
        # One image per column, in Matlab's order of pixels.
        x = torch.from_numpy(np.rint(255 * gray.T).astype(np.uint8))
        return x.unflatten(1, (1, 28, 28)).transpose(2, 3).contiguous()

    def _read_lake(self, train: bool) -> Tensor:
        path = self.files.folder / f"images_{'background' if train else 'evaluation'}.zip"
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            return torch.stack([_scaled(archive, name) for name in names])[:, None]


def _scaled(archive: zipfile.ZipFile, name: str) -> Tensor:
    """Return an image of an archive with bright strokes, uint8, (28, 28)."""
    with Image.open(io.BytesIO(archive.read(name))) as image:
        gray = ImageOps.invert(image.convert("L")).resize((28, 28), Image.Resampling.BOX)
        return torch.from_numpy(np.array(gray))


def _binarized(x: Tensor, seed: int, source: str) -> Tensor:
    """Draw pixels that are 255 with a probability equal to the gray value, else 0, uint8."""
    drawn = torch.empty_like(x)
    for index in torch.arange(len(x)).split(4096):
        noise = Noise(index, seed, "static binarization", source)
        gray = x[index].flatten(1) / 255
        drawn[index] = (255 * (noise.uniform(gray.shape[1]) < gray)).view_as(x[index]).byte()
    return drawn
