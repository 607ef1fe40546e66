"""Figures of codebooks: how often codes are used, and where in the images."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from vae_lightning.plotting.checks import check_pair, check_tensor
from vae_lightning.plotting.components import principal_components
from vae_lightning.plotting.layout import Axis, new_figure_with_ticks
from vae_lightning.plotting.scales import Scale
from vae_lightning.plotting.signals import is_signal
from vae_lightning.plotting.style import (
    CLASS_COLORS,
    FAINT,
    GRAY,
    INK,
    PAD,
    Floats,
    Pixels,
    styled,
    to_points,
)
from vae_lightning.plotting.text import nice_ticks, text_size
from vae_lightning.plotting.tiles import draw_wrapped_rows

_PAPER = np.rint(255 * np.array(to_rgb(FAINT))).astype(np.uint8)
_WIDTH, _HEIGHT = 720, 340  # of the axes of `code_usage`, in pixels


@styled
def code_usage(counts: Tensor, *, title: str = "") -> Figure:
    """Draw the fraction of assignments of every code of a codebook, in decreasing order.

    The number of used codes and the perplexity of the fractions, exp(-sum p log p), are written
    above. The vertical axis is logarithmic if the fractions differ by more than a factor of 50.

    Args:
        counts: Assignments per code, non-negative, (K,). If all are zero, the figure says so.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If ``counts`` is not a vector or has negative or non-finite entries.

    Example:
        >>> figure = code_usage(torch.tensor([8, 0, 4, 4]))
        >>> figure.texts[-1].get_text()
        '3 of 4 codes used, perplexity 2.8'
    """
    shares = _shares(counts)
    total = len(shares)
    live = shares[shares > 0]
    used = len(live)
    perplexity = math.exp(-float((live * np.log(live)).sum()))
    note = f"{used} of {total} codes used, perplexity {perplexity:.1f}"
    if not used:
        note = f"0 of {total} codes used, no assignments yet"

    logarithmic = used > 1 and live[0] / live[-1] > 50
    top = max(float(live[0]) if used else 1.0, 1 / total) * (1.3 if logarithmic else 1.06)
    base = float(live[-1]) / 1.5 if logarithmic else 0.0
    base = min(base, 0.7 / total)
    y_ticks = _log_ticks(base, top) if logarithmic else nice_ticks(0, top, 5)
    x_ticks = sorted({1.0, *(t for t in nice_ticks(0, total, 8, integer=True) if t >= 1)})
    if len(x_ticks) > 2 and x_ticks[1] - 1 < 0.6 * (x_ticks[2] - x_ticks[1]):
        del x_ticks[1]  # its label would be too close to that of the first code
    figure, axes = new_figure_with_ticks(
        _WIDTH,
        _HEIGHT,
        Axis("code, from most to least used", x_ticks, [f"{tick:.0f}" for tick in x_ticks]),
        Axis("share of assignments", y_ticks, [f"{100 * tick:.4g}%" for tick in y_ticks]),
        title=title,
        note=note,
        right=text_size("uniform")[0] + PAD,
        logarithmic=logarithmic,
    )
    axes.set(xlim=(0.5, total + 0.5), ylim=(base, top))
    axes.grid(axis="y", color=FAINT, linewidth=to_points(1))
    _draw_bars(axes, live, total, base)
    axes.axhline(1 / total, color=INK, linewidth=to_points(1.2), dashes=(4, 3))
    axes.annotate(
        "uniform",
        (1, 1 / total),
        xycoords=axes.get_yaxis_transform(),
        xytext=(to_points(PAD), 0),
        textcoords="offset points",
        va="center",
        color=INK,
        annotation_clip=False,
    )
    return figure


def _shares(counts: Tensor) -> Floats:
    """Check counts (K,) and return their fractions in decreasing order, (K,)."""
    check_tensor("code_usage", "counts", counts, "K")
    numbers = counts.detach().to("cpu", torch.float64).numpy()
    if not len(numbers):
        raise ValueError("code_usage: counts is empty, pass one count per code of the codebook.")
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError("code_usage: counts has negative or NaN entries, pass counts from 0 up.")
    return np.sort(numbers)[::-1] / max(float(numbers.sum()), 1e-300)


def _draw_bars(axes: Axes, live: Floats, total: int, base: float) -> None:
    """Draw the positive fractions of ``total`` codes from ``base`` up, and mark unused codes."""
    used = len(live)
    # One filled outline instead of a rectangle per code is fast for any size of the codebook.
    edges = np.arange(used + 1) + 0.5
    if used:
        axes.stairs(live, edges, baseline=base, fill=True, color=CLASS_COLORS[0], linewidth=0)
    if used and _WIDTH / total >= 6:  # wide enough for lines between the bars
        axes.vlines(edges[1:-1], base, live[:-1], color="white", linewidth=to_points(1))
    if used < total:
        axes.axvspan(used + 0.5, total + 0.5, color=FAINT, linewidth=0, zorder=0)
        text = f"{total - used} unused"
        if (total - used) / total * _WIDTH > text_size(text)[0] + 2 * PAD:
            x, transform = (used + total + 1) / 2, axes.get_xaxis_transform()
            axes.text(x, 0.94, text, ha="center", va="top", color=GRAY, transform=transform)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten in [low, high], with 2 and 5 in between if these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**k for k in decades if low <= 10.0**k <= high]
    if len(ticks) < 3:
        ticks = [m * 10.0**k for k in decades for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    return ticks


@styled
def code_maps(
    originals: Tensor,
    reconstructed: Tensor,
    codes: Mapping[str, Tensor],
    codebooks: Mapping[str, Tensor],
    *,
    title: str = "",
) -> Figure:
    """Draw images, the maps of their code indices, and their reconstructions.

    Args:
        originals: Images in [0, 1], (N, C, H, W).
        reconstructed: Their reconstructions in the same order, (N, C, H, W).
        codes: Code indices, (N, h, w), by the name of their codebook. Maps are enlarged to the size
            of the images. An index has the same color in all images.
        codebooks: The vectors of the codes, (K, D). Similar codes get similar colors.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape or dtype is wrong or an index is not in the codebook.

    Example:
        >>> x = torch.rand(4, 1, 28, 28)
        >>> codes, codebook = torch.randint(512, (4, 7, 7)), torch.randn(512, 64)
        >>> figure = code_maps(x, x, {"": codes}, {"": codebook})
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['original', 'codes', 'reconstruction']
    """
    pairs = check_pair("code_maps", originals, reconstructed)
    maps = {name: _indices(codes[name], pairs.shape[1], codebooks[name]) for name in codes}
    colored = [
        (
            _class_colors(len(codebooks[name]))
            if len(codebooks[name]) <= len(CLASS_COLORS)
            else similar_colors(codebooks[name])
        )[indices]
        for name, indices in maps.items()
    ]

    def make_tiles(scale: Scale) -> Pixels:
        first, last = scale.tiles(pairs)
        height, width = first.shape[1:3]
        rows = [np.arange(height) * one.shape[1] // height for one in colored]
        columns = [np.arange(width) * one.shape[2] // width for one in colored]
        tiles = [
            one[:, down][:, :, across]
            for one, down, across in zip(colored, rows, columns, strict=True)
        ]
        if is_signal(pairs):  # a strip in the middle, because nothing varies vertically
            for tile in tiles:
                tile[:, : height // 3] = tile[:, height - height // 3 :] = _PAPER
        return np.stack([first, *tiles, last])

    shown = sum(len(np.unique(indices)) for indices in maps.values())
    total = sum(len(codebook) for codebook in codebooks.values())
    few = all(len(codebook) <= len(CLASS_COLORS) for codebook in codebooks.values())
    what = "one color per code" if few else "similar codes in similar colors"
    note = f"{what}, {shown} of {total} codes appear"
    labels = ["original", *(f"codes {name}".strip() for name in maps), "reconstruction"]
    return draw_wrapped_rows(make_tiles, pairs[0], labels, title=title, note=note)


def _indices(codes: Tensor, images: int, codebook: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Check the code indices of one map of each image, (N, h, w)."""
    where, size = "code_maps", len(codebook)
    check_tensor(where, "codes", codes, "N h w")
    check_tensor(where, "codebook", codebook, "K D")
    if len(codes) != images or 0 in codes.shape:
        raise ValueError(
            f"{where}: codes has shape {tuple(codes.shape)} for {images} images, "
            "pass one map (h, w) per image."
        )
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"{where}: codes has dtype {codes.dtype}, pass integer code indices.")
    indices: np.ndarray[Any, np.dtype[np.int64]] = codes.detach().cpu().numpy()
    if indices.min() < 0 or indices.max() >= size:
        raise ValueError(
            f"{where}: codes range from {indices.min()} to {indices.max()}, "
            f"pass indices from 0 to {size - 1}."
        )
    return indices


