"""The bundled digits: drawn, not downloaded, with known generative factors."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning import randomness
from vae_lightning.data import strokes
from vae_lightning.data.base import ImageData, Images, InMemory, Split, split_indices
from vae_lightning.data.batch import Batch
from vae_lightning.nets import ImageShape


class Digits(ImageData):
    """Digits 0-9 drawn from stroke templates, 28x28 grey: 55,000 / 5,000 / 10,000 images.

    The same for the same seed everywhere. Drawing takes seconds and happens once: the images are
    kept in the user's cache folder (``$XDG_CACHE_HOME/vae_lightning``), where that can be written.

    Args:
        train_size: Images for training and validation together.
        val_size: How many of them are kept for validation.
        test_size: Images for the test.
        seed: Of the factors of all images.
        **kwargs: See `ImageData`.

    Raises:
        ValueError: If a size is not positive.
    """

    image_shape: ImageShape = (1, 28, 28)
    num_classes: int = 10
    class_names: Sequence[str] = tuple("0123456789")
    factor_names: Sequence[str] = strokes.FACTORS

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
        self._uncached: dict[str, tuple[Tensor, Tensor]] = {}
        self.factors: dict[Split, Tensor] = {}
        """Factor values of the images of each loaded split, float32, (N, 7), see FACTORS."""

    def prepare_data(self) -> None:
        """Draw the images into the cache, in one process."""
        for source in self.sizes:
            self._draw(source)

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`."""
        x, factors = self._draw("test" if split == "test" else "train")
        if split != "test":
            train, val = split_indices(len(x), self.val_size, self.split_seed)
            chosen = train if split == "train" else val
            x, factors = x[chosen], factors[chosen]
        self.factors[split] = factors
        return InMemory(Images(x, factors[:, 0].long()))

    def _draw(self, source: str) -> tuple[Tensor, Tensor]:
        """Images and factors of a source, from the cache if they are there."""
        if source in self._uncached:
            return self._uncached[source]
        size = self.sizes[source]
        path = _cache_folder() / f"digits-{source}-{size}-{self.seed}-{_drawing_version()}.pt"
        if path.is_file():
            try:
                kept = torch.load(path, weights_only=True)
                return kept["images"], kept["factors"]
            except Exception:  # a damaged cache is no reason to stop: draw again
                path.unlink(missing_ok=True)
        drawn = strokes.draw_factors(size, randomness.derive_seed(self.seed, source))
        images = strokes.render(drawn)
        if not _keep({"images": images, "factors": drawn.factors}, path):
            self._uncached[source] = images, drawn.factors
        return images, drawn.factors


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae_lightning"


def _drawing_version() -> str:
    """Changes with the code that draws, so that no old drawing is taken for a new one."""
    return hashlib.blake2b(Path(strokes.__file__).read_bytes(), digest_size=6).hexdigest()


def _keep(tensors: dict[str, Tensor], path: Path) -> bool:
    """Write a cache file as a whole or, where that fails, not at all; say whether it was written.

    A process that reads at the same time sees the whole file or none.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, partial)
        partial.replace(path)
    except (OSError, RuntimeError):  # torch reports a full disk as the latter
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return False
    return True
