"""Handwritten-looking digits drawn from pen-stroke templates, with known generative factors.

A digit is a small set of smooth curves through a few points (``_GLYPHS``).  To draw one image the
points are bent a little by the random ``wobble`` (so that no two images of a class are alike),
the curves are placed in the image by the factors (scale, slant, rotation, shift), and every pixel
within half a pen width of a curve is inked, with an edge one pixel soft.

Nothing is read or downloaded, and the same factors give the same image on every machine: see
`render`.
"""

import functools
import math
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

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
    # Shear: how far right a point moves per unit of height. Positive leans to the right, "/".
    "slant": (-0.15, 0.35),
    # Width of the pen, pixels.
    "thickness": (1.8, 3.5),
    # Degrees, about the centre of the glyph, after the shear. Positive is clockwise.
    "rotation": (-10.0, 10.0),
    # Height of the path of the pen's tip before shear and rotation, pixels. A wide glyph
    # (many a 2 or 5) is smaller, by up to a third and by the same fraction at every scale, for
    # its corners to stay inside the image when it leans.
    "scale": (14.0, 18.0),
    # Pixels, positive to the right; applied last.
    "shift_x": (-1.5, 1.5),
    # Pixels, positive downwards; applied last.
    "shift_y": (-1.5, 1.5),
}
"""Lowest and highest value of each continuous factor, (low, high).

Pixels are those of a 28-pixel image; for another image size all lengths grow in proportion.
"""

_REFERENCE_SIZE: Final = 28
_MIN_SIZE: Final = 16  # below this the counters of a thick 8 or 9 close up
_POINT_SPACING: Final = 0.55  # pixels; leaves less than 0.05 px of ripple on the thinnest stroke
_BATCH_PIXELS: Final = 4096 * _REFERENCE_SIZE**2  # pixels held in memory at once: some 60 MB
_CACHED_ROWS: Final = 140 * _REFERENCE_SIZE  # rows of pixels inked at once: they fit in the cache
# Fewer elements than PyTorch splits over its threads (2**15).  The steps of the drawing are
# so short and so many that waiting for another thread costs more than it gains, and many times
# more when other work shares the cores.
_STRIP_ELEMENTS: Final = 32_000

_Point: TypeAlias = tuple[float, float]
_Curve: TypeAlias = tuple[_Point, ...]


class _Glyph(NamedTuple):
    """One way of writing a digit.

    Attributes:
        share: Fraction of the writers of the digit who write it so.
        curves: Smooth curves through the listed points, (x, y) with x to the right and y down, in
            a box 100 high.  A corner is where one curve ends and the next one starts.  Points with
            the same coordinates are one point, so curves that meet stay joined when bent.
    """

    share: float
    curves: tuple[_Curve, ...]


