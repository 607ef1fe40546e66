"""``vae explore``: one HTML file in which a model is explored by hand."""

import argparse
import math
from pathlib import Path

import torch

from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.errors import UserError
from vae_lightning.explore.explorer import explorer
from vae_lightning.explore.sampling import sample
from vae_lightning.files import atomic_write_text
from vae_lightning.models.capabilities import Capability

_MOST_VALUES = 2**26
"""Largest number of values of all images, which are in memory together."""

_SAMPLES = 500
"""Largest number of samples where there are no images."""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "explore",
        "Make a page in which a model is explored by hand: one HTML file, without a\n"
        "server and without network.",
        "vae explore --ckpt_path runs/vae/version_0/checkpoints/best.ckpt --out vae.html",
    )
    items.add_options(made)
    made.add_argument(
        "--n", type=positive, default=2000, help="number of images in the plot at most (2000)"
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    trained = Trained.load(options)
    model, label = trained.model, trained.label(options.label)
    if model.image_shape[0] not in (1, 3) or model.image_shape[1] == 1 or not model.bounded:
        raise UserError(
            "vae explore shows gray and RGB images: use vae traverse, vae interpolate and "
            "vae encode for these data"
        )
    outputs = Outputs(options, trained.held, "explore", (".html",))
    n = min(options.n, max(50, _MOST_VALUES // math.prod(model.image_shape)))
    note, names, given = "", None, None
    try:
        given = items.choose(options, trained)
    except UserError as error:
        if options.items or not model.has(Capability.SAMPLES):
            raise
        n = min(n, _SAMPLES)
        y = model.cycle_labels(n) if label is None else torch.full((n,), label)
        x, what = sample(model, n, y, seed=options.seed), "samples of the model"
        note = f"Note: the page shows samples, because there are no images ({error})"
    else:
        part = items.joined(list(given.parts(options.batch_size, "read", given.some(n))))
        chosen = items.labels_of(part, label, trained, decodes=True)
        x, y = part.x, part.y if chosen is None else torch.as_tensor(chosen).expand(len(part.x))
        names = [given.name(i) for i in part.positions.tolist()]
        what = f"images of {given.what}"
        if len(given) > len(x):
            what = f"of {len(given):,} {what}"
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(options.seed))
    dataset = (trained.held.record.data or {}).get("class_path", "").rpartition(".")[2]
    page = explorer(
        model,
        x[order],
        None if y is None else y[order],
        class_names=trained.class_names,
        names=None if names is None else [names[i] for i in order.tolist()],
        title=f"{type(model).__name__} on {dataset}" if dataset else type(model).__name__,
        what=what,
        footer=f"Made by vae explore from {_name(trained.held.path)}.",
        binary=trained.is_binary,
        background=trained.data_settings.get("background", "black"),
        seed=options.seed,
    )
    path = outputs.path("explore.html")
    atomic_write_text(path, page)
    if note:
        print(note)
    if given is not None:
        items.report_failed(given)
    print(f"{path.stat().st_size / 1e6:.1f} MB; open it in a browser")
    outputs.report()


def _name(path: Path) -> str:
    """Return a path from the folder of the run on: pages are passed on, home folders are not."""
    return Path(*path.absolute().parts[1:][-4:]).as_posix()
