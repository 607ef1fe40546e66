"""What the commands that use a trained model share: options, the model and its device."""

import argparse
import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch

from vae_lightning import checkpoint
from vae_lightning.checkpoint import Checkpoint
from vae_lightning.cli import exit_codes
from vae_lightning.errors import UserError, fail
from vae_lightning.files import expand
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.loading import load


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line.

    Args:
        command: Name of the command.
        description: What it does.
        example: Command lines to show at the end of the help.
        several: Whether the command takes several checkpoints.
    """

    def __init__(self, command: str, description: str, example: str, several: bool = False) -> None:
        self.added: list[argparse.Action] = []
        super().__init__(
            prog=f"vae {command}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if several:
            self.add_argument("checkpoints", nargs="+", metavar="CKPT", help="two or more")
        else:
            self.add_argument(
                "--ckpt_path", required=True, metavar="CKPT", help="checkpoint of the model"
            )
        self.add_argument(
            "--out", metavar="PATH", help="file or folder to write (a new folder in the run)"
        )
        self.add_argument("--overwrite", action="store_true", help="replace what is there")
        self.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
        self.add_argument("--device", default="auto", help="cpu, cuda, mps or auto (auto)")
        self.add_argument(
            "--batch_size", type=positive, default=256, metavar="N", help="images at once (256)"
        )
        self.add_argument(
            "--model", metavar="CLASS", help="import path of a model class of your own"
        )

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an option, and note it in ``added``."""
        action = super().add_argument(*args, **kwargs)
        self.added.append(action)
        return action

    def error(self, message: str) -> NoReturn:
        """Print an error and exit."""
        fail(
            f"{message}; vae {self.prog.split()[1]} --help lists the options",
            exit_codes.WRONG_USAGE,
        )


def positive(text: str) -> int:
    """Return a positive integer.

    Raises:
        argparse.ArgumentTypeError: If the text is none.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


@dataclass(frozen=True)
class Trained:
    """The trained model that a command uses.

    Attributes:
        held: Its checkpoint.
        model: The model in evaluation mode.
    """

    held: Checkpoint
    model: GenerativeModel

    @classmethod
    def load(cls, options: argparse.Namespace, path: str | None = None) -> "Trained":
        """Load the model that the options name, or another one.

        Raises:
            UserError: If it cannot be loaded, or there is no such device.
        """
        if options.model:
            module, _, name = options.model.rpartition(".")
            try:
                found = importlib.import_module(module) if module else None
            except ImportError as error:
                raise UserError(f"--model: there is no module '{module}' ({error})") from error
            if not hasattr(found, name):
                raise UserError(f"--model: {module or options.model} has no class '{name}'")
        file = expand(path or options.ckpt_path)
        return cls(checkpoint.read(file), load(file, _device(options.device)))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes: those in the checkpoint, else numbers."""
        names = self.held.record.class_names
        return names or [str(i) for i in range(self.model.num_classes)]

    @cached_property
    def data_settings(self) -> dict[str, Any]:
        """Arguments of the data module that the model was trained on."""
        arguments: dict[str, Any] = (self.held.record.data or {}).get("init_args", {})
        return arguments

    @property
    def is_binary(self) -> bool:
        """Whether the model was trained on binary images."""
        record = self.held.record
        if record.known_data is not None:
            return record.known_data.binary
        name = (record.data or {}).get("class_path", "").rpartition(".")[2]
        return name == "StaticMNIST" or self.data_settings.get("binarization", "none") != "none"

    @property
    def is_scaled(self) -> bool:
        """Whether the model was trained on values that are scaled, in the units of a user."""
        record = self.model.record
        return record is not None and not record.is_8_bit

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a table, empty for other data."""
        record = self.model.record
        return record.channels if record is not None and record.layout == "D" else ()

    @property
    def noun(self) -> str:
        """What an item is called."""
        return "image" if self.model.image_shape[1] > 1 else "item"

    def class_index(self, name: str) -> int:
        """Return the index of a class that is given by its name or its number.

        Raises:
            UserError: If the model is not conditional, or there is no such class.
        """
        model, names = self.model, self.class_names
        if not model.num_classes:
            raise UserError(f"this {type(model).__name__} was trained on data without classes")
        if name in names:
            return names.index(name)
        if name.isdigit() and int(name) < model.num_classes:
            return int(name)
        known = ", ".join(names[:20])
        raise UserError(f"there is no class '{name}': give one of {known}")

    def label(self, name: str | None) -> int | None:
        """Return the class with which to condition the model.

        Raises:
            UserError: If the model is not conditional, or there is no such class.
        """
        if name is None:
            return None
        if not self.model.conditional:
            raise UserError(
                f"--label: this {type(self.model).__name__} is not conditional: leave it out"
            )
        return self.class_index(name)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}): try cpu") from error
    return device


def short(path: Path) -> str:
    """Return a path relative to the current folder if it is inside."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
