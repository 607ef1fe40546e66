"""CPU performance settings of the process."""

import ctypes
import os
import platform
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's ``mallopt``."""

_LARGEST = 32 * 2**20
"""Largest value of M_MMAP_THRESHOLD in bytes: smaller requests can reuse freed memory."""


def tune_process() -> None:
    """Apply the settings that make training on a CPU faster, for the whole process."""
    # The moving averages of Adam decay to numbers below 1e-38, which take a hundred times as long
    # to multiply, for every pixel that is hardly ever on.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if not torch.cuda.is_available():
        # Every optimizer step asks for a GPU; this keeps torch from looking for its driver again.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def load_of_others() -> float | None:
    """Return the load of this machine if other programs need its cores as well, else None.

    Several threads then wait for each other in every operation. A training with one thread does not
    mind.
    """
    if torch.get_num_threads() == 1 or not hasattr(os, "getloadavg"):
        return None
    load = os.getloadavg()[0]
    return load if load > (os.cpu_count() or 1) else None


def lacks_bfloat16() -> bool:
    """Return whether the CPU is known to have no instructions for bfloat16."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # another system than Linux
        return False
    return not flags & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the tensors of the next step.

    By default, glibc returns large blocks to the system when they are freed and requests new ones
    in the next step, which the system clears page by page. This takes up to a third of the time of
    a small convolutional network. The memory kept is about what was in use at once. Nothing is
    changed if one of glibc's own environment variables (``MALLOC_TRIM_THRESHOLD_``,
    ``GLIBC_TUNABLES``, ...) is set, or with another libc.

    Returns:
        Whether memory is kept.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept: int = mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, -1)
    return bool(kept)