@styled
def code_gallery(seen: Tensor, decoded: Tensor, counts: Tensor, *, title: str = "") -> Figure:
    """Draw what codes stand for: parts of images that use them, and what they decode to.

    Args:
        seen: Mean of the parts of images, (N, C, h, w).
        decoded: Mean of the same parts of the reconstructions, (N, C, h, w).
        counts: How often each code is used, (N,).
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape or dtype is wrong.

    Example:
        >>> x = torch.rand(3, 1, 8, 8)
        >>> figure = code_gallery(x, x, torch.tensor([5, 3, 2]))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['originals', 'decoded']
    """
    pairs = check_pair("code_gallery", seen, decoded)
    check_tensor("code_gallery", "counts", counts, "N")
    uses = f"{int(counts.min()):,} to {int(counts.max()):,}"
    note = f"mean patch over all uses of a code ({uses} uses each)"
    labels = ["originals", "decoded"]
    return draw_wrapped_rows(
        lambda scale: scale.tiles(pairs), pairs[0], labels, title=title, note=note
    )


def similar_colors(vectors: Tensor) -> Pixels:
    """Return colors (K, 3) that are similar where vectors (K, D) are.

    They are the ranks along the first three principal components, so that a few distant vectors do
    not leave all others in one color.
    """
    points, explained = principal_components(vectors.float(), min(3, vectors.shape[1]))
    ranks = points.argsort(0).argsort(0).float() / (len(points) - 1)
    ranks[:, explained <= 0] = 0.5  # where all vectors are the same, up to rounding
    missing = torch.full((len(points), 3 - points.shape[1]), 0.5)
    levels = 0.08 + 0.84 * torch.cat([ranks.cpu(), missing], 1)
    colors: Pixels = levels.mul(255).round().byte().numpy()
    return colors


def _class_colors(count: int) -> Pixels:
    """Return the first colors of classes, (count, 3)."""
    rgb = np.array([to_rgb(color) for color in CLASS_COLORS[:count]])
    colors: Pixels = np.rint(rgb * 255).astype(np.uint8)
    return colors
