"""Entry point of the commands that use a trained model."""

from collections.abc import Sequence
from importlib import import_module

from vae_lightning.cli import exit_codes
from vae_lightning.errors import fail, wants_traceback


def run(command: str, args: Sequence[str]) -> None:
    """Run a command such as ``vae sample``.

    Args:
        command: Its name, which is that of a module in this package.
        args: Its arguments.

    Raises:
        SystemExit: With one of the codes of `exit_codes`.
    """
    try:
        module = import_module(f"vae_lightning.cli.explore.{command}")
        options = module.parser().parse_args(args)
        module.run(options)
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if wants_traceback():
            raise
        fail(_sentence(error), exit_codes.ERROR)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
