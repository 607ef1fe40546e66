"""The ``vae`` command. What can be answered without torch is answered here, at once."""

import difflib
import os
import sys
from collections.abc import Sequence

from vae_lightning import __version__
from vae_lightning.cli import (
    class_list,
    early_checks,
    exit_codes,
    option_list,
    own_modules,
    short_help,
)
from vae_lightning.cli.commands import COMMANDS, EXPLORE
from vae_lightning.cli.terminal import says, write_plainly
from vae_lightning.errors import UserError, fail
from vae_lightning.training import slurm
from vae_lightning.training.signals import LISTENER, REQUEUE

HELP = f"""\
usage: vae COMMAND [options]

Train, measure and explore variational autoencoders.

commands:
{chr(10).join(f"  {name:<16} {text}" for name, text in COMMANDS.items())}

examples:
  vae fit
  vae fit --config beta_vae --model.beta 8 --trainer.max_epochs 10
  vae test --ckpt_path runs/beta_vae/version_0/checkpoints/best.ckpt
  vae sweep beta_vae --list

options:
  -h, --help     show this text; `vae COMMAND --help` shows the options of a command,
                 `vae fit --model.help` lists the models
  --version      show the version
  --import NAME  import a module of yours, such as my_models.py in this folder, before a command
                 that reads a checkpoint with classes from it

Set the environment variable VAE_TRACEBACK=1 to see where an error came from.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the ``vae`` command.

    Args:
        args: The arguments; by default those of the process.

    Raises:
        SystemExit: With one of the codes of `vae_lightning.cli.exit_codes`.
    """
    write_plainly()
    if args is None:
        own_modules.find_in_working_folder()
    try:
        _run(list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except BrokenPipeError:  # as in `vae fit --model.help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(exit_codes.ERROR) from None


def _run(args: list[str]) -> None:
    """Run the command that the arguments name."""
    if args[:1] != ["sweep"]:  # whose trainings get all of its arguments
        args, modules = own_modules.split(args)
    if not args:
        print(HELP, file=sys.stderr)
        raise SystemExit(exit_codes.WRONG_USAGE)
    if args[0] in ("-h", "--help"):
        print(HELP)
    elif args[0] == "--version":
        print(f"vae_lightning {__version__}")
    elif args[0] == "sweep":
        from vae_lightning.cli import sweep

        sweep.run(args[1:])
    elif args[0] in option_list.LIGHTNING_COMMANDS and short_help.wanted(args[1:]):
        print(short_help.text(args[0]))
    elif args[0] in option_list.LIGHTNING_COMMANDS and (flag := class_list.asked(args[1:])):
        print(class_list.text(flag))
    elif args[0] == "completion":
        from vae_lightning.cli import completion

        completion.run(args[1:])
    elif args[0] in EXPLORE:
        try:
            with says("loading torch ..."):  # which takes two seconds
                from vae_lightning.cli.explore.main import run as explore

            _import(modules)
            explore(args[0], args[1:])
        except KeyboardInterrupt:
            print("\nvae: interrupted", file=sys.stderr)
            raise SystemExit(exit_codes.INTERRUPTED) from None
    elif args[0] in COMMANDS:
        if args[0] in option_list.LIGHTNING_COMMANDS:
            early_checks.check(args[0], args[1:])
        if args[0] == "fit" and slurm.job():
            LISTENER.listen(REQUEUE)  # it would otherwise end a process that is still importing
        try:
            with says("loading torch and Lightning ..."):  # which takes five seconds
                from vae_lightning.cli.main import run

            _import(modules)
            run(args)
        except KeyboardInterrupt:
            print("\nvae: interrupted", file=sys.stderr)
            raise SystemExit(exit_codes.INTERRUPTED) from None
    else:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean 'vae {near[0]}'?" if near else f"use one of {', '.join(COMMANDS)}"
        print(f"vae: error: no command '{args[0]}'; {hint}", file=sys.stderr)
        raise SystemExit(exit_codes.WRONG_USAGE)


def _import(modules: Sequence[str]) -> None:
    """Import what ``--import`` names.

    Raises:
        SystemExit: If it cannot be imported.
    """
    try:
        own_modules.load(modules)
    except UserError as error:
        fail(str(error), exit_codes.WRONG_USAGE)


if __name__ == "__main__":
    main()
