"""Check before the first batch what would fail at the end of an epoch only."""

import math
import re
from collections.abc import Callable, Collection
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae_lightning.training.best_checkpoint import BestCheckpoint
from vae_lightning.training.multi_step import batches_per_epoch
from vae_lightning.training.optimizers import OptimizerFactory

_KNOWN_PACKAGES = ("lightning.", "vae_lightning.")

_LOGGED_PER_EPOCH = ("perplexity", "codes_used")
"""Quantities of a training that are logged once per epoch."""

_MAX_EPOCHS = 5000
"""Epochs of a schedule that are tried."""


def check(module: Any, base: type) -> None:
    """Check what a training does at the end of an epoch.

    Args:
        module: The LightningModule.
        base: `LitVAE`; a subclass may log more.

    Raises:
        ValueError: If something would fail.
    """
    trainer = module.trainer
    logged = module.logged_names
    batches = batches_per_epoch(trainer, module)
    steps = max(1, int(batches) // trainer.accumulate_grad_batches) if math.isfinite(batches) else 0
    if not trainer.fast_dev_run:  # which ignores callbacks that monitor something
        check_monitors(trainer, logged if type(module) is base else None, steps)
    check_file_names(trainer)
    if module.make_lr_scheduler:
        epochs = _epochs(trainer, steps)
        check_schedule(module.make_optimizer, module.make_lr_scheduler, epochs)


def check_monitors(
    trainer: pl.Trainer, logged: Callable[[], Collection[str]] | None, steps_per_epoch: int
) -> None:
    """Check that what callbacks and schedulers monitor will be logged.

    Args:
        trainer: The trainer.
        logged: Returns the names of what a validation and a training log; None if unknown.
        steps_per_epoch: Number of optimizer steps in an epoch, 0 if it is unknown.

    Raises:
        ValueError: If a callback or a scheduler monitors something else.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    need = callbacks
    if not trainer.enable_validation:  # the project's own checkpoint does without
        need = [callback for callback in callbacks if not isinstance(callback, BestCheckpoint)]
    monitors = {getattr(callback, "monitor", None) for callback in need}
    monitors |= {c.monitor for c in trainer.lr_scheduler_configs if c.reduce_on_plateau}
    names = sorted(monitor for monitor in monitors if isinstance(monitor, str))
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    for name in names:
        if name.startswith("val/") and not trainer.enable_validation:
            raise ValueError(
                f"{name} is monitored, but nothing is validated: give validation data and no "
                "limit_val_batches of 0"
            )
        is_of_steps = name.startswith("train/") and not name.endswith(_LOGGED_PER_EPOCH)
        if is_of_steps and not 0 < every <= (steps_per_epoch or every):
            raise ValueError(
                f"{name} is monitored, but logged every {every} steps, and an epoch has "
                f"{steps_per_epoch}: change log_every_n_steps"
            )
    if logged is None or not all(type(c).__module__.startswith(_KNOWN_PACKAGES) for c in callbacks):
        return  # subclasses, and callbacks of the user's own, may log more
    if set(names) <= {"val/loss", "train/loss"}:
        return
    known = logged()
    for name in names:
        if name not in known:
            raise ValueError(f"there is no '{name}' to monitor: choose one of {', '.join(known)}")


def check_file_names(trainer: pl.Trainer) -> None:
    """Check that names of checkpoints can be made.

    Raises:
        ValueError: If a name is not a valid format.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint):
            # Metrics are fractions, which a format such as {val/loss:d} does not take.
            names = re.findall(r"\{([^{}:]+)", callback.filename or "")
            counts = dict.fromkeys(names, torch.tensor(0.5))
            counts |= {"epoch": torch.tensor(0), "step": torch.tensor(0)}
            try:
                callback.format_checkpoint_name(counts)
            except (ValueError, KeyError, IndexError, AttributeError) as error:
                raise ValueError(
                    f"filename {callback.filename!r} of {type(callback).__name__} is not a valid "
                    f"format ({error}): write for example '{{epoch}}-{{val/loss:.2f}}'"
                ) from error


def check_schedule(
    make_optimizer: OptimizerFactory, make_scheduler: Callable[[Any], Any], epochs: int
) -> None:
    """Check that a scheduler can be stepped after every epoch.

    Args:
        make_optimizer: Makes the optimizer.
        make_scheduler: Makes the scheduler.
        epochs: Number of epochs.

    Raises:
        ValueError: If a step fails.
    """
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1, 1))])
    try:
        scheduler = make_scheduler(optimizer)
    except ValueError:  # one value for each of the optimizer's groups, which has only one here
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    for epoch in range(min(epochs, _MAX_EPOCHS)):
        try:
            optimizer.step(lambda: 0.0)  # schedulers expect it; there is no gradient
            scheduler.step()
        except (ValueError, ArithmeticError, IndexError) as error:
            name = type(scheduler).__name__
            raise ValueError(
                f"lr_scheduler {name} fails after epoch {epoch} of {epochs}, and it is stepped "
                f"after every epoch: {error}"
            ) from error


def _epochs(trainer: pl.Trainer, steps_per_epoch: int) -> int:
    """Return the number of epochs that a training has at most, 1 if it has no limit."""
    limits = [trainer.max_epochs] if trainer.max_epochs and trainer.max_epochs > 0 else []
    if trainer.max_steps > 0 and steps_per_epoch:
        limits.append(math.ceil(trainer.max_steps / steps_per_epoch))
    return min(limits, default=1)
