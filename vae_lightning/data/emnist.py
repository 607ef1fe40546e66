"""EMNIST: handwritten letters and digits.

References:
    Cohen et al. (2017), EMNIST: an extension of MNIST to handwritten letters,
    https://arxiv.org/abs/1702.05373
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torchvision.datasets

from vae_lightning.data.base import Images
from vae_lightning.data.mnist import read_idx
from vae_lightning.data.published import Published
from vae_lightning.data.train_test import TrainTestData
from vae_lightning.nets import ImageShape

SIZES = {
    "byclass": (697_932, 116_323),
    "bymerge": (697_932, 116_323),
    "balanced": (112_800, 18_800),
    "letters": (124_800, 20_800),
    "digits": (240_000, 40_000),
    "mnist": (60_000, 10_000),
}
"""Numbers of training and test images of each split."""


class EMNIST(TrainTestData):
    """Handwritten letters and digits, 28x28 gray: 107,800 / 5,000 / 18,800 images by default.

    The files are those of torchvision, ``<root>/EMNIST/raw/emnist-*-ubyte``, optionally gzipped.
    The images in them are transposed; here, they are upright.

    ========  =======================================  =======  =============
    split     classes                                  number   images
    ========  =======================================  =======  =============
    byclass   digits, upper- and lowercase letters     62       697,932 + 116,323
    bymerge   the same, look-alike cases merged        47       697,932 + 116,323
    balanced  the same, equally frequent               47       112,800 + 18,800
    letters   letters, both cases merged               26       124,800 + 20,800
    digits    digits                                   10       240,000 + 40,000
    mnist     digits, as many as in MNIST              10       60,000 + 10,000
    ========  =======================================  =======  =============

    Args:
        split: Split of the paper, one of those above.
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        val_size: Number of training images that are used for validation.
        **kwargs: See `ImageData`.

    Raises:
        ValueError: If there is no such split.
    """

    image_shape: ImageShape = (1, 28, 28)

    def __init__(
        self,
        split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "balanced",
        root: str | None = None,
        val_size: int = 5000,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, val_size, **kwargs)
        if split not in SIZES:
            raise ValueError(f"data.split must be one of {', '.join(SIZES)}, got {split}")
        self.split = split

    @property
    def published_sizes(self) -> tuple[int, int]:
        """See `TrainTestData.published_sizes`."""
        return SIZES[self.split]

    @property
    def class_names(self) -> Sequence[str]:  # type: ignore[override]
        """Characters of the classes; an uppercase letter also stands for merged cases."""
        names = torchvision.datasets.EMNIST.classes_split_dict[self.split]
        # The labels of letters begin at 1 in the files.
        return (
            tuple(name.upper() for name in names[1:]) if self.split == "letters" else tuple(names)
        )

    @property
    def num_classes(self) -> int:
        """See `ImageData.num_classes`."""
        return len(self.class_names)

    @property
    def files(self) -> Published:
        """See `TrainTestData.files`."""
        names = [
            self._name(train, kind) for train in (True, False) for kind in ("images", "labels")
        ]
        folder = self.root / "EMNIST" / "raw"
        found = [
            f"{name}.gz"
            if (folder / f"{name}.gz").is_file() and not (folder / name).is_file()
            else name
            for name in names
        ]
        url = torchvision.datasets.EMNIST.url
        return Published(self.root, "EMNIST/raw", dict.fromkeys(found), url)

    def download(self, folder: Path) -> Path:
        """See `TrainTestData.download`."""
        data = torchvision.datasets.EMNIST(folder, split=self.split, download=True)
        return Path(data.raw_folder)

    def read(self, train: bool) -> Images:
        """See `TrainTestData.read`."""
        images, labels = (
            read_idx(self.files.folder / name)
            for name in self.files.md5
            if ("-train-" in name) == train
        )
        first = 1 if self.split == "letters" else 0
        return Images(images.transpose(1, 2)[:, None].contiguous(), labels.long() - first)

    def _name(self, train: bool, kind: str) -> str:
        dimensions = {"images": 3, "labels": 1}[kind]
        return f"emnist-{self.split}-{'train' if train else 'test'}-{kind}-idx{dimensions}-ubyte"
