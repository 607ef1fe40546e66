"""Find a batch size or a learning rate before a training, with Lightning's tuner.

Lightning's callbacks `BatchSizeFinder` and `LearningRateFinder` search at the start of the training
itself. Here, the search has a model, data and a trainer of its own, and what it finds becomes an
option of the training. The training and its ``config.yaml`` are those of the same command with
that option in the place of the callback, so that the run can be resumed and repeated.
"""

import logging
import math
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.tuner.tuning import Tuner

from vae_lightning.cli.building import build_module
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.errors import UserError

BATCH_SIZE, LEARNING_RATE = "data.batch_size", "optimizer.lr"

_FINDERS = {"BatchSizeFinder": BATCH_SIZE, "LearningRateFinder": LEARNING_RATE}
"""The options that the callbacks find, in the order of the search."""

_FEW_UPDATES = 50
"""Updates in an epoch below which a batch size is remarked on."""

_SHARED = ("accelerator", "devices", "num_nodes", "precision", "strategy")
_CLIPPING = ("gradient_clip_val", "gradient_clip_algorithm")


def take(command_line: CommandLine, config: Namespace) -> dict[str, Namespace]:
    """Remove the finders from the callbacks of the trainer.

    Args:
        command_line: The command line.
        config: The options of ``vae fit``; changed in place.

    Returns:
        The finders by the option that they find.

    Raises:
        UserError: If a finder has no effect, or the training is a continued one.
    """
    callbacks = config.trainer.callbacks
    entries = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    found = {}
    for name, option in _FINDERS.items():
        for entry in entries:
            if getattr(entry, "class_path", "").rpartition(".")[2] == name:
                if option in found:
                    raise UserError(f"trainer.callbacks: give one {name}, not two")
                found[option] = entry
                if command_line.has(f"--{option}"):
                    raise UserError(f"--{option} has no effect with {name}: leave out one of them")
                if command_line.checkpoint:
                    raise UserError(
                        f"{name} is for the start of a training, and this one continues from "
                        f"{command_line.checkpoint.path}: leave it out"
                    )
    if found:
        left = [entry for entry in entries if entry not in found.values()]
        config.trainer.callbacks = left or None
    return found


def find_options(
    finders: dict[str, Namespace], parser: ArgumentParser, config: Namespace, given: Namespace
) -> None:
    """Search for the values of options, and fill them in.

    Args:
        finders: The finders by option.
        parser: The parser of all commands.
        config: The options of all commands; changed in place.
        given: The options of ``vae fit`` that will be written; changed in place.

    Raises:
        UserError: If no value is found, or the training has several processes.
    """
    for option, finder in finders.items():
        built = parser.instantiate_classes(config).fit
        group, _, name = option.partition(".")
        value = _find(option, finder, built)
        for options in (config.fit, given):
            options[group].init_args[name] = value
        # The training starts as if the option had been typed.
        pl.seed_everything(built.seed_everything, workers=True, verbose=False)


def _find(option: str, finder: Namespace, built: Namespace) -> float | int:
    """Find the value of an option for the model and the data that were built for the search."""
    name = finder.class_path.rpartition(".")[2]
    module = build_module(built, lr_scheduler=None, compile=False, steps_per_call=1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # About a search that is meant to be short.
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{option: built.trainer[option] for option in (*_SHARED, *_CLIPPING)},
            default_root_dir=folder,
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if trainer.world_size > 1:
            raise UserError(
                f"{name} works in one process: find a value with --trainer.devices 1, then give "
                f"--{option}"
            )
        arguments = vars(finder.get("init_args") or Namespace())
        search = _batch_size if option == BATCH_SIZE else _learning_rate
        log = logging.getLogger("lightning.pytorch")
        before = log.level
        log.setLevel(logging.ERROR)
        try:
            value = search(Tuner(trainer), module, built.data, arguments)
        finally:
            log.setLevel(before)
    if value is None:
        raise UserError(
            f"{name} has found no value: let it try more steps, or give --{option} yourself"
        )
    print(f"{name}: --{option} {value}")
    if option == BATCH_SIZE and (updates := math.ceil(built.data.num_train / value)) < _FEW_UPDATES:
        print(
            f"Note: with this batch size an epoch has {updates} updates, fewer than {_FEW_UPDATES}:"
            " consider more epochs, a higher learning rate, or a smaller --data.batch_size"
        )
    return value


def _batch_size(tuner: Tuner, module: Any, data: Any, arguments: dict[str, Any]) -> int | None:
    # The tuner does not search where the first size already holds all images.
    data.batch_size = arguments.get("init_val", 2)
    found = tuner.scale_batch_size(module, datamodule=data, **arguments)
    return found and min(found, data.num_train)


def _learning_rate(tuner: Tuner, module: Any, data: Any, arguments: dict[str, Any]) -> float | None:
    steps = arguments.pop("num_training_steps", 100)
    arguments = {**arguments, "update_attr": False, "num_training": steps}
    found = tuner.lr_find(module, datamodule=data, **arguments)
    value = found.suggestion() if found else None
    return value and float(f"{value:.3g}")
