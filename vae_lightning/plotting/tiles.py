"""Images as tiles of one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae_lightning.plotting.layout import new_figure, show
from vae_lightning.plotting.scales import Scale
from vae_lightning.plotting.style import (
    BLOCK_GAP,
    EDGE,
    INK,
    MARK,
    MAX_HEIGHT,
    MAX_LABEL,
    MAX_TALL_HEIGHT,
    MAX_WIDTH,
    PAD,
    TEXT,
    Pixels,
    to_points,
)
from vae_lightning.plotting.text import max_width, printable, text_size, wrap_labels


@dataclass(frozen=True)
class Mosaic:
    """A picture made of tiles, and the centers of its rows and columns in pixels."""

    pixels: Pixels
    row_centers: list[float]
    column_centers: list[float]

    @classmethod
    def build(cls, tiles: Pixels, *, gap: int, block: int = 0) -> Mosaic:
        """Lay out tiles (R, S, h, w, 3), with a wider gap after every ``block`` rows if not 0."""
        rows, columns, height, width = tiles.shape[:4]
        extra = (BLOCK_GAP - gap) if block else 0
        tops = [r * (height + gap) + (r // block if block else 0) * extra for r in range(rows)]
        lefts = [c * (width + gap) for c in range(columns)]
        picture = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, dtype=np.uint8)
        for r, top in enumerate(tops):
            for c, left in enumerate(lefts):
                picture[top : top + height, left : left + width] = tiles[r, c]
        return cls(picture, [t + height / 2 for t in tops], [x + width / 2 for x in lefts])


def _pad_with_white(tiles: Pixels, count: int) -> Pixels:
    """Append white tiles along the first dimension until there are ``count``."""
    blank = np.full((count - len(tiles), *tiles.shape[1:]), 255, dtype=np.uint8)
    return np.concatenate([tiles, blank])


def fit_grid(images: Tensor, columns: int) -> Scale:
    """Return the largest scale at which images (N, C, H, W) fit into the grid of `draw_grid`."""
    rows = math.ceil(len(images) / columns)
    return Scale.fit(images, rows, columns, MAX_WIDTH - 2 * EDGE, MAX_HEIGHT)


def draw_grid(tiles: Pixels, columns: int, *, gap: int, title: str, note: str = "") -> Figure:
    """Draw tiles (N, h, w, 3) row by row, without labels."""
    rows = math.ceil(len(tiles) / columns)
    tiles = _pad_with_white(tiles, rows * columns)
    mosaic = Mosaic.build(tiles.reshape(rows, columns, *tiles.shape[1:]), gap=gap)
    height, width = mosaic.pixels.shape[:2]
    figure, axes = new_figure(width, height, title=title, note=note)
    show(axes, mosaic.pixels)
    axes.set_axis_off()
    return figure


def _label_rows(axes: Axes, centers: Sequence[float], labels: Sequence[str]) -> None:
    """Write a label on the left of every row."""
    axes.set_xticks([])
    axes.set_yticks(centers, labels)
    axes.tick_params(axis="y", length=0, pad=to_points(PAD), labelcolor=INK)


def draw_labeled_rows(
    images: Tensor,
    labels: Sequence[str],
    *,
    title: str,
    values: Sequence[str] = (),
    x_label: str = "",
    marks: Sequence[tuple[int, float]] = (),
    counts: Sequence[int] | None = None,
) -> Figure:
    """Draw images as labeled rows.

    Args:
        images: R rows of S images, (R, S, C, H, W).
        labels: The R labels on the left of the rows.
        title: Title of the figure.
        values: The S labels below the columns, or none.
        x_label: Label below them.
        marks: Rows and columns, which may lie between two images, to mark below an image.
        counts: Numbers of images in the rows; by default S. Those behind are left out.

    Returns:
        The figure.
    """
    rows, columns = images.shape[:2]
    labels = [printable(label) for label in labels]
    available = MAX_WIDTH - 2 * EDGE - PAD - min(max_width(labels), MAX_LABEL)
    scale = Scale.fit(images, rows, columns, available, MAX_TALL_HEIGHT)
    tiles = scale.tiles(images)
    for row, count in enumerate(counts or ()):
        tiles[row, count:] = 255
    tile_height, tile_width = tiles.shape[2:4]
    labels = wrap_labels(labels, tile_height)
    mosaic = Mosaic.build(tiles, gap=scale.gap)

    height, width = mosaic.pixels.shape[:2]
    value_width = max_width(values)
    x_label_width, x_label_height = text_size(x_label)
    overhang = value_width // 2 - tile_width // 2  # of the first and the last value
    left = max(max_width(labels) + PAD, overhang)
    right = max(0, overhang, x_label_width - width)
    bottom = PAD + x_label_height + (TEXT + 3 if values else 0)
    figure, axes = new_figure(width, height, title=title, left=left, right=right, bottom=bottom)
    show(axes, mosaic.pixels)
    _label_rows(axes, mosaic.row_centers, labels)
    for row, column in marks:
        x = np.interp(column, np.arange(columns), mosaic.column_centers)
        y = mosaic.row_centers[row] + tile_height / 2 - 5
        axes.plot(x, y, marker="^", markersize=to_points(9), color=MARK, clip_on=False)
    if values:
        # Skip values where tiles are narrower than the numbers.
        step = math.ceil((value_width + PAD) / (tile_width + scale.gap))
        axes.set_xticks(mosaic.column_centers[::step], values[::step])
        axes.tick_params(axis="x", length=0, pad=to_points(4))
    axes.set_xlabel(
        x_label, loc="left" if x_label_width > width else "center", labelpad=to_points(4)
    )
    return figure


def draw_wrapped_rows(
    make_tiles: Callable[[Scale], Pixels],
    images: Tensor,
    labels: Sequence[str],
    *,
    title: str,
    note: str = "",
) -> Figure:
    """Draw R corresponding rows with one column per image, wrapped into several blocks of rows.

    Args:
        make_tiles: Function that returns the tiles (R, N, h, w, 3) at a given scale.
        images: Images (N, C, H, W), used for their number and size only.
        labels: The R labels of the rows.
        title: Title of the figure.
        note: Second line of the title.

    Returns:
        The figure.
    """
    count, rows = len(images), len(labels)
    blocks = math.ceil(count / (10 if count <= 40 else 16))
    columns = math.ceil(count / blocks)
    left = max_width(labels) + PAD
    scale = Scale.fit(
        images,
        blocks * rows,
        columns,
        MAX_WIDTH - 2 * EDGE - left,
        MAX_HEIGHT - blocks * BLOCK_GAP,
    )
    tiles = _pad_with_white(make_tiles(scale).swapaxes(0, 1), blocks * columns)
    tiles = tiles.reshape(blocks, columns, *tiles.shape[1:]).swapaxes(1, 2)
    tiles = tiles.reshape(blocks * rows, columns, *tiles.shape[3:])
    mosaic = Mosaic.build(tiles, gap=scale.gap, block=rows)

    height, width = mosaic.pixels.shape[:2]
    figure, axes = new_figure(width, height, title=title, note=note, left=left)
    show(axes, mosaic.pixels)
    _label_rows(axes, mosaic.row_centers, list(labels) * blocks)
    return figure
