"""What may change when a training is continued, and what may not."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Timer

from vae_lightning.checkpoint import Checkpoint
from vae_lightning.cli import run_folders
from vae_lightning.cli.command_line import LINKED
from vae_lightning.cli.yaml_files import read_yaml
from vae_lightning.data import ImageData
from vae_lightning.errors import UserError
from vae_lightning.settings import to_plain_data
from vae_lightning.training import ending

Description = Mapping[str, Any] | None
"""A class and its arguments, ``{"class_path": ..., "init_args": ...}``."""


class AlreadyComplete(UserError):
    """Raised for a training that cannot be continued because nothing is left of it."""


@contextlib.contextmanager
def completeness_reported(is_requeued: bool) -> Iterator[None]:
    """Let a requeued job whose training is complete succeed: its script may have more lines.

    Args:
        is_requeued: Whether the training is that of a requeued job.
    """
    try:
        yield
    except AlreadyComplete as complete:
        if not is_requeued:
            raise
        print(f"{complete}: nothing to do")
        raise SystemExit(0) from None


def check_model_class(held: Checkpoint, config: Namespace) -> None:
    """Check that a checkpoint holds the class of model that the options ask for.

    Args:
        held: The checkpoint.
        config: The options.

    Raises:
        UserError: If it does not.
    """
    asked = _class_name(config.model.class_path)
    name = _class_name(held.record.model["class_path"])
    if asked != name:
        raise UserError(
            f"{held.path} holds a {name}, but the options ask for a {asked}: leave out --model and "
            "any --config that names another model"
        )


def check_progress(held: Checkpoint, config: Namespace) -> None:
    """Check that a training can be continued, and that something is left of it.

    Raises:
        UserError: If it cannot be continued.
        AlreadyComplete: If nothing is left.
    """
    if not held.content.get("optimizer_states"):
        raise UserError(
            f"{held.path} holds only weights and cannot be resumed: give a checkpoint with the "
            "state of the optimizer, such as last.ckpt"
        )
    if "fit_loop" not in held.content.get("loops", {}):
        raise UserError(
            f"{held.path} does not say how far its training got, as checkpoints of another version "
            "of Lightning do not: use another one"
        )
    reached = {
        "max_epochs": (held.record.epochs, "epochs"),
        "max_steps": (held.content["global_step"], "steps"),
    }
    for option, (number, unit) in reached.items():
        limit = config.trainer[option]
        if limit is not None and 0 <= limit <= number:
            raise AlreadyComplete(
                f"{held.path} has already been trained for {number} {unit}: give a "
                f"--trainer.{option} larger than {number}"
            )


def check_callbacks(held: Checkpoint, config: Namespace, trainer: pl.Trainer) -> None:
    """Check that the callbacks that have ended a training will not end it again at once.

    Args:
        held: The checkpoint.
        config: The options.
        trainer: The trainer, with its callbacks.

    Raises:
        AlreadyComplete: If they will.
    """
    took = timedelta(0)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = held.content.get("callbacks", {}).get(callback.state_key)
        if isinstance(callback, Timer) and state is not None:
            callback.load_state_dict(state)  # as Lightning will
            took = timedelta(seconds=round(callback.time_elapsed()))
    if ending.is_out_of_time(trainer):
        raise AlreadyComplete(
            f"{held.path} has already been trained for {took}, and this is its time limit: give a "
            "larger --trainer.max_time, or null"
        )
    ended = held.record.ended_early
    if ended is None or ended["limits"] != [config.trainer.max_epochs, config.trainer.max_steps]:
        return
    path = run_folders.folder_of(held) / "config.yaml"
    before = read_yaml(path).get("trainer", {}).get("callbacks") if path.is_file() else None
    asked = to_plain_data(config.trainer.as_dict()["callbacks"])
    if not _differs(before or [], asked or []):
        raise AlreadyComplete(
            f"{held.path} was ended before its --trainer.max_epochs ({ended['reason']}): continue "
            "without the callback (--trainer.callbacks null), with other options of it, or with "
            "another --trainer.max_epochs"
        )


def check_model(held: Checkpoint, config: Namespace) -> None:
    """Check that the model is that of the training that is continued.

    Raises:
        UserError: If it is not.
    """
    asked = _init_args(config.model)
    known = held.record.model.get("init_args", {})
    for name in sorted((known.keys() & asked.keys()) - set(LINKED)):
        if _differs(known[name], asked[name]):
            raise UserError(
                f"a resumed training keeps its model: leave out --model.{name}, which differs from "
                f"what {held.path} was trained with, or start a new training"
            )


def check_data(held: Checkpoint, config: Namespace) -> None:
    """Check that the images and their order are those of the training that is continued.

    Raises:
        UserError: If they are not.
    """
    known = held.record.data
    if known is None:
        return  # from outside this project
    name = _class_name(known["class_path"])
    if name != _class_name(config.data.class_path):
        raise UserError(
            f"a resumed training keeps its images: leave out --data ({held.path} was trained on "
            f"{name}), or start a new training"
        )
    asked, before = _init_args(config.data), known.get("init_args", {})
    changed = {key for key, value in asked.items() if key in before and before[key] != value}
    fixed = changed - ImageData.CHANGEABLE
    if not held.record.inside_epoch:
        fixed -= {"batch_size"}  # may change between two epochs
    if fixed:
        key = min(fixed)
        raise UserError(
            f"a resumed training keeps its images: leave out --data.{key} {asked[key]} "
            f"({held.path} has {before[key]}), or start a new training"
        )


def optimizer_changes(held: Checkpoint, config: Namespace) -> list[dict[str, Any]]:
    """Return what the options change of the optimizers whose state will be restored.

    Returns:
        New values by the name of the option, for the model's optimizer and the critic's.

    Raises:
        UserError: If an optimizer or the scheduler is another one, or a scheduler would undo the
            change.
    """
    record = held.record
    pairs = [
        (record.optimizer, _describe(config.optimizer)),
        (
            record.critic_optimizer or record.optimizer,
            _describe(config.critic_optimizer or config.optimizer),
        ),
    ]
    scheduler = _describe(config.lr_scheduler)
    same = all(_same_class(before, asked) for before, asked in pairs)
    same &= _same_class(record.lr_scheduler, scheduler)
    same &= not _changed(record.lr_scheduler, scheduler)
    changes = [_changed(before, asked) for before, asked in pairs]
    if not same or (any(changes) and scheduler is not None):
        raise UserError(
            "a resumed training keeps its optimizer and learning-rate scheduler: leave out the "
            "options that change them, or start a new training"
        )
    return changes


def _changed(before: Description, asked: Description) -> dict[str, Any]:
    """Return the arguments that are known of both and differ, with the values asked for."""
    known = (before or {}).get("init_args") or {}
    wanted = (asked or {}).get("init_args") or {}
    return {key: wanted[key] for key in known.keys() & wanted.keys() if wanted[key] != known[key]}


def _same_class(before: Description, asked: Description) -> bool:
    return _class_name((before or {}).get("class_path", "")) == _class_name(
        (asked or {}).get("class_path", "")
    )


def _differs(before: Any, asked: Any) -> bool:
    """Return whether two arguments differ in what is known of both."""
    if isinstance(before, Mapping) and isinstance(asked, Mapping):
        return any(
            _class_name(before[key]) != _class_name(asked[key])
            if key == "class_path"
            else _differs(before[key], asked[key])
            for key in before.keys() & asked.keys()
        )
    if isinstance(before, list) and isinstance(asked, list) and len(before) == len(asked):
        return any(_differs(*pair) for pair in zip(before, asked, strict=True))
    return bool(before != asked)


def _describe(config: Namespace | None) -> Description:
    return None if config is None else to_plain_data(config.as_dict())


def _init_args(config: Namespace) -> dict[str, Any]:
    arguments = config.get("init_args")
    plain: dict[str, Any] = {} if arguments is None else to_plain_data(arguments.as_dict())
    return plain


def _class_name(class_path: str) -> str:
    return class_path.rpartition(".")[2]
