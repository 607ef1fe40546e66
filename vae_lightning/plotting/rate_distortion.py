"""Rate-distortion planes: reconstruction against KL, with lines of equal ELBO."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_lightning.plotting.layout import Axis, new_figure_with_ticks
from vae_lightning.plotting.style import (
    CLASS_COLORS,
    GRAY,
    INK,
    RULE,
    TEXT,
    Floats,
    styled,
    to_points,
)
from vae_lightning.plotting.text import (
    literal,
    nice_ticks,
    number_labels,
    printable,
    text_size,
    wrap,
)

_SIDE = 560
_ROOM = 44
"""Pixels around the middle of a line's value that curves and edges have to leave free."""
_MOST_LABELS = 24
_LEGEND = 260
"""Largest width of the names beside the panel, in pixels."""


class RatePoint(NamedTuple):
    """A setting in the rate-distortion plane, of which there may be several runs.

    Attributes:
        label: What it is called in the picture, "" for nothing.
        rates: KL of each run.
        distortions: -log p(x|z) of each run.

    Example:
        >>> RatePoint("beta 1", rates=[25.6, 25.4], distortions=[74.7, 74.9]).rates
        [25.6, 25.4]
    """

    label: str
    rates: Sequence[float]
    distortions: Sequence[float]


@styled
def rate_distortion(
    series: Mapping[str, Sequence[RatePoint]],
    *,
    x_label: str = "rate: KL",
    y_label: str = "distortion: -log p(x|z)",
    sum_label: str = "\N{MINUS SIGN}ELBO",
    connected: bool = True,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw curves in the rate-distortion plane over lines of equal ELBO.

    Where rate and distortion add up to the same number, so does the negative ELBO: lines with the
    slope -1. A point nearer to the lower left corner is a better bound. Runs of a setting are faint
    points around their mean.

    Args:
        series: The settings of each curve in order, by the name of the curve.
        x_label: What the rate is.
        y_label: What the distortion is.
        sum_label: What the sum is.
        connected: Whether the means of a curve are joined by a line.
        title: Title of the figure.
        note: Second line of the title.

    Returns:
        The figure.

    Raises:
        ValueError: If no point is finite.

    Example:
        >>> points = [RatePoint("1", [20.0, 21.0], [80.0, 79.5]), RatePoint("4", [9.0], [100.0])]
        >>> figure = rate_distortion({"": points})
        >>> figure.axes[0].get_xlabel()
        'rate: KL'
    """
    finite = {
        name: kept
        for name, points in series.items()
        if (kept := [_finite(point) for point in points if len(_finite(point).rates)])
    }
    if not finite:
        raise ValueError("rate_distortion: series has no finite point, pass at least one.")
    every = [point for points in finite.values() for point in points]
    x = np.concatenate([point.rates for point in every])
    y = np.concatenate([point.distortions for point in every])
    (left, right), (low, high) = _limits(x, y)
    x_ticks, y_ticks = nice_ticks(left, right, 7), nice_ticks(low, high, 7)
    named = [name for name in finite if name] if len(finite) > 1 else []
    legend = [wrap(printable(name), _LEGEND, lines=2) for name in named]
    beside = max((text_size(name)[0] for name in legend), default=0)
    figure, axes = new_figure_with_ticks(
        _SIDE,
        _SIDE,
        Axis(x_label, x_ticks, number_labels(x_ticks)),
        Axis(y_label, y_ticks, number_labels(y_ticks)),
        title=title,
        note=note,
        right=beside + 48 if legend else 0,
    )
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    _draw_bounds(axes, list(finite.values()), sum_label)
    labels = sum(bool(point.label) for point in every)
    for color, (name, points) in zip(CLASS_COLORS, finite.items(), strict=False):
        is_first = name == next(iter(finite))
        _draw_series(axes, points, color, connected, labels <= _MOST_LABELS or is_first)
    if legend:
        handles = [
            axes.plot([], [], color=color, marker="o", linewidth=to_points(2))[0]
            for color in CLASS_COLORS[: len(legend)]
        ]
        axes.legend(
            handles,
            legend,
            loc="upper left",
            bbox_to_anchor=(1 + 10 / _SIDE, 1.0),
            borderaxespad=0,
            frameon=False,
            handlelength=1.4,
        )
    return figure


def _finite(point: RatePoint) -> RatePoint:
    """Return the point with its finite runs."""
    values = np.array([point.rates, point.distortions], dtype=np.float64).reshape(2, -1)
    kept = values[:, np.isfinite(values).all(0)]
    return RatePoint(point.label, kept[0].tolist(), kept[1].tolist())


def _limits(x: Floats, y: Floats) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the limits of both axes: of equal length, unless one would then be hardly used."""
    spans = [float(np.ptp(values)) for values in (x, y)]
    longest = max(spans) or 1.0
    if min(spans) > longest / 3:
        spans = [longest, longest]
    limits = []
    for values, span in zip((x, y), spans, strict=True):
        middle = (float(values.min()) + float(values.max())) / 2
        half = 0.6 * (span or longest / 10)
        shift = max(0.0, half - middle) if values.min() >= 0 else 0.0  # no KL is negative
        limits.append((middle - half + shift, middle + half + shift))
    return limits[0], limits[1]


def _draw_bounds(axes: Axes, curves: Sequence[Sequence[RatePoint]], sum_label: str) -> None:
    """Draw lines of equal sums with their values, where no curve is near."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    angle = float(np.degrees(np.arctan(-(right - left) / (high - low))))
    scale = _SIDE / np.array([right - left, high - low])
    taken = np.concatenate([_along(curve) for curve in curves]) * scale
    places: list[tuple[float, float, float, float]] = []  # clearance, total, x, y
    for total in nice_ticks(left + low, right + high, 14):
        ends = [left, right], [total - left, total - right]
        axes.plot(*ends, color=RULE, linewidth=to_points(1), zorder=1)
        x = np.linspace(max(left, total - high), min(right, total - low), 41)
        spot = np.stack([x, total - x], 1)
        inside = ((spot - (left, low)) * scale > _ROOM) & (((right, high) - spot) * scale > _ROOM)
        spot = spot[inside.all(1)]
        if not len(spot):
            continue
        distance = np.linalg.norm(spot[:, None] * scale - taken, axis=2).min(1)
        # Near the middle of the line where there is room, so that the values are in a row.
        middle = np.abs(np.arange(len(spot)) - len(spot) / 2)
        best = np.lexsort((middle, -np.minimum(distance, 1.6 * _ROOM)))[0]
        x_best, y_best = (float(value) for value in spot[best])
        places.append((float(distance[best]), total, x_best, y_best))
    named = max(places, default=None)
    texts = number_labels([place[1] for place in places])
    for place, text in zip(places, texts, strict=True):
        if place[0] < _ROOM / 2:
            continue
        axes.annotate(
            f"{sum_label} = {text}" if place == named else text,
            place[2:],
            color=GRAY,
            fontsize=to_points(TEXT - 3),
            rotation=angle,
            rotation_mode="anchor",
            ha="center",
            va="center",
            zorder=1.5,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"},
        )


def _along(points: Sequence[RatePoint]) -> Floats:
    """Return places along the line through the means of points, (n, 2)."""
    means = np.array([[np.mean(p.rates), np.mean(p.distortions)] for p in points])
    steps = np.linspace(0, 1, 20)[:, None]
    lines = [a + steps * (b - a) for a, b in itertools.pairwise(means)]
    return np.concatenate([means, *lines])


def _draw_series(
    axes: Axes, points: Sequence[RatePoint], color: str, connected: bool, labeled: bool
) -> None:
    """Draw the runs of a curve, their means and the names of these."""
    means = np.array([[np.mean(p.rates), np.mean(p.distortions)] for p in points])
    for point in points:
        if len(point.rates) > 1:
            axes.plot(
                point.rates,
                point.distortions,
                "o",
                color=color,
                alpha=0.35,
                markeredgewidth=0,
                markersize=to_points(7),
                zorder=2.5,
            )
    axes.plot(
        means[:, 0],
        means[:, 1],
        "o-" if connected else "o",
        color=color,
        linewidth=to_points(2),
        markersize=to_points(9),
        markeredgecolor="white",
        markeredgewidth=to_points(1),
        zorder=3,
    )
    if not labeled:
        return
    left, right = axes.get_xlim()
    for point, (x, y) in zip(points, means, strict=True):
        label = literal(point.label)
        # Above the curve, which falls; below it where the panel ends.
        beyond = (x - left) / (right - left) * _SIDE + text_size(label)[0] + 10 > _SIDE
        axes.annotate(
            label,
            (x, y),
            xytext=(to_points(-8 if beyond else 8), to_points(-6 if beyond else 6)),
            textcoords="offset points",
            ha="right" if beyond else "left",
            va="top" if beyond else "baseline",
            color=INK,
            zorder=4,
        )
