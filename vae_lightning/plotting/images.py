"""Figures made of images: grids, reconstructions, traversals and manifolds."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae_lightning.plotting.checks import (
    check_images,
    check_length,
    check_pair,
    check_values,
)
from vae_lightning.plotting.layout import Axis, new_figure_with_ticks, show
from vae_lightning.plotting.scales import CurveScale, Scale, is_long
from vae_lightning.plotting.signals import is_signal
from vae_lightning.plotting.style import EDGE, MAX_HEIGHT, MAX_WIDTH, PAD, styled
from vae_lightning.plotting.text import (
    class_labels,
    max_width,
    nice_ticks,
    number_labels,
    printable,
)
from vae_lightning.plotting.tiles import (
    Mosaic,
    draw_grid,
    draw_labeled_rows,
    draw_wrapped_rows,
    fit_grid,
)


def _grid_columns(images: Tensor) -> int:
    """Return a number of columns that makes a roughly square grid with few empty tiles."""
    count = len(images)
    if count > 8:
        root = math.ceil(math.sqrt(count))
        columns = min(
            range(root, root * 3 // 2 + 1), key=lambda columns: (-count % columns, columns)
        )
    else:
        columns = count
    return max(min(count, 4), columns // 2) if is_long(images) else columns


@styled
def image_grid(images: Tensor, *, columns: int | None = None, title: str = "") -> Figure:
    """Draw images as a grid, row by row.

    Args:
        images: Images in [0, 1], (N, C, H, W).
        columns: Images per row. By default the grid is roughly square, with fewer columns of long
            signals.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If the shape or dtype of ``images`` is wrong or ``columns`` is less than 1.

    Example:
        >>> import torch
        >>> figure = image_grid(torch.rand(12, 1, 28, 28), columns=4, title="Noise")
        >>> figure.get_suptitle()
        'Noise'
    """
    images = check_images("image_grid", "images", images, "N C H W")
    if columns is not None and columns < 1:
        raise ValueError(f"image_grid: columns is {columns}, pass at least 1, or None to choose.")
    columns = min(columns or _grid_columns(images), len(images))
    scale = fit_grid(images, columns)
    return draw_grid(scale.tiles(images), columns, gap=scale.gap, title=title)


@styled
def reconstructions(originals: Tensor, reconstructed: Tensor, *, title: str = "") -> Figure:
    """Draw images above their reconstructions, in several pairs of rows if there are many.

    Signals (H = 1) are drawn as a grid instead, each reconstruction in front of its original: a
    blue curve in front of a gray one or, for few values, blue lines in front of gray bars.
    Originals with several channels have pale colors.

    Args:
        originals: Images in [0, 1], (N, C, H, W).
        reconstructed: Their reconstructions in the same order, (N, C, H, W).
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape or dtype is wrong.

    Example:
        >>> import torch
        >>> x = torch.rand(8, 1, 28, 28)
        >>> figure = reconstructions(x, 1 - x)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['original', 'reconstruction']
    """
    pairs = check_pair("reconstructions", originals, reconstructed)
    if is_signal(pairs):
        columns = _grid_columns(pairs[0])
        scale = fit_grid(pairs[0], columns)
        assert isinstance(scale, CurveScale)
        shades = ("gray", "blue") if pairs.shape[2] == 1 else ("pale", "strong")
        note = f"{shades[0]}: original, {shades[1]}: reconstruction"
        return draw_grid(scale.overlaid(*pairs), columns, gap=scale.gap, title=title, note=note)
    labels = ["original", "reconstruction"]
    return draw_wrapped_rows(lambda scale: scale.tiles(pairs), pairs[0], labels, title=title)


@styled
def traversals(
    images: Tensor,
    row_labels: Sequence[str],
    values: Sequence[float],
    *,
    x_label: str = "value of the latent dimension",
    title: str = "",
    original: Tensor | None = None,
    decoded: Tensor | None = None,
    own: Sequence[float] = (),
    counts: Sequence[int] = (),
) -> Figure:
    """Draw how an image changes with one latent variable at a time.

    With ``decoded``, a first row shows the image itself and its reconstruction. With ``own``, a
    mark in each row shows where the image is.

    Args:
        images: Images in [0, 1] for D latent variables at S values each, (D, S, C, H, W).
        row_labels: The D labels on the left, such as ``"z7  KL 2.31"``.
        values: The S values of the latent variable, written below the columns.
        x_label: What the values are.
        title: Title of the figure.
        original: The image that was encoded, (C, H, W).
        decoded: Its reconstruction, or the image at the unmoved latent, (C, H, W).
        own: The D values that the unmoved latent has.
        counts: How many of the S images in each row are drawn; by default all.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape, dtype or length is wrong.

    Example:
        >>> import torch
        >>> figure = traversals(torch.rand(2, 3, 1, 28, 28), ["z0", "z1"], [-2.0, 0.0, 2.0])
        >>> figure.axes[0].get_xlabel()
        'value of the latent dimension'
    """
    where = "traversals"
    images = check_images(where, "images", images, "D S C H W")
    check_length(where, "row_labels", row_labels, images.shape[0], "row")
    numbers = check_values(where, values, images.shape[1], "column")
    counts = [*counts] or [images.shape[1]] * images.shape[0]
    check_length(where, "counts", counts, images.shape[0], "row")
    places = []
    if own:
        check_length(where, "own", own, images.shape[0], "row")
        columns = np.interp(own, numbers, np.arange(len(numbers)))
        places = list(enumerate(columns.tolist()))
    if decoded is not None:
        first = check_images(where, "decoded", decoded[None], "N C H W")
        names = ["decoded"]
        if original is not None:
            encoded = check_images(where, "original", original[None], "N C H W")
            first, names = torch.cat([encoded, first]), ["original", "decoded"]
        if len(first) > images.shape[1]:  # no room for both
            first, names = first[-1:], ["decoded"]
        counts = [len(first), *counts]
        missing = images.shape[1] - len(first)
        first = torch.cat([first, first[:1].expand(missing, -1, -1, -1)])
        images = torch.cat([first[None], images])
        row_labels = [", ".join(names), *row_labels]
        places = [(row + 1, column) for row, column in places]
    return draw_labeled_rows(
        images,
        row_labels,
        title=title,
        values=number_labels(numbers),
        x_label=x_label,
        marks=places,
        counts=counts,
    )


@styled
def class_grid(
    images: Tensor,
    class_names: Sequence[str],
    *,
    title: str = "",
    x_label: str = "one style per column",
) -> Figure:
    """Draw one row per class and one column per style.

    Args:
        images: Images in [0, 1] of K classes in S styles each, (K, S, C, H, W).
        class_names: The K names, written on the left of the rows.
        title: Title of the figure.
        x_label: What the columns are, below them.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape, dtype or length is wrong.

    Example:
        >>> import torch
        >>> figure = class_grid(torch.rand(2, 3, 3, 16, 16), ["cat", "dog"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['cat', 'dog']
    """
    images = check_images("class_grid", "images", images, "K S C H W")
    check_length("class_grid", "class_names", class_names, images.shape[0], "row")
    labels = class_labels(class_names)
    return draw_labeled_rows(images, labels, title=title, x_label=x_label)


@styled
def image_rows(images: Tensor, row_labels: Sequence[str], *, title: str = "") -> Figure:
    """Draw labeled rows of images.

    Args:
        images: Images in [0, 1], R rows of S images, (R, S, C, H, W).
        row_labels: The R labels on the left of the rows.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape, dtype or length is wrong.

    Example:
        >>> import torch
        >>> figure = image_rows(torch.rand(2, 3, 3, 16, 16), ["original", "error"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['original', 'error']
    """
    images = check_images("image_rows", "images", images, "R S C H W")
    check_length("image_rows", "row_labels", row_labels, images.shape[0], "row")
    return draw_labeled_rows(images, row_labels, title=title)


def _manifold_ticks(values: Sequence[float], centers: Sequence[float]) -> list[float]:
    """Return round numbers whose labels do not overlap where ``values`` are at ``centers``."""
    if len(values) == 1:
        return list(values)
    for count in (8, 6, 4, 3, 2, 1):  # equal steps are closer near the edges, so try
        ticks = nice_ticks(values[0], values[-1], count)
        positions = np.interp(ticks, values, centers)
        if len(ticks) < 2 or np.diff(positions).min() >= max_width(number_labels(ticks)) + PAD:
            break
    return ticks or [values[0], values[-1]]


@styled
def manifold(
    images: Tensor,
    values: Sequence[float],
    *,
    title: str = "",
    axis_labels: tuple[str, str] = ("$z_0$", "$z_1$"),
) -> Figure:
    """Draw the images decoded from a grid in a two-dimensional latent space.

    There are no gaps between images, and narrow ones between signals (H = 1).

    Args:
        images: Images in [0, 1], (n, n, C, H, W). ``images[i, j]`` is decoded from ``values[j]`` of
            the first latent dimension, which increases to the right, and ``values[i]`` of the
            second, which increases upward.
        values: The n latent values, increasing but not necessarily evenly spaced.
        title: Title of the figure.
        axis_labels: Names of the first and the second latent dimension.

    Returns:
        The figure. Its ticks are round numbers, placed between the centers of the tiles.

    Raises:
        ValueError: If a shape, dtype or length is wrong or ``values`` does not increase.

    Example:
        >>> import torch
        >>> figure = manifold(torch.rand(3, 3, 1, 28, 28), [-1.0, 0.0, 1.0])
        >>> figure.axes[0].get_xlabel()
        '$z_0$'
    """
    where = "manifold"
    images = check_images(where, "images", images, "n n C H W")
    count = images.shape[0]
    if images.shape[1] != count:
        raise ValueError(
            f"{where}: images has {count} rows and {images.shape[1]} columns, "
            "pass the same number of both."
        )
    numbers = check_values(where, values, count, "column")
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        raise ValueError(f"{where}: values does not increase, pass it and the images sorted by it.")

    scale = Scale.fit(images, count, count, MAX_WIDTH - 2 * EDGE - 80, MAX_HEIGHT)
    # Pictures are stored from the top, so the row of the smallest second latent comes last.
    mosaic = Mosaic.build(scale.tiles(images.flip(0)), gap=scale.seam)
    ticks = _manifold_ticks(numbers, mosaic.column_centers)
    labels = number_labels(ticks)
    height, width = mosaic.pixels.shape[:2]
    figure, axes = new_figure_with_ticks(
        width,
        height,
        Axis(
            printable(axis_labels[0]),
            np.interp(ticks, numbers, mosaic.column_centers).tolist(),
            labels,
        ),
        Axis(
            printable(axis_labels[1]),
            np.interp(ticks, numbers, mosaic.row_centers[::-1]).tolist(),
            labels,
        ),
        title=title,
    )
    show(axes, mosaic.pixels)
    return figure
