"""What ``vae fit`` shows while it trains: a bar on a terminal, lines in a file."""

import time
from datetime import timedelta
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from vae_lightning.batch import Batch
from vae_lightning.training.module import LitVAE
from vae_lightning.training.multi_step import batches_per_epoch

_SECONDS_PER_LINE = 30.0


class Pace:
    """How fast a training is, how long it will take, and the best validation loss so far."""

    def __init__(self) -> None:
        self.began = self.epoch_began = self.epoch_ended = time.monotonic()
        self.first_step = self.epoch_step = 0
        self.images = 0
        self.best: tuple[float, int] | None = None

    def begin(self, trainer: pl.Trainer, module: LitVAE) -> None:
        """Note where a training begins, or continues."""
        self.began, self.first_step = time.monotonic(), module.step
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            found = getattr(callback, "best_model_score", None)
            is_loss = getattr(callback, "monitor", None) == "val/loss"
            if isinstance(callback, ModelCheckpoint) and is_loss and found is not None:
                self.best = float(found), 0

    def begin_epoch(self, module: LitVAE) -> None:
        """Note where an epoch begins."""
        self.epoch_began = self.epoch_ended = time.monotonic()
        self.epoch_step, self.images = module.step, 0

    def count(self, trainer: pl.Trainer, batch: Any) -> None:
        """Count the images of a batch, which each process has as many of."""
        self.images += len(Batch.of(batch).x) * trainer.world_size
        self.epoch_ended = time.monotonic()

    def images_per_second(self) -> str:
        """Return the speed in this epoch, without validation; empty if nothing was counted."""
        seconds = self.epoch_ended - self.epoch_began
        return f"{self.images / seconds:,.0f} images/s" if self.images and seconds > 0 else ""

    def batches_per_second(self, module: LitVAE) -> str:
        """Return the number of optimizer steps, or of accumulated batches, per second."""
        seconds = self.epoch_ended - self.epoch_began
        batches = module.step - self.epoch_step
        return f"{batches / seconds:,.3g} batches/s" if batches and seconds > 0 else ""

    def time_left(self, trainer: pl.Trainer, module: LitVAE) -> str:
        """Return the time that the rest will take at the pace so far; empty without a limit."""
        limits = []
        total = _total_batches(trainer, module)
        done = module.step - self.first_step
        if total is not None and done > 0:
            elapsed = time.monotonic() - self.began
            limits.append(elapsed / done * (total - module.step))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and (seconds := callback.time_remaining()) is not None:
                limits.append(seconds)
        most = "at most " if any(isinstance(c, EarlyStopping) for c in trainer.callbacks) else ""  # type: ignore[attr-defined]
        seconds = min(limits, default=0.0)
        return f"{most}{timedelta(seconds=round(seconds))} left" if seconds > 0 else ""

    def losses(
        self, trainer: pl.Trainer, with_training: bool = True, decimals: int = 4
    ) -> list[str]:
        """Return the latest losses and the best one so far.

        Args:
            trainer: The trainer.
            with_training: Whether a training loss of this epoch is known.
            decimals: Number of decimals.
        """
        known = trainer.callback_metrics
        names = ("train/loss", "val/loss") if with_training else ("val/loss",)
        texts = [f"{name} {known[name]:.{decimals}f}" for name in names if name in known]
        if self.best is not None and "val/loss" in known:
            value, epoch = self.best
            when = f" (epoch {epoch})" if epoch else ""
            is_now = epoch == trainer.current_epoch + 1
            texts.append("the best so far" if is_now else f"best {value:.{decimals}f}{when}")
        return texts

    def validated(self, trainer: pl.Trainer) -> None:
        """Compare a new validation loss with the best one."""
        loss = float(trainer.callback_metrics.get("val/loss", float("nan")))
        if self.best is None or loss < self.best[0]:
            self.best = (loss, trainer.current_epoch + 1) if loss == loss else self.best


def _total_batches(trainer: pl.Trainer, module: LitVAE) -> float | None:
    """Return the number of batches of a whole training, None if it has no limit."""
    limits: list[float] = []
    per_epoch = batches_per_epoch(trainer, module)
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and per_epoch < float("inf"):
        limits.append(trainer.max_epochs * per_epoch)
    if trainer.max_steps > 0:
        limits.append(trainer.max_steps * trainer.accumulate_grad_batches)
    return min(limits, default=None)


