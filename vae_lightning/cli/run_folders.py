"""Folders of runs: which one a training gets, and what is noted there for continuing it."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_lightning import checkpoint
from vae_lightning.cli import run_notes
from vae_lightning.errors import UserError

LOCK_TIMEOUT = 8.0
"""Seconds to wait for a folder that is locked by what is left of a killed process.

Its workers that load images notice within five seconds that it is gone."""

LEFT_OUT = "left_out.txt"
"""File in a run's folder: files of the data set that are not used, with the reasons."""

_WRITTEN_BEFORE_TRAINING = {"config.yaml", run_notes.NAME, LEFT_OUT}


@dataclass
class RunFolder:
    """The folder of a run.

    Attributes:
        path: The folder.
        continues: Whether it is that of an earlier run, which is continued.
        created: Folders that were created for this run, the innermost first.
        notes: What will be noted for finding and continuing the run.
    """

    path: Path
    continues: bool = False
    created: list[Path] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def identify(self) -> dict[str, str]:
        """Return the id and the path, by which the run's checkpoints know it."""
        self.notes["id"] = run_notes.read(self.path).get("id") or secrets.token_hex(8)
        return {"id": self.notes["id"], "folder": str(self.path.absolute())}

    def remove_traces(self) -> None:
        """Remove what a run has written that failed before its first batch."""
        if not self.created:
            return
        with contextlib.suppress(OSError):
            (self.path / "checkpoints").rmdir()  # only if it is empty
        if {path.name for path in self.path.iterdir()} <= _WRITTEN_BEFORE_TRAINING:
            for path in self.path.iterdir():
                path.unlink()

    def remove_if_empty(self) -> None:
        """Remove the folders that were created and never used."""
        for folder in self.created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def folder_of(held: checkpoint.Checkpoint) -> Path:
    """Return the folder of the run that wrote a checkpoint.

    It is a folder around the checkpoint, which may have been moved together with it, or the one
    that the checkpoint names. The files of a checkpoint without a run go beside it.
    """
    folder = held.path.absolute().parent
    return _find_run(held) or (folder.parent if folder.name == "checkpoints" else folder)


def _find_run(held: checkpoint.Checkpoint) -> Path | None:
    """Return the folder whose notes have the id of the run that wrote a checkpoint."""
    run = held.record.run
    folders = [] if run is None else [*held.path.absolute().parents, Path(run["folder"])]
    return next((f for f in folders if run and run_notes.read(f).get("id") == run["id"]), None)


def last_checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint from which the run of a folder can be continued."""
    return folder / "checkpoints" / "last.ckpt"


def is_newest(held: checkpoint.Checkpoint) -> bool:
    """Return whether the run got no further than this checkpoint.

    Nothing is lost then if the run is continued from it.
    """
    path, folder = held.path.absolute(), _find_run(held)
    if folder is None or not (folder / "config.yaml").is_file():
        return False
    if path == last_checkpoint(folder):
        return True  # although the best one is written just before it, if an epoch is the best
    for other in {*folder.rglob("*.ckpt"), *path.parent.glob("*.ckpt")} - {path}:
        with contextlib.suppress(UserError):  # a damaged one cannot be continued either
            read = checkpoint.read(other)
            is_of_run = (read.record.run or {}).get("id") == (held.record.run or {}).get("id")
            if is_of_run and read.global_step > held.global_step:
                return False
    return True


def reserve(parent: Path) -> RunFolder:
    """Create the first free ``version_N`` at once, so that no other run takes it.

    Raises:
        UserError: If it cannot be created.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run's folder cannot be created in {parent} ({error.strerror}): choose another "
            "--output_dir or --name"
        ) from error
    while True:
        folder = next_free(parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return RunFolder(folder, created=[folder, parent, parent.parent])


def next_free(parent: Path) -> Path:
    """Return the first ``version_N`` that does not exist."""
    version = 0
    while (parent / f"version_{version}").exists():
        version += 1
    return parent / f"version_{version}"


def find_run_of_job(parents: Iterable[Path], job: str, command: str) -> Path | None:
    """Return the newest run that a job has started with a command.

    Job numbers repeat when a cluster is set up again; a restarted job has created the newest of the
    folders with its number.
    """
    found = [folder for parent in parents for folder in parent.glob("version_*")]
    folders = sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)
    wanted = {"job": job, "command": command}
    return next(
        (folder for folder in folders if wanted.items() <= run_notes.read(folder).items()), None
    )


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder within a block, so that no other process continues the same run.

    Raises:
        UserError: If another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    end = time.monotonic() + LOCK_TIMEOUT
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"{folder} is being trained by another process: wait until that ends, or "
                        "give a --name to start another run"
                    ) from error
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)


def short(path: str | Path) -> str:
    """Return a path relative to the current folder if it is inside."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