# For each digit the ways of writing it; the first one is the plain template (wobble 0).
_GLYPHS: Final[tuple[tuple[_Glyph, ...], ...]] = (
    (  # 0
        _Glyph(  # a ring, closed at the top where the pen runs a little over its own start
            0.5,
            (
                (
                    (50, 3),
                    (26, 8),
                    (7, 34),
                    (6, 66),
                    (22, 93),
                    (46, 98),
                    (70, 82),
                    (79, 50),
                    (70, 18),
                    (50, 3),
                    (31, 4),
                ),
            ),
        ),
        _Glyph(  # the end of the ring curls inwards
            0.25,
            (
                (
                    (60, 0),
                    (31, 8),
                    (8, 34),
                    (5, 66),
                    (22, 93),
                    (46, 98),
                    (70, 82),
                    (79, 50),
                    (72, 22),
                    (55, 10),
                    (36, 18),
                ),
            ),
        ),
        _Glyph(  # not quite closed at the top
            0.25,
            (
                (
                    (36, 2),
                    (14, 22),
                    (4, 54),
                    (12, 84),
                    (36, 99),
                    (62, 90),
                    (77, 60),
                    (72, 26),
                    (50, 5),
                    (34, 9),
                ),
            ),
        ),
    ),
    (  # 1
        _Glyph(0.65, (((12, 0), (10, 34), (9, 68), (8, 100)),)),  # a single down-stroke
        _Glyph(  # with a flag
            0.25,
            (((0, 20), (12, 12), (22, 0)), ((22, 0), (22, 34), (21, 68), (20, 100))),
        ),
        _Glyph(  # with a flag and a foot
            0.10,
            (
                ((4, 20), (16, 12), (26, 0)),
                ((26, 0), (25, 34), (24, 68), (23, 99)),
                ((0, 100), (23, 99), (48, 98)),
            ),
        ),
    ),
    (  # 2
        _Glyph(  # an arch, a sharp corner, a flat foot
            0.4,
            (
                ((4, 24), (14, 7), (36, 0), (58, 8), (62, 28), (48, 54), (24, 80), (2, 98)),
                ((2, 98), (24, 95), (48, 95), (77, 98)),
            ),
        ),
        _Glyph(  # a loop instead of the corner
            0.35,
            (
                (
                    (7, 22),
                    (19, 5),
                    (41, 0),
                    (60, 12),
                    (60, 34),
                    (43, 64),
                    (22, 89),
                    (6, 93),
                    (2, 83),
                    (17, 77),
                    (36, 87),
                    (55, 97),
                    (79, 93),
                ),
            ),
        ),
        _Glyph(  # a flat arch, like a z
            0.25,
            (
                ((2, 12), (19, 4), (46, 2), (62, 10), (55, 32), (31, 62), (5, 94)),
                ((5, 94), (26, 90), (50, 94), (82, 92)),
            ),
        ),
    ),
    (  # 3
        _Glyph(  # two bows and a cusp between them
            0.5,
            (
                ((7, 15), (24, 2), (48, 3), (59, 19), (48, 37), (24, 46)),
                ((24, 46), (52, 51), (65, 70), (55, 90), (29, 100), (2, 91)),
            ),
        ),
        _Glyph(  # a small loop between the bows
            0.25,
            (
                (
                    (7, 12),
                    (26, 1),
                    (50, 5),
                    (58, 22),
                    (43, 39),
                    (24, 48),
                    (18, 43),
                    (29, 41),
                    (53, 51),
                    (65, 71),
                    (53, 92),
                    (26, 100),
                    (0, 88),
                ),
            ),
        ),
        _Glyph(  # a straight top
            0.25,
            (
                ((7, 6), (31, 4), (60, 2)),
                ((60, 2), (46, 20), (24, 40)),
                ((24, 40), (50, 44), (66, 65), (54, 90), (26, 99), (0, 90)),
            ),
        ),
    ),
    (  # 4
        _Glyph(  # open at the top, with corners; the stem is a stroke of its own
            0.45,
            (
                ((14, 4), (10, 28), (4, 54)),
                ((4, 54), (29, 56), (55, 53), (77, 50)),
                ((62, 4), (58, 30), (53, 64), (48, 100)),
            ),
        ),
        _Glyph(  # open, the left side a round cup that runs into the stem
            0.35,
            (
                ((12, 2), (4, 26), (10, 46), (34, 53), (60, 48), (79, 40)),
                ((66, 4), (61, 36), (55, 68), (50, 100)),
            ),
        ),
        _Glyph(  # closed at the top
            0.2,
            (
                ((55, 0), (29, 34), (0, 66)),
                ((0, 66), (36, 66), (82, 63)),
                ((55, 0), (54, 34), (52, 66), (49, 100)),
            ),
        ),
    ),
    (  # 5
        _Glyph(  # neck and bowl, then a bar from the top of the neck
            0.5,
            (
                ((19, 4), (14, 24), (10, 44)),
                ((10, 44), (34, 38), (58, 49), (62, 72), (46, 94), (22, 99), (0, 90)),
                ((19, 4), (43, 4), (72, 0)),
            ),
        ),
        _Glyph(  # in one go, nearly an s
            0.3,
            (
                (
                    (70, 2),
                    (43, 1),
                    (22, 9),
                    (16, 28),
                    (31, 42),
                    (53, 55),
                    (58, 76),
                    (41, 95),
                    (17, 99),
                    (0, 90),
                ),
            ),
        ),
        _Glyph(  # the bar does not touch the neck
            0.2,
            (
                ((19, 10), (14, 28), (10, 46)),
                ((10, 46), (31, 40), (55, 50), (60, 72), (46, 92), (19, 98), (0, 88)),
                ((29, 4), (50, 4), (77, 0)),
            ),
        ),
    ),
    (  # 6
        _Glyph(  # a leaning stem and a round bowl
            0.5,
            (
                (
                    (53, 0),
                    (31, 18),
                    (12, 44),
                    (5, 72),
                    (17, 95),
                    (40, 99),
                    (59, 84),
                    (55, 64),
                    (36, 57),
                    (17, 67),
                    (7, 82),
                ),
            ),
        ),
        _Glyph(  # an upright stem and a low bowl
            0.3,
            (
                (
                    (29, 0),
                    (13, 26),
                    (4, 58),
                    (10, 90),
                    (34, 100),
                    (58, 89),
                    (58, 70),
                    (36, 62),
                    (10, 78),
                ),
            ),
        ),
        _Glyph(  # the stem starts with a hook
            0.2,
            (
                (
                    (65, 12),
                    (53, 1),
                    (31, 10),
                    (11, 38),
                    (5, 70),
                    (17, 94),
                    (41, 99),
                    (60, 84),
                    (56, 62),
                    (36, 54),
                    (14, 66),
                ),
            ),
        ),
    ),
    (  # 7
        _Glyph(  # a bar and a leg
            0.5,
            (((2, 10), (31, 8), (65, 4)), ((65, 4), (50, 34), (36, 66), (24, 100))),
        ),
        _Glyph(  # the bar starts with a short down-stroke
            0.2,
            (
                ((2, 24), (5, 6)),
                ((5, 6), (34, 8), (65, 4)),
                ((65, 4), (53, 34), (41, 66), (34, 100)),
            ),
        ),
        _Glyph(  # a second bar across the leg
            0.15,
            (
                ((0, 8), (31, 6), (67, 3)),
                ((67, 3), (50, 34), (36, 66), (24, 100)),
                ((17, 54), (41, 51), (67, 48)),
            ),
        ),
        _Glyph(  # a round shoulder
            0.15,
            (((2, 12), (22, 3), (48, 3), (60, 16), (50, 44), (38, 70), (29, 100)),),
        ),
    ),
    (  # 8
        _Glyph(  # in one go, starting like an s at the top right
            0.55,
            (
                (
                    (60, 14),
                    (43, 0),
                    (17, 5),
                    (11, 24),
                    (31, 43),
                    (53, 61),
                    (56, 84),
                    (34, 99),
                    (8, 91),
                    (6, 71),
                    (26, 53),
                    (50, 36),
                    (60, 14),
                ),
            ),
        ),
        _Glyph(  # two rings
            0.2,
            (
                ((34, 47), (13, 36), (11, 13), (34, 0), (55, 12), (54, 35), (34, 47)),
                ((34, 47), (8, 60), (4, 84), (30, 100), (60, 88), (59, 62), (34, 47)),
            ),
        ),
        _Glyph(  # not quite closed at the top
            0.25,
            (
                (
                    (62, 8),
                    (38, 1),
                    (16, 9),
                    (17, 28),
                    (38, 44),
                    (55, 64),
                    (50, 90),
                    (26, 100),
                    (5, 86),
                    (12, 66),
                    (36, 48),
                    (58, 30),
                    (72, 14),
                ),
            ),
        ),
    ),
    (  # 9
        _Glyph(  # a ring and a nearly straight stem
            0.5,
            (
                ((58, 12), (36, 1), (12, 11), (5, 33), (22, 47), (46, 38), (58, 12)),
                ((58, 12), (56, 42), (52, 70), (46, 100)),
            ),
        ),
        _Glyph(  # the stem ends in a hook
            0.25,
            (
                ((60, 14), (38, 0), (12, 9), (5, 32), (22, 46), (46, 38), (60, 14)),
                ((60, 14), (61, 46), (55, 78), (36, 98), (10, 93)),
            ),
        ),
        _Glyph(  # the ring is open at the top right
            0.25,
            (
                ((50, 4), (22, 4), (4, 24), (10, 44), (34, 44), (60, 24), (67, 6)),
                ((67, 6), (58, 38), (46, 70), (36, 100)),
            ),
        ),
    ),
)


