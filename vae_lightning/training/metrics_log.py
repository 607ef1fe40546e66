"""The log of a run as a CSV file, to which a continued run appends."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from vae_lightning.errors import writing

_SAVE_EVERY_N_STEPS = 100


class MetricsLog(Logger):
    """Logger that appends to ``metrics.csv`` in a run's folder.

    Every call of `log_metrics` makes a row. When a new name appears, the file is replaced
    atomically by one with more columns.

    Args:
        folder: Folder of the run, OUTPUT_DIR/NAME/version_N.
        keep: Number of rows to keep of an existing file. A checkpoint holds how many there were
            when it was written; the rows after these are logged again by the continued run.
    """

    def __init__(self, folder: Path, keep: int = 0) -> None:
        super().__init__()
        self.folder = folder
        self.rows = keep
        self.columns: list[str] = []
        self.pending: list[dict[str, float]] = []
        self._opened = False

    @property
    def name(self) -> str:
        """Nothing: Lightning would append it to `save_dir` for checkpoints."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: see `name`."""
        return ""

    @property
    def log_dir(self) -> str:
        """Folder of the run."""
        return str(self.folder)

    @property
    def save_dir(self) -> str:
        """Folder of the run, which becomes ``trainer.log_dir``."""
        return str(self.folder)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / "metrics.csv"

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: ``config.yaml`` holds all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, which is written by `save`, or at every hundredth step."""
        step = len(self.pending) if step is None else step
        numbers = {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}
        self.pending.append({**numbers, "step": step})
        if (step + 1) % _SAVE_EVERY_N_STEPS == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged since the last time.

        Raises:
            UserError: If the file cannot be written.
        """
        if self.pending:
            with writing(self.path):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._append()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left, and drop the rows after the checkpoint if nothing was logged."""
        self.save()
        if status == "success" and not self._opened and self.path.is_file():
            with writing(self.path):
                self._append()

    def _append(self) -> None:
        kept = [] if self._opened else self._kept_rows()
        columns = sorted(set(self.columns).union(*self.pending))
        if self._opened and columns == self.columns:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerows(self.pending)
        else:
            kept = kept or self._kept_rows()
            self.columns = sorted(set(self.columns).union(*self.pending))
            partial = self.path.with_name(f"{self.path.name}.partial")
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows([*kept, *self.pending])
            partial.replace(self.path)
        self._opened = True
        self.rows += len(self.pending)
        self.pending = []

    def _kept_rows(self) -> list[dict[str, str]]:
        """Return the rows of the existing file that stay."""
        if not self.rows or not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)[: self.rows]
            self.columns = sorted({*self.columns, *(reader.fieldnames or [])})
        return rows
