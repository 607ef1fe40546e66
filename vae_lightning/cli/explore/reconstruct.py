"""``vae reconstruct``: encode and decode images."""

import argparse

import torch

from vae_lightning import plotting, randomness
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "reconstruct",
        "Encode and decode images, and measure the error of each.",
        "vae reconstruct --ckpt_path runs/vae/version_0/checkpoints/best.ckpt photos",
    )
    items.add_options(made)
    made.add_argument("--n", type=positive, default=32, help="number of images in the picture (32)")
    return made


def run(options: argparse.Namespace) -> None:
    """Reconstruct the images, and write a picture, an array and a table of errors."""
    trained = Trained.load(options)
    model, label = trained.model, trained.label(options.label)
    given = items.choose(options, trained)
    outputs = Outputs(options, trained.held, "reconstruct", (".png", ".npz", ".csv"))
    originals, made, positions = [], [], []
    for part in given.parts(options.batch_size, "reconstruct"):
        made.append(model.reconstruct(part.x, items.labels_of(part, label, trained)).cpu())
        originals.append(part.x)
        positions.append(part.positions)
    x, reconstruction, place = torch.cat(originals), torch.cat(made), torch.cat(positions)
    error = (x - reconstruction).square().flatten(1).mean(1)
    shown = randomness.choose(len(x), min(len(x), options.n), options.seed, "pictures")
    shown = shown.sort().values
    outputs.figure(
        "reconstructions",
        plotting.reconstructions(
            model.to_picture(x[shown]),
            model.to_picture(reconstruction[shown]),
            title=f"Reconstructions of {given.what}",
        ),
    )
    names = [given.name(i) for i in place.tolist()]
    outputs.arrays(
        "reconstructions",
        {
            "name": names,
            "original": model.to_items(x),
            "reconstruction": model.to_items(reconstruction),
            "squared_error": error,
        },
    )
    per = "per scaled value" if trained.is_scaled else "per pixel"
    rows = zip(names, error.tolist(), strict=True)
    outputs.table(
        "reconstructions", [{"name": name, "squared_error": f"{e:.6g}"} for name, e in rows]
    )
    print(
        f"{len(x)} {trained.noun}s of {given.what}: squared error {per} {error.mean():.6f}, "
        f"from {error.min():.6f} to {error.max():.6f}"
    )
    items.report_failed(given)
    outputs.report()
