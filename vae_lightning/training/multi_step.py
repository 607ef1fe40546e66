"""Several optimizer steps in one call of ``training_step``.

Lightning's loop takes one or two milliseconds for every batch, more than a small network needs for
its update. With several steps per call, the data module joins that many batches into one, and the
loop takes its time once for all of them. The updates are the same: same images, same order, same
noise, and the same steps in the log.
"""

import math
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    Checkpoint,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae_lightning.settings import class_of
from vae_lightning.training import compat

_PIXELS_PER_CALL = 2048 * 28 * 28
"""A call has as many batches as have this many decoded pixels, where the number is chosen here."""

_MAX_STEPS_PER_CALL = 64

_BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad")
_MODULE_HOOKS = (
    *_BATCH_HOOKS,
    "training_step",
    "configure_optimizers",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
)
"""Hooks by which a subclass of `LitVAE` may treat single batches in its own way."""

_ACT_ON_UPDATES = GradientAccumulationScheduler, StochasticWeightAveraging, WeightAveraging


def choose_steps_per_call(trainer: Any, module: Any, base: type) -> int:
    """Choose the number of optimizer steps per call.

    Args:
        trainer: The trainer.
        module: The LightningModule, whose ``asked_steps_per_call`` may ask for a number.
        base: `LitVAE`; what a subclass overrides may need single batches.

    Raises:
        ValueError: If several steps are asked for, and something needs single batches.
    """
    reason = _needs_single_batches(trainer, module, base)
    asked = module.asked_steps_per_call
    if asked is not None:
        if asked > 1 and reason:
            raise ValueError(f"steps_per_call is {asked}, but {reason}: leave out one of the two")
        return asked
    if reason or any(_sees_batches(callback) for callback in trainer.callbacks):
        return 1
    data = trainer.datamodule
    pixels = data.batch_size * math.prod(data.image_shape) * getattr(module.model, "num_samples", 1)
    return min(max(1, _PIXELS_PER_CALL // pixels), _MAX_STEPS_PER_CALL)


def batches_per_epoch(trainer: Any, module: Any) -> float:
    """Return the number of batches of an epoch, which calls of several steps take together.

    It is infinite for data without a length.
    """
    batches: float = trainer.num_training_batches
    if module.steps_per_call > 1:  # whose batches come joined
        loader = trainer.train_dataloader
        in_data = math.ceil(len(loader.sampler) * module.steps_per_call / loader.batch_size)
        batches = min(batches * module.steps_per_call, in_data)
    return batches


def set_steps_per_call(module: Any, steps: int) -> None:
    """Let a call of ``training_step`` do so many optimizer steps."""
    module.steps_per_call = steps
    if steps > 1:
        _ignore_log_interval_warning(module)
    module.automatic_optimization = steps == 1
    data = module.trainer.datamodule
    if hasattr(data, "joined_batches"):
        data.joined_batches = steps


def translate_progress(content: dict[str, Any], held: int, module: Any) -> None:
    """Rewrite the progress of a checkpoint, which counts calls of ``held`` steps, for single steps.

    Args:
        content: What Lightning is about to restore; changed in place.
        held: Steps per call of the training that wrote it.
        module: The module, whose calls have one step.
    """
    loader = module.trainer.datamodule.train_dataloader()
    progress = compat.batch_progress_of(content)
    for part, most in ("current", len(loader)), ("total", module.step):
        calls = progress[part]["ready"]
        batches = min(calls * held, most)
        progress[part] = {k: batches - (calls - v) for k, v in progress[part].items()}


def _ignore_log_interval_warning(module: Any) -> None:
    """Ignore that an epoch has fewer calls than ``log_every_n_steps``: it has enough steps."""
    if module.warning_filters is None:
        module.warning_filters = warnings.catch_warnings()
        module.warning_filters.__enter__()
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")


def restore_warnings(module: Any) -> None:
    """Restore the warning filters that `set_steps_per_call` changed."""
    if module.warning_filters is not None:
        module.warning_filters.__exit__(None, None, None)
        module.warning_filters = None


def _needs_single_batches(trainer: Any, module: Any, base: type) -> str:
    """Return what counts or treats single batches, as a clause; empty if nothing does."""
    callbacks = trainer.callbacks
    scheduler = class_of(module.make_lr_scheduler)
    optimizer = class_of(module.make_optimizer)
    overridden = [name for name in _MODULE_HOOKS if is_overridden(name, module, base)]
    scheduling = [c for c in callbacks if isinstance(c, _ACT_ON_UPDATES)]
    reasons = {
        f"{type(module).__name__} overrides {', '.join(overridden)}": overridden,
        f"{', '.join(type(c).__name__ for c in scheduling)} acts on single updates": scheduling,
        "the data module yields batches of one size only": not hasattr(
            trainer.datamodule, "joined_batches"
        ),
        "trainer.gradient_clip_val clips the gradient of each update": trainer.gradient_clip_val,
        "trainer.accumulate_grad_batches joins batches": trainer.accumulate_grad_batches > 1,
        "trainer.limit_train_batches counts batches": not _is_all(trainer.limit_train_batches),
        # Absent where it is a time.
        "trainer.val_check_interval counts batches": not _is_all(
            getattr(trainer, "val_check_interval", 1.0)
        ),
        "trainer.max_steps counts batches": trainer.max_steps != -1,
        "checkpoint.every_n_train_steps counts them": any(
            compat.saves_by_steps(c) for c in callbacks if isinstance(c, ModelCheckpoint)
        ),
        "lr_scheduler follows a validation loss": scheduler is not None
        and issubclass(scheduler, ReduceLROnPlateau),
        "optimizer evaluates a batch several times": optimizer is not None
        and issubclass(optimizer, LBFGS),
        f"{type(trainer.strategy).__name__} trains on one batch at a time": not isinstance(
            trainer.strategy, SingleDeviceStrategy | DDPStrategy
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _sees_batches(callback: pl.Callback) -> bool:
    """Return whether a callback, other than those known not to mind, is called for each batch."""
    is_known = isinstance(callback, ProgressBar | Timer | Checkpoint)
    is_known = is_known or getattr(callback, "takes_joined_batches", False)
    return not is_known and any(is_overridden(hook, callback, pl.Callback) for hook in _BATCH_HOOKS)


def _is_all(limit: float) -> bool:
    """Return whether a limit of Lightning, a fraction (1.0) or a number (1) of batches, is all."""
    return isinstance(limit, float) and limit == 1.0
