"""Base class of data sets that are published as training and test images."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

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
from vae_lightning.data.published import Published
from vae_lightning.errors import UserError
from vae_lightning.images.folder_listing import Split


class TrainTestData(ImageData):
    """Images in memory, with the published test images, and validation images split off at random.

    Missing files are downloaded once. If all files exist, nothing is written or downloaded.

    Args:
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        val_size: Number of training images that are used for validation.
        **kwargs: See `ImageData`.
    """

    def __init__(self, root: str | None = None, val_size: int = 5000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = data_root(root)
        self.val_size = val_size

    @property
    @abstractmethod
    def published_sizes(self) -> tuple[int, int]:
        """Numbers of the published training and test images."""

    @property
    @abstractmethod
    def files(self) -> Published:
        """The published files."""

    @abstractmethod
    def download(self, folder: Path) -> Path:
        """Download the files to an empty folder; see `Published.download`."""

    @abstractmethod
    def read(self, train: bool) -> Images:
        """Read the training or test images. Errors are those of damaged files."""

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        train, test = self.published_sizes
        return size_of_split(split, train, self.val_size, test)

    def prepare_data(self) -> None:
        """Download missing files; called in one process only."""
        self.files.download(self.download)

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If a file is missing, damaged, or not the published one.
        """
        is_train = split != "test"
        with self.files.reading():
            images = self.read(is_train)
        expected = (self.published_sizes[not is_train], *self.image_shape)
        if images.x.shape != expected:
            raise UserError(
                f"the files in {self.files.folder} have images of shape {tuple(images.x.shape)}, "
                f"not {expected}: download them again from {self.files.url}"
            )
        if images.y is not None and not 0 <= int(images.y.min()) <= int(images.y.max()) < max(
            self.num_classes, 1
        ):
            raise UserError(
                f"the files in {self.files.folder} have labels from {int(images.y.min())} to "
                f"{int(images.y.max())}, not of {self.num_classes} classes: download them again "
                f"from {self.files.url}"
            )
        if is_train:
            train, val = split_indices(len(images.x), self.val_size, self.split_seed)
            images = images.take(train if split == "train" else val)
        return InMemory(images)
