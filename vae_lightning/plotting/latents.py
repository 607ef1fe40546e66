"""Scatter plots of two-dimensional latent spaces."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import NullLocator
from torch import Tensor

from vae_lightning.plotting.checks import check_tensor
from vae_lightning.plotting.layout import Axis, new_figure_with_ticks
from vae_lightning.plotting.style import (
    CLASS_COLORS,
    DPI,
    FAINT,
    INK,
    MAX_LABEL,
    PAD,
    RULE,
    TEXT,
    Floats,
    styled,
    to_points,
)
from vae_lightning.plotting.text import (
    class_labels,
    max_width,
    nice_ticks,
    number_labels,
    printable,
    text_size,
    wrap,
)

_BAR_GAP, _BAR_WIDTH = 18, 14  # pixels
_MANY, _OPACITY = 200, 0.7


@styled
def latent_scatter(
    points: Tensor,
    labels: Tensor | None,
    *,
    axis_labels: tuple[str, str],
    class_names: Sequence[str] | None = None,
    radius: float | None = None,
    title: str = "",
) -> Figure:
    """Draw points of a two-dimensional latent space, colored by class.

    Up to 20 classes get one color each and a legend. More classes, or labels that are not whole
    numbers (a factor of variation), get a continuous color map and a color bar.

    Args:
        points: Points, (N, 2). Points with a non-finite coordinate or label are left out, and the
            title says how many.
        labels: Labels, (N,), or None to draw all points in one color.
        axis_labels: Names of the horizontal and the vertical axis.
        class_names: Names indexed by the labels. By default the labels themselves.
        radius: Radius of the circle about the origin that bounds the space, which is drawn, too.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape is wrong or a label has no name.

    Example:
        >>> labels = torch.arange(60) % 3
        >>> figure = latent_scatter(torch.randn(60, 2), labels, axis_labels=("$z_0$", "$z_1$"))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['0', '1', '2']
    """
    xy, marks, dropped = _check_points(points, labels)
    if dropped:
        noun = "point" if dropped == 1 else "points"
        title = f"{title} ({dropped} {noun} with NaN left out)".strip()
    groups = None
    if labels is not None and len(marks):
        _check_names(marks, class_names)
        groups = _group(marks, class_names)

    corners = np.array([[-1.0, -1.0], [1.0, 1.0]]) * (radius or 0.0)
    shown = xy if radius is None else np.concatenate([xy, corners])
    width, height, x_limits, y_limits = _panel(shown)
    legend: list[str] = []
    right = 0
    if groups is not None and groups.bar:
        right = _BAR_GAP + _BAR_WIDTH + PAD + max_width(_bar_ticks(groups, height)[1])
    elif groups is not None:
        lines = 2 if len(groups.names) <= 12 else 1
        legend = [wrap(name, MAX_LABEL, lines=lines) for name in groups.names.values()]
        height = max(height, sum(text_size(name)[1] + 6 for name in ["class", *legend]))
        right = _BAR_GAP + 22 + max(max_width(legend), text_size("class")[0] - 22)
    x_ticks, y_ticks = nice_ticks(*x_limits, 8), nice_ticks(*y_limits, 7)
    figure, axes = new_figure_with_ticks(
        width,
        height,
        Axis(printable(axis_labels[0]), x_ticks, number_labels(x_ticks)),
        Axis(printable(axis_labels[1]), y_ticks, number_labels(y_ticks)),
        title=title,
        right=right,
    )
    axes.set(xlim=x_limits, ylim=y_limits)
    axes.grid(color=FAINT, linewidth=to_points(1))
    if radius is not None:
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=RULE, linewidth=to_points(1)))
    _draw_points(axes, xy, groups)
    if groups is not None and groups.bar:
        _add_color_bar(figure, axes, groups, height)
    elif groups is not None:
        _add_legend(axes, groups, marks, legend, width, "class" if class_names is None else None)
    return figure


def _check_points(points: Tensor, labels: Tensor | None) -> tuple[Floats, Floats, int]:
    """Return the finite points (n, 2) with their labels (n,), and how many points were left out.

    Without labels, all labels are zero.
    """
    where = "latent_scatter"
    check_tensor(where, "points", points, "N 2")
    if points.shape[1] != 2:
        raise ValueError(
            f"{where}: points has shape {tuple(points.shape)}, pass (N, 2), "
            "for example the first two principal_components."
        )
    xy = points.detach().to("cpu", torch.float64).numpy()
    marks = np.zeros(len(xy))
    if labels is not None:
        check_tensor(where, "labels", labels, "N")
        if len(labels) != len(xy):
            raise ValueError(
                f"{where}: there are {len(labels)} labels for {len(xy)} points, pass one per point."
            )
        marks = labels.detach().to("cpu", torch.float64).numpy()
    finite = np.isfinite(xy).all(axis=1) & np.isfinite(marks)
    return xy[finite], marks[finite], int((~finite).sum())


def _check_names(marks: Floats, class_names: Sequence[str] | None) -> None:
    """Check that every label has a name."""
    if class_names is None:
        return
    unnamed = [mark for mark in np.unique(marks).tolist() if mark not in range(len(class_names))]
    if unnamed:
        raise ValueError(
            f"latent_scatter: label {unnamed[0]:g} has no name among {len(class_names)} "
            "class_names, pass labels 0, 1, ... and one name for each."
        )


@dataclass(frozen=True)
class _Groups:
    """Colors of labeled points, with their names.

    Attributes:
        codes: One number per point, to be looked up in the color map, (N,).
        colors: The color map.
        norm: Its range.
        names: Names of the labels that occur; empty for a continuous quantity.
        bar: Whether the colors are explained by a color bar instead of a legend.
    """

    codes: Floats
    colors: Colormap
    norm: Normalize
    names: dict[float, str]
    bar: bool


def _group(labels: Floats, class_names: Sequence[str] | None) -> _Groups:
    """Choose colors for finite labels (N,), which are whole numbers if there are names."""
    present = [float(label) for label in np.unique(labels)]
    whole = all(label.is_integer() for label in present)
    if class_names is None:
        names = {label: f"{label:.0f}" for label in present} if whole else {}
        total = len(present)
    else:
        drawn = class_labels(class_names)
        names = {label: drawn[int(label)] for label in present}
        total = len(class_names)
    if whole and total <= len(CLASS_COLORS):
        # A class has the same color in every figure, whichever other classes are present.
        stable = all(0 <= label < len(CLASS_COLORS) for label in present)
        codes = labels if stable else np.searchsorted(present, labels).astype(np.float64)
        colors = ListedColormap(CLASS_COLORS)
        norm = Normalize(0, len(CLASS_COLORS) - 1)
        return _Groups(codes, colors, norm, names, bar=False)
    # Without the yellow end, which is hardly visible on white.
    colors = ListedColormap(colormaps["viridis"](np.linspace(0, 0.93, 256)))
    if class_names is not None:
        names = {float(k): name for k, name in enumerate(class_labels(class_names))}
        norm = Normalize(0, total - 1)
    else:
        names = {}
        norm = Normalize(min(present), max(present))
    return _Groups(labels, colors, norm, names, bar=True)


def _panel(points: Floats) -> tuple[int, int, tuple[float, float], tuple[float, float]]:
    """Choose the size in pixels and the limits of both axes, in equal units if possible.

    Returns:
        Width and height of the axes, and the lower and upper limit of x and of y.
    """
    points = points if len(points) else np.array([[-1.0, -1.0], [1.0, 1.0]])
    low, high = points.min(axis=0), points.max(axis=0)
    middle, span = (low + high) / 2, (high - low) * 1.06
    largest = float(span.max()) or 2.0
    width = 660
    if min(span) >= largest / 4:
        # Latent dimensions have the same unit, so equal distances have equal lengths.
        height = int(np.clip(width * span[1] / span[0], 480, 720))
        unit = max(span[0] / width, span[1] / height)
        span = np.array([unit * width, unit * height])
    else:
        height = 560
        span = np.where(span > largest * 1e-9, span, largest)
    (x_low, y_low), (x_high, y_high) = middle - span / 2, middle + span / 2
    return width, height, (float(x_low), float(x_high)), (float(y_low), float(y_high))


def _draw_points(axes: Axes, points: Floats, groups: _Groups | None) -> None:
    """Draw the points in random order, many of them transparent, so that no class hides others.

    The order has a fixed seed, so equal points give equal pictures.
    """
    order = np.random.default_rng(0).permutation(len(points))
    diameter = float(np.clip(90 / max(1, len(points)) ** (1 / 3), 3.0, 8.0))
    colors: Any = [CLASS_COLORS[0]]
    if groups is not None:
        colors = groups.colors(groups.norm(groups.codes[order]))
    opacity = _OPACITY if len(points) > _MANY else 1.0
    # At whole pixels all points have the same outline, which makes the PNG file smaller.
    to_pixels = axes.transData
    rounded = to_pixels.inverted().transform(np.rint(to_pixels.transform(points[order])))
    axes.scatter(
        rounded[:, 0],
        rounded[:, 1],
        s=to_points(diameter) ** 2,
        c=colors,
        linewidths=0,
        alpha=opacity,
    )


def _add_legend(
    axes: Axes, groups: _Groups, marks: Floats, names: list[str], width: int, title: str | None
) -> None:
    """Add a legend on the right of axes that are ``width`` pixels wide."""
    codes = [groups.codes[np.argmax(marks == label)] for label in groups.names]
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=to_points(10),
            markeredgewidth=0,
            color=to_hex(groups.colors(float(groups.norm(code)))),
        )
        for code in codes
    ]
    axes.legend(
        handles,
        names,
        title=title,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1 + _BAR_GAP / width, 1),
        borderaxespad=0,
        borderpad=0,
        handlelength=0.8,
        handletextpad=0.6,
        labelspacing=0.25,
        frameon=False,
    )


def _add_color_bar(figure: Figure, axes: Axes, groups: _Groups, height: int) -> None:
    """Add a color bar on the right of the axes, with the class names if there are any."""
    total = figure.get_figwidth() * DPI
    box = axes.get_position()
    bar_axes = figure.add_axes((box.x1 + _BAR_GAP / total, box.y0, _BAR_WIDTH / total, box.height))
    bar = figure.colorbar(ScalarMappable(groups.norm, groups.colors), cax=bar_axes)
    bar.outline.set_visible(False)
    bar_axes.set_yticks(*_bar_ticks(groups, height))
    bar_axes.yaxis.set_minor_locator(NullLocator())
    bar_axes.tick_params(length=0, pad=to_points(5), labelcolor=INK)


def _bar_ticks(groups: _Groups, height: int) -> tuple[list[float], list[str]]:
    """Return the positions and labels of the ticks of a color bar of ``height`` pixels."""
    if groups.names:
        step = math.ceil(len(groups.names) * (TEXT + 4) / height)
        kept = list(groups.names.items())[::step]
        return [k for k, _ in kept], [wrap(name, MAX_LABEL, lines=1) for _, name in kept]
    low, high = float(groups.norm.vmin or 0.0), float(groups.norm.vmax or 0.0)
    whole = all(float(code).is_integer() for code in groups.codes)
    ticks = nice_ticks(low, high, 8, integer=whole) if high > low else [low]
    return ticks, number_labels(ticks)
