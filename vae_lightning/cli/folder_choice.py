"""Choose the folder of a training: a new one, or that of the run that is continued."""

import os
from pathlib import Path

from jsonargparse import Namespace

from vae_lightning.cli import run_folders
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.cli.parser import default_run_name
from vae_lightning.cli.run_folders import RunFolder
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.training import slurm


def choose_folder(command_line: CommandLine, config: Namespace, requeued: Path | None) -> RunFolder:
    """Choose the folder of the run that is continued, or the first free ``version_N``.

    A run is continued from its newest checkpoint, after which nothing of its log and files is lost.
    A training from an older checkpoint is another run.

    Args:
        command_line: The command line.
        config: The options of ``vae fit``.
        requeued: Folder of the run that this job has started before it was requeued.

    Raises:
        UserError: If the folder cannot be created, or its name is not one.
    """
    parent = parent_folder(config)
    if config.trainer.fast_dev_run:
        return RunFolder(run_folders.next_free(parent))
    notes = {"job": slurm.job(), "command": command_line.text} if slurm.job() else {}
    if requeued:
        return RunFolder(requeued, continues=True, notes=notes)
    checkpoint = command_line.checkpoint
    if checkpoint and run_folders.is_newest(checkpoint):
        folder = run_folders.folder_of(checkpoint)
        is_named = command_line.has("--name", "--output_dir")
        if not is_named or parent.absolute() == folder.parent:
            return RunFolder(folder, continues=True, notes=notes)
    if not is_first_process():
        # The path may differ from that of the first process, which alone writes files; Lightning
        # sends the folders of the log and of the checkpoints to the others.
        return RunFolder(run_folders.next_free(parent), notes=notes)
    chosen = run_folders.reserve(parent)
    chosen.notes = notes
    return chosen


def find_requeued_run(command_line: CommandLine, config: Namespace) -> Path | None:
    """Return the folder of the run that this job has started, if it was requeued since.

    Args:
        command_line: The command line.
        config: The options of ``vae fit``.
    """
    if not slurm.is_restarted() or config.trainer.fast_dev_run:
        return None
    parents = [parent_folder(config)]
    if command_line.checkpoint:
        parents.append(run_folders.folder_of(command_line.checkpoint).parent)
    return run_folders.find_run_of_job(parents, str(slurm.job()), command_line.text)


def parent_folder(config: Namespace) -> Path:
    """Return OUTPUT_DIR/NAME.

    Raises:
        UserError: If the name is not that of a folder.
    """
    name = config.name or default_run_name(config.model.class_path)
    if Path(name).name != name or name == "..":
        raise UserError(
            f"--name {name} must be the name of a folder; --output_dir says where that folder is"
        )
    return expand(config.output_dir) / name


def is_first_process() -> bool:
    """Return whether this process is the first of all, as far as the environment says.

    torchrun sets RANK, Lightning's launcher LOCAL_RANK, SLURM SLURM_PROCID. On every node,
    Lightning's launcher begins with a process that has none of these, but NODE_RANK.
    """
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    rank = next((os.environ[name] for name in names if name in os.environ), "0")
    return rank == "0" and os.environ.get("NODE_RANK", "0") == "0"
