"""Tensors that are slow to make, kept in the user's cache folder."""

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/vae_lightning``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae_lightning"


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors out of the cache or, if they are not there or damaged, made and put there.

    A folder that cannot be written to is no error: the tensors are then made each time.

    Args:
        name: Of the file; it has to change with whatever the content depends on.
        make: Makes them.
    """
    path = cache_folder() / name
    with contextlib.suppress(Exception):  # a damaged cache is no reason to stop
        with zipfile.ZipFile(path) as archive:
            intact = archive.testzip() is None  # torch does not compare the checksums
        if intact:
            return torch.load(path, weights_only=True)
    made = make()
    # A process that reads at the same time sees the whole file or none.
    partial = path.with_name(f"{name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, partial)
        partial.replace(path)
    except (OSError, RuntimeError):  # torch reports a full disk as the latter
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return made
