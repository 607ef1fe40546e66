"""``vae traverse``: move one latent variable at a time."""

import argparse

import torch

from vae_lightning import plotting
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.errors import UserError
from vae_lightning.explore.traversal import dimension_use, middle, most_used, traverse
from vae_lightning.models.capabilities import Capability

_USE_IMAGES = 500
"""Number of images by which the use of a dimension is measured."""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "traverse",
        "Decode an item with one latent variable at a time moved: a number through the quantiles\n"
        "of the prior, a categorical variable through its categories.",
        "vae traverse --ckpt_path runs/vae/version_0/checkpoints/best.ckpt --index 17 "
        "--dimensions 3 5",
    )
    items.add_options(made, several=False)
    made.add_argument("--index", type=int, default=0, help="which item (0)")
    made.add_argument(
        "--prior", action="store_true", help="start at the middle of the prior, not at an item"
    )
    made.add_argument(
        "--dimensions", type=int, nargs="+", metavar="D", help="by default the most active ones"
    )
    made.add_argument("--rows", type=positive, default=10, help="how many of these at most (10)")
    made.add_argument("--steps", type=positive, default=11, help="images in a row (11)")
    made.add_argument(
        "--limit", type=float, default=3.0, help="largest value, in standard deviations (3)"
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Draw the traversals, and write a picture, an animation and an array."""
    trained = Trained.load(options)
    model, label = trained.model, trained.label(options.label)
    model.require(Capability.TRAVERSABLE)
    outputs = Outputs(options, trained.held, "traverse", (".png", ".gif", ".npz"))
    if options.prior:
        if model.conditional and label is None:
            raise UserError(f"this {type(model).__name__} is conditional: give --label")
        z, what = middle(model, label), "the middle of the prior"
        original = None
    else:
        given = items.choose(options, trained)
        part = given.one(options.index)
        chosen = items.labels_of(part, label, trained, decodes=True)
        label = int(chosen[0]) if isinstance(chosen, torch.Tensor) else chosen
        z, what, original = (
            model.latent_vectors(part.x, label)[0],
            given.name(options.index),
            part.x[0],
        )
    use, unit, note = _use(options, trained)
    dimensions = options.dimensions
    if dimensions is None:
        dimensions = most_used(model, use, options.rows)
    made = traverse(model, z, dimensions, label, steps=options.steps, limit=options.limit)
    movable = sum(variable.is_movable for variable in model.latent_variables)
    shown = f", {len(dimensions)} of {movable} latents" if len(dimensions) < movable else ""
    numbers = [f"  {unit} {use[d]:.2f}" if use is not None else "" for d in dimensions]
    figure = plotting.traversals(
        model.to_picture(made.images),
        [f"{name}{number}" for name, number in zip(made.names, numbers, strict=True)],
        made.values.tolist(),
        x_label=f"{made.axis_label}; triangles mark the unmoved value",
        title=f"Traversals from {what}{shown}",
        original=None if original is None else model.to_picture(original),
        decoded=None if made.decoded is None else model.to_picture(made.decoded),
        own=made.own.tolist(),
        counts=made.counts,
    )
    outputs.figure("traversals", figure)
    outputs.animation("traversals", model.to_picture(made.images).transpose(0, 1))
    outputs.arrays(
        "traversals",
        {
            "x": model.to_items(made.images),
            "dimensions": dimensions,
            "values": made.values,
            "own": made.own,
            "counts": made.counts,
        },
    )
    if note:
        print(note)
    outputs.report()


def _use(options: argparse.Namespace, trained: Trained) -> tuple[torch.Tensor | None, str, str]:
    """Return the use of each dimension on images of the run, if they are there, and a note."""
    if options.dimensions is not None and options.items:
        return None, "", ""
    try:
        data = items.RunData("val", trained, options.root)
        part = data.read(data.some(_USE_IMAGES))
        label = items.labels_of(part, None, trained)  # in their own classes
        return *dimension_use(trained.model, part.x, label), ""
    except UserError as error:
        return None, "", f"Note: the dimensions are not ordered by their use ({error})"
