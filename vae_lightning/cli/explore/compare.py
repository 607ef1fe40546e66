"""``vae compare``: differences between models on the same images with the same noise."""

import argparse
import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning import explore, plotting
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained, positive, short
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.cli.explore.sample_distances import check, compare_samples
from vae_lightning.cli.run_folders import folder_of
from vae_lightning.cli.sweep_file import comparable
from vae_lightning.errors import UserError

_NATS = ("negative_log_likelihood", "negative_elbo")
_SCORES = (*_NATS, "squared_error")

_NOT_ABOUT_IMAGES = {"batch_size", "num_workers", "memory_limit", "predict_split", "train_on_val"}
_NOT_ABOUT_TEST = {"train_size", "val_size"}
"""Arguments of data modules that do not change the test images."""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "compare",
        "Compare models with the first one: differences on the same images with the same noise, "
        "which are\nfar more exact than differences of two reported means.",
        "vae compare runs/vae/version_0/checkpoints/best.ckpt runs/iwae/version_0/checkpoints/"
        "best.ckpt",
        several=True,
    )
    made.add_argument("--split", choices=items.SPLITS, default="test", help="(test)")
    made.add_argument("--root", metavar="FOLDER", help="where the data are now")
    made.add_argument("--n", type=positive, default=1000, help="number of images (1000)")
    made.add_argument("--k", type=positive, default=64, help="importance samples of log p(x) (64)")
    made.add_argument(
        "--classifier",
        metavar="CKPT",
        help="show samples side by side, with Fréchet distances by the features of this classifier",
    )
    made.add_argument(
        "--samples", type=positive, default=2000, metavar="N", help="for these distances (2000)"
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Compare the models, and write a table and a picture."""
    if len(options.checkpoints) < 2:
        raise UserError("give at least two checkpoints to compare")
    models = [Trained.load(options, path) for path in options.checkpoints]
    first, *others = models
    outputs = Outputs(options, first.held, "compare", (".csv", ".png"))
    if options.classifier is not None and outputs.file is not None:
        raise UserError(f"--out {outputs.file}: with --classifier, give a folder")
    for other in others:
        check_data(first, other, options.split)
    names = names_of(models)
    checked = None if options.classifier is None else check(models, names, options)
    values = [_scores(trained, options) for trained in models]
    for name, found in zip(names, values, strict=True):
        shown = ", ".join(f"{key} {value.mean():.4f}" for key, value in found.items())
        print(f"{name}: {shown}")
    rows: list[dict[str, Any]] = []
    notes = []
    for name, other, found in zip(names[1:], others, values[1:], strict=True):
        kinds = kind_of(first), kind_of(other)
        for key in _SCORES:
            if key not in found or key not in values[0]:
                continue
            if key in _NATS and kinds[0] != kinds[1]:
                note = f"Not comparable in nats: {names[0]} has {kinds[0]}, {name} {kinds[1]}"
                notes.append(note)
                continue
            difference = found[key].double() - values[0][key].double()
            mean, error = difference.mean().item(), _standard_error(difference)
            rows.append({"model": name, "score": key, "difference": mean, "standard_error": error})
    print(f"\nDifferences from {names[0]} on {len(next(iter(values[0].values())))} images:")
    units = dict.fromkeys(_NATS, first.model.bound_unit) | {"squared_error": "per pixel"}
    for row in rows:
        unit = units[row["score"]]
        print(
            f"  {row['model']:<24} {row['score']:<24} {row['difference']:+.4f} "
            f"± {row['standard_error']:.4f} {unit}"
        )
    for trained, found in zip(models, values, strict=True):
        likelihood = trained.model.likelihood
        is_loss = not trained.model.is_normalized(trained.is_binary)
        if is_loss and "negative_log_likelihood" in found:
            notes.append(
                f"Note: with a {likelihood.loss_name} ({type(likelihood).__name__}), "
                "negative_log_likelihood is an importance-weighted loss, not a log-likelihood"
            )
    for note in dict.fromkeys(notes):
        print(note)
    outputs.table("differences", rows)
    for key in _SCORES:
        chosen = [row for row in rows if row["score"] == key]
        if chosen:
            figure = plotting.differences(
                [row["model"] for row in chosen],
                [row["difference"] for row in chosen],
                [row["standard_error"] for row in chosen],
                x_label=f"{units[key]}, with two standard errors; less is better",
                title=f"{key}: difference from {names[0]}",
            )
            outputs.figure(key, figure)
            if outputs.file:
                break
    if checked is not None:
        compare_samples(*checked, options, outputs)
    outputs.report()


def _scores(trained: Trained, options: argparse.Namespace) -> dict[str, Tensor]:
    """Return the scores of the images of a split, by name."""
    given = items.RunData(options.split, trained, options.root)
    parts: dict[str, list[Tensor]] = {}
    for part in given.parts(options.batch_size, "compare", given.some(options.n)):
        found = explore.score(
            trained.model,
            part.x,
            items.labels_of(part, None, trained),
            num_samples=options.k,
            seed=options.seed,
            indices=part.positions,
        )
        for key in _SCORES:
            if key in found:
                parts.setdefault(key, []).append(found[key])
    return {key: torch.cat(values) for key, values in parts.items()}


def check_data(first: Trained, other: Trained, split: str) -> None:
    """Check that two models can be measured on the same images.

    Raises:
        UserError: If they were trained on other data.
    """
    described = [trained.held.record.data or {} for trained in (first, other)]
    skip = _NOT_ABOUT_IMAGES | (_NOT_ABOUT_TEST if split == "test" else set())
    settings = [
        {key: value for key, value in data.get("init_args", {}).items() if key not in skip}
        for data in described
    ]
    classes = [str(data.get("class_path")).rpartition(".")[2] for data in described]
    if classes[0] != classes[1]:
        raise UserError(
            f"{first.held.path} was trained on {classes[0]}, {other.held.path} on {classes[1]}: "
            "compare models of the same data"
        )
    keys = settings[0].keys() | settings[1].keys()
    different = sorted(key for key in keys if settings[0].get(key) != settings[1].get(key))
    if different:
        key = different[0]
        raise UserError(
            f"{first.held.path} and {other.held.path} were trained on different data: {key} is "
            f"{settings[0].get(key)!r} and {settings[1].get(key)!r}"
        )


def kind_of(trained: Trained) -> str:
    """Return what log p(x) is of a model, in words: only equal kinds are comparable."""
    model = trained.model
    likelihood = model.likelihood
    if not likelihood.normalized:
        arguments = (model.settings.get("likelihood") or {}).get("init_args", {})
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        kind = f"a {likelihood.loss_name} by {type(likelihood).__name__}({given})"
    elif not model.is_normalized(trained.is_binary):
        kind = f"a {likelihood.loss_name} of gray images"
    elif likelihood.num_values is None:
        kind = "a density of images"
    else:
        values = "binary images" if likelihood.binary else f"{likelihood.num_values} values"
        kind = f"a probability of {values}"
    return f"{kind}, given the class" if model.needs_labels else kind


def names_of(models: list[Trained]) -> list[str]:
    """Return short names of the models: those of their runs, where these differ."""
    folders = [folder_of(trained.held) for trained in models]
    short_names = [folder.parent.name for folder in folders]
    if len(set(short_names)) == len(models):
        return short_names
    long_names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    if len(set(long_names)) == len(models):
        return long_names
    return [short(trained.held.path) for trained in models]


def varied_settings(models: list[Trained]) -> list[dict[str, Any]]:
    """Return those settings of each model in which the models differ, by the name of the option."""
    settings = [_settings(trained) for trained in models]
    names = dict.fromkeys(name for each in settings for name in each)
    varied = [n for n in names if len({comparable(each.get(n)) for each in settings}) > 1]
    return [{name: each.get(name) for name in varied} for each in settings]


def _settings(trained: Trained) -> dict[str, Any]:
    """Return a model's numbers, names and lists among its settings, by the name of the option."""
    record = trained.held.record
    return {
        "model": record.model["class_path"].rpartition(".")[2],
        **_flat("model", record.model.get("init_args", {})),
    }


def _flat(prefix: str, arguments: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        key = f"{prefix}.{name}"
        if isinstance(value, dict) and "class_path" in value:
            found[key] = value["class_path"].rpartition(".")[2]
            found |= _flat(key, value.get("init_args", {}))
        elif isinstance(value, str | int | float | list) or value is None:
            found[key] = value
    return found


def _standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of independent values."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
