"""What a user is told about a training before it begins, and what is chosen for him."""

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace

from vae_lightning.data import ImageData
from vae_lightning.data.sampling import fitting_batch_size
from vae_lightning.models.image_model import ImageModel
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.nets.sizes import linear_size
from vae_lightning.training.module import LitVAE

_LARGE = 10.0
_FEW_UPDATES = 50
_FEW_VALIDATION_IMAGES = 10
_UPDATES = 2500
"""Number of updates after which a small VAE draws recognizable images."""
_FEWEST_EPOCHS, _MOST_EPOCHS = 5, 300


def fill_epochs(data: Any, *options: Namespace) -> None:
    """Fill in a number of epochs where options do not say how long to train.

    It makes about 2,500 updates, in 5 to 300 epochs.

    Args:
        data: The data module.
        *options: The options of ``vae fit`` in several places; changed in place.
    """
    trainer = options[0].trainer
    if (trainer.max_epochs, trainer.max_time) != (None, None) or trainer.max_steps != -1:
        return
    epochs = _FEWEST_EPOCHS
    if isinstance(data, ImageData):
        devices = trainer.devices if isinstance(trainer.devices, int) else 1
        images = data.batch_size * max(1, devices) * trainer.num_nodes
        updates = max(1, data.num_train // images)
        epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, math.ceil(_UPDATES / updates)))
    for option in options:
        option.trainer.max_epochs = epochs


def advice(trainer: pl.Trainer, module: LitVAE, data: ImageData, resumed: bool) -> Iterator[str]:
    """Yield sentences about a training that is likely to disappoint."""
    model = module.model
    yield from _about_likelihood(model, data)
    yield from _about_size(model)
    yield from _about_updates(trainer, data)
    yield from _about_validation(trainer, data)
    if not resumed:  # with the schedule of its checkpoint
        yield from _about_schedule(trainer, module)
    n = data.split_size("val")
    if n < _FEW_VALIDATION_IMAGES and data.is_users:
        yield (
            f"only {n} validation {'item' if n == 1 else 'items'}: the validation loss, by which "
            "the best weights are chosen, is little more than chance; add items, or give a larger "
            "--data.val_share"
        )


def _about_likelihood(model: ImageModel, data: ImageData) -> Iterator[str]:
    if not data.is_users or not isinstance(model, GenerativeModel):
        return
    likelihood = model.likelihood
    name = type(likelihood).__name__
    if not model.is_normalized(data.is_binary):
        better = "DiscretizedLogistic" if data.record.dtype == "uint8" else "Gaussian"
        of_what = f"a {name} of values between 0 and 1" if likelihood.binary else name
        yield (
            f"{of_what} is a loss, not a likelihood: for numbers that mean something, "
            f"--model.likelihood {'Bernoulli' if data.is_binary else better}"
        )
    elif data.is_binary and not likelihood.binary:
        yield "all values are 0 or 1, for which there is --model.likelihood Bernoulli"
    elif data.record.scaling == "none" and max(data.record.std) > _LARGE:
        yield (
            f"the values are not scaled, and networks learn from values around {_LARGE:.0f} "
            "slowly: --data.scaling standardize"
        )
    elif likelihood.num_values == 256 and not _has_256_values(data):
        yield (
            f"a {name} is a distribution of the 256 values of 8-bit images, and these "
            f"are {data.record.dtype} values ({data.record.scaling}): --model.likelihood Gaussian"
        )


def _has_256_values(data: ImageData) -> bool:
    """Return whether a model sees the values k / 255."""
    record = data.record
    is_whole = set(record.scale) == {255.0} and not any(record.offset)
    return record.dtype == "uint8" and (record.is_8_bit or is_whole)


def _about_size(model: ImageModel) -> Iterator[str]:
    size = linear_size(model)
    if size.is_huge:
        yield (
            f"{size.parameters:,} of {size.total:,} parameters are in linear layers, between "
            f"{size.flat_size:,} values and the latent: for images this large, ConvEncoder and "
            "ConvDecoder without channels have far fewer, and ResidualEncoder in a VQVAE has none"
        )


def _about_validation(trainer: pl.Trainer, data: ImageData) -> Iterator[str]:
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    within_epochs = isinstance(trainer.val_check_interval, int) or trainer.val_check_interval != 1
    if not every or within_epochs or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    steps = trainer.max_steps
    if epochs and 0 < epochs < every:
        remedy = "--trainer.check_val_every_n_epoch 1"
    elif 0 < steps < every * _updates_per_epoch(trainer, data):
        batches = steps * trainer.accumulate_grad_batches
        remedy = (
            f"--trainer.check_val_every_n_epoch null --trainer.val_check_interval {batches} for "
            f"one after {steps:,} updates"
        )
    else:
        return
    often = f"every {every} epochs" if every > 1 else "after each epoch"
    yield (
        f"nothing will be validated and no figure drawn, because there is a validation {often}: "
        f"give {remedy}"
    )


def _about_schedule(trainer: pl.Trainer, module: LitVAE) -> Iterator[str]:
    schedule, epochs = module.recipes[2], trainer.max_epochs
    if schedule is None or not schedule["class_path"].endswith(".CosineAnnealingLR"):
        return
    period = schedule["init_args"]["T_max"]
    if not epochs or epochs in (-1, period) or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    what = "rises again after" if epochs > period else "would fall until"
    yield (
        f"the learning rate {what} epoch {period}, and the training ends after epoch {epochs}: "
        f"give --lr_scheduler.T_max {epochs}"
    )


def _updates_per_epoch(trainer: pl.Trainer, data: ImageData) -> int:
    batches = data.num_train // (data.batch_size * trainer.world_size)
    return max(1, batches // trainer.accumulate_grad_batches)


def _about_updates(trainer: pl.Trainer, data: ImageData) -> Iterator[str]:
    updates = _updates_per_epoch(trainer, data)
    if updates >= _FEW_UPDATES:
        return
    fitting = fitting_batch_size(data.num_train // trainer.world_size)
    if fitting < data.batch_size:
        remedy = f"--data.batch_size {fitting} would make {data.num_train // fitting}"
    else:
        remedy = "give more --trainer.max_epochs if the validation loss still falls at the end"
    yield f"an epoch has only {updates} {'update' if updates == 1 else 'updates'}: {remedy}"
