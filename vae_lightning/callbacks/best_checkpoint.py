"""The checkpoint that is best on the validation images."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from vae_lightning import checkpoint
from vae_lightning.errors import UserError


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, for runs that are continued.

    Lightning's forgets what was best where the folder is called another name, because it was moved
    or is named from another place, and where it is told to save more or less often. It also does
    not know the files that a run has written after the checkpoint from which it is continued.
    """

    first_step = 0

    @property
    def state_key(self) -> str:
        """Under which it finds its state in a checkpoint: what is best by the same measure."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's; note from where the training goes on."""
        super().on_train_start(trainer, pl_module)
        self.first_step = trainer.global_step

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether a score is among the best: NaN, which Lightning takes for infinity, is not."""
        if current is not None and not current.isfinite():
            return False
        return super().check_monitor_top_k(trainer, current)

    def file_exists(self, filepath: str | Path, trainer: pl.Trainer) -> bool:
        """Whether a name is taken: not by what this run had written when it came further before."""
        taken = super().file_exists(filepath, trainer)
        if not taken or str(filepath) in self.best_k_models:
            return taken
        is_older = trainer.is_global_zero and self._is_older(filepath)
        return trainer.strategy.broadcast(is_older)

    def _is_older(self, path: str | Path) -> bool:
        try:
            return checkpoint.read(path)["global_step"] <= self.first_step
        except UserError:  # a damaged one is no loss
            return False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was best from a checkpoint, as far as these files are in the run's folder."""
        folder = Path(self.dirpath or "")
        best = {str(folder / Path(p).name): v for p, v in state_dict["best_k_models"].items()}
        best = {path: score for path, score in best.items() if Path(path).is_file()}
        if not best:
            last = folder / Path(state_dict["best_model_path"]).name
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
