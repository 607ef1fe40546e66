"""Signals as small pictures: curves, or bars where there are few values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import CircleCollection, LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray
from torch import Tensor

from vae_lightning.plotting.style import (
    CLASS_COLORS,
    DPI,
    FAINT,
    MISSING,
    Floats,
    Pixels,
    to_points,
)

FEW = 32
"""Number of values up to which they are drawn one by one, as bars or dots."""
MAX_OVERLAID = 4
"""Number of channels up to which they share a scale; more are drawn one above the other."""

_SHADE = "#a3acb6"  # of an original behind its reconstruction
_PALE = 0.45  # share of a channel's color in its original
_AT_ONCE = 64  # tiles on one canvas, which limits the memory and its height
_MARGIN = 0.07  # below 0 and above 1, as a share of the height

# Lengths in pixels.
_MIN_RULED = 40  # height from which there are lines at 0 and 1
_LINE = 1.6
_WIDE_LINE = 3.4
_LEVEL = 2.6
_DOT = 5.0


def is_signal(images: Tensor) -> bool:
    """Return whether images (..., C, H, W) are drawn as curves: if they have a single row."""
    return images.shape[-2] == 1 and images.shape[-1] > 1


def draw_signals(signals: Floats, width: int, height: int, behind: Floats | None = None) -> Pixels:
    """Draw each signal on a tile of its own, on a vertical scale from 0 to 1.

    The signal covers the width of the tile: value i of D is at (i + 1/2) / D. Values outside [0, 1]
    are drawn in the margin, up to the edge of the tile. Columns of pixels with NaN are magenta.

    Args:
        signals: Signals, (N, C, D).
        width: Width of a tile in pixels.
        height: Height of a tile in pixels.
        behind: Signals to draw in pale colors behind them, such as their originals, (N, C, D).

    Returns:
        The tiles, (N, height, width, 3).
    """
    layers = [signals] if behind is None else [behind, signals]
    chunks = [slice(start, start + _AT_ONCE) for start in range(0, len(signals), _AT_ONCE)]
    return np.concatenate(
        [_draw([one[chunk] for one in layers], width, height) for chunk in chunks]
    )


def _draw(layers: Sequence[Floats], width: int, height: int) -> Pixels:
    """Draw one layer of signals (N, C, D), or two of which the first is behind the other."""
    count, channels, length = layers[0].shape
    colors = [CLASS_COLORS[c % len(CLASS_COLORS)] for c in range(channels)]
    pale = [_SHADE] if channels == 1 else [_mix_with_white(color, _PALE) for color in colors]
    sheet = _Sheet(count, channels if channels > MAX_OVERLAID else 1, width, height)
    sheet.mark_missing(np.isnan(layers[0]) | np.isnan(layers[-1]))
    *behind, front = layers
    if channels == 1 and length <= min(FEW, width // 3):
        sheet.add_bars(behind[0] if behind else front, pale[0] if behind else colors[0])
        if behind:
            sheet.add_levels(front, colors[0])
    else:
        for values in behind:
            sheet.add_curves(values, pale, _WIDE_LINE)
        sheet.add_curves(front, colors, _LINE)
        if length <= min(FEW, width // 3):
            sheet.add_dots(front, colors)
    return sheet.render()


class _Sheet:
    """Tiles one above the other on one canvas.

    Args:
        count: Number of tiles.
        lanes: Number of vertical scales in a tile, one above the other.
        width: Width of a tile in pixels.
        height: Height of a tile in pixels.
    """

    def __init__(self, count: int, lanes: int, width: int, height: int) -> None:
        self.count, self.lanes, self.width, self.height = count, lanes, width, height
        self.background = np.empty((count, height, width, 3))
        self.background[:] = _levels(FAINT)
        for value in (0.0, 1.0) if height / lanes >= _MIN_RULED else ():
            lines = self._heights(np.full((1, lanes, 1), value)).astype(int).flatten()
            self.background[:, height - 1 - lines] = 255
        self.figure = Figure(figsize=(width / DPI, count * height / DPI), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)

    def mark_missing(self, missing: NDArray[np.bool_]) -> None:
        """Color the columns of pixels in which a value (N, C, D) is missing."""
        if self.lanes == 1:
            missing = np.logical_or.reduce(missing, axis=1, keepdims=True)
        length = missing.shape[2]
        columns = missing[:, :, np.arange(self.width) * length // self.width]
        tile, lane, place = missing.nonzero()
        columns[tile, lane, place * self.width // length] = True  # where values are denser
        if 2 * length > self.width:  # a single column of pixels is easily overlooked
            columns[:, :, 1:] |= columns[:, :, :-1].copy()
        lane_of_row = np.arange(self.height) * self.lanes // self.height
        self.background[columns[:, lane_of_row]] = MISSING

    def add_bars(self, values: Floats, color: str) -> None:
        """Draw values (N, 1, D) as bars from 0 up."""
        length = values.shape[2]
        edges = np.arange(length + 1) * self.width // length
        owner = np.searchsorted(edges, np.arange(self.width), side="right") - 1
        gap = max(1, round(0.25 * self.width / length))
        left = np.arange(self.width) - edges[owner] >= gap // 2
        right = edges[owner + 1] - np.arange(self.width) > gap - gap // 2
        tops = np.nan_to_num(self._heights(values))[:, :, owner]
        rows = np.arange(self.height)[::-1, None]
        zero = int(self._heights(np.zeros((1, 1, 1))).item())
        share = ((tops - rows).clip(0, 1) * (rows >= zero) * (left & right))[..., None]
        self.background += share * (_levels(color) - self.background)

    def add_levels(self, values: Floats, color: str) -> None:
        """Draw values (N, 1, D) as horizontal lines, where their bars would end."""
        length = values.shape[2]
        edges = np.arange(length + 1) * self.width / length
        ends = np.stack([edges[:-1] + 0.5, edges[1:] - 0.5], -1)
        y = self._on_canvas(values)[..., None]
        points = np.stack(np.broadcast_arrays(ends, y), -1)
        self._add_lines(points.reshape(-1, 2, 2), [color], _LEVEL, "butt")

    def add_curves(self, values: Floats, colors: Sequence[str], linewidth: float) -> None:
        """Draw signals (N, C, D), with one color per channel."""
        places, kept = _thin(values, self.width)
        x = (places + 0.5) * self.width / values.shape[2]
        points = np.stack(np.broadcast_arrays(x, self._on_canvas(kept)), -1)
        self._add_lines(points.reshape(-1, *points.shape[2:]), colors, linewidth, "round")

    def add_dots(self, values: Floats, colors: Sequence[str]) -> None:
        """Draw values (N, C, D) as dots, with one color per channel."""
        x = (np.arange(values.shape[2]) + 0.5) * self.width / values.shape[2]
        points = np.stack(np.broadcast_arrays(x, self._on_canvas(values)), -1)
        for channel, color in enumerate(colors):
            dots = CircleCollection(
                [to_points(_DOT) ** 2 * np.pi / 4],
                offsets=points[:, channel].reshape(-1, 2),
                offset_transform=IdentityTransform(),
                facecolors=color,
                linewidths=0,
            )
            self.figure.add_artist(dots)

    def render(self) -> Pixels:
        """Return the tiles, (N, height, width, 3)."""
        levels = np.rint(self.background).astype(np.uint8)
        self.figure.figimage(levels.reshape(-1, self.width, 3))
        self.canvas.draw()
        pixels = np.array(self.canvas.buffer_rgba(), dtype=np.uint8)[..., :3]
        return pixels.reshape(self.count, self.height, self.width, 3)

    def _heights(self, values: Floats) -> Floats:
        """Return how many pixels values (N, C, D) are above the bottom of their tile."""
        lane = self.height / self.lanes
        margin = max(_MARGIN * lane, 1.0)
        heights: Floats = (margin + values * (lane - 2 * margin)).clip(0.8, lane - 0.8)
        if self.lanes > 1:  # the first channel is at the top
            heights += lane * np.arange(self.lanes)[::-1, None]
        return heights

    def _on_canvas(self, values: Floats) -> Floats:
        """Return how many pixels values (N, C, D) are above the bottom of the canvas."""
        return self._heights(values) + self.height * np.arange(self.count)[::-1, None, None]

    def _add_lines(
        self, segments: Floats, colors: Sequence[str], linewidth: float, capstyle: str
    ) -> None:
        lines = LineCollection(
            list(segments),
            colors=list(colors),
            linewidths=to_points(linewidth),
            capstyle=capstyle,
            joinstyle="round",
            transform=IdentityTransform(),
            snap=False,  # horizontal lines, too, are where they belong
        )
        self.figure.add_artist(lines)


def _thin(values: Floats, width: int) -> tuple[Floats, Floats]:
    """Return the points of curves that matter on ``width`` columns of pixels.

    These are the first, last, lowest and highest value of each half of a column: the picture is
    hardly different from that of all values, which may be too many for matplotlib. See Jugel et
    al., M4: A Visualization-Oriented Time Series Data Aggregation, VLDB 2014
    (https://www.vldb.org/pvldb/vol7/p797-jugel.pdf).

    Args:
        values: Signals, (N, C, D).
        width: Number of columns.

    Returns:
        The places of the points in 0, ..., D - 1 and their values, both (N, C, P).
    """
    length = values.shape[2]
    if length <= 8 * width:
        return np.broadcast_to(np.arange(length, dtype=np.float64), values.shape), values
    each = length // (2 * width)
    places = np.arange(-(-length // each) * each).clip(max=length - 1).reshape(-1, each)
    columns = values[..., places]
    missing = np.isnan(columns)
    lowest = np.where(missing, np.inf, columns).argmin(-1)
    highest = np.where(missing, -np.inf, columns).argmax(-1)
    inside = np.stack([np.zeros_like(lowest), lowest, highest, np.full_like(lowest, each - 1)], -1)
    inside.sort(-1)
    kept = (places[:, :1] + inside).clip(max=length - 1).reshape(*values.shape[:2], -1)
    return kept.astype(np.float64), np.take_along_axis(values, kept, -1)


def _levels(color: str) -> Floats:
    """Return red, green and blue of a color, from 0 to 255."""
    levels: Floats = np.array(to_rgb(color)) * 255
    return levels


def _mix_with_white(color: str, share: float) -> str:
    """Return a color of which the rest is white."""
    levels = np.rint(255 + share * (_levels(color) - 255)).astype(int)
    return "#{:02x}{:02x}{:02x}".format(*levels)
