"""Pen-stroke templates of the digits, stored in ``glyphs.json``, and smooth curves through them."""

import json
import math
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

GLYPH_FILE: Final = Path(__file__).with_name("glyphs.json")

Point: TypeAlias = tuple[float, float]
Curve: TypeAlias = tuple[Point, ...]


class Glyph(NamedTuple):
    """One way of writing a digit.

    Attributes:
        share: Fraction of the images of the digit that are written this way.
        curves: Smooth curves through the listed points, (x, y) with x to the right and y down, in
            a box of height 100. A corner is where one curve ends and the next one starts. Points
            with the same coordinates are the same point, so curves that meet stay joined.
    """

    share: float
    curves: tuple[Curve, ...]

    @property
    def points(self) -> list[Point]:
        """The distinct points, in the order in which they first occur."""
        return list(dict.fromkeys(point for curve in self.curves for point in curve))


def load_glyphs() -> tuple[tuple[Glyph, ...], ...]:
    """Read the ways of writing each digit from 0 to 9."""
    digits = json.loads(GLYPH_FILE.read_text(encoding="utf-8"))
    return tuple(
        tuple(
            Glyph(
                share=glyph["share"],
                curves=tuple(tuple((x, y) for x, y in curve) for curve in glyph["curves"]),
            )
            for glyph in digits[str(digit)]
        )
        for digit in range(10)
    )


def curve_weights(glyph: Glyph, spacing: float) -> Tensor:
    """Return the matrix from the points of a glyph to closely and evenly spaced curve points.

    The curves are centripetal Catmull-Rom splines: smooth, through every point, without loops or
    overshoot where points are unevenly spaced. Their knots are those of the undistorted glyph, so
    they are linear in the points, and distorting a glyph is one matrix product.

    Args:
        glyph: Way of writing a digit.
        spacing: Distance of the curve points, in the units of the glyph.

    Returns:
        float64, (K, P), for the K points of the glyph.
    """
    points = glyph.points
    xy = torch.tensor(points, dtype=torch.float64)
    unit = torch.eye(len(points), dtype=torch.float64)
    fine = torch.linspace(0, 1, 65, dtype=torch.float64)[:, None]
    weights = []
    for curve in glyph.curves:
        index = torch.tensor([points.index(point) for point in curve])
        knots = (xy[index[1:]] - xy[index[:-1]]).norm(dim=1).sqrt()  # centripetal
        slopes = (unit[index[1:]] - unit[index[:-1]]) / knots[:, None]
        # The derivative at a point is the mean of the slopes on both sides, weighted toward the
        # nearer one. At an end it is the derivative of a parabola through the last three points.
        inner = (slopes[:-1] * knots[1:, None] + slopes[1:] * knots[:-1, None]) / (
            knots[1:] + knots[:-1]
        )[:, None]
        if len(inner) > 0:
            first, last = 2 * slopes[:1] - inner[:1], 2 * slopes[-1:] - inner[-1:]
        else:
            first, last = slopes, slopes
        tangents = torch.cat([first, inner, last])
        pieces = [
            (1 + 2 * fine) * (1 - fine) ** 2 * unit[index[i]]
            + fine**2 * (3 - 2 * fine) * unit[index[i + 1]]
            + knots[i] * fine * (1 - fine) ** 2 * tangents[i]
            - knots[i] * fine**2 * (1 - fine) * tangents[i + 1]
            for i in range(len(knots))
        ]
        dense = torch.cat(pieces)
        path = dense @ xy
        steps = (path[1:] - path[:-1]).norm(dim=1)
        length = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
        count = max(2, math.ceil(float(length[-1]) / spacing) + 1)
        wanted = torch.linspace(0, 1, count, dtype=torch.float64) * length[-1]
        after = torch.searchsorted(length, wanted).clamp(1, len(dense) - 1)
        gap = length[after] - length[after - 1]
        share = ((wanted - length[after - 1]) / gap)[:, None]
        weights.append(dense[after - 1] + share * (dense[after] - dense[after - 1]))
    return torch.cat(weights).T.contiguous()
