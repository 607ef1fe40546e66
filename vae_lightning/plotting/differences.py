"""Means with their errors, such as the differences between models."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from vae_lightning.plotting.checks import check_length
from vae_lightning.plotting.layout import Axis, new_figure_with_ticks
from vae_lightning.plotting.style import CLASS_COLORS, GRAY, styled, to_points
from vae_lightning.plotting.text import nice_ticks, number_labels, printable

_WIDTH = 560
_ROW = 44


@styled
def differences(
    names: Sequence[str],
    means: Sequence[float],
    errors: Sequence[float],
    *,
    x_label: str,
    title: str = "",
) -> Figure:
    """Draw means with intervals of two standard errors, and a line at 0.

    Args:
        names: Names of the R rows.
        means: The R means.
        errors: Their standard errors.
        x_label: What the means are.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> figure = differences(["IWAE"], [-0.8], [0.05], x_label="nats")
        >>> figure.axes[0].get_xlabel()
        'nats'
    """
    check_length("differences", "means", means, len(names), "name")
    check_length("differences", "errors", errors, len(names), "name")
    low = min(0.0, *(m - 2 * e for m, e in zip(means, errors, strict=True)))
    high = max(0.0, *(m + 2 * e for m, e in zip(means, errors, strict=True)))
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    ticks = nice_ticks(low, high, 6)
    rows = list(range(len(names)))
    figure, axes = new_figure_with_ticks(
        _WIDTH,
        _ROW * len(names) + 16,
        Axis(x_label, ticks, number_labels(ticks)),
        Axis("", rows, [printable(name) for name in names]),
        title=title,
    )
    axes.axvline(0, color=GRAY, linewidth=to_points(1))
    axes.errorbar(
        means,
        rows,
        xerr=[2 * error for error in errors],
        fmt="o",
        color=CLASS_COLORS[0],
        markersize=to_points(8),
        linewidth=to_points(2),
        capsize=to_points(4),
    )
    axes.set_xlim(low - 0.5 * margin, high + 0.5 * margin)  # room for the labels of the last ticks
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure
