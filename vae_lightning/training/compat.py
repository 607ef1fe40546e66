"""Every use of a private name of Lightning, jsonargparse or torch, each with an assertion.

The versions of these packages are bounded above in pyproject.toml. When one of them is raised, the
assertions here say what has moved.
"""

import functools
import inspect
import json
import operator
import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import lightning.pytorch as pl
from jsonargparse import ArgumentParser, Namespace, _common, _typehints
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.trainer.connectors import checkpoint_connector

_LOOPS = "https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.1/src/lightning/pytorch/loops/"


def advance_log_axis(trainer: pl.Trainer, steps: int) -> None:
    """Move the step under which Lightning logs, which counts calls of ``training_step``.

    See ``training_epoch_loop.py`` in the loops of Lightning.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_batches_that_stepped"), f"{_LOOPS}training_epoch_loop.py"
    loop._batches_that_stepped += steps


def set_optimizer_steps(trainer: pl.Trainer, steps: int) -> None:
    """Set ``trainer.global_step`` for automatic and for manual optimization.

    Lightning has a counter for each and reads the one in use.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(loop.manual_optimization, "optim_step_progress"), (
        f"{_LOOPS}optimization/manual.py"
    )
    assert hasattr(loop.automatic_optimization, "optim_progress"), (
        f"{_LOOPS}optimization/automatic.py"
    )
    loop.manual_optimization.optim_step_progress.total.completed = steps
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = steps


def epoch_progress(trainer: pl.Trainer) -> tuple[int, bool]:
    """Return the number of complete epochs, and whether batches of the current one are to come."""
    loop: Any = trainer.fit_loop
    assert hasattr(loop.epoch_progress.current, "processed"), f"{_LOOPS}progress.py"
    assert hasattr(loop.epoch_loop.batch_progress, "is_last_batch"), f"{_LOOPS}progress.py"
    return loop.epoch_progress.current.processed, not loop.epoch_loop.batch_progress.is_last_batch


def stops_early(trainer: pl.Trainer) -> bool:
    """Return whether a callback has asked for the end, after ``min_epochs`` and ``min_steps``."""
    assert hasattr(type(trainer.fit_loop), "_can_stop_early"), f"{_LOOPS}fit_loop.py"
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def next_batch(trainer: pl.Trainer) -> tuple[int, int]:
    """Return the epoch that has begun and the number of its batches that were fetched.

    Returns:
        (epoch, batches); 0 batches of the next epoch after the last batch of one.
    """
    loop: Any = trainer.fit_loop
    assert hasattr(loop.epoch_loop.batch_progress.current, "ready"), f"{_LOOPS}progress.py"
    begun, batches = loop.epoch_progress.current.ready, loop.epoch_loop.batch_progress
    if batches.is_last_batch:
        return begun, 0
    return begun - 1, batches.current.ready


