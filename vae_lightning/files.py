"""Files and their paths, whoever reads and writes them, and however damaged they are."""

import gzip
import os
import zlib
from pathlib import Path

from vae_lightning.errors import UserError


def expand(path: str | Path) -> Path:
    """Return a path in which ``~`` is replaced by the home folder, as shells do.

    Shells do not where a path is in a file, in an environment variable, or after ``=``. As in
    shells, ``~`` stays where there is no such user.
    """
    return Path(os.path.expanduser(path))


def check_checkpoint_exists(path: Path) -> None:
    """Check that a checkpoint, or a folder, exists.

    Raises:
        UserError: If it does not.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give the path of a .ckpt file")


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file so that a complete one, the old or the new, is there at any time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def read_data_file(path: Path) -> bytes:
    """Read a file of a data set, and decompress it if its name ends in ``.gz``.

    Raises:
        UserError: If it cannot be read, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): get read access") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from error
