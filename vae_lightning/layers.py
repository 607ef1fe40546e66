"""The layers of options of the ``vae`` command, put together before they are parsed.

Later ones win: the default configuration or the checkpoint's model and data, then ``--config``
files and flags in the order in which they are given.
"""

import json
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml

from vae_lightning import checkpoint, runs, trust
from vae_lightning.errors import UserError
from vae_lightning.models import BaseVAE
from vae_lightning.shipped import shipped_file

DEFAULT_CONFIG = "digits"
"""What ``vae fit`` trains where neither options nor a checkpoint say otherwise."""

LINKED = {"image_shape", "num_classes"}
"""Arguments of every model that are taken from the data."""


def with_layers(args: list[str]) -> list[str]:
    """Put the layers below the user's own options in front of them.

    Args:
        args: A command and its options.

    Returns:
        The same with configurations named by path and with the lower layers as ``--config``.

    Raises:
        UserError: If a configuration or the checkpoint cannot be found or read.
    """
    command, *options = args
    if command not in ("test", "validate"):
        for _, flag in flags(options):
            if flag.startswith(("--metrics.", "--evaluation_seed")):
                raise UserError(f"{flag} is an option of vae test and vae validate")
    for _, flag in flags(options):
        name = flag.removeprefix("--model.").removeprefix("init_args.")
        if flag.startswith("--model.") and name in LINKED:
            raise UserError(f"{flag} is taken from the data: leave it out")
    configs: list[Path] = []
    ckpt_path: str | None = None
    for i, option in enumerate(options):
        flag, equals, value = option.partition("=")
        if not equals:
            value = options[i + 1] if i + 1 < len(options) else ""
        if flag in ("--config", "-c") and value and not value.lstrip().startswith("{"):
            configs.append(shipped_file(value))
            options[i if equals else i + 1] = (
                f"{flag}={configs[-1]}" if equals else str(configs[-1])
            )
            ckpt_path = str(_read_yaml(configs[-1]).get("ckpt_path") or ckpt_path or "") or None
        elif flag == "--ckpt_path" and value:
            ckpt_path = value
        elif flag.rstrip("+") == "--trainer.logger" and value == "TensorBoardLogger":
            # Its folder is a required argument; it becomes the run's folder later.
            value = json.dumps({"class_path": value, "init_args": {"save_dir": "."}})
            options[i if equals else i + 1] = f"{flag}={value}" if equals else value
    layers: list[dict[str, Any]] = []
    if ckpt_path:
        layers += _checkpoint_layers(command, ckpt_path, options, named_by_user(args))
    elif command == "fit":
        layers.append(_read_yaml(shipped_file(DEFAULT_CONFIG)))
    elif not any(option == "-h" or flag.endswith("help") for option, flag in flags(options)):
        if typo := next((flag for _, flag in flags(options) if flag.startswith("--ck")), None):
            if typo == "--ckpt_path":
                raise UserError(f"{typo} needs the path of a checkpoint")
            raise UserError(f"no option '{typo}'; did you mean '--ckpt_path'?")
        raise UserError(
            f"vae {command} needs a trained model: give --ckpt_path "
            "runs/NAME/version_N/checkpoints/best.ckpt"
        )
    if configs:
        layers.append({"name": configs[-1].stem})
    lower = [part for layer in layers for part in ("--config", json.dumps(layer))]
    # Last, because an older configuration file may hold another.
    return [command, *lower, *options, *(["--ckpt_path", ckpt_path] if ckpt_path else [])]


def named_by_user(args: Sequence[str]) -> set[str]:
    """Every class that the values of options name, and the configurations among them.

    Raises:
        UserError: If a configuration cannot be found or read.
    """
    values = []
    for option, following in pairwise([*args, ""]):
        flag, equals, value = option.partition("=")
        value = value if equals else following
        # What a checkpoint is called says nothing of what it may name.
        if not flag.startswith("-") or flag == "--ckpt_path" or value.startswith("-"):
            continue
        if flag in ("--config", "-c") and value and not value.lstrip().startswith("{"):
            content = {**_read_yaml(shipped_file(value)), "ckpt_path": None}
            value = json.dumps(content, default=str)
        values.append(value)
    return trust.names_in(values)


def of_checkpoint(args: Sequence[str]) -> list[str]:
    """The part of what `with_layers` returned that a checkpoint says; empty if it says not all."""
    if args[-2:-1] != ["--ckpt_path"]:
        return []
    end = 1
    while args[end] == "--config" and args[end + 1].startswith("{"):
        end += 2
    complete = any("data" in json.loads(layer) for layer in args[2:end:2])
    return [*args[:end], *args[-2:]] if complete else []


def flags(options: Sequence[str]) -> list[tuple[str, str]]:
    """Options, each with its name without a value behind ``=``."""
    return [(option, option.partition("=")[0]) for option in options]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold options by name, such as 'model: VAE'")
    return content


def _without(config: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """A configuration without the loggers and callbacks that the options add (``+=``) once more.

    They do where a run is continued with the command that began it.
    """
    trainer = config.get("trainer")
    for option, following in pairwise([*options, ""]):
        flag, equals, value = option.partition("=")
        if not flag.endswith("+") or not isinstance(trainer, dict):
            continue
        added = yaml.safe_load(value if equals else following)
        key, name = flag.rstrip("+").removeprefix("--trainer."), _class_name(added)
        if isinstance(there := trainer.get(key), list):
            trainer[key] = [item for item in there if _class_name(item) != name]
    return config


def _class_name(item: Any) -> str:
    path = item.get("class_path") if isinstance(item, dict) else item
    return str(path).rpartition(".")[2]


def _checkpoint_layers(
    command: str, ckpt_path: str, options: Sequence[str], named: Collection[str]
) -> list[dict[str, Any]]:
    """The settings of the run that is resumed, and the model and data of a checkpoint."""
    if ckpt_path in ("best", "last", "hpc"):
        raise UserError(
            f"--ckpt_path {ckpt_path} means nothing in a new process: give the path of a file, "
            "runs/NAME/version_N/checkpoints/best.ckpt"
        )
    content = checkpoint.read(ckpt_path)
    layers = []
    saved = runs.folder_of(ckpt_path) / "config.yaml"
    if command == "fit" and saved.is_file():
        layers.append(_without(_read_yaml(saved), options))
        trust.check_classes(saved, layers[0], named, trust.KINDS)
    layer = {}
    for name, key in ("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters"):
        arguments = dict(content.get(key, {}))
        class_path = arguments.pop("_class_path", None)
        if class_path is None:
            continue  # trained on data from outside this project: --data says which
        # Nothing is imported because a file says so, unless the user says so too.
        base = BaseVAE if name == "model" else pl.LightningDataModule
        trust.check_class(ckpt_path, class_path, named, base)
        given = {k: v for k, v in arguments.items() if k not in LINKED and str(k)[:1] != "_"}
        trust.check_classes(ckpt_path, given, named)
        layer[name] = {"class_path": class_path, "init_args": checkpoint.portable(given)}
    return [*layers, layer]
