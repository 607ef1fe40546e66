"""The checkpoint from which a run is continued."""

import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from vae_lightning import slurm
from vae_lightning.signals import LISTENER, REQUEUE, STOP


class Interrupted(Exception):
    """A training that ended because a signal asked it to, after its checkpoint was written.

    Args:
        received: The signal.
        saved: The checkpoint.
    """

    def __init__(self, received: signal.Signals, saved: Path) -> None:
        super().__init__(f"{received.name}; saved {saved}")
        self.received = received
        self.saved = saved


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt``, so that a run that ends early ends as if it had not.

    Between epochs it is written when everything of an epoch is done and logged: not at
    ``on_train_epoch_end``, after which Lightning still logs the means of the epoch and steps the
    schedulers that follow a metric. Inside an epoch it is written by time or steps, and when a
    signal comes: SIGINT (Ctrl-C) and SIGTERM end the training with `Interrupted`, and SIGUSR1 in
    a SLURM job puts the job back into the queue too. Several processes agree at the end of each
    batch, so that a signal which reaches only one of them, or all at different batches, ends them
    at the same one.

    Args:
        every_n_epochs: Epochs from one ``last.ckpt`` to the next. The end of a training has one
            in any case.
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
        self.ended = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the folder: in every process, because Lightning broadcasts it."""
        self.path = Path(trainer.log_dir or trainer.default_root_dir, "checkpoints", "last.ckpt")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals: only now, because Lightning has set handlers of its own before."""
        LISTENER.listen(*STOP, REQUEUE if slurm.job() else None)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        self.first_epoch = trainer.current_epoch
        self.due = self.stops = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time."""
        self._ask(trainer)
        if (self.stops or self.due) and _can_continue_after(trainer, batch_idx):
            self._save(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the state between two epochs."""
        epoch = trainer.current_epoch
        self._ask(trainer)
        if epoch > self.first_epoch and (
            self.stops or self.due or epoch % self.every_n_epochs == 0
        ):
            # Lightning has begun to count the next epoch, and would continue with its end.
            progress = trainer.fit_loop.epoch_progress
            for count in progress.current, progress.total:
                count.ready -= 1
            try:
                self._save(trainer)
            finally:
                for count in progress.current, progress.total:
                    count.ready += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end; who asks for it now has got it."""
        self.stops, self.ended = False, True
        self._save(trainer)
        self.ended = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the limits of a training that a callback has ended before it reached them."""
        if self.ended and trainer.should_stop:
            checkpoint["stopped_before"] = [trainer.max_epochs, trainer.max_steps]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave signals to others again."""
        if stage == "fit":
            LISTENER.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """As `teardown`, which Lightning leaves out then."""
        LISTENER.stop()

    def _ask(self, trainer: pl.Trainer) -> None:
        """Find out whether to save, and whether to stop: together, for a process cannot alone."""
        # A training that ends here ends inside of its epoch, and a longer one goes on inside of it.
        self.due |= 0 < trainer.max_steps <= trainer.global_step
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
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved_step = trainer.global_step
        self.saved_time = time.monotonic()
        self.due = False
        if self.stops:
            received = next(s for s in signal.Signals if _any(trainer, LISTENER.received == s))
            if received == REQUEUE and trainer.is_global_zero:
                slurm.requeue()
            raise Interrupted(received, self.path)


def _any(trainer: pl.Trainer, value: bool) -> bool:
    """Whether it is true in any process."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce_boolean_decision(value, all=False)


def _can_continue_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a training that is continued after a batch is the same as one that goes on.

    Not at the end of an epoch or before a validation, which would be left out, nor between batches
    whose gradients are accumulated.
    """
    loop = trainer.fit_loop.epoch_loop
    counted = batch_idx if trainer.check_val_every_n_epoch else loop.total_batch_idx
    validates = trainer.val_check_batch and (counted + 1) % trainer.val_check_batch == 0
    accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
    return not (trainer.is_last_batch or validates or accumulates)
