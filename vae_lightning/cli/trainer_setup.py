"""Parts of the trainer that depend on the run and on how its processes were started."""

import os
import secrets
import sys
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar

from vae_lightning.cli import run_notes
from vae_lightning.cli.progress import ProgressBar, ProgressLines
from vae_lightning.cli.run_folders import RunFolder
from vae_lightning.errors import UserError
from vae_lightning.training.checkpoint_io import AtomicCheckpointIO
from vae_lightning.training.figures import FigureCallback


def plugins(given: Any, strategy: Any) -> list[Any]:
    """Return the user's plugins, and those that keep a run from being lost.

    Args:
        given: ``trainer.plugins``.
        strategy: ``trainer.strategy``.
    """
    found = as_list(given)
    if not any(isinstance(p, CheckpointIO) for p in found) and "deepspeed" not in str(strategy):
        found.append(AtomicCheckpointIO())
    has_cluster = any(isinstance(plugin, ClusterEnvironment) for plugin in found)
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect() and not has_cluster:
        # Lightning would save in a signal handler, where processes wait for one another forever.
        found.append(SLURMEnvironment(auto_requeue=False))
    return found


def as_list(given: Any) -> list[Any]:
    """Return an option that takes one or several objects as a list."""
    return list(given) if isinstance(given, list) else [given] if given else []


def place_loggers(loggers: Any, folder: RunFolder, step: int | None, command: str) -> None:
    """Let experiment trackers write into the run's folder, and continue with a continued run.

    Args:
        loggers: ``trainer.logger``, before anything is built; changed in place.
        folder: Folder of the run.
        step: Step of the checkpoint, if there is one.
        command: ``fit`` or another.
    """
    for logger in as_list(loggers):
        arguments = getattr(logger, "init_args", None)
        if arguments is None:
            continue
        if logger.class_path.endswith("WandbLogger") and command == "fit":
            _set_wandb_id(arguments, folder)
        if arguments.get("save_dir") != ".":
            continue
        arguments.save_dir = str(folder.path)
        if logger.class_path.endswith("TensorBoardLogger"):
            arguments.name, arguments.version = "tensorboard", ""
            if folder.continues and step is not None:
                logger.dict_kwargs = {"purge_step": step}
        elif logger.class_path.endswith("WandbLogger") and arguments.get("name") is None:
            arguments.name = f"{folder.path.parent.name}/{folder.path.name}"


def _set_wandb_id(arguments: Namespace, folder: RunFolder) -> None:
    if arguments.get("version") is not None:  # another name for the id
        return
    if arguments.get("id") is None:
        known = run_notes.read(folder.path).get("wandb_id") if folder.continues else None
        arguments.id = known or secrets.token_hex(4)
    folder.notes["wandb_id"] = arguments.id


def training_callbacks(config: Namespace) -> list[pl.Callback]:
    """Return the callbacks of ``vae fit`` that draw figures and write checkpoints.

    Args:
        config: The options, with the callbacks built.
    """
    callbacks: list[pl.Callback] = [
        FigureCallback(figure) for figure in vars(config.figures).values() if figure
    ]
    if config.trainer.enable_checkpointing is not False:
        callbacks.append(config.checkpoint)
        if config.checkpoint.save_last:
            callbacks.append(config.last)
            config.checkpoint.save_last = False  # not by two callbacks
    return callbacks


def progress(callbacks: list[Any], enabled: bool | None) -> tuple[list[Any], bool | None]:
    """Return a callback that shows the progress, and whether Lightning's bar is enabled.

    Args:
        callbacks: The user's callbacks.
        enabled: ``trainer.enable_progress_bar``.
    """
    if enabled is False or any(isinstance(c, LightningProgressBar) for c in callbacks):
        return [], enabled
    # A bar drawn into a log file is thousands of lines.
    is_terminal = sys.stdout.isatty()
    return [ProgressBar() if is_terminal else ProgressLines()], is_terminal


def follow_torchrun(trainer: Namespace) -> None:
    """Use as many devices and nodes as torchrun started processes for, unless options say more."""
    if not TorchElasticEnvironment.detect():
        return
    processes, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if trainer.devices == "auto":
        trainer.devices = here
    if trainer.num_nodes == 1:
        trainer.num_nodes = processes // here


def check_torchrun(trainer: pl.Trainer) -> None:
    """Check that a trainer uses all processes that torchrun has started.

    Raises:
        UserError: If it does not: each process would train alone.
    """
    if TorchElasticEnvironment.detect() and trainer.world_size != int(os.environ["WORLD_SIZE"]):
        raise UserError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but --trainer.devices and "
            f"--trainer.num_nodes ask for {trainer.world_size}: leave these two options out"
        )
