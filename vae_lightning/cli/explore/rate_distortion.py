"""``vae rate_distortion``: reconstruction against KL of several runs, such as a sweep of beta."""

import argparse
import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning.cli import rate_distortion
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.compare import check_data, kind_of, names_of, varied_settings
from vae_lightning.cli.explore.finished_runs import find, folder_of_all
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.cli.rate_distortion import Measured
from vae_lightning.cli.sweep_file import value_text
from vae_lightning.errors import UserError
from vae_lightning.randomness import Noise


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "rate_distortion",
        "Draw the reconstruction term (distortion) against the KL term (rate) of several runs,\n"
        "usually a sweep of beta, over lines of equal ELBO. The best checkpoint of each run is\n"
        "measured.",
        "vae rate_distortion runs/beta_vae_sweep",
        several=True,
    )
    made.add_argument("--split", choices=items.SPLITS, default="test", help="(test)")
    made.add_argument("--root", metavar="FOLDER", help="where the data are now")
    made.add_argument("--n", type=positive, default=10_000, help="number of images (10000)")
    made.add_argument(
        "--along",
        metavar="NAME",
        help="parameter along a curve, such as model.beta (the first one with several numbers)",
    )
    made.add_argument("--title", help="title of the picture (the sweep's name)")
    return made


def run(options: argparse.Namespace) -> None:
    """Measure the runs, and write a table and a picture."""
    runs = find(options.checkpoints)
    if len(runs) < 2:
        raise UserError("give at least two checkpoints, or the folder of a sweep")
    models = [Trained.load(options, str(found.checkpoint)) for found in runs]
    first = models[0]
    parent = folder_of_all(runs)
    outputs = Outputs(options, parent or first.held, rate_distortion.NAME, (".csv", ".png"))
    for other in models[1:]:
        check_data(first, other, options.split)
        if kind_of(other) != kind_of(first):
            raise UserError(
                f"{first.held.path} has {kind_of(first)}, {other.held.path} {kind_of(other)}: "
                "compare models of the same kind"
            )
    names = [found.name for found in runs] if parent is not None else names_of(models)
    parameters = [found.parameters for found in runs]
    if not all(parameters):
        parameters = varied_settings(models)
    if options.along is not None:
        _check_along(options.along, parameters)
    measured = []
    for name, known, trained in zip(names, parameters, models, strict=True):
        found = _measure(name, known, trained, options)
        measured.append(found)
        print(
            f"{name}: rate {found.rate:.4f} ± {found.more['rate_error']:.4f}, distortion "
            f"{found.distortion:.4f} ± {found.more['distortion_error']:.4f}, sum "
            f"{found.rate + found.distortion:.4f}",
            flush=True,
        )
    n = measured[0].more["images"]
    figure = rate_distortion.figure(
        measured,
        options.along,
        first.model.bound_unit,
        title=(parent.name if parent else "") if options.title is None else options.title,
        note=f"{n:,} {options.split} {first.noun}s",
    )
    outputs.table(rate_distortion.NAME, [found.row() for found in measured])
    outputs.figure(rate_distortion.NAME, figure)
    outputs.report()


def _check_along(name: str, parameters: list[dict[str, Any]]) -> None:
    """Check that a curve can follow a parameter.

    Raises:
        UserError: If the runs do not differ in it, or a value is not a number.
    """
    if not any(name in known for known in parameters):
        varied = ", ".join(dict.fromkeys(key for each in parameters for key in each)) or "nothing"
        raise UserError(f"--along {name}: the runs differ in {varied}")
    for known in parameters:
        value = known.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UserError(
                f"--along {name}: {value_text(value)} is not a number, and a curve needs an order"
            )


def _measure(
    name: str, parameters: dict[str, Any], trained: Trained, options: argparse.Namespace
) -> Measured:
    """Return the mean terms of a model over the images of a split.

    Raises:
        UserError: If it has no such terms.
    """
    model = trained.model
    given = items.RunData(options.split, trained, options.root)
    rates, distortions = [], []
    for part in given.parts(options.batch_size, name, given.some(options.n)):
        label = items.labels_of(part, None, trained)
        index = part.positions.to(model.device)
        with model.inference():
            condition = model.encode_labels(label, len(part.x))
            noise = Noise(index, options.seed, "rate distortion")
            terms = model.terms(part.x.to(model.device), condition, noise).as_dict()
        if "negative_elbo" not in terms or "reconstruction" not in terms:
            raise UserError(
                f"this {type(model).__name__} has no ELBO, so it has no rate: leave {name} out"
            )
        distortions.append(terms["reconstruction"].double().cpu())
        rates.append((terms["negative_elbo"] - terms["reconstruction"]).double().cpu())
    rate, distortion = torch.cat(rates), torch.cat(distortions)
    more = {
        "rate_error": _standard_error(rate),
        "distortion_error": _standard_error(distortion),
        "images": len(rate),
        "split": options.split,
        "checkpoint": str(trained.held.path),
    }
    return Measured(name, parameters, rate.mean().item(), distortion.mean().item(), more)


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
