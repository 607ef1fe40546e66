"""``vae interpolate``: go from one image to another through the latent space."""

import argparse
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.errors import UserError
from vae_lightning.explore.interpolation import (
    Path,
    check_path,
    interpolate,
    path_vectors,
    paths_of,
    project,
)

_OF_A_CLASS = 1000
"""Number of images of a split among which a class is looked for."""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "interpolate",
        "Go from one image to the next through the latent space: between files, between items of "
        "the run's\ndata, or between the means of classes.",
        "vae interpolate --ckpt_path runs/vae/version_0/checkpoints/best.ckpt --index 3 17 4",
    )
    items.add_options(made)
    made.add_argument("--index", type=int, nargs="+", metavar="I", help="items to go through")
    made.add_argument("--classes", nargs="+", metavar="CLASS", help="classes to go through")
    made.add_argument(
        "--path",
        choices=("linear", "spherical", "geodesic", "both"),
        default="both",
        help="(both; in a curved latent space, such as a sphere, the geodesic)",
    )
    made.add_argument("--steps", type=positive, default=11, help="images in a row (11)")
    return made


def run(options: argparse.Namespace) -> None:
    """Draw the interpolations, and write a picture, animations and an array."""
    trained = Trained.load(options)
    model = trained.model
    check_path(model)
    label = trained.label(options.label)
    if options.classes and options.index:
        raise UserError("--index has no effect with --classes: leave out one of them")
    outputs = Outputs(options, trained.held, "interpolate", (".png", ".gif", ".npz"))
    given = items.choose(options, trained)
    if options.classes:
        z, labels, names = _means(options.classes, given, trained, label)
    else:
        z, labels, names = _latents(options, given, trained, label)
    if len(z) < 2:
        raise UserError("give at least two items or classes to go through")
    paths: Sequence[Path] = paths_of(model) if options.path == "both" else [options.path]
    pairs = list(itertools.pairwise(range(len(z))))
    start, end = (z[[pair[side] for pair in pairs]] for side in (0, 1))
    classes = None if labels is None else labels[[pair[0] for pair in pairs]]
    made = {
        path: interpolate(model, start, end, classes, steps=options.steps, path=path)
        for path in paths
    }
    rows, row_names = [], []
    for i, (a, b) in enumerate(pairs):
        for path in paths:
            rows.append(model.to_picture(made[path].images[i]))
            decoded = "" if classes is None else f", as {trained.class_names[int(classes[i])]}"
            row_names.append(f"{names[a]} to {names[b]}, {path}{decoded}")
    title = f"Interpolations of {type(model).__name__}"
    outputs.figure("interpolations", plotting.image_rows(torch.stack(rows), row_names, title=title))
    for path in paths:
        outputs.animation(
            "interpolations" if outputs.file else path,
            model.to_picture(made[path].images.flatten(0, 1)),
        )
        if outputs.file:
            break
    outputs.arrays(
        "interpolations",
        {
            **{path: model.to_items(found.images) for path, found in made.items()},
            **{f"{path}_latents": found.latents for path, found in made.items()},
        },
    )
    items.report_failed(given)
    outputs.report()


def _latents(
    options: argparse.Namespace, given: items.Items, trained: Trained, label: int | None
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Return the latents of items, (P, L), their classes and names."""
    index = options.index
    if index is None:
        if not options.items:
            index = [0, 1]
        elif len(given) > 20:
            raise UserError(f"{given.what} has {len(given)} images: choose some with --index")
        else:
            index = range(len(given))
    parts = [given.one(i) for i in index]
    whole = items.joined(parts)
    labels = items.labels_of(whole, label, trained, decodes=True)
    if isinstance(labels, int):
        labels = torch.full((len(index),), labels)
    z = path_vectors(trained.model, whole.x, labels).cpu()
    names = [given.name(i) for i in index]
    return z, labels, [name.rpartition("/")[2] for name in names] if options.items else names


def _means(
    classes: list[str], given: items.Items, trained: Trained, label: int | None
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Return the mean latents of classes, (P, L), the classes to decode with and the names."""
    if trained.model.conditional and label is None:
        raise UserError(
            f"the latents of this {type(trained.model).__name__} say nothing about the class: give "
            "--label for the class to decode, or another model"
        )
    part = given.read(given.some(_OF_A_CLASS))
    if part.y is None:
        raise UserError(f"{given.what} has no classes: give --index")
    z = path_vectors(trained.model, part.x, items.labels_of(part, None, trained)).cpu()
    means = []
    for name in classes:
        chosen = part.y == trained.class_index(name)
        if not chosen.any():
            raise UserError(f"{given.what} has no image of class {name} among {len(part.x)}")
        means.append(project(trained.model, z[chosen].mean(0)))
    labels = None if label is None else torch.full((len(classes),), label)
    return torch.stack(means), labels, [f"class {name}" for name in classes]
