"""The checkpoint with the best validation loss."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from vae_lightning import checkpoint
from vae_lightning.errors import UserError


class BestCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` for runs that are continued.

    Lightning's own forgets what was best if the path of the folder changes, because it was moved or
    is named from elsewhere, or if checkpoints are saved more or less often than before. It also
    does not know the files that the run wrote after the checkpoint from which it is continued.
    """

    first_step = 0

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; the same for the same metric, however often saved."""
        return f"BestCheckpoint{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}}}"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step at which the training starts or continues."""
        super().on_train_start(trainer, pl_module)
        self.first_step = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless nothing is validated, or nothing yet in a training that ends in an epoch."""
        is_known = self.monitor is None or self.monitor in trainer.callback_metrics
        if is_known or (trainer.is_last_batch and trainer.enable_validation):
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether a score is among the best; NaN is not, though Lightning replaces it."""
        if current is not None and not current.isfinite():
            return False
        return super().check_monitor_top_k(trainer, current)

    def file_exists(self, filepath: str | Path, trainer: pl.Trainer) -> bool:
        """Return whether a name is taken, not counting files this run wrote when it got further."""
        taken = super().file_exists(filepath, trainer)
        if not taken or str(filepath) in self.best_k_models:
            return taken
        is_older = trainer.is_global_zero and self._is_older(filepath)
        return trainer.strategy.broadcast(is_older)

    def _is_older(self, path: str | Path) -> bool:
        try:
            step: int = checkpoint.read(path).content["global_step"]
        except UserError:  # a damaged one is no loss
            return False
        return step <= self.first_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore which files were best, as far as they exist in the run's folder."""
        before, folder = Path(state_dict["dirpath"] or ""), Path(self.dirpath or "")

        def moved(path: str) -> Path:
            known = Path(path)  # a name with a metric, {val/loss}, is a path of several parts
            name = known.relative_to(before) if known.is_relative_to(before) else known.name
            return folder / name

        best = {str(moved(path)): score for path, score in state_dict["best_k_models"].items()}
        best = {path: score for path, score in best.items() if Path(path).is_file()}
        if not best:
            last = moved(state_dict["best_model_path"])
            self.best_model_path = str(last) if last.is_file() else ""  # if nothing is monitored
            return
        worst_first = sorted(best, key=lambda path: best[path], reverse=self.mode == "min")
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_k_models": best,
                "kth_best_model_path": worst_first[0],
                "kth_value": best[worst_first[0]],
                "best_model_path": worst_first[-1],
                "best_model_score": best[worst_first[-1]],
                "last_model_path": "",
            }
        )
