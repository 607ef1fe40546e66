"""The ``vae`` command. What can be answered without torch is answered here, at once."""

import difflib
import sys
from collections.abc import Sequence

from vae_lightning import __version__
from vae_lightning.cli import exit_codes
from vae_lightning.cli.terminal import write_plainly
from vae_lightning.training import slurm
from vae_lightning.training.signals import LISTENER, REQUEUE

EXPLORE = {
    "sample": "draw images from a model",
    "reconstruct": "encode and decode images, with the error of each",
    "traverse": "move one latent dimension of an image at a time",
    "interpolate": "go from one image or class to another through the latent space",
    "encode": "write the latents of images, with their file names",
    "score": "say how surprising images are, for finding anomalies",
    "figure": "draw a figure of a finished model again, with other options",
    "density": "fit a density to the latents of a model, for `vae sample --density`",
    "explore": "make a web page in which the latent space is explored by hand",
    "export": "write a folder with a model card, safetensors and ONNX, for sharing a model",
    "compare": "compare models on the same images with the same noise, in pairs",
}
"""Commands that use a trained model without Lightning."""

COMMANDS = {
    "fit": "train a model, with figures; without options: a VAE on the bundled digits",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images; writes test/metrics.json in its run folder",
    "predict": "write reconstructions and latents to predictions/ in the run folder",
    "sweep": "train once for each combination of options in a file, and compare",
    **EXPLORE,
}

HELP = f"""\
usage: vae COMMAND [options]

Train, measure and explore variational autoencoders.

commands:
{chr(10).join(f"  {name:<12} {text}" for name, text in COMMANDS.items())}

examples:
  vae fit
  vae fit --config beta_vae --model.beta 8 --trainer.max_epochs 10
  vae test --ckpt_path runs/beta_vae/version_0/checkpoints/best.ckpt
  vae sweep beta_vae --list

options:
  -h, --help     show this text; `vae COMMAND --help` lists all options of a command,
                 `vae fit --model.help BetaVAE` those of a model
  --version      show the version

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
    args = list(sys.argv[1:] if args is None else args)
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
    elif args[0] in EXPLORE:
        try:
            from vae_lightning.cli.explore.main import run as explore  # imports torch

            explore(args[0], args[1:])
        except KeyboardInterrupt:
            print("\nvae: interrupted", file=sys.stderr)
            raise SystemExit(exit_codes.INTERRUPTED) from None
    elif args[0] in COMMANDS:
        if args[0] == "fit" and slurm.job():
            LISTENER.listen(REQUEUE)  # it would otherwise end a process that is still importing
        try:
            from vae_lightning.cli.main import run  # imports torch, which takes seconds

            run(args)
        except KeyboardInterrupt:
            print("\nvae: interrupted", file=sys.stderr)
            raise SystemExit(exit_codes.INTERRUPTED) from None
    else:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean 'vae {near[0]}'?" if near else f"use one of {', '.join(COMMANDS)}"
        print(f"vae: error: no command '{args[0]}'; {hint}", file=sys.stderr)
        raise SystemExit(exit_codes.WRONG_USAGE)


if __name__ == "__main__":
    main()
