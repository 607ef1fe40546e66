"""Handwritten-looking digits, drawn from pen-stroke templates with known generative factors.

A digit is a small set of smooth curves through a few points, which are stored in ``glyphs.json``.
To draw an image, the points are displaced by a random ``wobble`` (so that no two images of a class
are the same), the curves are placed in the image by the factors (scale, slant, rotation, shift),
and every pixel within half a pen width of a curve is filled, with a soft edge one pixel wide.

Nothing is downloaded, and the same factors give the same image on every machine; see `render`.
"""

import functools
import math
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from vae_lightning.data import glyphs
from vae_lightning.data.glyphs import Glyph

FACTORS: Final[tuple[str, ...]] = (
    "digit",
    "slant",
    "thickness",
    "rotation",
    "scale",
    "shift_x",
    "shift_y",
)
"""Names of the columns of `Strokes.factors`, in order."""

FACTOR_RANGES: Final[dict[str, tuple[float, float]]] = {
    # Shear: displacement to the right per unit of height. Positive leans to the right, "/".
    "slant": (-0.15, 0.35),
    # Pen width in pixels.
    "thickness": (1.8, 3.5),
    # Degrees about the center of the glyph, applied after the shear. Positive is clockwise.
    "rotation": (-10.0, 10.0),
    # Height of the pen's path in pixels, before shear and rotation. Wide glyphs (such as many 2s
    # and 5s) are smaller by up to a third, by the same fraction at every scale, so that their
    # corners stay inside the image when they lean.
    "scale": (14.0, 18.0),
    # Pixels, positive to the right; applied last.
    "shift_x": (-1.5, 1.5),
    # Pixels, positive downward; applied last.
    "shift_y": (-1.5, 1.5),
}
"""Lowest and highest value of each continuous factor, (low, high).

Pixels are those of a 28x28 image. For other image sizes all lengths are scaled in proportion.
"""

_REFERENCE_SIZE: Final = 28
_MIN_SIZE: Final = 16  # in smaller images the holes of a thick 8 or 9 are filled
_POINT_SPACING: Final = 0.55  # pixels; the edge of the thinnest stroke ripples by less than 0.05
_BATCH_PIXELS: Final = 4096 * _REFERENCE_SIZE**2  # pixels held in memory at once, about 60 MB
_CACHED_ROWS: Final = 140 * _REFERENCE_SIZE  # rows of pixels drawn at once, which fit in the cache
# Fewer elements than PyTorch splits over threads (2**15). The operations are so short and so many
# that waiting for another thread costs more than it gains, especially on busy cores.
_STRIP_ELEMENTS: Final = 32_000

# The ways of writing each digit. The first one is the plain template (wobble 0).
_GLYPHS: Final = glyphs.load_glyphs()

SOURCES: Final = (Path(__file__), Path(glyphs.__file__), glyphs.GLYPH_FILE)
"""Files that determine the drawing: its code and its data."""


# Columns of the wobble. Amplitudes are in half heights of the glyph unless stated otherwise.
_VARIANT: Final = 0  # the way of writing the digit
_PRESSURE: Final = slice(1, 3)  # variation of the pen width along the path
_WARP_X: Final = slice(3, 7)  # horizontal displacement fields
_WARP_Y: Final = slice(7, 11)  # vertical displacement fields
_JITTER: Final = 11  # first column of the displacements of single points: all x, then all y
_MAX_POINTS: Final = max(len(glyph.points) for variants in _GLYPHS for glyph in variants)
_WOBBLE_WIDTH: Final = _JITTER + 2 * _MAX_POINTS

_PRESSURE_AMPLITUDE: Final = 0.09  # fraction of the pen width, for each of the two waves
_WARP_X_AMPLITUDE: Final = (0.36, 0.22, 0.12, 0.08)
_WARP_Y_AMPLITUDE: Final = (0.18, 0.16, 0.14, 0.16)
_JITTER_AMPLITUDE: Final = 0.07

# Largest distance of the path from the center, in units of the factor scale, that keeps the ink
# inside the image: half the image minus the shift, half the thickest stroke and its soft edge.
_MAX_REACH: Final = (
    _REFERENCE_SIZE / 2
    - FACTOR_RANGES["shift_x"][1]
    - FACTOR_RANGES["thickness"][1] / 2 * (1 + 2 * _PRESSURE_AMPLITUDE)
    - 0.5
) / FACTOR_RANGES["scale"][1]


