"""``vae compare --classifier``: samples of models side by side, with their Fréchet distances."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning import explore, plotting
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.density import density_path
from vae_lightning.cli.explore.options import Trained
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.errors import UserError
from vae_lightning.explore import frechet
from vae_lightning.explore.densities import DENSITIES, LatentDensity, load_density
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.classifier import Classifier
from vae_lightning.models.loading import load_classifier

_SHOWN = 12


class _Source(NamedTuple):
    """Where samples come from: a model with its prior, or with a density of its latents."""

    name: str
    trained: Trained
    density: LatentDensity | None


def check(
    models: Sequence[Trained], names: Sequence[str], options: argparse.Namespace
) -> tuple[Classifier, list[_Source]]:
    """Load what `compare_samples` needs, before anything that takes long.

    Raises:
        UserError: If the classifier is of other images, or no model has samples.
    """
    first = models[0]
    if options.samples < 2:
        raise UserError(f"--samples must be at least 2, got {options.samples}")
    classifier = load_classifier(options.classifier, first.model.device)
    if classifier.image_shape != first.model.image_shape:
        raise UserError(
            f"--classifier {options.classifier} takes images of {classifier.image_shape}, but the "
            f"models' are {first.model.image_shape}: train one on the same data"
        )
    sources = [source for pair in zip(names, models, strict=True) for source in _sources(*pair)]
    if not sources:
        raise UserError("none of these models has a prior, or a density from vae density fit")
    return classifier, sources


def compare_samples(
    classifier: Classifier,
    sources: Sequence[_Source],
    options: argparse.Namespace,
    outputs: Outputs,
) -> None:
    """Print distances of samples from test images, and write a table and a picture.

    Beside the priors, densities that ``vae density fit`` has left beside the checkpoints are used.
    Conditional models draw the classes of the test images.

    Args:
        classifier: What `check` has returned.
        sources: What `check` has returned.
        options: Those of the command: ``samples``, ``seed``, ``batch_size``, ``root``.
        outputs: Where to write.
    """
    splits = [items.RunData(split, sources[0].trained, options.root) for split in ("test", "train")]
    n = min(options.samples, *(len(split) for split in splits))
    test, train = (split.read(split.some(n)) for split in splits)
    unseen = frechet.features(classifier, test.x)
    rows, images = [], [train.x[:_SHOWN]]
    rows.append(_row("training images", train.x, unseen, classifier))
    for source in sources:
        x = _samples(source, test.y, n, options)
        rows.append(_row(source.name, x, unseen, classifier))
        images.append(x[:_SHOWN])
    print(f"\nFréchet distances from {n:,} test images, of as many samples:")
    for row in rows:
        print(f"  {row['samples']:<32} {row['frechet_distance']:8.2f}")
    if n <= classifier.num_features:
        print(
            f"Note: more images than the {classifier.num_features} features are needed for numbers "
            "that mean something: use a larger --samples"
        )
    outputs.table("samples", rows)
    labels = [f"{row['samples']}  {row['frechet_distance']:.1f}" for row in rows]
    title = "Samples, and their Fréchet distances from test images"
    pictures = sources[0].trained.model.to_picture(torch.stack(images))
    outputs.figure("samples", plotting.image_rows(pictures, labels, title=title))


def _sources(name: str, trained: Trained) -> list[_Source]:
    """Return where samples of a model come from."""
    model = trained.model
    found = [_Source(name, trained, None)] if model.has(Capability.SAMPLES) else []
    for kind in DENSITIES:
        path = density_path(trained.held.path, kind)
        if path.is_file() and model.has(Capability.CONTINUOUS_LATENT):
            found.append(_Source(f"{name} + {kind}", trained, load_density(path, model)))
    return found


def _samples(source: _Source, label: Tensor | None, n: int, options: argparse.Namespace) -> Tensor:
    """Return samples, with their pixels drawn where the model was trained on binary ones."""
    model = source.trained.model
    return explore.sample(
        model,
        n,
        model.used_labels(label),
        density=source.density,
        draw=source.trained.is_binary,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _row(name: str, x: Tensor, unseen: Tensor, classifier: Classifier) -> dict[str, object]:
    distance = frechet.frechet_distance(frechet.features(classifier, x), unseen)
    return {"samples": name, "frechet_distance": distance, "images": len(x)}
