"""Write checkpoints to disk completely or not at all."""

import contextlib
import errno
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from vae_lightning.errors import UserError

_COPIES = 3
"""Number of checkpoints on disk at a time: the best, the last, and the one being written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint next to its place, then move it there in one step.

    Whatever happens meanwhile, even ``kill -9``, the path holds a loadable file: the earlier one or
    the new one. Lightning 2.6 writes into the folder for temporary files, and copies from there if
    it is on another disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: If it cannot be written; the earlier file is still there.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            cause = _disk_error(error)
            if cause is None:
                raise
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            before = ", and the earlier one is still there" if path.is_file() else ""
            last = path.with_name("last.ckpt")
            command = shlex.join(["vae", "fit", "--ckpt_path", str(last)])
            then = f"continue with {command}" if last.is_file() else "start again"
            raise UserError(
                f"{path} could not be written ({os.strerror(cause.errno or errno.EIO)}){before}: "
                f"free some space, or allow writing, then {then}"
            ) from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system that caused torch's error, if there is one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def check_disk_space(folder: Path, model: pl.LightningModule) -> None:
    """Check before a training that its checkpoints can be written.

    Args:
        folder: Folder of the run.
        model: The module whose weights are written, each with the two averages of Adam.

    Raises:
        UserError: If they cannot.
    """
    probe = folder / "checkpoints" / ".probe"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}): give another --output_dir"
        ) from error
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    needed, free = 3 * _COPIES * size, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{free / 1e6:,.0f} MB are free where {folder} is, and its checkpoints need up to "
            f"{needed / 1e6:,.0f} MB: free some space, or give another --output_dir"
        )
