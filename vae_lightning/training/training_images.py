"""The training images, for what a model initializes from them."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning import randomness
from vae_lightning.batch import Batch


class DataModuleImages:
    """See `TrainingImages`: the images of a trainer's data module, which are read when asked for.

    Args:
        trainer: A trainer whose data module is set up.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.data: Any = trainer.datamodule  # type: ignore[attr-defined]

    def mean_image(self) -> Tensor:
        """Return the mean of the training images, float32, (C, H, W)."""
        if hasattr(self.data, "mean_image"):
            mean: Tensor = self.data.mean_image()
            return mean
        return self._all().double().mean(0).float()

    def random_images(self, n: int, seed: int) -> Tensor:
        """Return ``n`` training images, each at most once if there are enough, (n, C, H, W)."""
        if hasattr(self.data, "random_images"):
            images: Tensor = self.data.random_images(n, seed)
            return images
        images = self._all()
        return images[randomness.choose(len(images), n, seed, "random images")]

    def _all(self) -> Tensor:
        """Return all training images of somebody else's data module."""
        if self.data is None:
            raise ValueError(
                "this model is initialized from the training images: give the data to Trainer.fit "
                "as a LightningDataModule"
            )
        x = torch.cat([Batch.of(batch).x.cpu() for batch in self.data.train_dataloader()])
        if not x.is_floating_point() or x.amin() < 0 or x.amax() > 1:
            raise ValueError(
                "this model is initialized from the training images, which the data module must "
                "yield as floats in [0, 1]"
            )
        return x
