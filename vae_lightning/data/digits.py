"""Bundled digits, drawn instead of downloaded, with known generative factors."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.data import strokes
from vae_lightning.data.base import (
    ImageData,
    Images,
    InMemory,
    PredictSplit,
    size_of_split,
    split_indices,
)
from vae_lightning.data.cache import cached
from vae_lightning.images.folder_listing import Split
from vae_lightning.nets import ImageShape


class Digits(ImageData):
    """Digits 0-9 drawn from stroke templates, 28x28 gray: 55,000 / 5,000 / 10,000 images.

    The images of a seed are the same on every machine. Drawing takes seconds and happens once: the
    images are kept in the user's cache folder (``$XDG_CACHE_HOME/vae_lightning``) if possible.

    Args:
        train_size: Number of training and validation images together.
        val_size: Number of validation images among them.
        test_size: Number of test images.
        seed: Seed of the factors of all images.
        **kwargs: See `ImageData`.

    Raises:
        ValueError: If a size is not positive.
    """

    image_shape: ImageShape = (1, 28, 28)
    num_classes: int = 10
    class_names: Sequence[str] = tuple("0123456789")
    factor_names: Sequence[str] = strokes.FACTORS
    categorical: Sequence[bool] = tuple(name == "digit" for name in strokes.FACTORS)

    def __init__(
        self,
        train_size: int = 60_000,
        val_size: int = 5_000,
        test_size: int = 10_000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(train_size, test_size) < 1:
            raise ValueError(
                f"data.train_size and data.test_size must be positive, got {train_size} and "
                f"{test_size}"
            )
        self.sizes = {"train": train_size, "test": test_size}
        self.val_size = val_size
        self.seed = seed
        self._drawn: dict[str, tuple[Tensor, Tensor]] = {}
        self.factors: dict[Split, Tensor] = {}
        """Factors of the images of each loaded split, in the order of ``factor_names``, (N, 7)."""

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        return size_of_split(split, self.sizes["train"], self.val_size, self.sizes["test"])

    def prepare_data(self) -> None:
        """Draw the images that a stage needs and cache them; called in one process only."""
        stage = self.trainer.state.fn if self.trainer else None
        splits: Sequence[PredictSplit] = self.splits_of(stage) if stage else ("all",)
        for source in ("train", "test"):
            if "all" in splits or source in {_source(split) for split in splits}:
                self._draw(source)

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`."""
        x, factors = self._draw(_source(split))
        if split != "test":
            train, val = split_indices(len(x), self.val_size, self.split_seed)
            chosen = train if split == "train" else val
            x, factors = x[chosen], factors[chosen]
        self.factors[split] = factors
        return InMemory(Images(x, factors[:, 0].long()))

    def with_fixed_factor(self, factor: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw new images in groups that share the value of one factor.

        Args:
            factor: Index in ``factor_names`` of the shared factor of each group, (V,).
            n: Number of images per group.
            seed: Seed of the factors. The images differ from those of all splits.

        Returns:
            Images, group by group, uint8, (V n, 1, 28, 28), and their digits, int64, (V n,).
        """
        drawn = strokes.draw_factors(len(factor) * n, randomness.derive_seed(seed, "fixed factor"))
        groups = drawn.factors.unflatten(0, (len(factor), n))
        rows = torch.arange(len(factor))
        groups[rows, :, factor] = groups[rows, :1, factor]
        return strokes.render(drawn), drawn.factors[:, 0].long()

    def _draw(self, source: str) -> tuple[Tensor, Tensor]:
        """Return the images and factors of a source."""
        if source in self._drawn:
            return self._drawn[source]
        size = self.sizes[source]
        name = f"digits-{source}-{size}-{self.seed}-{_drawing_version()}.pt"
        drawn = cached(name, lambda: self._make(source, size))
        self._drawn[source] = drawn["images"], drawn["factors"]
        return self._drawn[source]

    def _make(self, source: str, size: int) -> dict[str, Tensor]:
        drawn = strokes.draw_factors(size, randomness.derive_seed(self.seed, source))
        return {"images": strokes.render(drawn), "factors": drawn.factors}


def _source(split: PredictSplit) -> str:
    """Return the source of a split; training and validation images are drawn together."""
    return "test" if split == "test" else "train"


def _drawing_version() -> str:
    """Return a hash of the code and data that draw the digits, so that no old images are used."""
    content = b"".join(path.read_bytes() for path in strokes.SOURCES)
    return hashlib.blake2b(content, digest_size=6).hexdigest()