class Strokes(NamedTuple):
    """The factors and the wobble that determine a batch of images.

    Attributes:
        factors: Generative factors in the order of `FACTORS`, float32, (N, 7). The digit is a whole
            number from 0 to 9, the others lie in `FACTOR_RANGES`.
        wobble: Variation of the handwriting that is not a named factor: the way of writing the
            digit, the bending of its strokes and the pressure of the pen. float32 in [-1, 1],
            (N, W). Zero everywhere gives the plain template.
    """

    factors: Tensor
    wobble: Tensor


def draw_factors(n: int, seed: int) -> Strokes:
    """Draw independent, uniform factors and wobbles.

    The first images of a larger draw are those of a smaller one with the same seed. The global
    random state is neither used nor changed.

    Args:
        n: Number of images, 0 or more.
        seed: Seed of the draw.

    Returns:
        Factors (n, 7) and wobble (n, W), float32 on the CPU.

    Raises:
        ValueError: If ``n`` is negative.

    Example:
        >>> draw_factors(100, seed=0).factors.shape
        torch.Size([100, 7])
    """
    if n < 0:
        raise ValueError(f"the number of images must not be negative, got {n}")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    # One row per image, so that rows do not depend on their number.
    uniform = torch.rand(
        (n, len(FACTORS) + _WOBBLE_WIDTH), generator=generator, dtype=torch.float32, device="cpu"
    )
    factors = uniform[:, : len(FACTORS)].clone()
    factors[:, 0] = (factors[:, 0] * 10).floor().clamp(max=9)
    for column, name in enumerate(FACTORS[1:], start=1):
        low, high = FACTOR_RANGES[name]
        factors[:, column] = (low + (high - low) * factors[:, column]).clamp(low, high)
    wobble = uniform[:, len(FACTORS) :] * 2 - 1
    return Strokes(factors, wobble)


