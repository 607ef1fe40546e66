"""Notes in the folder of a run, for finding and continuing it. No torch is needed."""

import json
from pathlib import Path
from typing import Any

from vae_lightning.files import atomic_write_text

NAME = "run.json"
"""The file: the run's id, its job, its id at an experiment tracker, and its best checkpoint."""


def read(folder: Path) -> dict[str, Any]:
    """Return the notes of a run; none if the file is missing or damaged."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def add(folder: Path, **entries: Any) -> None:
    """Add entries to the notes of a run."""
    text = json.dumps({**read(folder), **entries}, indent=2) + "\n"
    atomic_write_text(folder / NAME, text)
