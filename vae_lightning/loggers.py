"""The log of a run as a file, which a continued run appends to."""

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from vae_lightning.errors import writing


class MetricsLog(CSVLogger):
    """Lightning's `CSVLogger`, which would delete the ``metrics.csv`` that is there.

    Args:
        folder: Folder of the run, OUTPUT_DIR/NAME/version_N.
        keep: Rows to keep of a log that is there. A checkpoint holds how many there were when it
            was written; what a run logged after that, the continued one logs again.
    """

    def __init__(self, folder: Path, keep: int = 0) -> None:
        super().__init__(str(folder.parent.parent), name=folder.parent.name, version=folder.name)
        self.keep = keep

    @property
    @rank_zero_experiment
    def experiment(self) -> "_Rows":
        """What writes the file; made in the first process only."""
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir, self.keep)
        return self._experiment  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """Number of rows written so far, in this process."""
        return getattr(self._experiment, "rows", self.keep)


class _Rows(ExperimentWriter):
    """Appends rows; where the columns change, the file is replaced by a whole new one.

    Args:
        log_dir: Folder of the file.
        keep: Rows to keep of a file that is there.
    """

    def __init__(self, log_dir: str, keep: int) -> None:
        super().__init__(log_dir)
        self.rows = keep
        self.begun = False

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def save(self) -> None:
        """Write what was logged since the last time.

        Raises:
            UserError: If that is not possible.
        """
        if self.metrics:
            with writing(self.metrics_file_path):
                self._append(Path(self.metrics_file_path))

    def _append(self, path: Path) -> None:
        known = [] if self.begun else self._known(path)
        new = set().union(*self.metrics) - set(self.metrics_keys)
        if self.begun and not new:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        else:
            known = known or self._known(path)
            self.metrics_keys = sorted({*self.metrics_keys, *new})
            partial = path.with_name(path.name + ".partial")
            with partial.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.metrics_keys)
                writer.writeheader()
                writer.writerows([*known, *self.metrics])
            os.replace(partial, path)
        self.begun = True
        self.rows += len(self.metrics)
        self.metrics = []

    def _known(self, path: Path) -> list[dict[str, str]]:
        """The rows that stay of the file that is there."""
        if not self.rows or not path.is_file():
            return []
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)[: self.rows]
            self.metrics_keys = sorted({*self.metrics_keys, *(reader.fieldnames or [])})
        return rows