def render(strokes: Strokes, *, size: int = 28) -> Tensor:
    """Draw images from factors and wobbles.

    The same input gives the same image on every machine, independently of the other images in the
    batch. The paths of the pen are computed in float64, where machines may differ in the last bit,
    and rounded to float32. The pixels only need +, -, x, min and the square root, which IEEE 754
    specifies exactly. The remaining effect is negligible: relative errors of up to 1e-15 in every
    point of the paths of 70,000 images changed none of their 55 million pixels.

    Within `FACTOR_RANGES` the ink stays inside the image (in images smaller than 28 pixels the soft
    edge may touch the border). Digits with other factors may be cut off at the border.

    Args:
        strokes: Factors (N, 7) and wobble (N, W), as returned by `draw_factors`.
        size: Height and width of the images in pixels, at least 16.

    Returns:
        Images, uint8 on the CPU, (N, 1, size, size), from 0 (black background) to 255 (white ink).

    Raises:
        ValueError: If a shape is wrong, a digit is not a whole number from 0 to 9, a value is not
            finite, a thickness or scale is not positive, a wobble lies outside [-1, 1], or the
            size is too small.

    Example:
        >>> render(draw_factors(4, seed=0)).shape
        torch.Size([4, 1, 28, 28])
    """
    _check(strokes, size)
    factors = strokes.factors.detach().to("cpu", torch.float64)
    wobble = strokes.wobble.detach().to("cpu", torch.float64)
    images = torch.empty((len(factors), 1, size, size), dtype=torch.uint8)
    batch = max(1, _BATCH_PIXELS // size**2)
    for digit, ways in enumerate(_GLYPHS):
        rows = (factors[:, 0] == digit).nonzero().squeeze(1)
        variants = _variants(ways, wobble[rows, _VARIANT])
        for variant in range(len(ways)):
            chosen = rows[variants == variant]
            for start in range(0, len(chosen), batch):
                part = chosen[start : start + batch]
                ink = _ink(digit, variant, factors[part], wobble[part], size)
                images[part, 0] = ink.contiguous()
    return images


def _check(strokes: Strokes, size: int) -> None:
    """Raise a ValueError for invalid input, as documented in `render`."""
    factors, wobble = strokes
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(
            f"factors must have the shape (N, {len(FACTORS)}), got {tuple(factors.shape)}"
        )
    if wobble.shape != (len(factors), _WOBBLE_WIDTH):
        raise ValueError(
            f"wobble must have the shape ({len(factors)}, {_WOBBLE_WIDTH}), "
            f"got {tuple(wobble.shape)}"
        )
    if size < _MIN_SIZE:
        raise ValueError(f"the image size must be at least {_MIN_SIZE} pixels, got {size}")
    if not factors.isfinite().all():
        raise ValueError("every factor must be a finite number")
    digit = factors[:, FACTORS.index("digit")]
    if not ((digit >= 0) & (digit <= 9) & (digit == digit.floor())).all():
        raise ValueError("the factor digit must be a whole number from 0 to 9")
    for name in ("thickness", "scale"):
        if not (factors[:, FACTORS.index(name)] > 0).all():
            raise ValueError(f"the factor {name} must be positive")
    if not (wobble.abs() <= 1).all():
        raise ValueError("every wobble must lie between -1 and 1")


def _variants(ways: tuple[Glyph, ...], wobble: Tensor) -> Tensor:
    """Choose the way of writing a digit from one column of the wobble; near 0 the plain one.

    Args:
        ways: The ways of writing the digit.
        wobble: float64 in [-1, 1], (N,).

    Returns:
        Indices into ``ways``, int64, (N,).
    """
    shares = torch.tensor([glyph.share for glyph in ways[:-1]], dtype=torch.float64)
    return torch.bucketize(wobble.abs(), shares.cumsum(0), right=True)


class _Template(NamedTuple):
    """Precomputed tensors of a glyph with K points and P path points, all float64.

    Attributes:
        points: x and y in half heights from the center of the glyph's box, (2, K).
        warps_x: Horizontal displacements of the points by each field, (4, K).
        warps_y: Vertical displacements of the points by each field, (4, K).
        weights: Matrix from the points to closely and evenly spaced points on the curves, (K, P).
        waves: Modes of the pressure along the path, (2, P).
    """

    points: Tensor
    warps_x: Tensor
    warps_y: Tensor
    weights: Tensor
    waves: Tensor


@functools.cache
def _template(digit: int, variant: int, size: int) -> _Template:
    """Return the template of one way of writing a digit, for images of ``size`` pixels."""
    glyph = _GLYPHS[digit][variant]
    points = torch.tensor(glyph.points, dtype=torch.float64)
    points = ((points - (points.amax(0) + points.amin(0)) / 2) / 50).T.contiguous()
    x, y = points
    # width; wider at the top or the bottom; bow; s-bend
    warps_x = torch.stack([x, x * y, y**2, torch.sin(math.pi * y)])
    # horizontal lines rise or fall; middle higher or lower; one side taller; arch
    warps_y = torch.stack([x, 1 - y**2, x * y, x**2])
    low, high = FACTOR_RANGES["scale"]
    spacing = _POINT_SPACING * _REFERENCE_SIZE / size / ((low + high) / 2) * 100  # in glyph units
    weights = glyphs.curve_weights(glyph, spacing)
    time = torch.linspace(0, math.pi, weights.shape[1], dtype=torch.float64)
    return _Template(
        points=points,
        warps_x=warps_x * torch.tensor(_WARP_X_AMPLITUDE, dtype=torch.float64)[:, None],
        warps_y=warps_y * torch.tensor(_WARP_Y_AMPLITUDE, dtype=torch.float64)[:, None],
        weights=weights,
        waves=torch.stack([torch.cos(time), torch.cos(2 * time)]) * _PRESSURE_AMPLITUDE,
    )


def _pen_path(
    template: _Template, factors: Tensor, turn: Tensor, wobble: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Compute the path of the pen for images of one digit written in one way.

    Args:
        template: The way of writing the digit.
        factors: float64, (N, 7).
        turn: Cosine and sine of the rotation, float64, (N, 2).
        wobble: float64, (N, W).
        size: Image size in pixels.

    Returns:
        The path, x and y in pixels from the upper left corner of the image, (N, 2, P), and the
        pressure, pen width relative to the factor thickness, (N, P); both float64.
    """
    # Displace the plane as a whole, which keeps joined strokes joined and rings closed, and every
    # point a little on its own.
    bend = torch.stack(
        [
            _weighted_sum(wobble[:, _WARP_X], template.warps_x),
            _weighted_sum(wobble[:, _WARP_Y], template.warps_y),
        ],
        dim=1,
    )
    count = template.points.shape[1]
    jitter = wobble[:, _JITTER : _JITTER + 2 * count].reshape(-1, 2, count)
    points = template.points + bend + _JITTER_AMPLITUDE * jitter
    path = _weighted_sum(points, template.weights)  # (N, 2, P)

    # Normalize every path to a centered box of height 1, so that scale and shift mean what they
    # say. Paths so wide that their corners could leave the image get a smaller box.
    low, high = path.amin(2, keepdim=True), path.amax(2, keepdim=True)
    path = path - (low + high) / 2
    height = (high - low)[:, 1, 0]
    path = path / torch.maximum(height, _reach(path) / _MAX_REACH)[:, None, None]

    _, slant, _, _, scale, move_x, move_y = factors[:, :, None].unbind(1)
    cosine, sine = turn[:, :, None].unbind(1)
    x, y = (path * scale[:, :, None]).unbind(1)
    x, y = _lean(x, y, slant, cosine, sine)
    path = torch.stack([x + move_x, y + move_y], dim=1) * size / _REFERENCE_SIZE + size / 2
    return path, 1 + _weighted_sum(wobble[:, _PRESSURE], template.waves)


def _weighted_sum(weights: Tensor, terms: Tensor) -> Tensor:
    """Return the matrix product ``weights @ terms``.

    Unlike ``torch.matmul`` it sums in a fixed order, so that every machine and every batch size
    gives the same bits, and it does not wait for threads.

    Args:
        weights: (..., K).
        terms: (K, P).

    Returns:
        (..., P).
    """
    total = weights[..., :1] * terms[0]
    for k in range(1, len(terms)):
        total = total + weights[..., k : k + 1] * terms[k]
    return total


def _reach(path: Tensor) -> Tensor:
    """Return the largest distance of a path from its center over all slants and rotations.

    Args:
        path: Centered path, float64, (N, 2, P).

    Returns:
        Largest horizontal or vertical distance in units of the path, float64, (N,).
    """
    x, y = path.unbind(1)
    most = math.radians(FACTOR_RANGES["rotation"][1])
    reach = torch.zeros(len(path), dtype=path.dtype)
    for slant in FACTOR_RANGES["slant"]:
        # Between these angles the distance is at most 0.4% larger, a twentieth of a pixel.
        for angle in (-most, 0.0, most):
            turned_x, turned_y = _lean(x, y, slant, math.cos(angle), math.sin(angle))
            farthest = torch.maximum(turned_x.abs(), turned_y.abs()).amax(1)
            reach = torch.maximum(reach, farthest)
    return reach


def _lean(
    x: Tensor, y: Tensor, slant: Tensor | float, cosine: Tensor | float, sine: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Shear points to the right, then rotate them clockwise about the origin (y is down)."""
    x = x - slant * y
    return cosine * x - sine * y, sine * x + cosine * y


def _ink(digit: int, variant: int, factors: Tensor, wobble: Tensor, size: int) -> Tensor:
    """Draw images of one digit written in one way.

    Args:
        digit: The digit.
        variant: The way of writing it.
        factors: float64, (N, 7).
        wobble: float64, (N, W).
        size: Image size in pixels.

    Returns:
        Images, uint8, (N, size, size).
    """
    template = _template(digit, variant, size)
    rotation = torch.deg2rad(factors[:, FACTORS.index("rotation")])
    turn = torch.stack([torch.cos(rotation), torch.sin(rotation)], dim=1)
    # Images are the innermost dimension, whose length makes every operation fast.
    nearest = torch.empty((size, size, len(factors)), dtype=torch.float32)
    chunk = max(1, _CACHED_ROWS // size)
    for start in range(0, len(factors), chunk):
        part = slice(start, start + chunk)
        path, pressure = _pen_path(template, factors[part], turn[part], wobble[part], size)
        _nearest(path, pressure, nearest[:, :, part])
    thickness = factors[:, FACTORS.index("thickness")] * size / _REFERENCE_SIZE
    # The edge of the ink is a linear ramp one pixel wide.
    coverage = ((thickness / 2 + 0.5).float() - nearest.sqrt_()).clamp_(0, 1)
    return coverage.mul_(255).round_().to(torch.uint8).permute(2, 0, 1)


def _nearest(path: Tensor, pressure: Tensor, out: Tensor) -> None:
    """Compute the squared distance of every pixel to the nearest point of the path.

    Args:
        path: x and y of closely spaced points on the path in pixels, float64, (N, 2, P).
        pressure: Relative pen width at these points, float64, (N, P). Distances are divided by it,
            so that the ink ends at the same distance everywhere.
        out: Tensor that receives the squared distances in pixels squared, float32, (size, size, N).
    """
    size, _, count = out.shape
    centers = (torch.arange(size, dtype=torch.float32) + 0.5)[:, None]
    xy = path.float().permute(1, 2, 0).contiguous()
    weight = (1 / pressure).float().T.contiguous()
    # Squared horizontal and vertical distances to every point of the path, each (size, N).
    x2 = [(x - centers).mul_(w).square_() for x, w in zip(xy[0], weight, strict=True)]
    y2 = [(y - centers).mul_(w).square_()[:, None] for y, w in zip(xy[1], weight, strict=True)]
    height = max(1, _STRIP_ELEMENTS // (size * count))
    for top in range(0, size, height):
        best = torch.full(out[top : top + height].shape, math.inf, dtype=torch.float32)
        candidate = torch.empty_like(best)
        for point_x2, point_y2 in zip(x2, y2, strict=True):
            torch.add(point_y2[top : top + height], point_x2, out=candidate)
            torch.minimum(best, candidate, out=best)
        out[top : top + height] = best
