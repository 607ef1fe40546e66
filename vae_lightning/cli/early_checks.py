"""Mistakes that are found before torch and Lightning are loaded, which takes seconds."""

from collections.abc import Sequence
from typing import NoReturn

from vae_lightning.cli import exit_codes, option_list
from vae_lightning.cli.bundled_configs import find_config
from vae_lightning.cli.typed_options import SPECIAL_CHECKPOINTS, Option, typed_options
from vae_lightning.cli.yaml_files import is_inline
from vae_lightning.errors import UserError, fail, wants_traceback
from vae_lightning.files import check_checkpoint_exists, expand


def check(command: str, arguments: Sequence[str]) -> None:
    """Refuse options, configurations and checkpoints that do not exist.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: What follows it.

    Raises:
        SystemExit: If there is such a mistake.
    """
    options = option_list.read()["options"]
    names = {flag.removeprefix("--") for flag in options[command] if flag.startswith("--")}
    # Also those of the other commands, about which there are other messages.
    known = {flag for name in option_list.LIGHTNING_COMMANDS for flag in options[name]}
    groups = {flag.removeprefix("--").partition(".")[0] for flag in known}
    for option in typed_options(arguments):
        name = option.flag.removeprefix("--")
        if option.flag.startswith("--") and name.partition(".")[0] not in groups:
            _refuse(option_list.unknown_option(name, names), exit_codes.WRONG_USAGE)
        try:
            _check_file(option, command)
        except UserError as error:
            _refuse(str(error), exit_codes.ERROR)
        except (OSError, RuntimeError):
            continue  # such as a folder without access, about which the command itself complains


def _check_file(option: Option, command: str) -> None:
    """Check that the file that an option names exists."""
    if option.flag in ("--config", "-c"):
        if option.value and not is_inline(option.value):
            find_config(option.value)
        return
    is_checkpoint = option.flag == "--ckpt_path" or (
        option.flag == "--init_from" and command == "fit"
    )
    if is_checkpoint and option.value not in SPECIAL_CHECKPOINTS:
        check_checkpoint_exists(expand(option.value))


def _refuse(message: str, code: int) -> NoReturn:
    if wants_traceback():
        raise UserError(message)
    fail(message, code)
