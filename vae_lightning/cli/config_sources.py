"""Settings below the command line: the default configuration, or those of a checkpoint.

Options and ``--config`` files win over the checkpoint, in the order typed. The checkpoint wins over
the ``config.yaml`` of its run, which counts where a training is continued.
"""

from collections.abc import Collection, Mapping
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae_lightning.checkpoint import Checkpoint
from vae_lightning.cli import run_folders
from vae_lightning.cli.allowed_classes import (
    OPTION_BASES,
    RECORD_BASES,
    check_class,
    check_classes,
    subclasses,
)
from vae_lightning.cli.bundled_configs import find_config
from vae_lightning.cli.command_line import LINKED, CommandLine
from vae_lightning.cli.typed_options import Option
from vae_lightning.cli.yaml_files import parse_value, read_yaml
from vae_lightning.data import ImageData
from vae_lightning.models.image_model import ImageModel
from vae_lightning.settings import class_path

OWN_DATA = "own_data"
"""The default configuration for data of the user."""

GROUPS = ("trainer", "training", "checkpoint", "last", "figures", "metrics")
"""Options that hold others, unlike those that take a class."""


def lower_settings(command_line: CommandLine) -> dict[str, Any]:
    """Return the settings over which the command line wins, by option.

    Raises:
        UserError: If a file cannot be read, or names a class that it may not name.
    """
    settings: dict[str, Any] = {}
    checkpoint = command_line.checkpoint
    if checkpoint is None:
        if command_line.command == "fit":
            settings = _with_import_paths(read_yaml(find_config(_default_config(command_line))))
        if command_line.init_from:
            found = _record_settings(
                command_line.init_from, "init_from", command_line.named_classes
            )
            settings |= {name: value for name, value in found.items() if value is not None}
    else:
        if command_line.command == "fit":
            settings = _run_settings(checkpoint, command_line)
        settings |= _record_settings(checkpoint, command_line.command, command_line.named_classes)
    paths = [config.path for config in command_line.configs if config.path]
    if paths:
        settings["name"] = paths[-1].stem
    return settings


def _default_config(command_line: CommandLine) -> str:
    """Return the default configuration, which depends on the data that were named."""
    named = [config.content.get("data") for config in command_line.configs]
    named += [option.value for option in command_line.options if option.flag == "--data"]
    name = _class_name(named[-1]) if named and named[-1] else ""
    if not name:
        return ImageData.default_config
    known = (cls for cls in subclasses(ImageData) if cls.__name__ == name)
    found: Any = next(known, None)
    config: str = found.default_config if found else OWN_DATA  # a class of the user
    return config


def _with_import_paths(value: Any) -> Any:
    """Return settings with import paths instead of names of classes.

    The parser resolves the names in what it reads, but not those inside of defaults.
    """
    if isinstance(value, dict):
        found = {key: _with_import_paths(item) for key, item in value.items()}
        if name := found.get("class_path"):
            known = (c for base in OPTION_BASES for c in subclasses(base) if c.__name__ == name)
            found["class_path"] = next(map(class_path, known), name)
        return found
    return value


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the full name of the option, such as ``trainer.max_epochs``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name in GROUPS and isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _run_settings(checkpoint: Checkpoint, command_line: CommandLine) -> dict[str, Any]:
    """Return the settings of the run that wrote a checkpoint, if they are there."""
    path = run_folders.folder_of(checkpoint) / "config.yaml"
    if not path.is_file():
        return {}
    settings = read_yaml(path)
    check_classes(path, settings, command_line.named_classes, OPTION_BASES)
    trainer = settings.get("trainer")
    if isinstance(trainer, dict):
        for option in command_line.options:
            if option.appends:
                _drop_added_again(trainer, option)
    return settings


def _drop_added_again(trainer: dict[str, Any], option: Option) -> None:
    """Remove a callback or logger that an option appends once more.

    That is so where a run is continued with the command that began it.
    """
    key = option.flag.removeprefix("--trainer.")
    if isinstance(held := trainer.get(key), list):
        added = _class_name(parse_value(option.value, option.flag))
        trainer[key] = [item for item in held if _class_name(item) != added]


def _class_name(item: Any) -> str:
    path = item.get("class_path") if isinstance(item, dict) else item
    return str(path).rpartition(".")[2]


def _record_settings(
    checkpoint: Checkpoint, command: str, named: Collection[str]
) -> dict[str, Any]:
    """Return what the record of a checkpoint says about the model, its data and its optimizers."""
    record = checkpoint.record
    described: dict[str, tuple[dict[str, Any] | None, type]] = {
        "model": (record.model, ImageModel),
        "data": (record.data, pl.LightningDataModule),
    }
    if command == "fit":
        described |= {
            "optimizer": (record.optimizer, Optimizer),
            "critic_optimizer": (record.critic_optimizer, Optimizer),
            "lr_scheduler": (record.lr_scheduler, LRScheduler),
        }
    settings: dict[str, Any] = {}
    for name, (description, base) in described.items():
        if description is None:
            if name != "data":  # trained on data from elsewhere: --data says which
                settings[name] = None
            continue
        class_path, init_args = description["class_path"], description.get("init_args", {})
        check_class(checkpoint.path, class_path, named, (base,))
        check_classes(checkpoint.path, init_args, named, RECORD_BASES)
        kept = {key: value for key, value in init_args.items() if key not in LINKED}
        settings[name] = {"class_path": class_path, "init_args": kept}
    return settings