def _points(glyph: _Glyph) -> list[_Point]:
    """Returns the distinct points of a glyph, in the order they are first written."""
    return list(dict.fromkeys(point for curve in glyph.curves for point in curve))


# Columns of the wobble. Amplitudes are in half heights of the glyph unless said otherwise.
_VARIANT: Final = 0  # which of the ways of writing the digit
_PRESSURE: Final = slice(1, 3)  # how the pen width changes along the path
_WARP_X: Final = slice(3, 7)  # bends of the plane, sideways
_WARP_Y: Final = slice(7, 11)  # and up and down
_JITTER: Final = 11  # from here on: x of every point of the glyph, then y
_MAX_POINTS: Final = max(len(_points(glyph)) for glyphs in _GLYPHS for glyph in glyphs)
_WOBBLE_WIDTH: Final = _JITTER + 2 * _MAX_POINTS

_PRESSURE_AMPLITUDE: Final = 0.09  # of the pen width, for each of the two waves
_WARP_X_AMPLITUDE: Final = (0.36, 0.22, 0.12, 0.08)
_WARP_Y_AMPLITUDE: Final = (0.18, 0.16, 0.14, 0.16)
_JITTER_AMPLITUDE: Final = 0.07

# How far from the centre the path may get, in units of the factor scale, for the ink to stay
# inside the image: what is left beside the shift, half the thickest stroke and its soft edge.
_MAX_REACH: Final = (
    _REFERENCE_SIZE / 2
    - FACTOR_RANGES["shift_x"][1]
    - FACTOR_RANGES["thickness"][1] / 2 * (1 + 2 * _PRESSURE_AMPLITUDE)
    - 0.5
) / FACTOR_RANGES["scale"][1]


