"""The finished runs that a command is given: checkpoints, folders of runs, or whole sweeps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_lightning.cli import run_notes
from vae_lightning.errors import UserError
from vae_lightning.files import expand

RESULT = "result.json"
"""File in the folder of a combination of a sweep."""


@dataclass(frozen=True)
class FinishedRun:
    """A run whose training is complete.

    Attributes:
        checkpoint: Its best checkpoint, or the one that was named.
        folder: The folder of the sweep that it is from, None for others.
        name: Name of its combination in the sweep, "" for others.
        parameters: Values of the sweep's parameters for it, by the name of the option.
    """

    checkpoint: Path
    folder: Path | None = None
    name: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


def find(paths: Sequence[str]) -> list[FinishedRun]:
    """Return the runs that paths name, those of sweeps in the order of their folders.

    Raises:
        UserError: If a path is none of these, or a sweep has no finished run.
    """
    found: list[FinishedRun] = []
    for text in paths:
        path = expand(text)
        if not path.exists():
            raise UserError(f"{path} does not exist: give checkpoints, or the folder of a sweep")
        if path.is_file():
            found.append(FinishedRun(path))
        elif results := sorted(path.glob(f"*/{RESULT}")):
            runs = [run for result in results if (run := _of_sweep(path, result))]
            if not runs:
                raise UserError(f"no training of the sweep {path} is complete yet")
            found += runs
        elif best := _best(path):
            found.append(FinishedRun(best))
        else:
            raise UserError(
                f"{path} has neither checkpoints nor results of a sweep: give checkpoints, folders "
                "of runs such as runs/vae/version_0, or the folder of a sweep"
            )
    return found


def _of_sweep(sweep: Path, result: Path) -> FinishedRun | None:
    """Return the run of a combination of a sweep; None if it is not complete."""
    content = json.loads(result.read_text(encoding="utf-8"))
    if "run" not in content:
        return None
    # Beside the result, wherever the sweep has been moved.
    best = _best(result.parent / Path(content["run"]).name)
    if best is None:
        return None
    return FinishedRun(best, sweep, result.parent.name, content.get("parameters", {}))


def _best(run: Path) -> Path | None:
    """Return the best checkpoint of a run's folder, else the last one, None without any."""
    noted = run_notes.read(run).get("best")
    names = [*([noted] if noted else []), "checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    return next((run / name for name in names if (run / name).is_file()), None)


def folder_of_all(runs: Sequence[FinishedRun]) -> Path | None:
    """Return the folder of the sweep that all runs are from, None if there is no such one."""
    folders = {run.folder for run in runs}
    return folders.pop() if len(folders) == 1 else None
