"""Pictures of variational autoencoders: tensors in, matplotlib figures out.

Nothing here reads or writes files, imports ``pyplot``, keeps matplotlib's global state changed or
draws from a random generator of torch, so the functions are safe to call in the middle of training.

Image tensors hold floats in [0, 1], channels first, with one (grey) or three (RGB) channels, on any
device. Values outside are clipped; pixels that are NaN are drawn in magenta, so that a diverged
model is seen instead of hidden. Every figure is laid out in whole pixels: images are enlarged by an
integer factor (or, when they would not fit, shrunk by one) and shown one array element per pixel,
which keeps them crisp. :func:`to_array` returns exactly the picture that ``Figure.savefig`` writes.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import numpy as np
import torch
from matplotlib import colormaps, patheffects, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = [
    "class_grid",
    "code_maps",
    "code_usage",
    "image_grid",
    "latent_scatter",
    "manifold",
    "principal_components",
    "reconstructions",
    "to_array",
    "traversals",
]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
_P = ParamSpec("_P")

# A power of two makes pixels / dpi * dpi exact in floating point, so no figure loses a pixel.
_DPI = 128

# Lengths in pixels.
_MAX_WIDTH = 1100
_MAX_HEIGHT = 1100
_MAX_TALL_HEIGHT = 1500  # for figures with one labelled row per dimension or class
_MAX_TILE = 140  # digits larger than this look blocky rather than clear
_MAX_LABEL = 190
_EDGE = 12
_GAP = 2
_BLOCK_GAP = 12  # between groups of rows that belong together
_TEXT = 15
_TITLE = 18
_PAD = 7

_INK = "#1f2328"
_QUIET = "#59636e"
_RULE = "#c4cad1"
_FAINT = "#eef0f3"
_MISSING = (224, 32, 160)

# Ordered so that the smallest perceptual distance among the first ten colours stays large for
# normal, protanopic and deuteranopic sight alike; the second ten extend them greedily.
_CLASS_COLOURS = (
    *("#1f59b2", "#f0a500", "#961e00", "#c3a5f0", "#788700"),
    *("#4b0f78", "#b46996", "#5ad296", "#005a5a", "#5a87f0"),
    *("#4b0000", "#002d3c", "#b49669", "#a51e87", "#2d784b"),
    *("#3cb4b4", "#000fa5", "#5a5af0", "#0096c3", "#87d2d2"),
)

_STYLE: dict[str, Any] = {
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "font.family": ["DejaVu Sans"],
    "font.size": _TEXT * 72 / _DPI,
    "text.color": _INK,
    "xtick.color": _RULE,
    "xtick.labelcolor": _QUIET,
    "ytick.color": _RULE,
    "ytick.labelcolor": _QUIET,
}


def _styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Run a drawing function under this module's style, whatever the caller's settings are."""

    @functools.wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return wrapper


# ------------------------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------------------------


def _check_tensor(where: str, name: str, value: Tensor, layout: str) -> None:
    """Check that ``value`` is a tensor with the dimensions in ``layout``, e.g. ``"N C H W"``."""
    wanted = f"({', '.join(layout.split())})"
    if not isinstance(value, Tensor):
        raise ValueError(f"{where}: {name} is a {type(value).__name__}, pass a {wanted} tensor.")
    if value.ndim != len(layout.split()):
        raise ValueError(f"{where}: {name} has shape {tuple(value.shape)}, pass {wanted} instead.")


def _check_images(where: str, name: str, images: Tensor, layout: str) -> Tensor:
    """Check an image tensor and return it on the CPU in single precision."""
    _check_tensor(where, name, images, layout)
    shape = tuple(images.shape)
    if 0 in shape:
        raise ValueError(f"{where}: {name} has shape {shape}, pass at least one image and pixel.")
    if shape[-3] not in (1, 3):
        raise ValueError(
            f"{where}: {name} has {shape[-3]} channels in shape {shape}, pass 1 (grey) or 3 (RGB)."
        )
    if not images.is_floating_point():
        raise ValueError(
            f"{where}: {name} has type {images.dtype}, pass floats in [0, 1] (bytes / 255)."
        )
    return images.detach().to(device="cpu", dtype=torch.float32)


def _check_pair(where: str, originals: Tensor, reconstructed: Tensor) -> Tensor:
    """Check originals and reconstructions of one shape and stack them to (2, N, C, H, W)."""
    first = _check_images(where, "originals", originals, "N C H W")
    second = _check_images(where, "reconstructed", reconstructed, "N C H W")
    if first.shape != second.shape:
        raise ValueError(
            f"{where}: originals {tuple(first.shape)} and reconstructed {tuple(second.shape)} "
            "differ in shape, pass one reconstruction of the same size per original."
        )
    return torch.stack([first, second])


def _check_length(where: str, name: str, entries: Sequence[Any], expected: int, per: str) -> None:
    """Check that there is one entry per row, column, ..."""
    if len(entries) != expected:
        raise ValueError(
            f"{where}: {name} has {len(entries)} entries for {expected} {per}s, pass one per {per}."
        )


def _check_values(where: str, values: Sequence[float], expected: int, per: str) -> list[float]:
    """Check and return the finite latent values along an axis."""
    _check_length(where, "values", values, expected, per)
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{where}: values contains NaN or infinity, pass finite numbers.")
    return numbers


# ------------------------------------------------------------------------------------------------
# Text
# ------------------------------------------------------------------------------------------------


def _points(pixels: float) -> float:
    """Convert pixels to the points in which matplotlib measures text and lines."""
    return pixels * 72 / _DPI


