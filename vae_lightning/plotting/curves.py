"""Curves over the steps of a training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vae_lightning.plotting.layout import Axis, new_figure_with_ticks
from vae_lightning.plotting.style import CLASS_COLORS, FAINT, styled, to_points
from vae_lightning.plotting.text import nice_ticks, number_labels, printable

_WIDTH, _HEIGHT = 720, 340
_SHOWN = 0.98
"""Share of the values that the axis has to show: the first losses are often far higher."""


@styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
) -> Figure:
    """Draw curves in one panel, with a legend.

    Very high values at the start of a training are cut off, so that the rest can be read.

    Args:
        series: The steps and the values of each curve, by name.
        x_label: What the steps are.
        y_label: What the values are.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If no curve has a finite value.

    Example:
        >>> figure = curves({"loss": ([0, 1], [3.0, 2.0])}, x_label="step", y_label="nats")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['loss']
    """
    points = {}
    for name, (steps, values) in series.items():
        pairs = np.array([steps, values], dtype=np.float64)
        kept = pairs[:, np.isfinite(pairs).all(0)]
        if kept.size:
            points[name] = kept
    if not points:
        raise ValueError("curves: series has no finite values, pass at least one.")
    every = np.concatenate([kept[1] for kept in points.values()])
    low, high = every.min(), np.quantile(every, _SHOWN)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    first = min(kept[0].min() for kept in points.values())
    last = max(kept[0].max() for kept in points.values())
    last = last if last > first else first + 1
    x_ticks = [tick for tick in nice_ticks(first, last, 6) if tick.is_integer()]
    y_ticks = nice_ticks(low, high, 6)
    figure, axes = new_figure_with_ticks(
        _WIDTH,
        _HEIGHT,
        Axis(x_label, x_ticks, number_labels(x_ticks)),
        Axis(y_label, y_ticks, number_labels(y_ticks)),
        title=title,
    )
    for color, (name, (steps, values)) in zip(CLASS_COLORS, points.items(), strict=False):
        marker = "o" if len(steps) < 40 else ""
        axes.plot(
            steps,
            values,
            color=color,
            label=printable(name),
            linewidth=to_points(2),
            marker=marker,
            markersize=to_points(5),
        )
    axes.grid(color=FAINT, linewidth=to_points(1))
    room = 0.01 * (last - first)  # for the markers at both ends
    axes.set_xlim(first - room, last + room)
    axes.set_ylim(low, high)
    axes.legend(frameon=False)
    return figure
