"""Tests of the renderer of handwritten-looking digits."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from vae_lightning.data import strokes as module
from vae_lightning.data.strokes import FACTOR_RANGES, FACTORS, Strokes, draw_factors, render

DIGITS = range(10)

# Of the draw of 1000 images with seed 0.
KNOWN_FACTORS = [4.0, 0.23411, 1.95041, -7.35939, 15.22969, 0.40224, -0.02972]
KNOWN_MEAN = 0.124738
KNOWN_STD = 0.305281


def plain(digit: int, **values: float) -> Strokes:
    """One image of the plain template, upright and centered but for the given factors."""
    factors = {"slant": 0.0, "thickness": 2.5, "rotation": 0.0, "scale": 16.0}
    factors |= {"digit": float(digit), "shift_x": 0.0, "shift_y": 0.0} | values
    row = torch.tensor([[factors[name] for name in FACTORS]])
    return Strokes(row, torch.zeros(1, draw_factors(0, 0).wobble.shape[1]))


def ink(digit: int, size: int = 28, **values: float) -> Tensor:
    """The same rendered, (size, size) float64 in [0, 1]."""
    return render(plain(digit, **values), size=size)[0, 0].double() / 255


def center(image: Tensor) -> tuple[float, float]:
    """Center of mass, x and y in pixels."""
    axis = torch.arange(image.shape[0]) + 0.5
    mass = image.sum()
    return float((image.sum(0) * axis).sum() / mass), float((image.sum(1) * axis).sum() / mass)


def lean(image: Tensor) -> float:
    """How far right the ink moves per pixel upwards: the regression of x on height."""
    x, y = center(image)
    axis = torch.arange(image.shape[0]) + 0.5
    dx, dy = axis[None, :] - x, axis[:, None] - y
    return float(-(image * dx * dy).sum() / (image * dy**2).sum())


def test_draw_has_the_documented_form() -> None:
    factors, wobble = draw_factors(2000, seed=1)
    assert factors.shape == (2000, len(FACTORS))
    assert factors.dtype == wobble.dtype == torch.float32
    assert len(wobble) == 2000
    assert wobble.abs().max() <= 1
    for column, name in enumerate(FACTORS[1:], start=1):
        low, high = FACTOR_RANGES[name]
        drawn = (factors[:, column] - low) / (high - low)
        assert -1e-6 <= drawn.min() < 0.01
        assert 0.99 < drawn.max() <= 1 + 1e-6
        assert drawn.mean() == pytest.approx(0.5, abs=0.03)


def test_digits_are_balanced() -> None:
    digits = draw_factors(20_000, seed=2).factors[:, 0]
    assert torch.equal(digits, digits.round())
    counts = torch.bincount(digits.long(), minlength=10)
    assert len(counts) == 10
    # Five standard deviations of a binomial count.
    assert (counts - 2000).abs().max() < 5 * math.sqrt(20_000 * 0.1 * 0.9)


def test_factors_and_wobble_are_uncorrelated() -> None:
    drawn = torch.cat(draw_factors(20_000, seed=3), dim=1)
    correlation = torch.corrcoef(drawn.T) - torch.eye(drawn.shape[1])
    assert correlation.abs().max() < 0.04


def test_draw_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw_factors(50, seed=7)
    torch.manual_seed(1)
    again, other, longer = draw_factors(50, 7), draw_factors(50, 8), draw_factors(80, 7)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c, d in zip(first, again, other, longer, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert torch.equal(a, d[:50])


def test_the_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    render(draw_factors(20, seed=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_known_draw() -> None:
    # The first factors of a seed, so that a change of the data set does not go unnoticed.
    drawn = draw_factors(1000, seed=0)
    images = render(drawn).double() / 255
    assert drawn.factors[0].tolist() == pytest.approx(KNOWN_FACTORS, abs=1e-4)
    assert float(images.mean()) == pytest.approx(KNOWN_MEAN, abs=2e-5)
    assert float(images.std()) == pytest.approx(KNOWN_STD, abs=2e-5)


def test_images_look_like_ink_on_black() -> None:
    images = render(draw_factors(1000, seed=4))
    assert images.shape == (1000, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert images.flatten(1).amax(1).min() == 255
    assert 0.10 < float(images.double().mean()) / 255 < 0.15
    # Mostly ground or full ink, a soft edge between.
    assert 0.65 < float((images == 0).double().mean()) < 0.85


@pytest.mark.parametrize("size", [16, 28, 37])
def test_render_does_not_depend_on_the_batch(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw_factors(300, seed=5)
    images = render(drawn, size=size)
    assert images.shape == (300, 1, size, size)
    assert torch.equal(images, render(drawn, size=size))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:60]
    some = Strokes(drawn.factors[order], drawn.wobble[order])
    assert torch.equal(render(some, size=size), images[order])
    monkeypatch.setattr(module, "_BATCH_PIXELS", 7 * size**2)
    monkeypatch.setattr(module, "_CACHED_ROWS", 3 * size)
    monkeypatch.setattr(module, "_STRIP_ELEMENTS", 5 * size)
    assert torch.equal(render(some, size=size), images[order])


def test_no_images() -> None:
    assert render(draw_factors(0, seed=0)).shape == (0, 1, 28, 28)


def test_input_is_not_changed() -> None:
    drawn = draw_factors(20, seed=6)
    before = Strokes(drawn.factors.clone(), drawn.wobble.clone())
    render(drawn)
    assert torch.equal(drawn.factors, before.factors)
    assert torch.equal(drawn.wobble, before.wobble)


def test_a_last_bit_hardly_matters() -> None:
    # Far more than machines differ by: a float32 bit on every factor.
    drawn = draw_factors(300, seed=7)
    factors = drawn.factors.clone()
    factors[:, 1:] = torch.nextafter(factors[:, 1:], torch.tensor(math.inf))
    changed = (render(drawn).int() - render(Strokes(factors, drawn.wobble)).int()).abs()
    assert changed.max() <= 1
    assert (changed > 0).double().mean() < 1e-3


@pytest.mark.parametrize("digit", DIGITS)
def test_shift_moves_the_center_of_mass(digit: int) -> None:
    x, y = center(ink(digit))
    for move_x, move_y in [(1.5, 0.0), (0.0, -1.5), (-0.7, 1.1)]:
        moved_x, moved_y = center(ink(digit, shift_x=move_x, shift_y=move_y))
        # The soft edge keeps the amount of ink between the pixels only roughly.
        assert moved_x - x == pytest.approx(move_x, abs=0.1)
        assert moved_y - y == pytest.approx(move_y, abs=0.1)
    # By whole pixels it is the same image, but for the last bit.
    right, down = ink(digit, shift_x=1.0), ink(digit, shift_y=1.0)
    assert (right - ink(digit).roll(1, dims=1)).abs().max() < 1.5 / 255
    assert (down - ink(digit).roll(1, dims=0)).abs().max() < 1.5 / 255


@pytest.mark.parametrize("digit", DIGITS)
def test_thickness_adds_ink(digit: int) -> None:
    low, high = FACTOR_RANGES["thickness"]
    amounts = [float(ink(digit, thickness=t).sum()) for t in torch.linspace(low, high, 6).tolist()]
    assert all(b > 1.05 * a for a, b in itertools.pairwise(amounts))


@pytest.mark.parametrize("scale", FACTOR_RANGES["scale"])
@pytest.mark.parametrize("thickness", [1.8, 2.6, 3.5])
def test_thickness_is_the_width_of_the_stroke_at_any_scale(scale: float, thickness: float) -> None:
    # The plain 1 is nearly a vertical line: the ink in a row is its width.
    rows = ink(1, scale=scale, thickness=thickness)[10:18].sum(1)
    assert float(rows.mean()) == pytest.approx(thickness, abs=0.06)


@pytest.mark.parametrize("digit", DIGITS)
def test_slant_is_a_shear(digit: int) -> None:
    upright = lean(ink(digit))
    for slant in FACTOR_RANGES["slant"]:
        image = ink(digit, slant=slant)
        # The pen is not sheared, so the ink follows the path only roughly.
        assert lean(image) - upright == pytest.approx(slant, rel=0.25)
        # A shear leaves the height of every point as it was.
        assert float(image.sum(1).nonzero().min()) == float(ink(digit).sum(1).nonzero().min())


@pytest.mark.parametrize("digit", DIGITS)
def test_rotation_is_a_rotation(digit: int) -> None:
    # Turning a large image back by interpolation gives the upright one again.
    upright = ink(digit, size=112)
    for angle in FACTOR_RANGES["rotation"]:
        turned = ink(digit, size=112, rotation=angle)
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        back = torch.tensor([[[cosine, -sine, 0], [sine, cosine, 0]]], dtype=torch.float64)
        grid = torch.nn.functional.affine_grid(back, [1, 1, 112, 112], align_corners=False)
        restored = torch.nn.functional.grid_sample(turned[None, None], grid, align_corners=False)
        assert (restored[0, 0] - upright).abs().sum() < 0.06 * upright.sum()
        assert (turned - upright).abs().sum() > 0.15 * upright.sum()
        # Positive is clockwise: the top moves to the right.
        assert math.copysign(1, lean(turned) - lean(upright)) == math.copysign(1, angle)


@pytest.mark.parametrize("digit", DIGITS)
def test_scale_is_the_height_of_the_path(digit: int) -> None:
    def height(scale: float) -> float:
        # The soft edge makes the profile's end at half ink the exact outline.
        columns = ink(digit, scale=scale, thickness=2.0)
        rows = columns.amax(1)
        return float(rows.sum())

    low, high = FACTOR_RANGES["scale"]
    growth = height(high) - height(low)
    # A plain glyph with far corners is shrunk by some percent to stay inside the image.
    assert 0.8 * (high - low) < growth < 1.1 * (high - low)


def test_wobble_gives_variety_within_a_class() -> None:
    drawn = draw_factors(200, seed=8)
    for digit in DIGITS:
        same = plain(digit)
        factors = same.factors.expand(200, -1)
        images = render(Strokes(factors, drawn.wobble)).double() / 255
        template = render(same).double() / 255
        changed = (images - template).abs().sum((1, 2, 3)) / template.sum()
        assert changed.median() > 0.3


def test_no_wobble_is_the_first_way_of_writing() -> None:
    for digit in DIGITS:
        nearly = plain(digit)
        nearly.wobble[:, 0] = 0.05
        assert torch.equal(render(nearly), render(plain(digit)))
        shares = [glyph.share for glyph in module._GLYPHS[digit]]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0.05


def test_ink_stays_inside_over_the_corners_of_the_factors() -> None:
    corners = torch.tensor(list(itertools.product(*(FACTOR_RANGES[n] for n in FACTORS[1:]))))
    generator = torch.Generator().manual_seed(9)
    width = draw_factors(0, 0).wobble.shape[1]
    for digit in DIGITS:
        count = 4 * len(corners)
        factors = torch.cat([torch.full((count, 1), float(digit)), corners.repeat(4, 1)], dim=1)
        wobble = torch.rand((count, width), generator=generator) * 2 - 1
        wobble[: count // 4] = 0
        wobble[count // 2 :, 1:] = wobble[count // 2 :, 1:].sign()
        images = render(Strokes(factors, wobble))[:, 0]
        border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
        # The edge is one pixel soft, so a stroke that ends at the border inks half the last pixel.
        assert border.max() <= 128


def test_larger_images_show_the_same() -> None:
    drawn = draw_factors(30, seed=10)
    large = render(drawn, size=112).double()
    small = render(drawn, size=28).double()
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert ((shrunk - small).abs().mean() / small.mean()) < 0.08


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="negative"):
        draw_factors(-1, seed=0)
    good = draw_factors(3, seed=0)
    with pytest.raises(ValueError, match="size"):
        render(good, size=15)
    with pytest.raises(ValueError, match="factors must have the shape"):
        render(Strokes(good.factors[:, :-1], good.wobble))
    with pytest.raises(ValueError, match="factors must have the shape"):
        render(Strokes(good.factors[0], good.wobble[0]))
    with pytest.raises(ValueError, match="wobble must have the shape"):
        render(Strokes(good.factors, good.wobble[:2]))
    with pytest.raises(ValueError, match="wobble must lie"):
        render(Strokes(good.factors, good.wobble + 2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("digit", -1.0, "digit"),
        ("digit", 10.0, "digit"),
        ("digit", 2.5, "digit"),
        ("digit", math.nan, "finite"),
        ("rotation", math.inf, "finite"),
        ("thickness", 0.0, "thickness"),
        ("scale", -1.0, "scale"),
    ],
)
def test_bad_factors(name: str, value: float, message: str) -> None:
    drawn = draw_factors(3, seed=0)
    drawn.factors[1, FACTORS.index(name)] = value
    with pytest.raises(ValueError, match=message):
        render(drawn)
