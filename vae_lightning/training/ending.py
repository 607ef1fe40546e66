"""Why a training has ended."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from vae_lightning.training import compat


def reason(trainer: pl.Trainer) -> str:
    """Return why a training has ended, as a clause: ``max_epochs=30 is reached``."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"max_steps={trainer.max_steps} is reached"
    if not compat.stops_early(trainer):
        return f"max_epochs={trainer.max_epochs} is reached"
    if is_out_of_time(trainer):
        return "the time limit, max_time, is reached"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (
            isinstance(callback, EarlyStopping)
            and callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        ):
            message = str(callback.stopping_reason_message).partition(". ")[0]
            return f"early stopping, {message[:1].lower()}{message[1:]}"
    return "a callback has stopped it"


def is_out_of_time(trainer: pl.Trainer) -> bool:
    """Return whether the time limit of a training is reached."""
    timers = [c for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    return any(seconds is not None and seconds <= 0 for seconds in left)
