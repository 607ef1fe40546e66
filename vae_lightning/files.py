"""Text files that other processes may read or write, or that a kill may interrupt."""

import os
from pathlib import Path


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file so that a complete one, the old or the new, is there at any time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
