"""The checkpoint from which a run is continued."""

import signal
import time
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from vae_lightning.training import compat, ending, slurm
from vae_lightning.training.signals import LISTENER, REQUEUE, STOP


class Interrupted(Exception):
    """Raised to end a training on a signal, after its checkpoint was written.

    Args:
        received: The signal.
        saved: Path of the checkpoint.
    """

    def __init__(self, received: signal.Signals, saved: Path) -> None:
        super().__init__(f"{received.name}; saved {saved}")
        self.received = received
        self.saved = saved


class LastCheckpoint(Checkpoint):
    """Write ``checkpoints/last.ckpt``, so that an interrupted run can end as if it had not been.

    Between epochs, the checkpoint is written when everything of an epoch is done and logged. That
    is later than ``on_train_epoch_end``, after which Lightning still logs the means of the epoch
    and steps the schedulers that follow a metric. Inside an epoch, it is written after a time or a
    number of steps, and on a signal: SIGINT (Ctrl-C) and SIGTERM end the training with
    `Interrupted`, and so does SIGUSR1 in a SLURM job, which ``vae fit`` then requeues. Several
    processes agree at the end of each batch, so that a signal that reaches only one of them, or all
    at different batches, ends them at the same batch.

    Args:
        every_n_epochs: Epochs from one ``last.ckpt`` to the next. One is written at the end of a
            training in any case.
        every_n_steps: Steps from one to the next, also inside an epoch.
        every_n_minutes: Minutes from one to the next, also inside an epoch.

    Raises:
        ValueError: If one of them is not positive.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 10.0,
    ) -> None:
        options = {
            "every_n_epochs": every_n_epochs,
            "every_n_steps": every_n_steps,
            "every_n_minutes": every_n_minutes,
        }
        for name, value in options.items():
            if value is not None and not value > 0:
                raise ValueError(f"last.{name} must be positive, got {value}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.path = Path()
        self.saved_step = -1
        self.saved_time = 0.0
        self.first_epoch = 0
        self.due = False
        self.stops = False
        self.saving = self.delayed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Determine the path: in every process, because Lightning broadcasts the folder."""
        self.path = Path(trainer.log_dir or trainer.default_root_dir, "checkpoints", "last.ckpt")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for signals: only now, because Lightning sets handlers of its own before."""
        LISTENER.listen(*STOP, REQUEUE if slurm.job() else None)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        self.first_epoch = trainer.current_epoch
        self.due = self.stops = self.delayed = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time."""
        can_continue = _can_continue_after(trainer, batch_idx)
        trainer.should_stop |= self.delayed
        self.delayed = False
        if not can_continue:
            self._delay_end(trainer)
        self._decide(trainer)
        if (self.stops or self.due) and can_continue:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Delay an end inside an epoch, unless its state is saved already."""
        is_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if is_training and trainer.global_step != self.saved_step:
            self._delay_end(trainer)

    def _delay_end(self, trainer: pl.Trainer) -> None:
        """Delay an end that a callback asks for to a batch from which the epoch can be continued.

        Lightning would count the epoch as complete.
        """
        if not trainer.is_last_batch and trainer.val_check_batch != 1 and trainer.should_stop:
            trainer.should_stop, self.delayed = False, True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the state between two epochs."""
        epoch = trainer.current_epoch
        self._decide(trainer)
        if epoch > self.first_epoch and (
            self.stops or self.due or epoch % self.every_n_epochs == 0
        ):
            with compat.before_next_epoch(trainer):
                self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the training; a signal that comes now asks for nothing more."""
        self.stops = False
        self._save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record why a training ends before its limits, and what these are.

        Lightning calls callbacks before the module, which writes the record.
        """
        module = cast(Any, pl_module)
        module.ended_early = None
        # A timer keeps in the checkpoint how much time is left.
        if self.saving and compat.stops_early(trainer) and not ending.is_out_of_time(trainer):
            limits = [trainer.max_epochs, trainer.max_steps]
            module.ended_early = {"reason": ending.reason(trainer), "limits": limits}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the handlers of signals."""
        if stage == "fit":
            LISTENER.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the handlers of signals: Lightning does not call `teardown` then."""
        LISTENER.stop()

    def _decide(self, trainer: pl.Trainer) -> None:
        """Decide, together with all processes, whether to save and whether to stop."""
        # A training that ends here ends inside its epoch, and a longer one continues inside it.
        self.due |= 0 < trainer.max_steps <= trainer.global_step or compat.stops_early(trainer)
        if self.every_n_steps is not None:
            self.due |= trainer.global_step - self.saved_step >= self.every_n_steps
        is_late = (
            self.every_n_minutes is not None
            and time.monotonic() - self.saved_time >= 60 * self.every_n_minutes
        )
        if _any(trainer, is_late or LISTENER.received is not None):
            self.due = True
            self.stops = _any(trainer, LISTENER.received is not None)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run and trainer.global_step != self.saved_step:  # type: ignore[attr-defined]
            self.saving = True
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saving = False
            self.saved_step = trainer.global_step
        self.saved_time = time.monotonic()
        self.due = False
        if self.stops:
            received = next(s for s in signal.Signals if _any(trainer, LISTENER.received == s))
            raise Interrupted(received, self.path)


def _any(trainer: pl.Trainer, value: bool) -> bool:
    """Return whether a value is true in any process."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce_boolean_decision(value, all=False)


def _can_continue_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether a training resumed after this batch equals one that was not interrupted.

    It does not at the end of an epoch or before a validation, which would be left out, nor between
    batches whose gradients are accumulated.
    """
    loop = trainer.fit_loop.epoch_loop
    counted = batch_idx if trainer.check_val_every_n_epoch else loop.total_batch_idx
    validates = trainer.val_check_batch and (counted + 1) % trainer.val_check_batch == 0
    accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
    return not (trainer.is_last_batch or validates or accumulates)
