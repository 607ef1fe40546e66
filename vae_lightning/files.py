"""Paths that users give, and text files that other processes may read, or a kill interrupt."""

import os
from pathlib import Path


def expand(path: str | Path) -> Path:
    """Return a path in which ``~`` is replaced by the home folder, as shells do.

    Shells do not where a path is in a file, in an environment variable, or after ``=``.
    """
    return Path(path).expanduser()


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file so that a complete one, the old or the new, is there at any time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
