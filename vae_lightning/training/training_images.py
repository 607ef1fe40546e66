"""The training images, for what a model computes from them before the first update."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.models.image_model import ImageModel


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

    def random_indices(self, n: int, seed: int) -> Tensor | None:
        """Return the places of the images that `random_images` returns, (n,), if it is known."""
        if not hasattr(self.data, "random_indices"):
            return None
        indices: Tensor = self.data.random_indices(n, seed)
        return indices

    def _all(self) -> Tensor:
        """Return all training images of somebody else's data module."""
        if self.data is None:
            raise ValueError(
                "this model is initialized from the training images: give the data to Trainer.fit "
                "as a LightningDataModule"
            )
        x = torch.cat([Batch.of(batch).x.cpu() for batch in self.data.train_dataloader()])
        bounded = getattr(self.data, "bounded", True)
        if not x.is_floating_point() or (bounded and (x.amin() < 0 or x.amax() > 1)):
            raise ValueError(
                "this model is initialized from the training images, which the data module must "
                "yield as floats in [0, 1]"
            )
        return x


def await_features(module: Any) -> bool:
    """Let the data module yield features instead of training images, for a model that has any.

    See `ImageModel.frozen_features`. Data modules of other packages go on to yield images.

    Args:
        module: The `LitVAE` that is trained.

    Returns:
        Whether `fill_features` has to compute them, when all weights are restored.
    """
    data, trainer = module.trainer.datamodule, module.trainer
    if not hasattr(data, "await_features"):
        return False
    data.features = None  # those of a training before
    has_any = type(module.model).frozen_features is not ImageModel.frozen_features
    return has_any and not trainer.fast_dev_run and data.await_features()


def fill_features(module: Any) -> None:
    """Compute the features that `await_features` has announced.

    Args:
        module: The `LitVAE` that is trained, on its device, with its weights restored.
    """
    model, precision = module.model, module.trainer.precision_plugin

    def encode(batch: Batch) -> Tensor:
        y = None if batch.y is None else batch.y.to(module.device)
        moved = Batch(batch.x.to(module.device), y, batch.indices)
        with model.inference(), precision.forward_context():
            x = precision.convert_input(moved.x)
            features: Tensor = model.frozen_features(x, module.condition(moved))
        return features

    module.trainer.datamodule.fill_features(encode)
