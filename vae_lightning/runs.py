"""Folders of runs: which one a training gets, and what a run has to remember to be continued."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vae_lightning import checkpoint
from vae_lightning.errors import UserError
from vae_lightning.files import replace

RECORD = "run.json"
"""In the folder of a run: the job that it belongs to and its name at an experiment tracker."""

PATIENCE = 8.0
"""Seconds for which a folder may be held by what is left of a process that was killed: those that
load its images notice within five."""


def folder_of(ckpt_path: str | Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    folder = Path(ckpt_path).absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def last_checkpoint(folder: Path) -> Path:
    """Where the checkpoint is from which the run of a folder can be continued."""
    return folder / "checkpoints" / "last.ckpt"


def is_newest(ckpt_path: str | Path) -> bool:
    """Whether a run got no further than this checkpoint of it, so that nothing is lost after it."""
    path = Path(ckpt_path).absolute()
    folder = folder_of(path)
    if path.parent == folder or not (folder / "config.yaml").is_file():
        return False  # a copy of a checkpoint
    if path == last_checkpoint(folder):
        return True  # although the best one is written just before, when an epoch is that
    step = checkpoint.read(path)["global_step"]
    for other in path.parent.glob("*.ckpt"):
        with contextlib.suppress(UserError):  # a damaged one cannot be continued either
            if checkpoint.read(other).get("global_step", 0) > step:
                return False
    return True


def reserve(parent: Path) -> Path:
    """Make the first free ``version_N`` at once, so that no other run takes it as well.

    Raises:
        UserError: If that is not possible.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run's folder cannot be made in {parent} ({error.strerror}): choose another "
            "--output_dir or --name"
        ) from error
    while True:
        folder = next_free(parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def next_free(parent: Path) -> Path:
    """The first ``version_N`` that is not there."""
    version = 0
    while (parent / f"version_{version}").exists():
        version += 1
    return parent / f"version_{version}"


def of_job(parents: Iterable[Path], job: str, command: str) -> Path | None:
    """The newest run that a job has begun with a command.

    Numbers of jobs come again when a cluster is set up anew; a job that is restarted has made
    the newest of the folders with its number.
    """
    found = [folder for parent in parents for folder in parent.glob("version_*")]
    folders = sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)
    wanted = {"job": job, "command": command}
    return next((folder for folder in folders if wanted.items() <= record(folder).items()), None)


def record(folder: Path) -> dict[str, Any]:
    """What a run remembers; nothing if the file is missing or damaged."""
    try:
        content = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(folder: Path, **entries: Any) -> None:
    """Add to what a run remembers."""
    text = json.dumps({**record(folder), **entries}, indent=2) + "\n"
    replace(folder / RECORD, text)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no second process continues the same run at the same time.

    Raises:
        UserError: If another one does.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    end = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"{folder} is being trained by another process: wait until that ends, or "
                        "give a --name for a run of its own"
                    ) from error
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)
