"""``vae encode``: the latents of images, with their file names."""

import argparse
import importlib.util
import itertools
from typing import Any

import torch
from torch import Tensor

from vae_lightning import explore, plotting, randomness
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.errors import UserError

_POINTS = 5000
"""Largest number of points in the picture."""

_LITTLE = 0.25
"""Share of the variance below which principal components show little of the latents."""

_FEWEST = 5
"""Smallest number of images of which t-SNE and UMAP show neighborhoods."""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "encode",
        "Encode images: one row per image, with its name, its class and its latents.",
        "vae encode --ckpt_path runs/vae/version_0/checkpoints/best.ckpt photos --out latents.csv",
    )
    items.add_options(made)
    made.add_argument(
        "--picture",
        choices=("pca", "tsne", "umap"),
        default="pca",
        help="projection of the latents in the picture (pca); umap needs pip install umap-learn",
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Encode the images, and write a table, an array and a picture."""
    trained = Trained.load(options)
    model, label = trained.model, trained.label(options.label)
    given = items.choose(options, trained)
    outputs = Outputs(options, trained.held, "encode", (".csv", ".npz", ".png"))
    if options.picture == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("--picture umap needs a package: pip install umap-learn")
    parts: dict[str, list[Tensor]] = {}
    places, classes, vectors = [], [], []
    for part in given.parts(options.batch_size, "encode"):
        chosen = items.labels_of(part, label, trained)
        found = explore.encode(model, part.x, chosen, batch_size=options.batch_size)
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
        vectors.append(model.latent_vectors(part.x, chosen).cpu())
        places.append(part.positions)
        classes.append(part.y if part.y is not None else torch.full((len(part.x),), -1))
    latents = {name: torch.cat(values) for name, values in parts.items()}
    y = torch.cat(classes)
    names = [given.name(i) for i in torch.cat(places).tolist()]
    known = y.ge(0).any()
    arrays: dict[str, Any] = {"name": names, **({"label": y} if known else {}), **latents}
    outputs.arrays("latents", arrays)
    outputs.table("latents", _rows(names, y if known else None, latents, trained.class_names))
    if outputs.wants(".png"):
        _draw(outputs, torch.cat(vectors), y, options, given, trained)
    print(f"Encoded {len(names):,} image{'s' * (len(names) > 1)} of {given.what}")
    items.report_failed(given)
    outputs.report()


def _rows(
    names: list[str], y: Tensor | None, latents: dict[str, Tensor], class_names: list[str]
) -> list[dict[str, Any]]:
    """Return the rows of the table, with one column per number: ``mu_3``, ``codes_ROW_COLUMN``."""
    columns: dict[str, list[Any]] = {}
    for name, value in latents.items():
        if value.ndim == 1:
            columns[name] = value.tolist()
        else:
            flat = value.flatten(1)
            places = itertools.product(*(range(n) for n in value.shape[1:]))
            columns |= {
                "_".join([name, *map(str, place)]): flat[:, j].tolist()
                for j, place in enumerate(places)
            }
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {"name": name}
        if y is not None:
            row["label"] = class_names[int(y[i])] if y[i] >= 0 else ""
        rows.append({**row, **{column: values[i] for column, values in columns.items()}})
    return rows


def _draw(
    outputs: Outputs,
    vectors: Tensor,
    y: Tensor,
    options: argparse.Namespace,
    given: items.Items,
    trained: Trained,
) -> None:
    """Draw the latents (N, D) of images, or of some of them if there are many."""
    n = len(vectors)
    shown = randomness.choose(n, min(n, _POINTS), options.seed, "pictures")
    points, y = vectors[shown], y[shown]
    if points.shape[1] < 2:
        print("Note: without a picture, because the latent has one dimension")
        return
    is_plane = points.shape[1] == 2 and options.picture == "pca"
    points, axis_labels, explained = _project(points, options.picture, options.seed)
    classes = bool(y.ge(0).all())
    some = f"{len(shown):,} of {n:,} images" if n > len(shown) else f"{n:,} images"
    if options.picture == "pca" and explained < _LITTLE and n >= _FEWEST:
        print(
            f"Note: two principal components show {explained:.0%} of the variance: --picture tsne "
            "shows neighborhoods instead"
        )
    maps = ", averaged over each map" if trained.model.has_latent_maps else ""
    figure = plotting.latent_scatter(
        points,
        y if classes else None,
        axis_labels=axis_labels,
        class_names=trained.class_names if classes else None,
        radius=trained.model.latent_radius if is_plane else None,
        title=f"Latents of {some} of {given.what}{maps}",
    )
    outputs.figure("latents", figure)


def _project(points: Tensor, how: str, seed: int) -> tuple[Tensor, tuple[str, str], float]:
    """Project vectors (N, D) to the plane.

    Returns:
        The points (N, 2), names of the axes, and the share of the variance that they show.
    """
    if how == "pca":
        if points.shape[1] == 2:
            return points, ("$z_0$", "$z_1$"), 1.0
        projected, explained = plotting.principal_components(points)
        return (
            projected,
            (
                f"first principal component ({explained[0]:.0%} of the variance)",
                f"second principal component ({explained[1]:.0%})",
            ),
            float(explained[:2].sum()),
        )
    if len(points) < _FEWEST:
        raise UserError(f"--picture {how} needs at least {_FEWEST} images, got {len(points)}")
    if how == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        made = TSNE(perplexity=perplexity, random_state=seed, init="pca")
        return torch.tensor(made.fit_transform(points.numpy())), ("t-SNE 1", "t-SNE 2"), 1.0
    from umap import UMAP

    made = UMAP(random_state=seed).fit_transform(points.numpy())
    return torch.tensor(made), ("UMAP 1", "UMAP 2"), 1.0
