"""Street View House Numbers.

References:
    Netzer et al. (2011), Reading digits in natural images with unsupervised feature learning,
    http://ufldl.stanford.edu/housenumbers/
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets

from vae_lightning.data.base import Images
from vae_lightning.data.published import Published
from vae_lightning.data.train_test import TrainTestData
from vae_lightning.nets import ImageShape


class SVHN(TrainTestData):
    """Photos of digits in house numbers, 32x32 RGB: 68,257 / 5,000 / 26,032 images.

    The files are ``<root>/SVHN/{train,test}_32x32.mat``, or in ``<root>`` itself, where torchvision
    puts them. The additional, easier training images of ``extra_32x32.mat`` are not used. The class
    of a digit is the digit, although the label of 0 in the files is 10.

    Args:
        **kwargs: See `TrainTestData`.
    """

    image_shape: ImageShape = (3, 32, 32)
    published_sizes: tuple[int, int] = (73_257, 26_032)
    num_classes: int = 10
    class_names: Sequence[str] = tuple("0123456789")

    @property
    def files(self) -> Published:
        """See `TrainTestData.files`."""
        listed = torchvision.datasets.SVHN.split_list
        md5 = {listed[split][1]: listed[split][2] for split in ("train", "test")}
        url = listed["train"][0].rpartition("/")[0]
        return Published.find(self.root, ("SVHN", "."), md5, url)

    def download(self, folder: Path) -> Path:
        """See `TrainTestData.download`."""
        for split in "train", "test":
            torchvision.datasets.SVHN(folder, split=split, download=True)
        return folder

    def read(self, train: bool) -> Images:
        """See `TrainTestData.read`."""
        data = torchvision.datasets.SVHN(self.files.folder, split="train" if train else "test")
        return Images(torch.from_numpy(np.ascontiguousarray(data.data)), torch.tensor(data.labels))
