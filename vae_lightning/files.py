"""Files of text that other processes may read or write, or that a kill may interrupt."""

import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write a file such that there is always a whole one, the old or the new."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
