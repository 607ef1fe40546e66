"""Callbacks that take the time of a run of ``vae`` from inside.

What they find is kept in their classes, because the command line makes the instances.
"""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch


def now() -> float:
    """Seconds on a clock that all processes share, when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Epochs(pl.Callback):
    """How long each epoch of a training took without validation, and each test."""

    seconds: ClassVar[list[float]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = now()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(now() - self.start)

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = now()

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(now() - self.start)


class FirstStep(pl.Callback):
    """Seconds to the first loss of a training."""

    since: ClassVar[float] = 0.0
    found: ClassVar[dict[str, float]] = {}

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.found.setdefault("first_step", now() - self.since)


class Workers(pl.Callback):
    """Memory, and what worker processes do, up to ``trainer.max_steps``, after some to warm up.

    Needs ``/proc``, that is Linux.
    """

    warm_up = 10
    found: ClassVar[dict[str, float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step > self.warm_up:
            self.waited += now() - self.ended

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.ended = now()
        if trainer.global_step == self.warm_up:
            self.begun, self.used, self.waited = self.ended, _cpu_seconds(_children()), 0.0
        elif trainer.global_step == trainer.max_steps:
            children, seconds = _children(), self.ended - self.begun
            used = _cpu_seconds(children) - self.used
            images = (trainer.max_steps - self.warm_up) * trainer.datamodule.batch_size
            self.found.update(
                images_per_second=images / seconds,
                workers_busy=used / (trainer.datamodule.num_workers * seconds),
                waited_for_data=self.waited / seconds,
                process_gb=_gigabytes(os.getpid(), "status", "VmHWM"),
                worker_gb=max(_gigabytes(pid, "status", "VmHWM") for pid in children),
                worker_not_shared_gb=max(
                    _gigabytes(pid, "smaps_rollup", "Private_Dirty") for pid in children
                ),
            )


def _children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def _cpu_seconds(pids: list[int]) -> float:
    """Time that processes have computed, in user and system mode."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def _gigabytes(pid: int, file: str, name: str) -> float:
    """A figure of a process's memory."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1e6
    raise ValueError(f"/proc/{pid}/{file} has no {name}")
