"""CIFAR-10 and CIFAR-100.

References:
    Krizhevsky (2009), Learning multiple layers of features from tiny images,
    https://www.cs.toronto.edu/~kriz/cifar.html
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets

from vae_lightning.data.base import Images
from vae_lightning.data.published import Published
from vae_lightning.data.train_test import TrainTestData
from vae_lightning.nets import ImageShape

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class CIFAR10(TrainTestData):
    """Photos of animals and vehicles, 32x32 RGB, ten classes: 45,000 / 5,000 / 10,000 images.

    The files are those of torchvision, ``<root>/cifar-10-batches-py``. They are pickled, which is
    safe here: torchvision unpickles them only if their MD5 is that of the published files.

    Args:
        **kwargs: See `TrainTestData`.
    """

    source: type[torchvision.datasets.CIFAR10] = torchvision.datasets.CIFAR10
    image_shape: ImageShape = (3, 32, 32)
    published_sizes: tuple[int, int] = (50_000, 10_000)
    num_classes: int = 10
    class_names: Sequence[str] = tuple(_CIFAR10.split())

    @property
    def files(self) -> Published:
        """See `TrainTestData.files`."""
        meta = (self.source.meta["filename"], self.source.meta["md5"])
        md5 = dict((*self.source.train_list, *self.source.test_list, meta))
        return Published(self.root, self.source.base_folder, md5, self.source.url)

    def download(self, folder: Path) -> Path:
        """See `TrainTestData.download`."""
        self.source(folder, download=True)
        return folder / self.source.base_folder

    def read(self, train: bool) -> Images:
        """See `TrainTestData.read`."""
        with warnings.catch_warnings():
            # The files were pickled with a numpy whose arguments are deprecated in numpy 2.4.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            data = self.source(self.root, train=train)
        x = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Images(x, torch.tensor(data.targets))


class CIFAR100(CIFAR10):
    """Photos of a hundred classes of things, 32x32 RGB: 45,000 / 5,000 / 10,000 images.

    The files are in ``<root>/cifar-100-python``; otherwise as `CIFAR10`.

    Args:
        **kwargs: See `TrainTestData`.
    """

    source = torchvision.datasets.CIFAR100
    num_classes = 100
    class_names = tuple(_CIFAR100.split())
