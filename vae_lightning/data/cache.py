"""Cache of tensors that are slow to compute, in the user's cache folder."""

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vae_lightning.files import expand


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/vae_lightning``, by default in ``~/.cache``."""
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vae_lightning"


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache, or compute and cache them if they are missing or damaged.

    If the cache folder is not writable, the tensors are computed every time.

    Args:
        name: File name, which has to change with everything that the content depends on.
        make: Function that computes the tensors.
    """
    path = cache_folder() / name
    with contextlib.suppress(Exception):  # compute the tensors instead
        with zipfile.ZipFile(path) as archive:
            intact = archive.testzip() is None  # torch.load does not verify checksums
        if intact:
            return torch.load(path, weights_only=True)
    made = make()
    # Another process that reads now finds either the complete file or none.
    partial = path.with_name(f"{name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, partial)
        partial.replace(path)
    except (OSError, RuntimeError):  # torch reports a full disk as the latter
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return made