def batch_progress_of(content: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return the counts of batches in the loops' state of a checkpoint, to be changed in place."""
    progress: dict[str, dict[str, int]] = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert {"current", "total"} <= progress.keys(), f"{_LOOPS}progress.py"
    return progress


def is_between_epochs(trainer: pl.Trainer) -> bool:
    """Return whether the checkpoint that is resumed was written between two epochs."""
    loop: Any = trainer.fit_loop
    progress = loop.epoch_progress.current
    assert hasattr(progress, "started"), f"{_LOOPS}progress.py"
    is_complete = progress.ready == progress.started == progress.processed == progress.completed
    # After the last batch of an epoch, Lightning still has to count that batch.
    return is_complete and not loop.epoch_loop.restarted_on_train_batch_end


def end_restart(trainer: pl.Trainer) -> None:
    """Tell the loop that it is not inside an epoch that is resumed.

    Otherwise it begins with an epoch without batches, if a complete epoch is continued, and does
    not step the schedulers that follow a metric. The setter of the loop does not serve, because it
    takes every training with ``max_steps`` for one that is resumed inside an epoch.
    """
    loop: Any = trainer.fit_loop
    assert hasattr(loop, "_restarting"), f"{_LOOPS}fit_loop.py"
    loop._restarting = False
    loop.epoch_loop.restarting = False
    loop.epoch_loop.reset_restart_stage()


@contextmanager
def before_next_epoch(trainer: pl.Trainer) -> Iterator[None]:
    """Let the progress in a block be that of the moment before the epoch that has just begun.

    Lightning has already counted this epoch when it calls ``on_train_epoch_start``, and a training
    resumed from such a checkpoint would continue at the end of the epoch.
    """
    progress: Any = trainer.fit_loop.epoch_progress
    assert hasattr(progress.current, "ready"), f"{_LOOPS}progress.py"
    for count in progress.current, progress.total:
        count.ready -= 1
    try:
        yield
    finally:
        for count in progress.current, progress.total:
            count.ready += 1


def saves_by_steps(callback: ModelCheckpoint) -> bool:
    """Return whether a checkpoint callback counts training steps."""
    assert hasattr(callback, "_every_n_train_steps"), "ModelCheckpoint of Lightning has changed"
    return bool(callback._every_n_train_steps)


def options_of(parser: ArgumentParser) -> dict[str, tuple[str | None, Any]]:
    """Return what each option of a parser does and its default, by flag."""
    return {
        flag: (action.help, action.default)
        for action in parser._actions
        for flag in action.option_strings
    }


def read_whole_numbers_as_integers(parser: ArgumentParser, names: Iterable[str]) -> None:
    """Let options that take an integer or a float read ``1`` as the integer.

    ``limit_val_batches`` means one batch by 1, and all of them by 1.0. The order of the types in
    Lightning's annotations, in which jsonargparse tries them, depends on what Python has cached.

    Args:
        parser: The parser.
        names: Names of the options.
    """
    actions = {action.dest: action for action in parser._actions}
    for name in names:
        action: Any = actions[name]
        assert int in get_args(action._typehint), f"{name} has no integer"
        kinds = sorted(get_args(action._typehint), key=lambda kind: kind is not int)
        action._typehint = functools.reduce(operator.or_, kinds)


def keep_defaults_of_changed_classes() -> None:
    """Let an option that names another class take that class's own defaults.

    jsonargparse keeps every value that the new class accepts too, even if it was only the default
    of the class before: ``--optimizer AdamW`` over a default Adam would get Adam's weight decay of
    0. See https://github.com/omni-us/jsonargparse/issues/460.
    """
    name = "discard_init_args_on_class_path_change"
    original = getattr(_typehints, name, None)
    assert original is not None, "https://github.com/omni-us/jsonargparse/issues/460"
    if getattr(original, "drops_defaults", False):
        return

    def discard(parser_or_action: Any, before: Any, after: Any) -> None:
        if before and before.get("init_args") and before["class_path"] != after["class_path"]:
            _drop_defaults(parser_or_action, before)
        original(parser_or_action, before, after)

    nested = getattr(_typehints.ActionTypeHint, name, None)
    assert nested is not None, "jsonargparse discards nested arguments in another way"

    def discard_nested(parser_or_action: Any, before: Any, after: Any) -> None:
        # jsonargparse 4.53 fails where the new class takes no argument of the one before.
        if after is not None:
            nested(parser_or_action, before, after)

    discard.drops_defaults = True  # type: ignore[attr-defined]
    setattr(_typehints, name, discard)
    setattr(_typehints.ActionTypeHint, name, staticmethod(discard_nested))


def _drop_defaults(parser_or_action: Any, before: Any) -> None:
    """Remove the arguments of a class that have the default values of this class."""
    action = parser_or_action if isinstance(parser_or_action, _typehints.ActionTypeHint) else None
    options = {"fail_untyped": False, **getattr(action, "sub_add_kwargs", {})}
    parser = _typehints.ActionTypeHint.get_class_parser(before["class_path"], options)
    defaults = parser.get_defaults()
    for key in list(before["init_args"].keys()):
        if key in defaults and _as_plain(defaults[key]) == _as_plain(before["init_args"][key]):
            before["init_args"].pop(key)


def _as_plain(value: Any) -> Any:
    """Return a value for comparisons: namespaces are dictionaries, tuples lists, classes text."""
    value = value.as_dict() if isinstance(value, Namespace) else value
    return json.loads(json.dumps(value, default=str))


@contextmanager
def parsing_settings_restored() -> Iterator[None]:
    """Undo, at the end of a block, what `jsonargparse.set_parsing_settings` changed in it.

    There is no public way to read these settings.
    """
    assert hasattr(_common, "parsing_settings"), "jsonargparse/_common.py: parsing_settings"
    settings = _common.parsing_settings
    before = dict(settings)
    try:
        yield
    finally:
        settings.clear()
        settings.update(before)


def restores(error: BaseException) -> bool:
    """Return whether an error was raised while Lightning restored a checkpoint."""
    module = inspect.getfile(checkpoint_connector)
    assert hasattr(checkpoint_connector, "_CheckpointConnector"), module
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename == module and "restore" in frame.name for frame in frames)


def end_processes(trainer: pl.Trainer) -> None:
    """Kill the processes that a trainer has started, which may wait for this one."""
    launcher: Any = trainer.strategy.launcher
    if launcher is not None:
        assert hasattr(launcher, "kill"), "lightning/pytorch/strategies/launchers/launcher.py"
        launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))


def check_ckpt_path_hook() -> None:
    """Check that overriding ``LightningCLI._parse_ckpt_path`` still has an effect.

    Lightning would let the hyperparameters of a checkpoint win over the command line, see
    https://github.com/Lightning-AI/pytorch-lightning/issues/21455.
    """
    assert hasattr(LightningCLI, "_parse_ckpt_path"), "LightningCLI reads checkpoints elsewhere"
