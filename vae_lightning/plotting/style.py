"""Colors, sizes and matplotlib settings of all figures."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from matplotlib import style
from matplotlib.font_manager import fontManager
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
_P = ParamSpec("_P")
_R = TypeVar("_R")

# A power of two makes pixels / DPI * DPI exact in floating point, so no figure loses a pixel.
DPI = 128

# Lengths in pixels.
MAX_WIDTH = 1100
MAX_HEIGHT = 1100
MAX_TALL_HEIGHT = 1500  # for figures with one labeled row per dimension or class
MAX_TILE = 140  # larger digits look blocky
MAX_LABEL = 190
EDGE = 12
GAP = 2
BLOCK_GAP = 12  # between blocks of rows
TEXT = 15
TITLE = 18
PAD = 7

INK = "#1f2328"
GRAY = "#59636e"
RULE = "#c4cad1"
FAINT = "#eef0f3"
MISSING = (224, 32, 160)
MARK = "#d1242f"

# Ordered so that the smallest perceptual distance among the first ten colors is large for normal,
# protanopic and deuteranopic vision. The second ten extend them greedily.
CLASS_COLORS = (
    *("#1f59b2", "#f0a500", "#961e00", "#c3a5f0", "#788700"),
    *("#4b0f78", "#b46996", "#5ad296", "#005a5a", "#5a87f0"),
    *("#4b0000", "#002d3c", "#b49669", "#a51e87", "#2d784b"),
    *("#3cb4b4", "#000fa5", "#5a5af0", "#0096c3", "#87d2d2"),
)

_STYLE: dict[str, Any] = {
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "font.size": TEXT * 72 / DPI,
    "text.color": INK,
    "xtick.color": RULE,
    "xtick.labelcolor": GRAY,
    "ytick.color": RULE,
    "ytick.labelcolor": GRAY,
}


# Common fonts with scripts that DejaVu Sans lacks; those that are installed are used.
_MORE_FONTS = (
    *("Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic"),
    *("Malgun Gothic", "Nirmala UI", "WenQuanYi Zen Hei", "Arial Unicode MS"),
)


@functools.cache
def fonts() -> list[str]:
    """Return the fonts of figures, in the order in which a character is looked for."""
    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function to draw with these settings, whatever the caller's settings are."""

    @functools.wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with style.context(["default", {**_STYLE, "font.family": fonts()}]):
            return draw(*args, **kwargs)

    return wrapper


def to_points(pixels: float) -> float:
    """Convert pixels to points, matplotlib's unit for text and lines."""
    return pixels * 72 / DPI
