"""What a process that trains on a CPU should not waste its time with."""

import ctypes
import os
import platform

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of parameters of glibc's ``mallopt``."""

_LARGEST = 32 * 2**20
"""Bytes up to which glibc lets a request be answered from memory that was freed before."""


def spare() -> None:
    """Save what costs time on a CPU and brings nothing, for the whole process."""
    # The moving averages of Adam run out into numbers below 1e-38, which take a hundred times as
    # long to multiply, for every pixel that is hardly ever on.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if not torch.cuda.is_available():
        # Every step of an optimiser asks for a GPU; with this nobody looks for its driver again.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def keep_freed_memory() -> bool:
    """Keep what tensors leave behind, for the tensors of the next step.

    glibc hands large blocks back to the system when they are freed, and asks for new ones for the
    next step, which the system clears page by page: thousands of pages in each, up to a third of
    the time of a small convolutional network. What is kept is about what was in use at once.
    Whoever chose otherwise, with glibc's own environment variables (``MALLOC_TRIM_THRESHOLD_``,
    ``GLIBC_TUNABLES``, ...), is left alone; so is another libc.

    Returns:
        Whether memory is kept.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept: int = mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, -1)
    return bool(kept)
