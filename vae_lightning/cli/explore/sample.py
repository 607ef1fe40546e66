"""``vae sample``: draw images from a model."""

import argparse

import torch

from vae_lightning import explore, plotting
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "sample",
        "Draw images from a model.",
        "vae sample --ckpt_path runs/cvae/version_0/checkpoints/best.ckpt --n 64 --label 7",
    )
    made.add_argument(
        "--n",
        type=positive,
        default=64,
        help="number of images (64), or more to fill rows of classes",
    )
    made.add_argument(
        "--label", metavar="CLASS", help="of a conditional model; by default one row per class"
    )
    made.add_argument(
        "--temperature", type=float, default=1.0, help="of a N(0, I) prior: below 1, more typical"
    )
    made.add_argument(
        "--draw", action="store_true", help="draw the pixels, rather than show their means"
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Draw the images, and write a picture, an array and single files."""
    trained = Trained.load(options)
    model = trained.model
    label: int | torch.Tensor | None = trained.label(options.label)
    n, names = options.n, trained.class_names
    by_class = model.conditional and label is None
    if by_class:
        columns = -(-n // len(names))
        label = torch.arange(len(names)).repeat_interleave(columns)
        n = len(label)
    outputs = Outputs(options, trained.held, "sample", (".png", ".npz"))
    images = explore.sample(
        model,
        n,
        label,
        temperature=options.temperature,
        draw=options.draw,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    title = f"{n} samples of {type(model).__name__}"
    if options.label is not None:
        title += f", class {options.label}"
    if by_class:
        grid = images.unflatten(0, (len(names), columns))
        outputs.figure("samples", plotting.class_grid(grid, names, title=title))
    else:
        outputs.figure("samples", plotting.image_grid(images, title=title))
    arrays = {"x": images}
    if label is not None:
        arrays["label"] = torch.as_tensor(label).expand(n)
    outputs.arrays("samples", arrays)
    outputs.images("images", images, [f"{i:05d}" for i in range(n)])
    outputs.report()
