"""``vae sample``: draw images from a model."""

import argparse
from pathlib import Path
from typing import Any

import torch

from vae_lightning import explore, plotting
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.density import density_path
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.errors import UserError
from vae_lightning.explore import frechet
from vae_lightning.explore.densities import DENSITIES, LatentDensity, load_density
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.loading import load_classifier

_NUMBER = 64
_MOST_OF_A_CLASS = 12
"""Number of images of each class at most, unless a number is given."""


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
        help="number of images (64; as many of each class, at most 12, if all classes are drawn)",
    )
    made.add_argument(
        "--label", metavar="CLASS", help="of a conditional model; by default all classes in turn"
    )
    made.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="of a normal prior or a prior over codes: below 1, more typical",
    )
    made.add_argument(
        "--top_k", type=positive, metavar="K", help="draw from the K most probable codes"
    )
    made.add_argument(
        "--top_p", type=float, metavar="P", help="draw from the codes that make up probability P"
    )
    made.add_argument(
        "--density",
        metavar="KIND",
        help="sample from a density that vae density fit has fitted: gmm, flow, vae or a file",
    )
    made.add_argument(
        "--draw", action="store_true", help="draw the pixels, rather than show their means"
    )
    made.add_argument(
        "--classifier",
        metavar="CKPT",
        help="print the Fréchet distance of the samples, by the features of this classifier",
    )
    made.add_argument("--root", metavar="FOLDER", help="where the run's data are now")
    return made


def run(options: argparse.Namespace) -> None:
    """Draw the images, and write a picture, an array and single files."""
    trained = Trained.load(options)
    model = trained.model
    _refuse_options(options, model)
    label: int | torch.Tensor | None = trained.label(options.label)
    names = trained.class_names
    n, all_classes = options.n or _NUMBER, model.conditional and label is None
    if all_classes:
        if options.n is None:
            n = min(-(-n // len(names)), _MOST_OF_A_CLASS) * len(names)
        label = model.cycle_labels(n)
    suffixes = (".png", ".npz", ".csv") if trained.columns else (".png", ".npz")
    outputs = Outputs(options, trained.held, "sample", suffixes)
    how = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "draw": options.draw,
        "seed": options.seed,
        "batch_size": options.batch_size,
    }
    arrays: dict[str, Any] = {}
    if model.has(Capability.CODE_PRIOR) and options.density is None:
        images, codes, nll = explore.sample_codes(model, n, label, **how)
        arrays = _codes(codes, nll)
        spread = f" \N{PLUS-MINUS SIGN} {nll.std().item() / n**0.5:.2f}" if n > 1 else ""
        unchanged = (options.temperature, options.top_k, options.top_p) == (1, None, None)
        of_what = "" if unchanged else ", by the prior without temperature and truncation"
        print(f"Codes of the samples: {nll.mean().item():.2f}{spread} nats per image{of_what}")
    else:
        images = explore.sample(model, n, label, density=_density(options, trained), **how)
    if options.classifier is not None:
        _print_distance(images, label, options, trained)
    title = f"{n} samples of {type(model).__name__}"
    if options.density is not None:
        title += f", latents from {Path(options.density).name}"
    if options.label is not None:
        title += f", class {options.label}"
    if all_classes and n % len(names) == 0:
        grid = model.to_picture(images).unflatten(0, (-1, len(names))).transpose(0, 1)
        outputs.figure("samples", plotting.class_grid(grid, names, title=title, x_label=""))
    else:
        outputs.figure("samples", plotting.image_grid(model.to_picture(images), title=title))
    arrays = {"x": model.to_items(images), **arrays}
    if label is not None:
        arrays["label"] = torch.as_tensor(label).expand(n)
    outputs.arrays("samples", arrays)
    if trained.columns:
        rows = [dict(zip(trained.columns, row, strict=True)) for row in arrays["x"].tolist()]
        outputs.table("samples", rows)
    outputs.images("images", model.to_picture(images), [f"{i:05d}" for i in range(n)])
    outputs.report()


def _refuse_options(options: argparse.Namespace, model: GenerativeModel) -> None:
    """Refuse options that do not apply to the model.

    Raises:
        MissingCapabilityError: If the model has no prior to sample from.
        UserError: If an option is for other models.
    """
    name = type(model).__name__
    if options.density is None:
        model.require(Capability.SAMPLES)
    truncates = options.top_k is not None or options.top_p is not None
    if truncates and not model.has(Capability.CODE_PRIOR):
        raise UserError(
            f"--top_k and --top_p are for a prior over codes, and this {name} has none: leave "
            "them out"
        )
    if options.density is not None and not model.has(Capability.CONTINUOUS_LATENT):
        raise UserError(
            f"--density is for continuous latent vectors, and this {name} has none: leave it out"
        )


def _codes(codes: tuple[torch.Tensor, ...], nll: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the codes of samples, and their -log p, by name."""
    names = ["codes"] if len(codes) == 1 else [f"codes_{i}" for i in range(len(codes))]
    return {**dict(zip(names, codes, strict=True)), "code_nll": nll}


def _density(options: argparse.Namespace, trained: Trained) -> LatentDensity | None:
    """Return the density that the options name."""
    if options.density is None:
        return None
    path = options.density
    if path in DENSITIES:
        path = density_path(trained.held.path, path)
    return load_density(path, trained.model)


def _print_distance(
    images: torch.Tensor,
    label: int | torch.Tensor | None,
    options: argparse.Namespace,
    trained: Trained,
) -> None:
    """Print the distances of samples, and of training images, from as many test images.

    For a conditional model, print how many samples the classifier gives the class asked for, too.
    """
    classifier = load_classifier(options.classifier, trained.model.device)
    if classifier.image_shape != trained.model.image_shape:
        raise UserError(
            f"--classifier {options.classifier} takes images of {classifier.image_shape}, but the "
            f"model's are {trained.model.image_shape}: train one on the same data"
        )
    splits = [items.RunData(split, trained, options.root) for split in ("train", "test")]
    seen, unseen = (split.read(split.some(len(images))).x for split in splits)
    sampled, seen, unseen = (frechet.features(classifier, x) for x in (images, seen, unseen))
    print(
        f"Fréchet distance of {len(sampled):,} samples from {len(unseen):,} test images: "
        f"{frechet.frechet_distance(sampled, unseen):.2f}\n"
        f"Fréchet distance of {len(seen):,} training images from them: "
        f"{frechet.frechet_distance(seen, unseen):.2f}"
    )
    if label is not None and classifier.num_classes == trained.model.num_classes:
        asked = torch.as_tensor(label).expand(len(images))
        found = torch.cat([classifier.classify(part).argmax(1).cpu() for part in images.split(256)])
        share = found.eq(asked).double().mean().item()
        print(f"The classifier gives {share:.1%} of the samples the class that was asked for")
    if len(unseen) <= classifier.num_features:
        print(
            f"Note: more images than the {classifier.num_features} features are needed for a "
            "number that means something: use a larger --n"
        )
