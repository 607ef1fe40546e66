"""Text of known size: measuring, wrapping, and labels of numbers."""

import functools
import itertools
import math
import re
from bisect import bisect_left
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from vae_lightning.plotting.style import DPI, MAX_LABEL, TEXT, fonts, to_points


@functools.cache
def _ruler() -> Figure:
    """Return a figure that is never shown, for measuring text."""
    figure = Figure(figsize=(1, 1), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


@functools.lru_cache(maxsize=1024)
def text_size(text: str, size: int = TEXT, weight: str = "normal") -> tuple[int, int]:
    """Return the width and height of a text in pixels. The text may have several lines."""
    item = _ruler().text(0, 0, text, fontsize=to_points(size), fontweight=weight)
    try:
        box = item.get_window_extent()
    finally:
        item.remove()
    return math.ceil(box.width), math.ceil(box.height)


def max_width(texts: Sequence[str]) -> int:
    """Return the width of the widest text in pixels, 0 without texts."""
    return max((text_size(text)[0] for text in texts), default=0)


def literal(text: str) -> str:
    """Escape dollar signs, so that they do not start a formula."""
    return str(text).replace("$", r"\$")


@functools.cache
def _characters() -> frozenset[int]:
    """Return the code points that the fonts of figures have."""
    paths = {findfont(FontProperties(family=[name])) for name in fonts()}
    return frozenset(code for path in paths for code in get_font(path).get_charmap())


def class_labels(names: Sequence[str]) -> list[str]:
    """Return the names of classes as they can be drawn.

    A name in a script for which no font is installed becomes the number of its class: boxes would
    look alike.

    Example:
        >>> class_labels(["cat", "\U0001078a"])
        ['cat', '1']
    """
    known = _characters()
    return [
        literal(name) if all(ord(c) in known or c.isspace() for c in str(name)) else str(i)
        for i, name in enumerate(names)
    ]


def printable(text: str) -> str:
    """Return ``text`` unchanged, or escaped if its formulas cannot be parsed."""
    try:
        text_size(text)
    except ValueError:
        return literal(text)
    return text


def wrap(
    text: str, width: int, *, size: int = TEXT, weight: str = "normal", lines: int | None = None
) -> str:
    """Break a text at its spaces into at most ``lines`` lines of at most ``width`` pixels.

    What does not fit is replaced by an ellipsis. Formulas are never broken.
    """

    def fits(line: str) -> bool:
        return text_size(line, size, weight)[0] <= width

    def shorten(line: str) -> str:
        if "$" in line:
            return line
        cut = bisect_left(
            range(len(line)), True, key=lambda n: not fits(line[: n + 1].rstrip() + "…")
        )
        return line[: max(1, cut)].rstrip() + "…"

    if fits(text):
        return text
    wrapped = [""]
    for word in re.findall(r"(?:\$[^$]*\$|\S)+", text):  # a formula counts as one word
        longer = f"{wrapped[-1]} {word}".lstrip()
        if fits(longer) or not wrapped[-1]:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    if lines is not None and len(wrapped) > lines:
        wrapped = wrapped[:lines]
        wrapped[-1] = shorten(wrapped[-1])
    return "\n".join(line if fits(line) else shorten(line) for line in wrapped)


def wrap_labels(labels: Sequence[str], row_height: int) -> list[str]:
    """Wrap the labels on the left of rows of ``row_height`` pixels."""
    lines = max(1, row_height // (TEXT + 5))
    return [wrap(label.replace("\n", " "), MAX_LABEL, lines=lines) for label in labels]


def number_labels(values: Sequence[float]) -> list[str]:
    """Format numbers with the smallest common number of decimals that tells them apart."""
    gaps = [after - before for before, after in itertools.pairwise(sorted(set(values)))]
    step = min(gaps, default=max((abs(value) for value in values), default=1.0))
    for decimals in range(4):
        if all(abs(round(value, decimals) - value) <= 0.06 * step for value in values):
            texts = [f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values]
            break
    else:
        texts = [f"{value:.3g}" for value in values]
    return [text.replace("-", "\N{MINUS SIGN}") for text in texts]


def nice_ticks(low: float, high: float, count: int, *, integer: bool = False) -> list[float]:
    """Return about ``count`` round numbers in [low, high]."""
    locator = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=integer)
    slack = 1e-9 * (high - low)
    return [float(t) for t in locator.tick_values(low, high) if low - slack <= t <= high + slack]
