"""Figures whose axes have a given size in pixels, with a title, labels and ticks around them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vae_lightning.plotting.style import (
    DPI,
    EDGE,
    GRAY,
    PAD,
    TEXT,
    TITLE,
    Pixels,
    to_points,
)
from vae_lightning.plotting.text import max_width, printable, text_size, wrap


def new_figure(
    width: int,
    height: int,
    *,
    title: str,
    note: str = "",
    left: int = 0,
    right: int = 0,
    bottom: int = 0,
) -> tuple[Figure, Axes]:
    """Create a figure whose axes cover exactly ``width`` x ``height`` pixels.

    Args:
        width: Width of the axes in pixels.
        height: Height of the axes in pixels.
        title: Title above the axes.
        note: Second, gray line of the title.
        left: Pixels to leave free for labels on the left of the axes.
        right: Pixels to leave free on the right.
        bottom: Pixels to leave free below.

    Returns:
        The figure and its axes.
    """
    title, note = printable(title), printable(note)
    text_width = max(
        left + width + right,
        min(text_size(title, TITLE, "bold")[0], 440) if title else 0,
        min(text_size(note)[0], 440) if note else 0,
    )
    total_width = text_width + 2 * EDGE
    top, title_top, note_top = EDGE, 0, 0
    if title:
        title = wrap(title, text_width, size=TITLE, weight="bold")
        title_top = top
        top += text_size(title, TITLE, "bold")[1] + PAD
    if note:
        note = wrap(note, text_width)
        note_top = top
        top += text_size(note)[1] + PAD
    if title or note:
        top += 3
    total_height = top + height + bottom + EDGE

    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    x = EDGE / total_width
    if title:
        y = 1 - title_top / total_height
        figure.suptitle(
            title, x=x, y=y, ha="left", va="top", fontsize=to_points(TITLE), fontweight="bold"
        )
    if note:
        figure.text(x, 1 - note_top / total_height, note, ha="left", va="top", color=GRAY)
    axes = figure.add_axes(
        (
            (EDGE + left) / total_width,
            (EDGE + bottom) / total_height,
            width / total_width,
            height / total_height,
        )
    )
    return figure, axes


@dataclass(frozen=True)
class Axis:
    """The name and the ticks of an axis."""

    name: str
    positions: Sequence[float]
    labels: Sequence[str]


def new_figure_with_ticks(
    width: int,
    height: int,
    x: Axis,
    y: Axis,
    *,
    title: str,
    note: str = "",
    right: int = 0,
    logarithmic: bool = False,
) -> tuple[Figure, Axes]:
    """Create a figure as `new_figure` does, with named axes and ticks on the left and below."""
    left = max_width(y.labels) + text_size(y.name)[1] + 2 * PAD + 4
    bottom = TEXT + text_size(x.name)[1] + 2 * PAD + 4
    figure, axes = new_figure(
        width, height, title=title, note=note, left=left, right=right, bottom=bottom
    )
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(x.positions, x.labels)
    axes.set_yticks(y.positions, y.labels)
    axes.tick_params(length=to_points(4), width=to_points(1), pad=to_points(4))
    axes.set_xlabel(x.name, labelpad=to_points(4))
    axes.set_ylabel(y.name, labelpad=to_points(4))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def show(axes: Axes, pixels: Pixels) -> None:
    """Show a picture of the size of the axes, in pixel coordinates from the upper left corner."""
    height, width = pixels.shape[:2]
    axes.imshow(
        pixels,
        extent=(0, width, height, 0),
        aspect="auto",
        interpolation="nearest",
        zorder=1,  # above the ticks, which would otherwise cover part of the outermost pixels
    )
    axes.spines[:].set_visible(False)


def to_array(figure: Figure) -> Pixels:
    """Render a figure.

    Args:
        figure: Any matplotlib figure.

    Returns:
        The picture, uint8, (H, W, 3), with the pixels that ``figure.savefig`` writes to a PNG file.

    Example:
        >>> to_array(Figure(figsize=(1, 2), dpi=64)).shape
        (128, 64, 3)
    """
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()
