"""The command line as it was typed. It is read in one place, here, before anything is parsed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from vae_lightning import checkpoint
from vae_lightning.checkpoint import Checkpoint
from vae_lightning.cli.allowed_classes import import_paths_in, subclasses
from vae_lightning.cli.bundled_configs import find_config
from vae_lightning.cli.typed_options import SPECIAL_CHECKPOINTS, Option, typed_options
from vae_lightning.cli.yaml_files import is_inline, parse_yaml, read_yaml
from vae_lightning.data import ImageData
from vae_lightning.errors import UserError
from vae_lightning.files import expand

LINKED = ("image_shape", "num_classes", "num_train", "num_labeled", "bounded")
"""Arguments of models that are taken from the data."""

_DATA_FILES = {
    **dict.fromkeys((".npy", ".npz"), "Arrays"),
    **dict.fromkeys((".csv", ".tsv", ".parquet"), "Table"),
    **dict.fromkeys((".tif", ".tiff"), "ImageFolder"),
}
"""Data modules by the suffixes of the files that they read."""

_HELP_FLAGS = ("-h", "--help")

_PATH_FLAGS = ("--ckpt_path", "--init_from", "--config", "-c")
"""Options whose values name files, and no classes."""


@dataclass(frozen=True)
class ConfigFile:
    """A configuration that was given as an option.

    Attributes:
        path: Path of the file, None for settings typed as JSON.
        content: The settings.
    """

    path: Path | None
    content: dict[str, Any]


@dataclass(frozen=True)
class CommandLine:
    """A command with its options and the files that they name.

    Attributes:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: Everything typed after the command.
        options: The options among the arguments.
        configs: The configurations among the options, in the order typed.
        checkpoint: The checkpoint that was named, opened and checked.
        init_from: The checkpoint whose weights a new training starts from, if there is one.
        named_classes: Every import path that the user has typed or has written into one of the
            configurations.
    """

    command: str
    arguments: tuple[str, ...]
    options: tuple[Option, ...]
    configs: tuple[ConfigFile, ...]
    checkpoint: Checkpoint | None
    init_from: Checkpoint | None
    named_classes: frozenset[str]

    @classmethod
    def read(cls, args: Sequence[str]) -> Self:
        """Read a command line, and the configurations and the checkpoint that it names.

        Args:
            args: The command and its options.

        Raises:
            UserError: If a file cannot be found or read, or an option has no meaning here.
        """
        command, *arguments = args
        options = typed_options(arguments)
        _check_flags(command, options)
        _check_init_from(options)
        configs: list[ConfigFile] = []
        ckpt_path = init_from = ""
        for option in options:
            if option.flag in ("--config", "-c") and option.value:
                configs.append(_read_config(option.value))
                ckpt_path = str(configs[-1].content.get("ckpt_path") or ckpt_path)
                init_from = str(configs[-1].content.get("init_from") or init_from)
            elif option.flag == "--ckpt_path" and option.value:
                ckpt_path = option.value
            elif option.flag == "--init_from" and option.value:
                init_from = option.value
        asks_for_help = any(argument in _HELP_FLAGS for argument in arguments) or any(
            option.flag.endswith(".help") for option in options
        )
        if not ckpt_path and command != "fit" and not asks_for_help:
            _refuse_without_checkpoint(command, options)
        return cls(
            command,
            tuple(arguments),
            options,
            tuple(configs),
            _read_checkpoint(ckpt_path) if ckpt_path else None,
            checkpoint.read(expand(init_from))
            if init_from and not ckpt_path and command == "fit"
            else None,
            frozenset(_named_classes(options, configs)),
        )

    def with_checkpoint(self, path: Path) -> Self:
        """Return the same command line with another checkpoint."""
        return replace(self, checkpoint=_read_checkpoint(str(path)))

    def has(self, *flags: str) -> bool:
        """Return whether one of these options was typed."""
        return any(option.flag in flags for option in self.options)

    def has_parts_of(self, flag: str) -> bool:
        """Return whether arguments of the class of an option were typed, as in ``FLAG.lr``."""
        return any(option.flag.startswith(f"{flag}.") for option in self.options)

    def without_parts_of(self, flag: str) -> list[str]:
        """Return the arguments without those of the class of an option, and without requests."""
        kept: list[str] = []
        skip = False
        for argument in self.parser_arguments:
            if argument.startswith(f"{flag}."):
                skip = "=" not in argument
            elif skip and not argument.startswith("--"):
                skip = False
            else:
                skip = False
                if argument not in _HELP_FLAGS and not argument.startswith("--print_config"):
                    kept.append(argument)
        return kept

    @property
    def parser_arguments(self) -> list[str]:
        """The arguments with what this project fills in for a tracker.

        The folder of a `TensorBoardLogger` is a required argument; it becomes the run's folder.
        """
        arguments: list[str] = []
        for argument in self.arguments:
            arguments.append(argument)
            before = arguments[-2] if len(arguments) > 1 else ""
            flag, equals, value = argument.partition("=")
            if not equals:
                flag, value = before, argument
            if flag in ("--trainer.logger", "--trainer.logger+") and value == "TensorBoardLogger":
                arguments.append("--trainer.logger.save_dir=.")
        return arguments

    @property
    def text(self) -> str:
        """The whole command, quoted for a shell."""
        return shlex.join(["vae", self.command, *self.arguments])

    @property
    def argument_names(self) -> set[str]:
        """The last part of the name of each option, such as ``beta`` of ``--model.beta``."""
        return {option.flag.rpartition(".")[2].lstrip("-") for option in self.options}


def _check_flags(command: str, options: Sequence[Option]) -> None:
    """Refuse options that another command has, or that are taken from the data."""
    for option in options:
        name = option.flag.removeprefix("--model.").removeprefix("init_args.")
        if option.flag.startswith("--model.") and name in LINKED:
            raise UserError(f"{option.flag} is taken from the data: leave it out")
        if option.flag == "--data":
            _check_data(option.value)
        measures = option.flag.startswith("--metrics.") or option.flag == "--evaluation_seed"
        if measures and command not in ("test", "validate"):
            raise UserError(f"{option.flag} is an option of vae test and vae validate")
        if option.flag == "--init_from" and command != "fit":
            raise UserError(f"--init_from is an option of vae fit: vae {command} takes --ckpt_path")


def _check_data(value: str) -> None:
    """Refuse a file or a folder where a data module is named."""
    kind = _DATA_FILES.get(Path(value).suffix)
    if kind:
        raise UserError(
            f"--data names a kind of data, not a file: give --data {kind} --data.root {value}"
        )
    known = {cls.__name__ for cls in subclasses(ImageData)}
    if value and value not in known and expand(value).is_dir():
        raise UserError(
            "--data names a kind of data, not a folder: for a folder of images, give "
            f"--data ImageFolder --data.root {value}"
        )


def _check_init_from(options: Sequence[Option]) -> None:
    """Refuse to start a training and to continue one at once."""
    flags = {option.flag for option in options}
    if {"--init_from", "--ckpt_path"} <= flags:
        raise UserError(
            "--init_from starts a new training and --ckpt_path continues one: give one of the two"
        )


def _read_config(value: str) -> ConfigFile:
    if is_inline(value):
        return ConfigFile(None, parse_yaml(value, "--config"))
    path = find_config(value)
    return ConfigFile(path, read_yaml(path))


def _read_checkpoint(path: str) -> Checkpoint:
    if path in SPECIAL_CHECKPOINTS:
        raise UserError(
            f"--ckpt_path {path} has no meaning in a new process: give the path of a file, "
            "runs/NAME/version_N/checkpoints/best.ckpt"
        )
    if checkpoint.is_exported(expand(path)):
        raise UserError(
            f"{path} is an exported model, which --init_from and commands such as vae sample take: "
            "give the .ckpt file that it was exported from"
        )
    return checkpoint.read(expand(path))


def _refuse_without_checkpoint(command: str, options: Sequence[Option]) -> None:
    if any(option.flag == "--ckpt_path" for option in options):
        raise UserError("--ckpt_path needs the path of a checkpoint")
    raise UserError(
        f"vae {command} needs a trained model: give --ckpt_path "
        "runs/NAME/version_N/checkpoints/best.ckpt"
    )


def _named_classes(options: Sequence[Option], configs: Sequence[ConfigFile]) -> set[str]:
    """Return the import paths in values; the names of options and files permit nothing."""
    typed = [o.value for o in options if o.flag not in _PATH_FLAGS]
    files = [str({**config.content, "ckpt_path": None, "init_from": None}) for config in configs]
    return import_paths_in([*typed, *files])