def _epoch(trainer: pl.Trainer) -> str:
    """Return the number of the current epoch, counted from 1, such as ``epoch 3/30``."""
    most = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + (f"/{most}" if most and most > 0 else "")


class ProgressBar(TQDMProgressBar):
    """Progress bar that counts batches, however many of them a call of ``training_step`` takes."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = Pace()

    def init_train_tqdm(self) -> Tqdm:
        """Return a bar with the texts of `Pace` instead of calls per second."""
        bar = super().init_train_tqdm()
        bar.bar_format = "{l_bar}{bar:10}| {n_fmt}/{total_fmt} batches{postfix}"
        return bar

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar."""
        super().on_train_start(trainer, pl_module)
        if isinstance(pl_module, LitVAE):
            self.pace.begin(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Begin the bar of an epoch."""
        super().on_train_epoch_start(trainer, *args)
        bar, module = self.train_progress_bar, trainer.lightning_module
        bar.set_description(_epoch(trainer).capitalize())
        if isinstance(module, LitVAE):
            self.pace.begin_epoch(module)
            total = batches_per_epoch(trainer, module)
            bar.total = int(total) if total < float("inf") else None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        if not isinstance(pl_module, LitVAE):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            return
        self.pace.count(trainer, batch)
        bar = self.train_progress_bar
        calls = cast(int, trainer.num_training_batches)
        if not bar.disable and self._should_update(batch_idx + 1, calls):
            done = (batch_idx + 1) * pl_module.steps_per_call
            bar.n = done if bar.total is None else min(done, bar.total)
            self._show(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the losses of the epoch."""
        if isinstance(pl_module, LitVAE):
            self._show(trainer, pl_module)
        else:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the losses of the validation."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.pace.validated(trainer)
            if isinstance(pl_module, LitVAE):
                self._show(trainer, pl_module)

    def _show(self, trainer: pl.Trainer, module: LitVAE) -> None:
        if self.train_progress_bar.disable:
            return
        pace = self.pace
        texts = [
            pace.time_left(trainer, module),
            *pace.losses(trainer, decimals=2),
            pace.images_per_second(),
            pace.batches_per_second(module),
        ]
        self.train_progress_bar.set_postfix_str(", ".join(filter(None, texts)))


class ProgressLines(pl.Callback):
    """Print a line per epoch, and one every half minute, for output that is not a terminal."""

    takes_joined_batches = True

    def __init__(self) -> None:
        self.pace = Pace()
        self.first_step = 0
        self.printed = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the training begins."""
        if isinstance(pl_module, LitVAE):
            self.pace.begin(trainer, pl_module)
        self.printed = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the epoch begins."""
        if isinstance(pl_module, LitVAE):
            self.pace.begin_epoch(pl_module)
        self.first_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Print a line if the last one was long ago."""
        if not trainer.is_global_zero or not isinstance(pl_module, LitVAE):
            return
        self.pace.count(trainer, batch)
        if time.monotonic() - self.printed < _SECONDS_PER_LINE:
            return
        done = (batch_idx + 1) * pl_module.steps_per_call
        total = batches_per_epoch(trainer, pl_module)
        where = f"batch {done:,}"
        if total < float("inf"):
            where = f"batch {min(done, int(total)):,} of {int(total):,}"
        loss = trainer.callback_metrics.get("train/loss")
        is_new = loss is not None and pl_module.written_step >= self.first_step
        texts = [f"train/loss {loss:.4f}"] if is_new else []
        self._print(trainer, pl_module, f"{_epoch(trainer)}, {where}", texts)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the losses."""
        if not trainer.is_global_zero or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.pace.validated(trainer)
        # If no step of this epoch was logged, the loss would be that of an earlier one.
        is_new = getattr(pl_module, "written_step", -1) >= self.first_step
        self._print(trainer, pl_module, _epoch(trainer), self.pace.losses(trainer, is_new))

    def _print(
        self, trainer: pl.Trainer, module: pl.LightningModule, where: str, texts: list[str]
    ) -> None:
        texts = [*texts, self.pace.images_per_second()]
        if isinstance(module, LitVAE):
            texts.append(self.pace.time_left(trainer, module))
        print(f"{where}: {', '.join(filter(None, texts))}", flush=True)
        self.printed = time.monotonic()
