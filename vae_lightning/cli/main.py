"""Entry point of the commands that need Lightning."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence

from vae_lightning.cli import error_messages, exit_codes
from vae_lightning.cli.allowed_classes import imports_restricted
from vae_lightning.cli.command import Command
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.cli.parser import WrongOptions
from vae_lightning.cli.resume import AlreadyComplete
from vae_lightning.errors import fail, wants_traceback


def run(args: Sequence[str]) -> None:
    """Run ``vae`` with arguments that begin with a command.

    Raises:
        SystemExit: With one of the codes of `exit_codes`.
    """
    try:
        with _quiet():
            command_line = CommandLine.read(args)
            with imports_restricted(command_line.named_classes):
                Command(command_line)
    except BrokenPipeError:
        raise
    except Exception as error:
        if wants_traceback():
            raise
        if isinstance(error, WrongOptions):
            fail(str(error), exit_codes.WRONG_USAGE)
        is_complete = isinstance(error, AlreadyComplete)
        code = exit_codes.ALREADY_COMPLETE if is_complete else exit_codes.ERROR
        fail(error_messages.sentence(error), code)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says in every run and what helps nobody."""
    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.fabric.utilities.distributed",
    )
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*is smaller than the logging interval.*",  # of short trainings
            r".isinstance\(treespec, LeafSpec\)",  # Lightning-AI/pytorch-lightning#21326
            ".*callbacks used to create the checkpoint need to be provided",  # not by vae test
            "Experiment logs directory .* is not empty",  # another tracker has just created it
            "Checkpoint directory .* exists and is not empty",  # of a run that is continued
            ".*not supported by the model summary",  # of mixed precision
            "The `srun` command is available",  # on every machine of a cluster, outside a job
        ):
            warnings.filterwarnings("ignore", message)
        # About damaged metadata of images, which decide over nothing.
        warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
        yield
