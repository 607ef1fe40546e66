"""``vae figure``: a figure of a finished model, as ``vae fit`` draws it during training."""

import argparse
import inspect
from typing import Any

import torch

from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.cli.run_folders import folder_of
from vae_lightning.errors import UserError
from vae_lightning.figures import FIGURES, Figure
from vae_lightning.figures.history import losses

_LOSSES = "losses"
"""The one picture that is made of the run's log, not of the model."""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "figure",
        "Draw a figure of a finished model, as vae fit draws it during training.",
        "vae figure reconstructions --ckpt_path runs/vae/version_0/checkpoints/best.ckpt "
        "--options n=8",
    )
    made.add_argument("name", choices=[*FIGURES, _LOSSES], metavar="NAME", help=_names())
    made.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of the figure: those of vae fit --figures.NAME",
    )
    made.add_argument(
        "--split", choices=items.SPLITS, default="val", help="of the run's data (val)"
    )
    made.add_argument("--root", metavar="FOLDER", help="where the run's data are now")
    return made


def run(options: argparse.Namespace) -> None:
    """Draw the figure, and write a picture."""
    trained = Trained.load(options)
    if options.name == _LOSSES:
        _write_losses(options, trained)
        return
    figure = _build(options.name, options.options)
    model = trained.model
    for capability in figure.requires:
        model.require(capability)
    if not figure.applies_to(model):
        raise UserError(
            f"the figure {options.name} cannot be drawn for this {type(model).__name__}: it needs "
            f"{figure.needs}"
        )
    outputs = Outputs(options, trained.held, "figure", (".png",))
    x, label = torch.empty(0), None
    if figure.images:
        data = items.RunData(options.split, trained, options.root)
        x, label, _ = data.read(data.some(figure.images))
        figure.images_of = {"val": "validation images"}.get(
            options.split, f"{options.split} images"
        )
    names = trained.class_names if model.num_classes else None
    outputs.figure(options.name, figure.draw(model, x, label, names))
    outputs.report()


def _names() -> str:
    return ", ".join([*FIGURES, _LOSSES])


def _build(name: str, given: list[str]) -> Figure:
    """Build a figure with the options that were given as NAME=VALUE.

    Raises:
        UserError: If there is no such option, or its value is of another type.
    """
    cls = FIGURES[name]
    parameters = inspect.signature(cls).parameters
    known = {key: p.default for key, p in parameters.items() if key != "every_n_epochs"}
    arguments: dict[str, Any] = {}
    for text in given:
        key, _, value = text.partition("=")
        if key not in known:
            raise UserError(
                f"--options {text}: the figure {name} has the options {', '.join(known)}"
            )
        try:
            arguments[key] = type(known[key])(value)
        except ValueError as error:
            kind = {int: "an integer", float: "a number"}.get(type(known[key]), "a text")
            raise UserError(f"--options {text}: {key} takes {kind}") from error
    return cls(**arguments)


def _write_losses(options: argparse.Namespace, trained: Trained) -> None:
    """Draw the losses of the run again."""
    outputs = Outputs(options, trained.held, "figure", (".png",))
    made = losses(folder_of(trained.held))
    if made is None:
        raise UserError("the run's metrics.csv has fewer than two losses: nothing can be drawn")
    outputs.figure(_LOSSES, made)
    outputs.report()
