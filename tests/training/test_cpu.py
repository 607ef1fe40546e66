import os
import platform
import subprocess
import sys

import pytest
import torch

from vae_lightning.training import cpu

PROGRAM = """
import resource, torch
from vae_lightning.training import cpu

kept = cpu.keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(1, 31):
    torch.ones(megabytes, 2**18)  # freed before the next one is made
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(**environment: str) -> tuple[bool, int]:
    """Whether freed memory is kept, and how many pages the system gave for 465 MB, 30 at a time."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env={**others, **environment}, capture_output=True, text=True, check=True
    )
    kept, n = done.stdout.split()
    return kept == "True", int(n)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_freed_memory_is_used_again():
    kept, n = pages()
    assert kept
    assert n * os.sysconf("SC_PAGE_SIZE") < 465e6 / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"),
    [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")],
)
def test_who_has_chosen_how_memory_is_kept_is_left_alone(variable, value):
    kept, _ = pages(**{variable: value})
    assert not kept


def test_a_busy_machine_is_noticed(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (6.5, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert cpu.load_of_others() == 6.5
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 9.0, 9.0))
    assert cpu.load_of_others() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (6.5, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert cpu.load_of_others() is None
