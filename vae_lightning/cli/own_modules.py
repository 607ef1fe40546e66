"""Modules of the user, with classes of their own: where they are found, and ``--import``."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from vae_lightning.errors import UserError

OPTION = "--import"


def find_in_working_folder() -> None:
    """Let modules of the working folder be imported, after those that are installed.

    ``python -m`` does so by itself, but before all others.
    """
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return arguments without ``--import MODULE``, and the modules.

    Example:
        >>> split(["test", "--import", "my_nets", "--ckpt_path=x", "--import=my_models"])
        (['test', '--ckpt_path=x'], ['my_nets', 'my_models'])
    """
    rest, modules = [], []
    remaining = iter(args)
    for arg in remaining:
        if arg == OPTION:
            modules.append(next(remaining, ""))
        elif arg.startswith(f"{OPTION}="):
            modules.append(arg.partition("=")[2])
        else:
            rest.append(arg)
    return rest, modules


def load(modules: Sequence[str]) -> None:
    """Import modules, whose classes files may then name.

    Raises:
        UserError: If one cannot be imported.
    """
    for name in modules:
        if not name or name.endswith(".py") or os.sep in name:
            raise UserError(
                f"{OPTION} {name}: give the name of a module, such as my_models for my_models.py "
                "in this folder"
            )
        try:
            import_module(name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{OPTION} {name}: it cannot be imported ({reason})") from error