@functools.cache
def _ruler() -> Figure:
    """Return a figure that is never shown and only serves to measure text."""
    figure = Figure(figsize=(1, 1), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


@functools.lru_cache(maxsize=1024)
def _text_size(text: str, size: int = _TEXT, weight: str = "normal") -> tuple[int, int]:
    """Return the width and height in pixels of a text, which may have several lines."""
    figure = _ruler()
    item = figure.text(0, 0, text, fontsize=_points(size), fontweight=weight)
    try:
        box = item.get_window_extent()
    finally:
        item.remove()
    return math.ceil(box.width), math.ceil(box.height)


def _widest(texts: Sequence[str]) -> int:
    """Return the width in pixels of the widest text, 0 when there is none."""
    return max((_text_size(text)[0] for text in texts), default=0)


def _literal(text: str) -> str:
    """Return a text whose dollar signs are printed, not read as the start of a formula."""
    return str(text).replace("$", r"\$")


def _printable(text: str) -> str:
    """Return ``text`` with its formulas, or literally if they cannot be parsed."""
    try:
        _text_size(text)
    except ValueError:
        return _literal(text)
    return text


def _shorten(text: str, width: int, size: int, weight: str) -> str:
    """Cut a text so that it fits into ``width`` pixels together with an ellipsis."""
    lengths = range(1, len(text) + 1)
    too_long = bisect_left(
        lengths, True, key=lambda n: _text_size(text[:n].rstrip() + "…", size, weight)[0] > width
    )
    return text[: max(1, too_long)].rstrip() + "…"


def _wrap(
    text: str, width: int, *, size: int = _TEXT, weight: str = "normal", lines: int | None = None
) -> str:
    """Break a text at its spaces into at most ``lines`` lines of at most ``width`` pixels."""
    finished: list[str] = []
    for paragraph in text.split("\n"):
        if _text_size(paragraph, size, weight)[0] <= width:
            finished.append(paragraph)  # unchanged, with any double spaces it has
            continue
        line = ""
        for word in re.findall(r"(?:\$[^$]*\$|\S)+", paragraph):  # a formula is one word
            longer = f"{line} {word}".lstrip()
            if line and _text_size(longer, size, weight)[0] > width:
                finished.append(line)
                longer = word
            if "$" not in word and _text_size(longer, size, weight)[0] > width:
                longer = _shorten(longer, width, size, weight)
            line = longer
        finished.append(line)
    if lines is not None and len(finished) > lines:
        finished = finished[:lines]
        if "$" not in finished[-1]:
            finished[-1] = _shorten(finished[-1], width, size, weight)
    return "\n".join(finished)


def _wrap_labels(labels: Sequence[str], row_height: int) -> list[str]:
    """Wrap the labels at the left of rows that are ``row_height`` pixels high."""
    lines = max(1, row_height // (_TEXT + 5))
    return [_wrap(" ".join(label.split("\n")), _MAX_LABEL, lines=lines) for label in labels]


def _number_labels(values: Sequence[float]) -> list[str]:
    """Write numbers with the same, smallest number of decimals that tells them apart."""
    distinct = sorted(set(values))
    gaps = [after - before for before, after in itertools.pairwise(distinct)]
    step = min(gaps, default=max((abs(value) for value in values), default=1.0))
    for decimals in range(4):
        if all(abs(round(value, decimals) - value) <= 0.06 * step for value in values):
            texts = [f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values]
            break
    else:
        texts = [f"{value:.3g}" for value in values]
    return [text.replace("-", "\N{MINUS SIGN}") for text in texts]


def _nice_ticks(low: float, high: float, count: int, *, integer: bool = False) -> list[float]:
    """Return about ``count`` round numbers in [low, high]."""
    locator = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=integer)
    slack = 1e-9 * (high - low)
    return [float(t) for t in locator.tick_values(low, high) if low - slack <= t <= high + slack]


# ------------------------------------------------------------------------------------------------
# Tiles
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """Integer factor between image pixels and figure pixels; at most one of the two is not 1."""

    zoom: int = 1
    shrink: int = 1

    @classmethod
    def fit(cls, images: Tensor, rows: int, columns: int, width: int, height: int) -> _Scale:
        """Choose the largest scale at which rows x columns images fit into width x height."""
        tall, wide = images.shape[-2] * rows, images.shape[-1] * columns
        width, height = max(1, width - _GAP * columns), max(1, height - _GAP * rows)
        zoom = min(width // wide, height // tall, _MAX_TILE // max(images.shape[-2:]))
        if zoom >= 1:
            return cls(zoom=zoom)
        return cls(shrink=max(math.ceil(wide / width), math.ceil(tall / height)))

    def size(self, images: Tensor) -> tuple[int, int]:
        """Return the height and width of one image in figure pixels."""
        height, width = images.shape[-2:]
        return (
            math.ceil(height / self.shrink) * self.zoom,
            math.ceil(width / self.shrink) * self.zoom,
        )

    def tiles(self, images: Tensor) -> Pixels:
        """Return images (..., C, H, W) as coloured tiles (..., h, w, 3) in figure pixels."""
        flat = images.reshape(-1, *images.shape[-3:]).clamp(0, 1)
        if self.shrink > 1:
            flat = functional.avg_pool2d(flat, self.shrink, ceil_mode=True)
        values = flat.movedim(1, -1).numpy()
        missing = np.isnan(values).any(axis=-1)
        levels = np.rint(np.nan_to_num(values) * 255).astype(np.uint8)
        tiles = np.repeat(levels, 3 // levels.shape[-1], axis=-1)
        tiles[missing] = _MISSING
        tiles = tiles.repeat(self.zoom, axis=1).repeat(self.zoom, axis=2)
        return tiles.reshape(*images.shape[:-3], *tiles.shape[1:])


@dataclass(frozen=True)
class _Mosaic:
    """One picture made of tiles, and where in it the rows and columns are centred (pixels)."""

    pixels: Pixels
    row_centres: list[float]
    column_centres: list[float]

    @classmethod
    def build(cls, tiles: Pixels, *, gap: int, block: int = 0) -> _Mosaic:
        """Lay out tiles (R, S, h, w, 3), with a wider gap after every ``block`` rows if not 0."""
        rows, columns, height, width = tiles.shape[:4]
        extra = (_BLOCK_GAP - gap) if block else 0
        tops = [r * (height + gap) + (r // block if block else 0) * extra for r in range(rows)]
        lefts = [c * (width + gap) for c in range(columns)]
        picture = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, dtype=np.uint8)
        for r, top in enumerate(tops):
            for c, left in enumerate(lefts):
                picture[top : top + height, left : left + width] = tiles[r, c]
        return cls(picture, [t + height / 2 for t in tops], [x + width / 2 for x in lefts])


def _fill_up(tiles: Pixels, count: int) -> Pixels:
    """Append white tiles along the first dimension until there are ``count``."""
    blank = np.full((count - len(tiles), *tiles.shape[1:]), 255, dtype=np.uint8)
    return np.concatenate([tiles, blank])


# ------------------------------------------------------------------------------------------------
# Pages
# ------------------------------------------------------------------------------------------------


def _page(
    width: int,
    height: int,
    *,
    title: str,
    note: str = "",
    left: int = 0,
    right: int = 0,
    bottom: int = 0,
) -> tuple[Figure, Axes]:
    """Make a figure whose axes cover exactly ``width`` x ``height`` pixels.

    ``left``, ``right`` and ``bottom`` are the pixels to leave free for labels beside the axes; the
    title and, below it in grey, the note get the room they need above.
    """
    title, note = _printable(title), _printable(note)
    text_width = max(
        left + width + right,
        min(_text_size(title, _TITLE, "bold")[0], 440) if title else 0,
        min(_text_size(note)[0], 440) if note else 0,
    )
    total_width = text_width + 2 * _EDGE
    top, title_top, note_top = _EDGE, 0, 0
    if title:
        title = _wrap(title, text_width, size=_TITLE, weight="bold")
        title_top = top
        top += _text_size(title, _TITLE, "bold")[1] + _PAD
    if note:
        note = _wrap(note, text_width)
        note_top = top
        top += _text_size(note)[1] + _PAD
    if title or note:
        top += 3
    total_height = top + height + bottom + _EDGE

    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    x = _EDGE / total_width
    if title:
        y = 1 - title_top / total_height
        figure.suptitle(
            title, x=x, y=y, ha="left", va="top", fontsize=_points(_TITLE), fontweight="bold"
        )
    if note:
        figure.text(x, 1 - note_top / total_height, note, ha="left", va="top", color=_QUIET)
    axes = figure.add_axes(
        (
            (_EDGE + left) / total_width,
            (_EDGE + bottom) / total_height,
            width / total_width,
            height / total_height,
        )
    )
    return figure, axes


@dataclass(frozen=True)
class _Axis:
    """What is written along an axis: its name and its ticks."""

    name: str
    places: Sequence[float]
    texts: Sequence[str]


def _ticked_page(
    width: int,
    height: int,
    across: _Axis,
    upwards: _Axis,
    *,
    title: str,
    note: str = "",
    right: int = 0,
    logarithmic: bool = False,
) -> tuple[Figure, Axes]:
    """Make a figure as :func:`_page` does, with named and ticked axes at the left and below."""
    left = _widest(upwards.texts) + _text_size(upwards.name)[1] + 2 * _PAD + 4
    bottom = _TEXT + _text_size(across.name)[1] + 2 * _PAD + 4
    figure, axes = _page(
        width, height, title=title, note=note, left=left, right=right, bottom=bottom
    )
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(across.places, across.texts)
    axes.set_yticks(upwards.places, upwards.texts)
    axes.tick_params(length=_points(4), width=_points(1), pad=_points(4))
    axes.set_xlabel(across.name, labelpad=_points(4))
    axes.set_ylabel(upwards.name, labelpad=_points(4))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _show(axes: Axes, pixels: Pixels) -> None:
    """Show a picture of the size of the axes, with pixel coordinates from the upper left."""
    height, width = pixels.shape[:2]
    axes.imshow(
        pixels,
        extent=(0, width, height, 0),
        aspect="auto",
        interpolation="nearest",
        zorder=1,  # above the ticks, which would otherwise reach into the outermost pixels
    )
    axes.spines[:].set_visible(False)


def _label_rows(axes: Axes, centres: Sequence[float], labels: Sequence[str]) -> None:
    """Write one label at the left of every row."""
    axes.set_xticks([])
    axes.set_yticks(centres, labels)
    axes.tick_params(axis="y", length=0, pad=_points(_PAD), labelcolor=_INK)


def _tile_rows(
    images: Tensor, labels: Sequence[str], *, title: str, values: Sequence[str] = (), below: str
) -> Figure:
    """Draw images (R, S, C, H, W) as labelled rows, with values and an axis label below them."""
    rows, columns = images.shape[:2]
    labels = [_printable(label) for label in labels]
    budget = _MAX_WIDTH - 2 * _EDGE - _PAD - min(_widest(labels), _MAX_LABEL)
    scale = _Scale.fit(images, rows, columns, budget, _MAX_TALL_HEIGHT)
    labels = _wrap_labels(labels, scale.size(images)[0])
    mosaic = _Mosaic.build(scale.tiles(images), gap=_GAP)

    height, width = mosaic.pixels.shape[:2]
    label_width = _widest(labels)
    value_width = _widest(values)
    left = max(label_width + _PAD, value_width // 2 - scale.size(images)[1] // 2)
    below_size = _text_size(below)
    bottom = _PAD + below_size[1] + (_TEXT + 3 if values else 0)
    right = max(0, value_width // 2 - scale.size(images)[1] // 2)
    if below_size[0] > width:
        right = max(right, below_size[0] - width)
    figure, axes = _page(width, height, title=title, left=left, right=right, bottom=bottom)
    _show(axes, mosaic.pixels)
    _label_rows(axes, mosaic.row_centres, labels)
    if values:
        # Where the tiles are narrower than the numbers, only every second, third, ... is written.
        step = math.ceil((value_width + _PAD) / (scale.size(images)[1] + _GAP))
        axes.set_xticks(mosaic.column_centres[::step], values[::step])
        axes.tick_params(axis="x", length=0, pad=_points(4))
    if below_size[0] > width:
        axes.set_xlabel(below, loc="left", labelpad=_points(4))
    else:
        axes.set_xlabel(below, labelpad=_points(4))
    return figure


def _wrapped_rows(
    rows: Callable[[_Scale], Pixels],
    images: Tensor,
    labels: Sequence[str],
    *,
    title: str,
    note: str = "",
) -> Figure:
    """Draw groups of rows that belong together, one column per image, wrapped when many.

    Args:
        rows: Makes the tiles (R, N, h, w, 3) at a given scale.
        images: Images (N, C, H, W) that show the number and the size of the tiles.
        labels: The R labels of the rows.
        title: Title of the figure.
        note: Second line of the title.
    """
    count = len(images)
    most = 10 if count <= 40 else 16
    blocks = math.ceil(count / most)
    columns = math.ceil(count / blocks)
    left = _widest(labels) + _PAD
    budget = _MAX_HEIGHT - blocks * _BLOCK_GAP
    width = _MAX_WIDTH - 2 * _EDGE - left
    scale = _Scale.fit(images, blocks * len(labels), columns, width, budget)

    tiles = rows(scale).swapaxes(0, 1)
    tiles = _fill_up(tiles, blocks * columns)
    tiles = tiles.reshape(blocks, columns, *tiles.shape[1:]).swapaxes(1, 2)
    tiles = tiles.reshape(blocks * len(labels), columns, *tiles.shape[3:])
    mosaic = _Mosaic.build(tiles, gap=_GAP, block=len(labels))

    height, width = mosaic.pixels.shape[:2]
    figure, axes = _page(width, height, title=title, note=note, left=left)
    _show(axes, mosaic.pixels)
    _label_rows(axes, mosaic.row_centres, list(labels) * blocks)
    return figure


# ------------------------------------------------------------------------------------------------
# Images
# ------------------------------------------------------------------------------------------------


def _grid_columns(count: int) -> int:
    """Return a number of columns that makes a roughly square grid with few empty places."""
    if count <= 8:
        return count
    root = math.ceil(math.sqrt(count))
    return min(range(root, root * 3 // 2 + 1), key=lambda columns: (-count % columns, columns))


@_styled
def image_grid(images: Tensor, *, columns: int | None = None, title: str = "") -> Figure:
    """Draw images side by side, in reading order, with thin gaps.

    Args:
        images: Images (N, C, H, W) in [0, 1].
        columns: Images per row; by default as many as make the grid roughly square.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If the shape or type of ``images`` is not as above or ``columns`` is below 1.
    """
    images = _check_images("image_grid", "images", images, "N C H W")
    if columns is not None and columns < 1:
        raise ValueError(f"image_grid: columns is {columns}, pass at least 1, or None to choose.")
    count = len(images)
    columns = _grid_columns(count) if columns is None else min(columns, count)
    rows = math.ceil(count / columns)
    scale = _Scale.fit(images, rows, columns, _MAX_WIDTH - 2 * _EDGE, _MAX_HEIGHT)
    tiles = _fill_up(scale.tiles(images), rows * columns)
    mosaic = _Mosaic.build(tiles.reshape(rows, columns, *tiles.shape[1:]), gap=_GAP)
    height, width = mosaic.pixels.shape[:2]
    figure, axes = _page(width, height, title=title)
    _show(axes, mosaic.pixels)
    axes.set_axis_off()
    return figure


@_styled
def reconstructions(originals: Tensor, reconstructed: Tensor, *, title: str = "") -> Figure:
    """Draw every original above its reconstruction, wrapped over several pairs of rows when many.

    Args:
        originals: Images (N, C, H, W) in [0, 1].
        reconstructed: Their reconstructions, in the same order and of the same shape.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape or type is not as above.
    """
    pairs = _check_pair("reconstructions", originals, reconstructed)
    labels = ["original", "reconstruction"]
    return _wrapped_rows(lambda scale: scale.tiles(pairs), pairs[0], labels, title=title)


@_styled
def traversals(
    images: Tensor, row_labels: Sequence[str], values: Sequence[float], *, title: str = ""
) -> Figure:
    """Draw what changes in the image as one latent dimension at a time is moved.

    Args:
        images: Images (D, S, C, H, W) in [0, 1]: D latent dimensions at S values each.
        row_labels: D labels, drawn at the left, such as ``"z7  KL 2.31"``; rows keep their order.
        values: The S values of the latent dimension, written along the bottom.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape, type or length is not as above.
    """
    where = "traversals"
    images = _check_images(where, "images", images, "D S C H W")
    _check_length(where, "row_labels", row_labels, images.shape[0], "row")
    numbers = _check_values(where, values, images.shape[1], "column")
    below = "value of the latent dimension"
    labels = _number_labels(numbers)
    return _tile_rows(images, row_labels, title=title, values=labels, below=below)


@_styled
def class_grid(images: Tensor, class_names: Sequence[str], *, title: str = "") -> Figure:
    """Draw one row per class and one column per style.

    Args:
        images: Images (K, S, C, H, W) in [0, 1]: K classes in S styles each.
        class_names: The K names, written at the left of the rows.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape, type or length is not as above.
    """
    images = _check_images("class_grid", "images", images, "K S C H W")
    _check_length("class_grid", "class_names", class_names, images.shape[0], "row")
    labels = [_literal(name) for name in class_names]
    return _tile_rows(images, labels, title=title, below="one style per column")


def _manifold_ticks(values: Sequence[float], centres: Sequence[float]) -> list[float]:
    """Return round numbers whose labels do not touch where ``values`` are at ``centres``."""
    if len(values) == 1:
        return list(values)
    for count in (8, 6, 4, 3, 2, 1):  # quantiles crowd towards the edges, so this is tried out
        ticks = _nice_ticks(values[0], values[-1], count)
        places = np.interp(ticks, values, centres)
        if len(ticks) < 2 or np.diff(places).min() >= _widest(_number_labels(ticks)) + _PAD:
            break
    return ticks or [values[0], values[-1]]


@_styled
def manifold(
    images: Tensor,
    values: Sequence[float],
    *,
    title: str = "",
    axis_labels: tuple[str, str] = ("$z_0$", "$z_1$"),
) -> Figure:
    """Draw the images decoded from a grid in a two-dimensional latent space, without gaps.

    Args:
        images: Images (n, n, C, H, W) in [0, 1]; ``images[i, j]`` belongs to the first latent
            ``values[j]``, which grows to the right, and the second ``values[i]``, which grows
            upwards.
        values: The n latent values, increasing but not necessarily in equal steps.
        title: Title of the figure.
        axis_labels: Names of the first and the second latent dimension.

    Returns:
        The figure. The ticks are at round numbers, placed between the centres of the tiles.

    Raises:
        ValueError: If a shape, type or length is not as above or ``values`` does not increase.
    """
    where = "manifold"
    images = _check_images(where, "images", images, "n n C H W")
    count = images.shape[0]
    if images.shape[1] != count:
        raise ValueError(
            f"{where}: images has {count} rows and {images.shape[1]} columns, pass as many of both."
        )
    numbers = _check_values(where, values, count, "column")
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        raise ValueError(f"{where}: values does not increase, pass it and the images sorted by it.")

    budget = _MAX_WIDTH - 2 * _EDGE - 60
    scale = _Scale.fit(images, count, count, budget, _MAX_HEIGHT)
    # Pictures are stored from the top, so the row of the smallest second latent comes last.
    mosaic = _Mosaic.build(scale.tiles(images.flip(0)), gap=0)
    ticks = _manifold_ticks(numbers, mosaic.column_centres)
    labels = _number_labels(ticks)
    height, width = mosaic.pixels.shape[:2]
    rightwards = np.interp(ticks, numbers, mosaic.column_centres).tolist()
    upwards = np.interp(ticks, numbers, mosaic.row_centres[::-1]).tolist()
    figure, axes = _ticked_page(
        width,
        height,
        _Axis(_printable(axis_labels[0]), rightwards, labels),
        _Axis(_printable(axis_labels[1]), upwards, labels),
        title=title,
    )
    _show(axes, mosaic.pixels)
    return figure


# ------------------------------------------------------------------------------------------------
# Latent space
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """How the labels of points become colours and a legend or a colour bar."""

    codes: Floats  # one number per point, looked up in the colour map
    colours: Colormap
    norm: Normalize
    names: dict[float, str]  # of the classes that have points; empty: a continuous quantity
    bar: bool


def _group(labels: Floats, class_names: Sequence[str] | None) -> _Groups:
    """Choose colours for finite labels (N,), which are whole numbers if there are names."""
    present = [float(label) for label in np.unique(labels)]
    whole = all(label.is_integer() for label in present)
    if class_names is None:
        names = {label: f"{label:.0f}" for label in present} if whole else {}
        total = len(present)
    else:
        names = {label: _literal(class_names[int(label)]) for label in present}
        total = len(class_names)
    if whole and total <= len(_CLASS_COLOURS):
        # A class keeps its colour from figure to figure, whichever others are present.
        stable = all(0 <= label < len(_CLASS_COLOURS) for label in present)
        codes = labels if stable else np.searchsorted(present, labels).astype(np.float64)
        colours = ListedColormap(_CLASS_COLOURS)
        norm = Normalize(0, len(_CLASS_COLOURS) - 1)
        return _Groups(codes, colours, norm, names, bar=False)
    # The yellow end is left out: it can hardly be seen on white.
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.93, 256)))
    if class_names is not None:
        names = {float(k): _literal(name) for k, name in enumerate(class_names)}
        norm = Normalize(0, total - 1)
    else:
        names = {}
        norm = Normalize(min(present), max(present))
    return _Groups(labels, colours, norm, names, bar=True)


def _scatter_panel(points: Floats) -> tuple[int, int, tuple[float, float], tuple[float, float]]:
    """Choose width and height in pixels and the limits of both axes, in equal units if possible."""
    finite = points if len(points) else np.array([[-1.0, -1.0], [1.0, 1.0]])
    low, high = finite.min(axis=0), finite.max(axis=0)
    middle, span = (low + high) / 2, (high - low) * 1.06
    widest = float(span.max()) or 2.0
    width = 660
    if min(span) >= widest / 4:
        # Latent dimensions share one unit, so the same distance is drawn equally long.
        height = int(np.clip(width * span[1] / span[0], 480, 720))
        unit = max(span[0] / width, span[1] / height)
        span = np.array([unit * width, unit * height])
    else:
        height = 560
        span = np.where(span > widest * 1e-9, span, widest)
    (x_low, y_low), (x_high, y_high) = middle - span / 2, middle + span / 2
    return width, height, (float(x_low), float(x_high)), (float(y_low), float(y_high))


def _name_clusters(axes: Axes, points: Floats, labels: Floats, names: dict[float, str]) -> None:
    """Write every class at the median of its points, unless two of the names would overlap.

    The names spare the way to the legend and do not depend on telling colours apart.
    """
    places = {k: np.median(points[labels == k], axis=0) for k in names}
    boxes: list[tuple[float, float, float, float]] = []
    for label, name in names.items():
        x, y = axes.transData.transform(places[label])
        width, height = _text_size(name, _TEXT, "bold")
        width += 2
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        apart = all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes)
        if not apart or width > 112:
            return
        boxes.append(box)
    halo = [patheffects.withStroke(linewidth=_points(4), foreground="white")]
    for label, name in names.items():
        axes.text(
            float(places[label][0]),
            float(places[label][1]),
            name,
            ha="center",
            va="center",
            fontweight="bold",
            path_effects=halo,
            clip_on=True,
        )


def _add_colour_bar(figure: Figure, axes: Axes, groups: _Groups, height: int) -> None:
    """Add a colour bar at the right of the axes, ticked with the class names if there are any."""
    total = figure.get_figwidth() * _DPI
    box = axes.get_position()
    bar_axes = figure.add_axes((box.x1 + 18 / total, box.y0, 14 / total, box.height))
    mappable = ScalarMappable(groups.norm, groups.colours)
    bar = figure.colorbar(mappable, cax=bar_axes)
    bar.outline.set_visible(False)
    ticks, labels = _bar_ticks(groups, height)
    bar_axes.set_yticks(ticks, labels)
    bar_axes.yaxis.set_minor_locator(NullLocator())
    bar_axes.tick_params(length=0, pad=_points(5), labelcolor=_INK)


def _bar_ticks(groups: _Groups, height: int) -> tuple[list[float], list[str]]:
    """Return the places and labels of the ticks of a colour bar ``height`` pixels high."""
    if groups.names:
        step = math.ceil(len(groups.names) * (_TEXT + 4) / height)
        kept = list(groups.names.items())[::step]
        return [k for k, _ in kept], [_wrap(name, _MAX_LABEL, lines=1) for _, name in kept]
    low, high = float(groups.norm.vmin or 0.0), float(groups.norm.vmax or 0.0)
    whole = all(float(code).is_integer() for code in groups.codes)
    ticks = _nice_ticks(low, high, 8, integer=whole) if high > low else [low]
    return ticks, _number_labels(ticks)


@_styled
def latent_scatter(
    points: Tensor,
    labels: Tensor | None,
    *,
    axis_labels: tuple[str, str],
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw points of a two-dimensional latent space, coloured by class.

    Up to 20 classes get a colour each and a legend; more classes, or labels that are not whole
    numbers (a factor of variation), a continuous colour map and a colour bar.

    Args:
        points: Points (N, 2). Those with a coordinate or label that is not finite are left out,
            which the title then says.
        labels: Labels (N,), or None to draw all points in one colour.
        axis_labels: Names of the horizontal and the vertical axis.
        class_names: Names indexed by the labels; by default the labels themselves.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape is not as above or a label has no name.
    """
    where = "latent_scatter"
    _check_tensor(where, "points", points, "N 2")
    if points.shape[1] != 2:
        raise ValueError(
            f"{where}: points has shape {tuple(points.shape)}, pass (N, 2), "
            "for example the first two principal_components."
        )
    places = points.detach().to("cpu", torch.float64).numpy()
    marks = np.zeros(len(places))
    if labels is not None:
        _check_tensor(where, "labels", labels, "N")
        if len(labels) != len(places):
            raise ValueError(
                f"{where}: there are {len(labels)} labels for {len(places)} points, "
                "pass one per point."
            )
        marks = labels.detach().to("cpu", torch.float64).numpy()
    finite = np.isfinite(places).all(axis=1) & np.isfinite(marks)
    if dropped := int((~finite).sum()):
        verb = "point" if dropped == 1 else "points"
        title = f"{title} ({dropped} {verb} with NaN left out)".strip()
    places, marks = places[finite], marks[finite]
    if labels is not None and class_names is not None and len(marks):
        named = range(len(class_names))
        unnamed = [label for label in np.unique(marks).tolist() if label not in named]
        if unnamed:
            raise ValueError(
                f"{where}: label {unnamed[0]:g} has no name among {len(class_names)} class_names, "
                "pass labels 0, 1, ... and one name for each."
            )

    groups = _group(marks, class_names) if labels is not None and len(marks) else None
    width, height, x_limits, y_limits = _scatter_panel(places)
    legend: list[str] = []
    right = 0
    if groups is not None and groups.bar:
        right = 18 + 14 + _PAD + _widest(_bar_ticks(groups, height)[1])
    elif groups is not None:
        lines = 2 if len(groups.names) <= 12 else 1
        legend = [_wrap(name, _MAX_LABEL, lines=lines) for name in groups.names.values()]
        height = max(height, sum(_text_size(name)[1] + 6 for name in ["class", *legend]))
        right = 18 + 22 + max(_widest(legend), _text_size("class")[0] - 22)
    x_ticks, y_ticks = _nice_ticks(*x_limits, 8), _nice_ticks(*y_limits, 7)
    figure, axes = _ticked_page(
        width,
        height,
        _Axis(_printable(axis_labels[0]), x_ticks, _number_labels(x_ticks)),
        _Axis(_printable(axis_labels[1]), y_ticks, _number_labels(y_ticks)),
        title=title,
        right=right,
    )
    axes.set(xlim=x_limits, ylim=y_limits)
    axes.grid(color=_FAINT, linewidth=_points(1))

    # Drawn in mixed order: otherwise the last class would hide the others. The generator is a
    # local one with a fixed seed, so the same points always give the same picture.
    order = np.random.default_rng(0).permutation(len(places))
    diameter = float(np.clip(90 / max(1, len(places)) ** (1 / 3), 3.0, 8.0))
    if groups is None:
        colours: Any = [_CLASS_COLOURS[0]]
    else:
        colours = groups.colours(groups.norm(groups.codes[order]))
    # At whole pixels all points have the same outline, which makes the PNG file smaller.
    to_pixels = axes.transData
    drawn = to_pixels.inverted().transform(np.rint(to_pixels.transform(places[order])))
    axes.scatter(drawn[:, 0], drawn[:, 1], s=_points(diameter) ** 2, c=colours, linewidths=0)
    if groups is not None and groups.bar:
        _add_colour_bar(figure, axes, groups, height)
    elif groups is not None:
        _name_clusters(axes, places, marks, groups.names)
        shades = [groups.codes[np.argmax(marks == label)] for label in groups.names]
        handles = [
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                markersize=_points(10),
                markeredgewidth=0,
                color=to_hex(groups.colours(float(groups.norm(shade)))),
            )
            for shade in shades
        ]
        axes.legend(
            handles,
            legend,
            title="class" if class_names is None else None,
            alignment="left",
            loc="upper left",
            bbox_to_anchor=(1 + 18 / width, 1),
            borderaxespad=0,
            borderpad=0,
            handlelength=0.8,
            handletextpad=0.6,
            labelspacing=0.25,
            frameon=False,
        )
    return figure


# ------------------------------------------------------------------------------------------------
# Discrete codes
# ------------------------------------------------------------------------------------------------


def _code_colours(count: int) -> Pixels:
    """Return (count, 3) colours in which neighbouring code indices look unlike each other."""
    if count <= len(_CLASS_COLOURS):
        rgb = np.array([to_rgb(colour) for colour in _CLASS_COLOURS[:count]])
    else:
        index = np.arange(count)
        # Steps of the golden ratio spread the hues evenly for any count; two other irrational
        # steps vary how light and how vivid codes of similar hue are.
        hue = index * ((math.sqrt(5) - 1) / 2) % 1
        vividness = 0.35 + 0.6 * (index * math.sqrt(2) % 1)
        lightness = 0.45 + 0.5 * (index * math.sqrt(3) % 1)
        rgb = hsv_to_rgb(np.stack([hue, vividness, lightness], axis=1))
    colours: Pixels = np.rint(rgb * 255).astype(np.uint8)
    return colours


@_styled
def code_usage(counts: Tensor, *, title: str = "") -> Figure:
    """Draw the share of assignments that each code of a codebook receives, sorted.

    The number of codes used and the perplexity of the shares, exp(-sum p log p), are written above.
    The vertical axis is logarithmic when the shares differ by more than a factor of 50.

    Args:
        counts: Assignments per code (K,), whole or fractional numbers, not negative. When all are
            zero, the figure says so.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If ``counts`` is not a vector or has negative or non-finite entries.
    """
    _check_tensor("code_usage", "counts", counts, "K")
    numbers = counts.detach().to("cpu", torch.float64).numpy()
    if not len(numbers):
        raise ValueError("code_usage: counts is empty, pass one count per code of the codebook.")
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError("code_usage: counts has negative or NaN entries, pass counts from 0 up.")
    total = len(numbers)
    shares = np.sort(numbers)[::-1] / max(float(numbers.sum()), 1e-300)
    live = shares[shares > 0]
    used = len(live)
    perplexity = math.exp(-float((live * np.log(live)).sum()))
    note = f"{used} of {total} codes used, perplexity {perplexity:.1f}"
    if not used:
        note = f"0 of {total} codes used, no assignments yet"

    width, height = 720, 340
    logarithmic = used > 1 and live[0] / live[-1] > 50
    top = max(float(live[0]) if used else 1.0, 1 / total) * (1.3 if logarithmic else 1.06)
    base = float(live[-1]) / 1.5 if logarithmic else 0.0
    base = min(base, 0.7 / total)
    y_ticks = _log_ticks(base, top) if logarithmic else _nice_ticks(0, top, 5)
    x_ticks = sorted({1.0, *(t for t in _nice_ticks(0, total, 8, integer=True) if t >= 1)})
    if len(x_ticks) > 2 and x_ticks[1] - 1 < 0.6 * (x_ticks[2] - x_ticks[1]):
        del x_ticks[1]  # its label would stand too close to that of the first code
    figure, axes = _ticked_page(
        width,
        height,
        _Axis("code, from most to least used", x_ticks, [f"{tick:.0f}" for tick in x_ticks]),
        _Axis("share of assignments", y_ticks, [f"{100 * tick:.4g}%" for tick in y_ticks]),
        title=title,
        note=note,
        right=_text_size("uniform")[0] + _PAD,
        logarithmic=logarithmic,
    )
    axes.set(xlim=(0.5, total + 0.5), ylim=(base, top))
    axes.grid(axis="y", color=_FAINT, linewidth=_points(1))

    # One filled outline instead of a rectangle per code: quick for any size of codebook. White
    # lines part the bars while they are wide enough.
    edges = np.arange(used + 1) + 0.5
    if used:
        axes.stairs(live, edges, baseline=base, fill=True, color=_CLASS_COLOURS[0], linewidth=0)
    if used and width / total >= 6:
        axes.vlines(edges[1:-1], base, live[:-1], color="white", linewidth=_points(1))
    if used < total:
        axes.axvspan(used + 0.5, total + 0.5, color=_FAINT, linewidth=0, zorder=0)
        text = f"{total - used} unused"
        if (total - used) / total * width > _text_size(text)[0] + 2 * _PAD:
            x = (used + total + 1) / 2
            place = axes.get_xaxis_transform()
            axes.text(x, 0.94, text, ha="center", va="top", color=_QUIET, transform=place)
    axes.axhline(1 / total, color=_INK, linewidth=_points(1.2), dashes=(4, 3))
    axes.annotate(
        "uniform",
        (1, 1 / total),
        xycoords=axes.get_yaxis_transform(),
        xytext=(_points(_PAD), 0),
        textcoords="offset points",
        va="center",
        color=_INK,
        annotation_clip=False,
    )
    return figure


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten in [low, high], with 2 and 5 in between when these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**k for k in decades if low <= 10.0**k <= high]
    if len(ticks) < 3:
        ticks = [m * 10.0**k for k in decades for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    return ticks


@_styled
def code_maps(
    originals: Tensor, reconstructed: Tensor, codes: Tensor, n_codes: int, *, title: str = ""
) -> Figure:
    """Draw images, the maps of code indices they are encoded to, and their reconstructions.

    Args:
        originals: Images (N, C, H, W) in [0, 1].
        reconstructed: Their reconstructions, in the same order and of the same shape.
        codes: Code indices (N, h, w), integers from 0 to ``n_codes`` - 1; each map is enlarged to
            the size of an image. The same index has the same colour everywhere.
        n_codes: Size of the codebook.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape or type is not as above or an index is not in the codebook.
    """
    where = "code_maps"
    pairs = _check_pair(where, originals, reconstructed)
    _check_tensor(where, "codes", codes, "N h w")
    if len(codes) != pairs.shape[1] or 0 in codes.shape:
        raise ValueError(
            f"{where}: codes has shape {tuple(codes.shape)} for {pairs.shape[1]} images, "
            "pass one map (h, w) per image."
        )
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"{where}: codes has type {codes.dtype}, pass integer code indices.")
    indices = codes.detach().cpu().numpy()
    if indices.min() < 0 or indices.max() >= n_codes:
        raise ValueError(
            f"{where}: codes range from {indices.min()} to {indices.max()}, "
            f"pass indices from 0 to n_codes - 1 = {n_codes - 1}."
        )
    coloured = _code_colours(n_codes)[indices]

    def rows(scale: _Scale) -> Pixels:
        first, last = scale.tiles(pairs)
        height, width = first.shape[1:3]
        down = np.arange(height) * indices.shape[1] // height
        right = np.arange(width) * indices.shape[2] // width
        return np.stack([first, coloured[:, down][:, :, right], last])

    shown = len(np.unique(indices))
    note = f"one colour per code, {shown} of {n_codes} codes appear"
    labels = ["original", "codes", "reconstruction"]
    return _wrapped_rows(rows, pairs[0], labels, title=title, note=note)


# ------------------------------------------------------------------------------------------------
# Numbers
# ------------------------------------------------------------------------------------------------


def to_array(figure: Figure) -> Pixels:
    """Render a figure.

    Args:
        figure: Any matplotlib figure.

    Returns:
        The picture (H, W, 3) as bytes, the same that ``figure.savefig`` writes to a PNG file.
    """
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = canvas.buffer_rgba()
    return np.array(pixels, dtype=np.uint8)[..., :3].copy()


def principal_components(points: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
    """Project points onto their first principal components.

    The sign of a component, which is arbitrary, is chosen so that its loading of largest magnitude
    is positive. The computation runs on the CPU in double precision, without random numbers.

    Args:
        points: Points (N, D). Rows with entries that are not finite do not take part and are
            projected to NaN.
        k: Number of components, from 1 to D.

    Returns:
        The centred and projected points (N, k) and the share of the total variance that each
        component explains (k,), both in the type of ``points`` if that is double, else in single
        precision, and on its device. Components beyond the rank of the data, as all are when it is
        constant, are zero and explain nothing.

    Raises:
        ValueError: If ``points`` is not a non-empty matrix or does not have ``k`` columns or more.
    """
    where = "principal_components"
    _check_tensor(where, "points", points, "N D")
    count, dimensions = points.shape
    if count == 0:
        raise ValueError(f"{where}: points has shape {tuple(points.shape)}, pass at least one row.")
    if not 1 <= k <= dimensions:
        raise ValueError(
            f"{where}: k is {k} for points with {dimensions} dimensions, "
            f"pass k from 1 to {dimensions}."
        )
    values = points.detach().to("cpu", torch.float64)
    finite = values.isfinite().all(dim=1)
    projected = torch.full((count, k), math.nan, dtype=torch.float64)
    ratio = torch.zeros(k, dtype=torch.float64)
    if finite.any():
        kept = values[finite]
        centred = kept - kept.mean(dim=0)
        if len(kept) > dimensions:  # many points: the covariances are far smaller than the data
            squares, vectors = torch.linalg.eigh(centred.T @ centred)
            squares, loadings = squares.flip(0), vectors.T.flip(0)
        else:
            _, sizes, loadings = torch.linalg.svd(centred, full_matrices=False)
            squares = sizes.square()
        # What rounding leaves of directions without any variance is not a component.
        rounding = max(kept.shape) * torch.finfo(torch.float64).eps
        noise = torch.maximum((rounding * kept.abs().max()).square(), rounding * squares[0])
        rank = min(k, int((squares > noise).sum()))
        largest = loadings.abs().argmax(dim=1, keepdim=True)
        loadings = loadings * loadings.gather(1, largest).sign()
        part = torch.zeros(len(kept), k, dtype=torch.float64)
        part[:, :rank] = centred @ loadings[:rank].T
        projected[finite] = part
        if rank:
            ratio[:rank] = squares[:rank] / squares.clamp_min(0).sum()
    kind = torch.float64 if points.dtype == torch.float64 else torch.float32
    return projected.to(points.device, kind), ratio.to(points.device, kind)
