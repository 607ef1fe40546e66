"""The checkpoint that is best on the validation images."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets what was best where the folder of a run is called another name.

    The same folder is another one to Lightning where it was moved, or is named from another place.
    """

    def file_exists(self, filepath: str | Path, trainer: pl.Trainer) -> bool:
        """Whether a name is taken: not where there is one best, whose file is replaced.

        A run that was killed may have left one that the checkpoint it continues from knows nothing
        of.
        """
        return self.save_top_k != 1 and super().file_exists(filepath, trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was best from a checkpoint, as far as these files are in the run's folder."""
        folder = Path(self.dirpath or "")

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        paths = {*state_dict["best_k_models"], state_dict["best_model_path"]}
        if all(Path(here(path)).is_file() for path in paths if path):
            best = {here(path): score for path, score in state_dict["best_k_models"].items()}
            names = "best_model_path", "kth_best_model_path", "last_model_path"
            moved = {name: here(state_dict[name]) for name in names}
            super().load_state_dict(
                {**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath}
            )
