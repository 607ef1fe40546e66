"""USPS.

References:
    Hull (1994), A database for handwritten text recognition research,
    https://doi.org/10.1109/34.291440
    https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps (the files)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets

from vae_lightning.data.base import Images
from vae_lightning.data.published import Published
from vae_lightning.data.train_test import TrainTestData
from vae_lightning.nets import ImageShape


class USPS(TrainTestData):
    """Handwritten digits of postal codes, 16x16 gray: 6,291 / 1,000 / 2,007 images.

    The files are ``<root>/USPS/usps.bz2`` and ``usps.t.bz2``, or in ``<root>`` itself, where
    torchvision puts them.

    Args:
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        val_size: Number of training images that are used for validation.
        **kwargs: See `ImageData`.
    """

    image_shape: ImageShape = (1, 16, 16)
    published_sizes: tuple[int, int] = (7291, 2007)
    num_classes: int = 10
    class_names: Sequence[str] = tuple("0123456789")

    def __init__(self, root: str | None = None, val_size: int = 1000, **kwargs: Any) -> None:
        super().__init__(root, val_size, **kwargs)

    @property
    def files(self) -> Published:
        """See `TrainTestData.files`."""
        listed = torchvision.datasets.USPS.split_list
        md5 = {name: checksum for _, name, checksum in listed.values()}
        url = listed["train"][0].rpartition("/")[0]
        return Published.find(self.root, ("USPS", "."), md5, url)

    def download(self, folder: Path) -> Path:
        """See `TrainTestData.download`."""
        for train in True, False:
            torchvision.datasets.USPS(folder, train=train, download=True)
        return folder

    def read(self, train: bool) -> Images:
        """See `TrainTestData.read`."""
        data = torchvision.datasets.USPS(self.files.folder, train=train)
        return Images(torch.from_numpy(data.data)[:, None], torch.tensor(data.targets))
