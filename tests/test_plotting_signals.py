"""Pictures of signals, of rows of tables, and of images with any number of channels."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb as color_of
from matplotlib.figure import Figure
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.plotting import signals
from vae_lightning.plotting.channels import to_rgb
from vae_lightning.plotting.style import CLASS_COLORS

MAGENTA = (224, 32, 160)
WHITE = (255, 255, 255)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def levels(color: str) -> np.ndarray:
    return np.rint(255 * np.array(color_of(color)))


PAPER, SHADE = levels("#eef0f3"), levels("#a3acb6")
FIRST = levels(CLASS_COLORS[0])


def ink(pixels: np.ndarray) -> np.ndarray:
    """Return how much of the first color each pixel has, by its red, from 0 to 1 (white: 0)."""
    return ((PAPER[0] - pixels[..., 0]) / (PAPER[0] - FIRST[0])).clip(0, 1)


def height(picture: np.ndarray, left: int = 40, right: int = 90) -> float:
    """Return the mean height of a horizontal curve above the bottom, where no white line is."""
    share = ink(picture[:, left:right]).sum(1)
    return float((share * (len(picture) - 0.5 - np.arange(len(picture)))).sum() / share.sum())


def row_of(column: np.ndarray, color: object) -> int:
    """Return the row of a column of pixels, (h, 3), that is most like a color."""
    distance = np.abs(column.astype(float) - np.asarray(color)).sum(-1)
    assert distance.min() < 150
    return int(distance.argmin())


ZERO, ONE = 0.07 * 88, 0.93 * 88
"""Where 0 and 1 are in a tile of 88 rows, in pixels above the bottom."""


def is_color(pixels: np.ndarray, color: object) -> np.ndarray:
    return (np.abs(pixels.astype(int) - np.asarray(color)) <= 6).all(-1)


def constant(*values: float, length: int = 100) -> Tensor:
    """Return one constant signal with a channel per value, (1, C, 1, D)."""
    return torch.tensor(values)[None, :, None, None].expand(1, len(values), 1, length)


def panel(figure: Figure) -> np.ndarray:
    """Return the rendered pixels inside the axes."""
    picture = plotting.to_array(figure)
    box = figure.axes[0].bbox
    x0, x1, y0, y1 = (round(v) for v in (box.x0, box.x1, box.y0, box.y1))
    return picture[len(picture) - y1 : len(picture) - y0, x0:x1]


# --- Curves ---------------------------------------------------------------------------------------


def test_curves_are_on_a_linear_scale_with_lines_at_zero_and_one() -> None:
    for value in (0.1, 0.25, 0.5, 0.9):
        picture = plotting.pictures(constant(value))[0]
        assert height(picture) == pytest.approx(ZERO + value * (ONE - ZERO), abs=0.1)
        lines = np.flatnonzero((picture == 255).all((1, 2)))
        assert lines.tolist() == [int(88 - ONE), int(88 - ZERO)]


def test_what_is_slightly_outside_is_shown_and_the_rest_is_clipped() -> None:
    def drawn(value: float) -> np.ndarray:
        return plotting.pictures(constant(value))[0]

    assert height(drawn(1.05)) == pytest.approx(ZERO + 1.05 * (ONE - ZERO), abs=0.1)
    assert height(drawn(-0.05)) == pytest.approx(ZERO - 0.05 * (ONE - ZERO), abs=0.1)
    assert np.array_equal(drawn(1.5), drawn(math.inf))
    assert np.array_equal(drawn(-7.0), drawn(-math.inf))
    assert ink(drawn(9.0))[0, 5:-5].min() > 0.8  # along the edge, whole


@pytest.mark.parametrize("length", [33, 100, 700, 5001])
def test_a_value_is_where_it_belongs(length: int) -> None:
    """A peak of one value, which in the longest signal is 1/20 of a pixel wide, is not lost."""
    places = [0, 1, length // 3, length // 2 + 1, length - 2, length - 1]
    x = torch.zeros(len(places), 1, 1, length)
    x[range(len(places)), 0, 0, places] = 1
    pictures = plotting.pictures(x)
    top = round(0.07 * 88)
    for place, picture in zip(places, pictures, strict=True):
        row = ink(picture[top - 1 : top + 3]).max(0)
        peak = np.flatnonzero(row > 0.5 * row.max())
        assert row.max() > 0.5
        middle = (place + 0.5) / length * picture.shape[1]
        assert np.abs(peak + 0.5 - middle).max() < 2


@pytest.mark.parametrize("length", [2200, 4321, 10_000])
def test_leaving_out_values_does_not_change_the_picture(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(3, 2, 1, length)
    x[1:] = x[1:].cumsum(-1).sub(torch.arange(length) / 2).div(20).add(0.5)
    x[2, 0, 0, 300:360] = math.nan
    pictures, kept = [], []
    original = signals._thin

    def few(values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        found = original(values, width)
        kept.append(found[1].shape[-1])
        return found

    def every(values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        return np.broadcast_to(np.arange(length, dtype=float), values.shape), values

    for thin in (few, every):
        monkeypatch.setattr(signals, "_thin", thin)
        pictures.append(plotting.pictures(x).astype(int))
    # With every n-th value instead, it is more than 3.
    assert np.abs(pictures[0] - pictures[1]).mean((1, 2, 3)).max() < 1.5
    assert kept[0] <= 9 * 264


@pytest.mark.parametrize("length", [2113, 9999])
def test_the_values_that_are_kept_are_in_order_and_include_all_extremes(length: int) -> None:
    x = noise(2, 3, length).double().numpy()
    places, values = signals._thin(x, 264)
    assert (np.diff(places) >= 0).all()
    assert np.array_equal(np.take_along_axis(x, places.astype(int), -1), values)
    assert (places[..., [0, -1]] == [0, length - 1]).all()
    step = length // 528  # half a column of pixels
    for start in range(0, length, step):
        part = x[..., start : start + step]
        inside = (places >= start) & (places < start + step)
        assert np.array_equal(np.where(inside, values, -1).max(-1), part.max(-1))
        assert np.array_equal(np.where(inside, values, 2).min(-1), part.min(-1))


def test_channels_have_different_colors() -> None:
    values = (0.2, 0.5, 0.7, 0.9)
    column = plotting.pictures(constant(*values))[0, :, 60]
    for value, color in zip(values, CLASS_COLORS, strict=False):
        place = 88 - ZERO - value * (ONE - ZERO)
        assert row_of(column, levels(color)) + 0.5 == pytest.approx(place, abs=1)


def test_many_channels_are_one_above_the_other_in_order() -> None:
    count = 10
    column = plotting.pictures(constant(*[0.5] * count))[0, :, 60]
    lane = len(column) / count
    assert lane >= 12
    rows = [row_of(column, levels(color)) + 0.5 for color in CLASS_COLORS[:count]]
    assert rows == pytest.approx([(c + 0.5) * lane for c in range(count)], abs=1)


def test_more_channels_than_colors_can_be_drawn() -> None:
    assert plotting.pictures(noise(2, 50, 1, 40)).shape[0] == 2


def test_missing_values_are_magenta_where_they_are() -> None:
    x = noise(3, 1, 1, 66)
    x[0, ..., 10:13] = math.nan
    x[1] = math.nan
    found = is_color(plotting.pictures(x), MAGENTA)
    assert found[0, :, 20:26].all()
    assert not found[0, :, :20].any()
    assert not found[0, :, 27:].any()  # one column more, so that single values are seen
    assert found[1].all()
    assert not found[2].any()


def test_one_missing_value_of_many_is_seen() -> None:
    x = noise(1, 1, 1, 10_000)
    x[..., 5017] = math.nan
    columns = is_color(plotting.pictures(x)[0, :4], MAGENTA).all(0)  # above all curves
    assert np.flatnonzero(columns).tolist() == [132, 133]


def test_a_missing_value_is_in_the_lane_of_its_channel() -> None:
    x = constant(*[0.5] * 6).clone()
    x[0, 2, 0, 50] = math.nan
    rows = np.flatnonzero(is_color(plotting.pictures(x)[0], MAGENTA).any(1))
    lane = len(plotting.pictures(x)[0]) / 6
    assert [rows.min(), rows.max() + 1] == pytest.approx([2 * lane, 3 * lane], abs=1)


# --- Bars -----------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_values() -> None:
    values = torch.tensor([0.0, 0.25, 0.5, 0.77, 1.0, 0.1])
    picture = plotting.pictures(values.view(1, 1, 1, -1))[0]
    centers = ((np.arange(6) + 0.5) * picture.shape[1] / 6).astype(int)
    lengths = ink(picture[:, centers]).sum(0)
    full = lengths[4] - lengths[0]
    assert full == pytest.approx(ONE - ZERO, abs=0.1)
    assert lengths - lengths[0] == pytest.approx(values.numpy() * full, abs=0.1)


@pytest.mark.parametrize(("length", "bars"), [(2, True), (32, True), (33, False)])
def test_few_values_are_bars_with_gaps(length: int, bars: bool) -> None:
    picture = plotting.pictures(torch.ones(1, 1, 1, length))[0]
    row = ink(picture[60])
    starts = np.flatnonzero(np.diff(np.r_[0, row]) > 0.9)
    assert len(starts) == (length if bars else 0)


def test_bars_of_missing_values_are_magenta() -> None:
    x = torch.full((1, 1, 1, 4), 0.5)
    x[..., 1] = math.nan
    found = is_color(plotting.pictures(x)[0], MAGENTA)
    assert found[:, 33:66].all()
    assert found.sum() == 33 * 88


def test_a_few_values_of_several_channels_are_dots() -> None:
    x = constant(0.2, 0.8, length=5)
    picture = plotting.pictures(x)[0]
    colored = is_color(picture, levels(CLASS_COLORS[1]))
    rows = colored.sum(0)  # dots are thicker than the line between them
    dots = ((np.arange(5) + 0.5) * 132 / 5).astype(int)
    assert (rows[dots] >= 4).all()
    assert (rows[(dots[:-1] + dots[1:]) // 2] <= 2).all()


# --- Figures --------------------------------------------------------------------------------------


def test_a_reconstruction_is_in_front_of_its_original() -> None:
    originals, reconstructed = constant(0.8), constant(0.3)
    figure = plotting.reconstructions(originals, reconstructed)
    picture = panel(figure)
    assert picture.shape == (88, 132, 3)
    for color, value in ((SHADE, 0.8), (FIRST, 0.3)):
        place = 88 - ZERO - value * (ONE - ZERO)
        assert row_of(picture[:, 60], color) + 0.5 == pytest.approx(place, abs=1.5)
    assert figure.texts[-1].get_text() == "gray: original, blue: reconstruction"
    same = panel(plotting.reconstructions(originals, originals))[:, 60]
    assert abs(row_of(same, FIRST) - row_of(same, SHADE)) <= 2  # the original is still visible


def test_a_reconstruction_marks_the_end_of_its_bar() -> None:
    x = torch.tensor([0.2, 0.9, 0.6]).view(1, 1, 1, 3)
    picture = panel(plotting.reconstructions(x, x))
    for center in (22, 66, 110):
        column = picture[:, center]
        blue, gray = (np.flatnonzero(is_color(column, color)) for color in (FIRST, SHADE))
        assert 0 < gray.min() - blue.max() <= 3
    moved = panel(plotting.reconstructions(x, 1 - x))
    assert not np.array_equal(moved, picture)
    assert is_color(moved[40:], SHADE).sum() > 0


def test_originals_of_several_channels_are_pale() -> None:
    figure = plotting.reconstructions(constant(0.8, 0.4), constant(0.6, 0.2))
    column = panel(figure)[:, 60].astype(float)
    places = []
    for color in CLASS_COLORS[:2]:
        strong = levels(color)
        pale = np.rint(255 + 0.45 * (strong - 255))
        places += [row_of(column, pale), row_of(column, strong)]
    first_original, first, second_original, second = places
    assert first_original < first < second_original < second  # 0.8, 0.6, 0.4, 0.2 from the top
    assert figure.texts[-1].get_text() == "pale: original, strong: reconstruction"


def test_signals_keep_their_order_in_a_grid() -> None:
    values = torch.arange(10) / 10
    x = values.view(-1, 1, 1, 1).expand(-1, 1, 1, 50)
    pixels = panel(plotting.image_grid(x, columns=4))
    assert pixels.shape == (3 * 88 + 2 * 4, 4 * 132 + 3 * 4, 3)
    one = plotting.pictures(x)
    for n in range(10):
        top, left = n // 4 * 92, n % 4 * 136
        assert np.array_equal(pixels[top : top + 88, left : left + 132], one[n])
    assert (pixels[-88:, 2 * 136 :] == 255).all()


def test_long_signals_are_wide() -> None:
    sizes = [panel(plotting.image_grid(noise(8, 1, 1, d))).shape[:2] for d in (256, 257)]
    assert sizes == [(87, 8 * 130 + 7 * 4), (2 * 88 + 4, 4 * 264 + 3 * 4)]


def test_traversals_leave_the_rest_of_the_first_row_white() -> None:
    x = noise(2, 5, 1, 1, 60)
    figure = plotting.traversals(
        x, ["z0", "z1"], [-2, -1, 0, 1, 2], original=x[0, 0], decoded=x[0, 1], own=[0, 1]
    )
    pixels = panel(figure)
    tile = (len(pixels) - 2 * 4) // 3
    width = (pixels.shape[1] - 4 * 4) // 5
    first = pixels[:tile]
    assert (first[:, 2 * (width + 4) :] == 255).all()
    row = pixels[tile + 4 : 2 * tile + 4]
    assert np.array_equal(first[:, : 2 * width + 4], row[:, : 2 * width + 4])


def test_codes_are_above_each_other_with_what_they_stand_for() -> None:
    x = torch.zeros(1, 1, 1, 66)
    codes = torch.tensor([[[0, 1, 2]]])
    figure = plotting.code_maps(x, x, {"": codes}, {"": torch.eye(3)})
    pixels = panel(figure)
    strip = pixels[92 + 44]
    for code in range(3):
        assert is_color(strip[44 * code : 44 * (code + 1)], levels(CLASS_COLORS[code])).all()
    assert is_color(pixels[92 + 4], PAPER).all()


def test_signals_in_the_plane_do_not_touch() -> None:
    count = 3
    x = torch.full((count, count, 1, 1, 50), 0.5)
    pixels = panel(plotting.manifold(x, [-1, 0, 1]))
    width = (pixels.shape[1] + 4) // count
    assert (pixels[:, width - 4 : width] == 255).all()


MANY: dict[str, Callable[[], Figure]] = {
    "grid": lambda: plotting.image_grid(noise(500, 1, 1, 300)),
    "plane": lambda: plotting.manifold(noise(9, 9, 1, 1, 8), [k / 4 - 2 for k in range(9)]),
    "rows": lambda: plotting.image_rows(noise(40, 3, 2, 1, 90), ["a"] * 40),
    "traversals": lambda: plotting.traversals(
        noise(64, 11, 1, 1, 40), [f"z{k}" for k in range(64)], list(range(11))
    ),
    "gallery": lambda: plotting.code_gallery(
        noise(64, 1, 1, 16), noise(64, 1, 1, 16), torch.arange(64)
    ),
    "channels": lambda: plotting.image_grid(noise(30, 40, 1, 90)),
}


@pytest.mark.parametrize("name", MANY)
def test_many_signals_fit(name: str) -> None:
    picture = plotting.to_array(MANY[name]())
    assert picture.shape[1] <= 1100
    assert len(picture) <= 1700
    border = [picture[:5], picture[-5:], picture[:, :5], picture[:, -5:]]
    assert all((strip == 255).all() for strip in border)


# --- Channels -------------------------------------------------------------------------------------


def pixel(*values: float) -> list[float]:
    return to_rgb(torch.tensor(values)[:, None, None]).flatten().tolist()


def test_two_channels_are_magenta_and_green() -> None:
    assert pixel(0.5, 0.25) == [0.5, 0.25, 0.5]


def test_some_channels_are_added_up() -> None:
    # Cyan, yellow, magenta, red, green, blue.
    assert pixel(0.25, 0, 0, 0) == [0, 0.25, 0.25]
    assert pixel(0, 0.25, 0, 0) == [0.25, 0.25, 0]
    assert pixel(0, 0, 0.25, 0) == [0.25, 0, 0.25]
    assert pixel(0, 0, 0, 0.25) == [0.25, 0, 0]  # not the opacity
    assert pixel(0, 0, 0, 0, 0.25) == [0, 0.25, 0]
    assert pixel(0, 0, 0, 0, 0, 0.25) == [0, 0, 0.25]
    assert pixel(0.125, 0.25, 0.5, 0.0625, 0.25, 0.125) == [0.8125, 0.625, 0.75]
    assert pixel(0.5, 0.75, 0, 0) == [0.75, 1, 0.5]  # clipped


def test_the_spectrum_is_red_green_and_blue() -> None:
    wavelengths = torch.linspace(400, 700, 31)
    shown = to_rgb(wavelengths[:, None, None]).flatten()
    torch.testing.assert_close(shown, torch.tensor([650.0, 550.0, 450.0]))
    assert pixel(*range(7)) == [5, 3, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_and_rgb_stay_as_they_are(channels: int) -> None:
    x = noise(2, channels, 4, 5)
    assert torch.equal(to_rgb(x), x.expand(2, 3, 4, 5))


@pytest.mark.parametrize("channels", [2, 4, 31])
def test_figures_show_any_number_of_channels(channels: int) -> None:
    x = noise(2, channels, 7, 7)
    pixels = panel(plotting.image_grid(x))
    zoom = len(pixels) // 7
    expected = to_rgb(x[1]).mul(255).round().movedim(0, -1).numpy()
    shown = pixels[zoom // 2 :: zoom, 7 * zoom + 2 + zoom // 2 :: zoom]
    assert np.array_equal(shown, expected)


def test_missing_pixels_of_one_channel_are_magenta() -> None:
    x = torch.zeros(1, 2, 2, 2)
    x[0, 1, 0, 1] = math.nan
    picture = plotting.pictures(x)[0]
    assert is_color(picture, MAGENTA).tolist() == [[False, True], [False, False]]


def test_pictures_are_enlarged_by_whole_pixels() -> None:
    x = noise(3, 4, 5, 6)
    assert np.array_equal(
        plotting.pictures(x, zoom=3), plotting.pictures(x).repeat(3, axis=1).repeat(3, axis=2)
    )
    with pytest.raises(ValueError, match="zoom is 0"):
        plotting.pictures(x, zoom=0)


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 64, 32, 1)])
def test_channels_that_come_last_are_noticed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="channels first"):
        plotting.image_grid(torch.zeros(shape))
