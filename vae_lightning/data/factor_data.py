"""Base class of data sets with an image of every combination of known generative factors."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.data.base import ImageData, data_root
from vae_lightning.data.on_demand import OnDemand, StoredImages
from vae_lightning.data.published import Published
from vae_lightning.images.folder_listing import Split

_VERSION = 1
"""To be changed with the code that unpacks images, so that old ones are not used."""


class FactorData(ImageData):
    """Images of all combinations of known factors, read on demand.

    The images are unpacked once to an uncompressed file in the user's cache folder
    (``$XDG_CACHE_HOME/vae_lightning``), because compressed files are slow to read in random order.
    Memory holds one batch at a time.

    Papers train on all images and have no split. Here, validation and test images are chosen at
    random by ``split_seed``; every factor has the same distribution in all splits. ``vae test``
    measures disentanglement on the test images.

    Args:
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        val_size: Number of validation images.
        test_size: Number of test images.
        **kwargs: See `ImageData`.

    Raises:
        ValueError: If a size is not positive, or no images are left for training.
    """

    factor_names: Sequence[str]
    factor_sizes: Sequence[int]
    """Number of values of each factor. The last one varies fastest in the order of the images."""
    categorical: Sequence[bool]
    """Whether the values of each factor have no order."""

    label: ClassVar[str | None] = None
    """Name of the factor that is the class."""
    has_binary_pixels: ClassVar[bool] = False

    def __init__(
        self,
        root: str | None = None,
        val_size: int = 10_000,
        test_size: int = 10_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = data_root(root)
        if min(val_size, test_size) < 1 or val_size + test_size >= math.prod(self.factor_sizes):
            raise ValueError(
                "data.val_size and data.test_size must be positive and leave some of "
                f"{math.prod(self.factor_sizes)} images for training, got {val_size} and "
                f"{test_size}"
            )
        self.val_size = val_size
        self.test_size = test_size
        self.factors: dict[Split, Tensor] = {}
        """Factors of the images of each loaded split as numbers of their values from 0, in the
        order of ``factor_names``, float32, (N, F)."""
        self._stored: StoredImages | None = None

    @property
    @abstractmethod
    def files(self) -> Published:
        """The published files."""

    @abstractmethod
    def download(self, folder: Path) -> Path:
        """Download the files to an empty folder; see `Published.download`."""

    @abstractmethod
    def unpack(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in their order, some at a time, uint8, (n, C, H, W).

        Errors are those of damaged files.
        """

    @property
    def sources(self) -> Sequence[Path]:
        """The files with the images, in the order in which they are read."""
        return [self.files.folder / name for name in self.files.md5]

    @property
    def is_binary(self) -> bool:
        """See `ImageData.is_binary`."""
        return self.has_binary_pixels or super().is_binary

    @property
    def num_classes(self) -> int:
        """Number of values of the factor that is the class, 0 if there is none."""
        return self.factor_sizes[self.factor_names.index(self.label)] if self.label else 0

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        held_out = {"val": self.val_size, "test": self.test_size}
        return held_out.get(split, math.prod(self.factor_sizes) - sum(held_out.values()))

    def prepare_data(self) -> None:
        """Download missing files and unpack them; called in one process only."""
        self.files.download(self.download)
        self._images()

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If a file is missing or damaged, or images cannot be unpacked.
        """
        n = math.prod(self.factor_sizes)
        order = torch.randperm(n, generator=randomness.generator(self.split_seed, "split"))
        test, val, train = order.split(
            [self.test_size, self.val_size, n - self.test_size - self.val_size]
        )
        # In random order, because scores are computed from the first images of a split.
        positions = {"train": train, "val": val, "test": test}[split]
        factors = self.factors_at(positions)
        self.factors[split] = factors.float()
        return OnDemand(self._images(), positions, self._labels(factors))

    def factors_at(self, positions: Tensor) -> Tensor:
        """Return the factors at positions (n,) among all images, int64, (n, F)."""
        sizes = torch.tensor(self.factor_sizes)
        return positions[:, None] // self._strides % sizes

    def with_fixed_factor(self, factor: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Draw images in groups that share the value of one factor.

        Args:
            factor: Index in ``factor_names`` of the shared factor of each group, (V,).
            n: Number of images per group.
            seed: Seed of the factors. The images are among those of all splits.

        Returns:
            Images, group by group, uint8, (V n, C, H, W), and their classes, int64, (V n,), or None
            without classes.
        """
        generator = randomness.generator(seed, "fixed factor")
        shape = (len(factor), n)
        drawn = [torch.randint(size, shape, generator=generator) for size in self.factor_sizes]
        groups = torch.stack(drawn, dim=-1)
        rows = torch.arange(len(factor))
        groups[rows, :, factor] = groups[rows, :1, factor]
        factors = groups.flatten(0, 1)
        return self._images()((factors * self._strides).sum(1)), self._labels(factors)

    @property
    def _strides(self) -> Tensor:
        """Distance of the images of successive values of each factor, (F,)."""
        sizes = torch.tensor([*self.factor_sizes[1:], 1])
        return sizes.flip(0).cumprod(0).flip(0)

    def _labels(self, factors: Tensor) -> Tensor | None:
        return factors[:, self.factor_names.index(self.label)] if self.label else None

    def _images(self) -> StoredImages:
        """Return the reader of all images, and unpack them if necessary."""
        if self._stored is None:
            with self.files.reading():
                name = f"{type(self).__name__.lower()}-{self._digest()}"
                size = math.prod(self.factor_sizes)
                self._stored = StoredImages.store(
                    name, size, self.image_shape, self.has_binary_pixels, self.unpack
                )
        return self._stored

    def _digest(self) -> str:
        """Return a hash of everything that the unpacked images depend on."""
        total = hashlib.blake2b(repr((_VERSION, self.factor_sizes)).encode(), digest_size=6)
        for path in self.sources:
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "blake2b").digest())
        return total.hexdigest()