class Strokes(NamedTuple):
    """What determines a batch of images.

    Attributes:
        factors: (N, 7) float32, the generative factors in the order of `FACTORS`; the digit is a
            whole number from 0 to 9, the others lie in `FACTOR_RANGES`.
        wobble: (N, W) float32 in [-1, 1], the variety of handwriting that is not a named factor:
            the way of writing the digit, how its strokes bend and how the pressure varies.
            0 everywhere is the plain template.
    """

    factors: Tensor
    wobble: Tensor


def draw_factors(n: int, seed: int) -> Strokes:
    """Draws independent, uniform factors and wobbles for n images.

    The first images of a larger draw are those of a smaller one with the same seed.  The global
    random state is neither used nor changed.

    Args:
        n: Number of images, 0 or more.
        seed: Seed of the draw.

    Returns:
        Factors (n, 7) and wobble (n, W), float32 on the CPU.

    Raises:
        ValueError: If n is negative.
    """
    if n < 0:
        raise ValueError(f"the number of images must not be negative, got {n}")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    # One row for each image, so that the rows do not depend on how many there are.
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
    """Draws the images that the factors and wobbles describe.

    The same input gives the same image everywhere, whatever it is drawn together with.  The paths
    of the pen are computed in float64, where machines may differ in the last bit, and then rounded
    to float32; the pixels only need +, -, x, min and the square root, which IEEE 754 fixes to the
    bit.  What is left is tiny: relative errors up to 1e-15 in every point of the paths of 70,000
    images changed none of their 55 million pixels.

    Within `FACTOR_RANGES` the ink stays inside the image (in images smaller than 28 pixels the
    soft edge may touch the border).  Factors beyond are drawn too, but may be cut off there.

    Args:
        strokes: Factors (N, 7) and wobble (N, W), as from `draw_factors`.
        size: Height and width of the images in pixels, at least 16.

    Returns:
        (N, 1, size, size) uint8 on the CPU, 0 for the black ground to 255 for the white ink.

    Raises:
        ValueError: If a shape is wrong, a digit is not a whole number from 0 to 9, a value is not
            finite, a thickness or scale is not positive, a wobble lies outside [-1, 1], or the
            size is too small.
    """
    _check(strokes, size)
    factors = strokes.factors.detach().to("cpu", torch.float64)
    wobble = strokes.wobble.detach().to("cpu", torch.float64)
    images = torch.empty((len(factors), 1, size, size), dtype=torch.uint8)
    batch = max(1, _BATCH_PIXELS // size**2)
    for digit, glyphs in enumerate(_GLYPHS):
        rows = (factors[:, 0] == digit).nonzero().squeeze(1)
        variants = _variants(glyphs, wobble[rows, _VARIANT])
        for variant in range(len(glyphs)):
            chosen = rows[variants == variant]
            for start in range(0, len(chosen), batch):
                part = chosen[start : start + batch]
                ink = _ink(digit, variant, factors[part], wobble[part], size)
                images[part, 0] = ink.contiguous()
    return images


def _check(strokes: Strokes, size: int) -> None:
    """Raises ValueError, as documented in `render`, if the input makes no sense."""
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


def _variants(glyphs: tuple[_Glyph, ...], wobble: Tensor) -> Tensor:
    """Chooses the way of writing a digit from one wobble, the first (plain) one where it is near 0.

    Args:
        glyphs: The ways of writing the digit.
        wobble: (N,) float64 in [-1, 1].

    Returns:
        (N,) int64, indices into ``glyphs``.
    """
    shares = torch.tensor([glyph.share for glyph in glyphs[:-1]], dtype=torch.float64)
    return torch.bucketize(wobble.abs(), shares.cumsum(0), right=True)


class _Template(NamedTuple):
    """What all images of a glyph have in common; all float64, for K points and P path points.

    Attributes:
        points: (2, K), x and y in half heights from the centre of the glyph's box.
        warps_x: (4, K), how the bends of the plane move the points sideways.
        warps_y: (4, K), and up and down.
        weights: (K, P), turns the points into closely and evenly spaced points on the curves.
        waves: (2, P), how the pressure may vary along the path.
    """

    points: Tensor
    warps_x: Tensor
    warps_y: Tensor
    weights: Tensor
    waves: Tensor


@functools.cache
def _template(digit: int, variant: int, size: int) -> _Template:
    """Prepares one way of writing a digit for images of a size in pixels."""
    points = torch.tensor(_points(_GLYPHS[digit][variant]), dtype=torch.float64)
    points = ((points - (points.amax(0) + points.amin(0)) / 2) / 50).T.contiguous()
    x, y = points
    # width; wider at the top or the bottom; bow; s-bend
    warps_x = torch.stack([x, x * y, y**2, torch.sin(math.pi * y)])
    # horizontals rise or fall; the middle higher or lower; one side taller; arch
    warps_y = torch.stack([x, 1 - y**2, x * y, x**2])
    weights = _curve_weights(_GLYPHS[digit][variant], size)
    time = torch.linspace(0, math.pi, weights.shape[1], dtype=torch.float64)
    return _Template(
        points=points,
        warps_x=warps_x * torch.tensor(_WARP_X_AMPLITUDE, dtype=torch.float64)[:, None],
        warps_y=warps_y * torch.tensor(_WARP_Y_AMPLITUDE, dtype=torch.float64)[:, None],
        weights=weights,
        waves=torch.stack([torch.cos(time), torch.cos(2 * time)]) * _PRESSURE_AMPLITUDE,
    )


def _curve_weights(glyph: _Glyph, size: int) -> Tensor:
    """Weights that turn the points of a glyph into closely and evenly spaced points on its curves.

    The curves are centripetal Catmull-Rom splines: smooth, through every point, without loops or
    overshoot where points are unevenly spaced.  With the knots taken from the template they are
    linear in the points, so bending a glyph is one matrix product.

    Args:
        glyph: Way of writing a digit.
        size: Image size, pixels; a larger image needs more points on the path.

    Returns:
        (K, P) float64 for the K points of the glyph.
    """
    points = _points(glyph)
    xy = torch.tensor(points, dtype=torch.float64)
    unit = torch.eye(len(points), dtype=torch.float64)
    low, high = FACTOR_RANGES["scale"]
    spacing = _POINT_SPACING * _REFERENCE_SIZE / size / ((low + high) / 2) * 100  # template units
    fine = torch.linspace(0, 1, 65, dtype=torch.float64)[:, None]
    weights = []
    for curve in glyph.curves:
        index = torch.tensor([points.index(point) for point in curve])
        knots = (xy[index[1:]] - xy[index[:-1]]).norm(dim=1).sqrt()  # centripetal
        slopes = (unit[index[1:]] - unit[index[:-1]]) / knots[:, None]
        # The derivative at a point is the mean of the slopes on both sides, the nearer one
        # counting more; at an end it is that of a parabola through the last three points.
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


def _pen_path(
    template: _Template, factors: Tensor, turn: Tensor, wobble: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Computes where the pen goes, for images of one digit written in one way.

    Args:
        template: The way of writing the digit.
        factors: (N, 7) float64.
        turn: (N, 2) float64, cosine and sine of the rotation.
        wobble: (N, W) float64.
        size: Image size, pixels.

    Returns:
        Path (N, 2, P), x and y in pixels from the top left corner of the image, and pressure
        (N, P), pen width relative to the factor thickness; both float64.
    """
    # Bend the plane as a whole, which keeps joined strokes joined and rings closed, and move
    # every point a little on its own.
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

    # Bring every path to the same box again, so that scale and shift mean what they say: one
    # high, unless it is so wide that its corners could get out of the image.
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
    """Multiplies two matrices, ``weights @ terms``.

    Unlike the library's product it sums in a fixed order, so that every machine and every batch
    size gives the same bits, and it does not wait for threads.

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
    """Measures how far from its centre a path can get, over all slants and rotations in range.

    Args:
        path: (N, 2, P) float64, centred.

    Returns:
        (N,) float64, the largest distance sideways or up and down, in the units of the path.
    """
    x, y = path.unbind(1)
    most = math.radians(FACTOR_RANGES["rotation"][1])
    reach = torch.zeros(len(path), dtype=path.dtype)
    for slant in FACTOR_RANGES["slant"]:
        # Half-way between these angles it is at most 0.4 % more, a twentieth of a pixel.
        for angle in (-most, 0.0, most):
            turned_x, turned_y = _lean(x, y, slant, math.cos(angle), math.sin(angle))
            farthest = torch.maximum(turned_x.abs(), turned_y.abs()).amax(1)
            reach = torch.maximum(reach, farthest)
    return reach


def _lean(
    x: Tensor, y: Tensor, slant: Tensor | float, cosine: Tensor | float, sine: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Shears points to the right, then rotates them clockwise, about the origin (y is down)."""
    x = x - slant * y
    return cosine * x - sine * y, sine * x + cosine * y


def _ink(digit: int, variant: int, factors: Tensor, wobble: Tensor, size: int) -> Tensor:
    """Draws images of one digit written in one way.

    Args:
        digit: The digit.
        variant: The way of writing it.
        factors: (N, 7) float64.
        wobble: (N, W) float64.
        size: Image size, pixels.

    Returns:
        (N, size, size) uint8.
    """
    template = _template(digit, variant, size)
    rotation = torch.deg2rad(factors[:, FACTORS.index("rotation")])
    turn = torch.stack([torch.cos(rotation), torch.sin(rotation)], dim=1)
    # The images come last in memory: the long axis makes each step one fast pass.
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
    """Finds for every pixel the squared distance to the nearest point of the path.

    Args:
        path: (N, 2, P) float64, x and y of closely spaced points on the path, pixels.
        pressure: (N, P) float64, relative pen width there; the distances are divided by it, so
            that the ink ends at the same value of them everywhere.
        out: (size, size, N) float32, receives the squared distances, pixels squared.
    """
    size, _, count = out.shape
    centres = (torch.arange(size, dtype=torch.float32) + 0.5)[:, None]
    xy = path.float().permute(1, 2, 0).contiguous()
    weight = (1 / pressure).float().T.contiguous()
    # Squared distances across and down, each (size, N), for every point of the path.
    x2 = [(x - centres).mul_(w).square_() for x, w in zip(xy[0], weight, strict=True)]
    y2 = [(y - centres).mul_(w).square_()[:, None] for y, w in zip(xy[1], weight, strict=True)]
    height = max(1, _STRIP_ELEMENTS // (size * count))
    for top in range(0, size, height):
        best = torch.full(out[top : top + height].shape, math.inf, dtype=torch.float32)
        candidate = torch.empty_like(best)
        for point_x2, point_y2 in zip(x2, y2, strict=True):
            torch.add(point_y2[top : top + height], point_x2, out=candidate)
            torch.minimum(best, candidate, out=best)
        out[top : top + height] = best
