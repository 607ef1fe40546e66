"""Checks of trainer options that Lightning accepts silently, or answers with a traceback."""

import math
import os
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CPUAccelerator

from vae_lightning.errors import UserError

_MINIMUM = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
}
"""Smallest values of options of the trainer."""

_NOT_ZERO = {
    "fit": ("max_epochs", "max_steps", "limit_train_batches"),
    "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",),
    "predict": ("limit_predict_batches",),
}
"""Options that let a command do nothing if they are 0."""

_REFUSED_CALLBACKS = {
    "BackboneFinetuning": ("needs a module with a backbone, which no model here has: leave it out"),
}
"""Callbacks that cannot be used, with the reason and an alternative."""

_MAX_CPU_PROCESSES = 8
"""Number of processes that may share a CPU with fewer cores, to try several of them anywhere."""

_MAX_SEED = 2**32 - 1


def check_trainer(config: object, command: str) -> None:
    """Check the options of the trainer.

    Args:
        config: These options.
        command: ``fit`` or another.

    Raises:
        UserError: If one is out of range, or the command would do nothing.
    """
    if not isinstance(config, Namespace):
        raise UserError(f"trainer must hold options by name, got {config}")
    for callback in _entries(config["callbacks"]):
        name = str(callback.get("class_path")).rpartition(".")[2]
        if name in _REFUSED_CALLBACKS:
            raise UserError(f"trainer.callbacks: {name} {_REFUSED_CALLBACKS[name]}")
    for name, minimum in _MINIMUM.items():
        value = config[name]
        # Written so that NaN is refused too.
        if isinstance(value, int | float) and not (minimum <= value < math.inf):
            raise UserError(f"trainer.{name} must be at least {minimum}, got {value}")
    every = config["val_check_interval"]
    if isinstance(every, int | float) and not every > 0:
        raise UserError(
            f"trainer.val_check_interval must be positive, got {every}; without validation: "
            "--trainer.limit_val_batches 0 --checkpoint.monitor null"
        )
    for name in _NOT_ZERO[command]:
        if config[name] == 0:
            raise UserError(f"trainer.{name} is 0: give at least 1")
    devices = str(config["devices"])
    if devices.lstrip("-").isdigit() and (int(devices) == 0 or int(devices) < -1):
        raise UserError(f"trainer.devices must be at least 1, or -1 for all GPUs, got {devices}")


def _entries(callbacks: Any) -> list[Any]:
    """Return the classes and arguments of the trainer's callbacks."""
    entries = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    return [entry for entry in entries if hasattr(entry, "get")]


def check_seed(seed: object) -> None:
    """Check the value of ``seed_everything``.

    Raises:
        UserError: If it is out of range.
    """
    if isinstance(seed, int) and not 0 <= seed <= _MAX_SEED:
        raise UserError(f"seed_everything must be between 0 and {_MAX_SEED}, got {seed}")


def check_devices(trainer: pl.Trainer) -> None:
    """Check that a CPU does not get more processes than it can bear.

    Raises:
        UserError: If it does.
    """
    most = max(os.cpu_count() or 1, _MAX_CPU_PROCESSES)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise UserError(
            f"trainer.devices is {trainer.num_devices}, but this machine has {os.cpu_count()} CPU "
            f"cores: give {most} or fewer"
        )
