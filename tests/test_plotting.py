"""The pictures show the right thing in the right place and leave no trace elsewhere."""

import functools
import importlib
import io
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

import vae_lightning
from vae_lightning import plotting

GAP = 2
MAGENTA = (224, 32, 160)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def flat(values: Tensor, channels: int = 1, size: tuple[int, int] = (6, 5)) -> Tensor:
    """Return one plain image per value, (..., C, H, W)."""
    return values[..., None, None, None].expand(*values.shape, channels, *size).float()


def level(value: float | Tensor) -> int:
    return int(np.rint(np.float32(value) * np.float32(255)))


def panel(figure: Figure) -> np.ndarray:
    """Return the rendered pixels inside the (first) axes."""
    picture = plotting.to_array(figure)
    box = figure.axes[0].bbox
    x0, x1, y0, y1 = (round(v) for v in (box.x0, box.x1, box.y0, box.y1))
    return picture[len(picture) - y1 : len(picture) - y0, x0:x1]


def tile_centers(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the colors (rows, columns, 3) at the centers of evenly spaced tiles."""
    ys = ((np.arange(rows) + 0.5) * len(pixels) / rows).astype(int)
    xs = ((np.arange(columns) + 0.5) * pixels.shape[1] / columns).astype(int)
    return pixels[ys][:, xs]


def tick_texts(axes: Axes, axis: str) -> list[str]:
    return [text.get_text() for text in getattr(axes, f"get_{axis}ticklabels")()]


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


IMAGES = noise(7, 1, 8, 8)
CURVES = noise(7, 2, 1, 50)
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "image_grid": lambda: plotting.image_grid(IMAGES, title="Samples"),
    "reconstructions": lambda: plotting.reconstructions(IMAGES, 1 - IMAGES, title="Test set"),
    "latent_scatter": lambda: plotting.latent_scatter(
        noise(50, 2), torch.arange(50) % 4, axis_labels=("a", "$b$"), title="Latent space"
    ),
    "latent_scatter_bar": lambda: plotting.latent_scatter(
        noise(50, 2), torch.arange(50) % 30, axis_labels=("a", "$b$"), title="Latent space"
    ),
    "traversals": lambda: plotting.traversals(
        noise(2, 3, 1, 8, 8), ["z0  KL 2.0", "z1  KL 1.0"], [-1.5, 0, 1.5], title="Traversals"
    ),
    "manifold": lambda: plotting.manifold(noise(3, 3, 3, 8, 8), [-1, 0, 1], title="Plane"),
    "class_grid": lambda: plotting.class_grid(noise(2, 3, 1, 8, 8), ["cat", "dog"], title="Pets"),
    "code_usage": lambda: plotting.code_usage(torch.tensor([900, 0, 5]), title="Codes"),
    "code_maps": lambda: plotting.code_maps(
        IMAGES, IMAGES, {"": torch.arange(28).reshape(7, 2, 2)}, {"": noise(32, 3)}, title="Maps"
    ),
    "code_maps of two levels": lambda: plotting.code_maps(
        IMAGES,
        IMAGES,
        {"top": torch.arange(7).reshape(7, 1, 1), "bottom": torch.arange(28).reshape(7, 2, 2)},
        {"top": noise(7, 3), "bottom": noise(28, 3)},
        title="Maps",
    ),
    "image_grid of bars": lambda: plotting.image_grid(noise(7, 1, 1, 9), title="Rows"),
    "image_grid of dots": lambda: plotting.image_grid(noise(7, 2, 1, 9), title="Signals"),
    "reconstructions of signals": lambda: plotting.reconstructions(
        CURVES, 1 - CURVES, title="Test set"
    ),
    "code_gallery": lambda: plotting.code_gallery(
        IMAGES, IMAGES, torch.arange(7, 0, -1), title="Codes"
    ),
}


@functools.cache
def drawn(name: str) -> tuple[Figure, np.ndarray]:
    """Return one of the drawings and its pixels."""
    figure = DRAWINGS[name]()
    return figure, plotting.to_array(figure)


# --- Every figure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWINGS)
def test_leaves_global_state_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes any import of pyplot fail, also one inside a function.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    # Of a copy, because to look up the backend in the original imports pyplot.
    settings, torch_state = dict(matplotlib.rcParams.copy()), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator is meant
    plotting.to_array(DRAWINGS[name]())
    assert dict(matplotlib.rcParams.copy()) == settings
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_module_does_not_import_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(vae_lightning, "plotting", plotting)
    for name in [name for name in sys.modules if name.startswith(plotting.__name__)]:
        monkeypatch.delitem(sys.modules, name)
    fresh = importlib.import_module(plotting.__name__)
    assert fresh is not plotting
    assert fresh.image_grid is not plotting.image_grid


@pytest.mark.parametrize("name", DRAWINGS)
def test_looks_the_same_whatever_the_settings(name: str) -> None:
    _, expected = drawn(name)
    hostile = {
        "axes.edgecolor": "red",
        "axes.grid": True,
        "figure.facecolor": "black",
        "figure.dpi": 50,
        "font.family": ["monospace"],
        "font.size": 30,
        "image.interpolation": "bilinear",
        "image.origin": "lower",
        "text.color": "white",
        "xtick.labelsize": 30,
    }
    with matplotlib.rc_context(hostile):
        assert np.array_equal(plotting.to_array(DRAWINGS[name]()), expected)


@pytest.mark.parametrize("name", DRAWINGS)
def test_array_is_what_is_saved(name: str) -> None:
    figure, array = drawn(name)
    assert array.dtype == np.uint8
    assert array.ndim == 3
    assert array.shape[2] == 3
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    assert np.array_equal(np.rint(imread(file)[..., :3] * 255).astype(np.uint8), array)
    assert np.array_equal(plotting.to_array(figure), array)


@pytest.mark.parametrize("name", DRAWINGS)
def test_has_a_title_and_nothing_is_cut_off(name: str) -> None:
    figure, picture = drawn(name)
    assert figure.get_suptitle()
    border = [picture[:5], picture[-5:], picture[:, :5], picture[:, -5:]]
    assert all((strip == 255).all() for strip in border)
    assert picture.shape[1] <= 1100


def test_array_of_a_figure_without_canvas() -> None:
    assert plotting.to_array(Figure(figsize=(1, 2), dpi=64)).shape == (128, 64, 3)


# --- Tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (64, 64), (17, 23), (1, 1)])
@pytest.mark.parametrize("count", [3, 11])
def test_grid_shows_every_pixel_as_a_square(
    channels: int, size: tuple[int, int], count: int
) -> None:
    images = noise(count, channels, *size)
    pixels = panel(plotting.image_grid(images, columns=4, title="a"))
    columns = min(4, count)
    rows = math.ceil(count / columns)
    zoom = (pixels.shape[1] - GAP * (columns - 1)) // (columns * size[1])
    height, width = zoom * size[0], zoom * size[1]
    assert pixels.shape[:2] == (
        rows * height + GAP * (rows - 1),
        columns * width + GAP * (columns - 1),
    )
    expected = np.full(pixels.shape, 255, dtype=np.uint8)
    for n, image in enumerate(images):
        top, left = (n // columns) * (height + GAP), (n % columns) * (width + GAP)
        tile = np.rint(image.numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
        expected[top : top + height, left : left + width] = np.kron(
            tile, np.ones((zoom, zoom, 1), dtype=np.uint8)
        )
    assert np.array_equal(pixels, expected)


def test_large_images_are_averaged_down() -> None:
    images = noise(4, 1, 600, 600)
    pixels = panel(plotting.image_grid(images, columns=4))
    factor = 3  # 4 * 600 pixels do not fit into 1100 by halves
    assert pixels.shape[:2] == (200, 4 * 200 + 3 * GAP)
    mean = images[1, 0].reshape(200, factor, 200, factor).mean(dim=(1, 3))
    assert np.abs(pixels[:, 202:402, 0] - mean.numpy() * 255).max() <= 0.51


@pytest.mark.parametrize("count", [1, 2, 8, 9, 13, 37, 64, 100])
def test_default_grid_is_full_and_not_stretched(count: int) -> None:
    figure = plotting.image_grid(flat(torch.zeros(count), size=(8, 8)))
    height, width = panel(figure).shape[:2]
    assert width >= height
    assert count <= 8 or width <= 2.6 * height


def test_values_are_clipped_and_nan_is_visible() -> None:
    image = torch.tensor([[-0.5, 1.5], [math.nan, math.inf]])[None, None]
    for images in (image, image.expand(1, 3, 2, 2), image.double(), image.half()):
        colors = tile_centers(panel(plotting.image_grid(images)), 2, 2)
        assert colors.tolist() == [[[0] * 3, [255] * 3], [list(MAGENTA), [255] * 3]]


def test_images_may_require_gradients() -> None:
    images = noise(2, 1, 4, 4).requires_grad_()
    plotting.image_grid(images)
    assert images.requires_grad


def test_originals_stand_above_their_reconstructions() -> None:
    count = 23  # three pairs of rows, the last one not full
    originals = torch.arange(count) / 100
    reconstructed = 0.5 + originals
    figure = plotting.reconstructions(flat(originals), flat(reconstructed))
    pixels, axes = panel(figure), figure.axes[0]
    rows = [int(y) for y in axes.get_yticks()]
    assert tick_texts(axes, "y") == ["original", "reconstruction"] * 3
    assert rows == sorted(rows)
    columns = 8
    for n in range(count):
        x = int((n % columns + 0.5) * pixels.shape[1] / columns)
        pair = 2 * (n // columns)
        assert pixels[rows[pair], x].tolist() == [level(originals[n])] * 3
        assert pixels[rows[pair + 1], x].tolist() == [level(reconstructed[n])] * 3
    last = int((columns - 0.5) * pixels.shape[1] / columns)
    assert (pixels[rows[-2] :, last] == 255).all()
    # The pairs stand apart, their members do not.
    assert rows[2] - rows[1] > rows[1] - rows[0]


def test_traversals_keep_rows_and_columns_in_order() -> None:
    values = torch.arange(12).reshape(3, 4) / 12
    labels = ["z7  KL 2.31", "z0  KL 4.00", "z3"]
    figure = plotting.traversals(flat(values), labels, [-3, -1, 1, 3])
    colors = tile_centers(panel(figure), 3, 4)
    assert colors[..., 0].tolist() == [[level(v) for v in row] for row in values]
    axes = figure.axes[0]
    assert tick_texts(axes, "y") == labels
    assert list(axes.get_yticks()) == sorted(axes.get_yticks())
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # rows count from the top
    assert tick_texts(axes, "x") == ["−3", "−1", "1", "3"]  # noqa: RUF001 - minus signs
    assert list(axes.get_xticks()) == sorted(axes.get_xticks())


def test_crowded_values_are_thinned_out() -> None:
    figure = plotting.traversals(noise(1, 60, 1, 8, 8), ["z0"], torch.linspace(-3, 3, 60).tolist())
    assert 5 <= len(tick_texts(figure.axes[0], "x")) <= 30


def test_class_grid_keeps_classes_in_order() -> None:
    values = torch.arange(6).reshape(2, 3) / 6
    names = ["zebra $5 and $6", "ape"]
    figure = plotting.class_grid(flat(values, channels=3), names)
    assert tile_centers(panel(figure), 2, 3)[..., 1].tolist() == [
        [level(v) for v in row] for row in values
    ]
    assert tick_texts(figure.axes[0], "y") == [r"zebra \$5 and \$6", "ape"]


def test_long_names_are_wrapped_or_shortened() -> None:
    name = "an exceedingly long name of a class " * 4
    figure = plotting.class_grid(noise(30, 2, 1, 28, 28), [name] * 30)
    assert plotting.to_array(figure).shape[1] < 400
    assert tick_texts(figure.axes[0], "y")[0].endswith("…")
    figure = plotting.class_grid(noise(2, 2, 1, 28, 28), ["short", "two words " * 3])
    assert "\n" in tick_texts(figure.axes[0], "y")[1]


def test_long_titles_are_wrapped() -> None:
    figure = plotting.image_grid(IMAGES[:1], title="word " * 40 + "$\\beta = 4$" + "x" * 99)
    assert plotting.to_array(figure).shape[1] < 500
    assert "\n" in figure.get_suptitle()
    assert "$\\beta = 4$" in figure.get_suptitle()


def test_broken_formula_is_printed_literally() -> None:
    figure = plotting.image_grid(IMAGES, title="costs $\\oops{ or $")
    plotting.to_array(figure)
    assert r"\$" in figure.get_suptitle()


# --- Manifold -------------------------------------------------------------------------------------


def test_manifold_runs_right_and_upwards_without_gaps() -> None:
    n = 4
    i, j = torch.meshgrid(torch.arange(n) / n, torch.arange(n) / n, indexing="ij")
    red, green = flat(i, size=(7, 7)), flat(j, size=(7, 7))
    images = torch.cat([red, green, torch.zeros_like(red)], dim=2)
    figure = plotting.manifold(images, [-2, -1, 1, 2])
    pixels = panel(figure)
    size = len(pixels) // n
    assert pixels.shape == (n * size, n * size, 3)
    for row in range(n):
        for column in range(n):
            tile = pixels[row * size : (row + 1) * size, column * size : (column + 1) * size]
            # The lowest row of the picture holds images[0], the column goes as it is.
            wanted = [level((n - 1 - row) / n), level(column / n), 0]
            assert (tile == wanted).all()


def test_manifold_picture_is_not_flipped() -> None:
    image = torch.zeros(1, 1, 1, 2, 2)
    image[..., 0, 1] = 1
    colors = tile_centers(panel(plotting.manifold(image, [0.0])), 2, 2)
    assert colors[..., 0].tolist() == [[0, 255], [0, 0]]


def test_manifold_ticks_follow_uneven_values() -> None:
    values = [-2, -0.5, 0, 0.5, 2]
    figure = plotting.manifold(noise(5, 5, 1, 10, 10), values, axis_labels=("$u$", "$v$"))
    axes = figure.axes[0]
    size = len(panel(figure)) / 5
    across = dict(zip(tick_texts(axes, "x"), axes.get_xticks(), strict=True))
    upwards = dict(zip(tick_texts(axes, "y"), axes.get_yticks(), strict=True))
    minus = "\N{MINUS SIGN}"
    for place, value in enumerate(values):
        text = f"{value:.1f}".replace("-", minus)
        assert across[text] == pytest.approx((place + 0.5) * size)
        assert upwards[text] == pytest.approx((4.5 - place) * size)
    assert across["1.0"] == pytest.approx((3.5 + 1 / 3) * size)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$u$", "$v$")


@pytest.mark.parametrize("count", [2, 5, 20, 30])
def test_manifold_labels_do_not_touch(count: int) -> None:
    quantiles = [NormalDist().inv_cdf((k + 0.5) / count) for k in range(count)]
    figure = plotting.manifold(noise(count, count, 1, 14, 14), quantiles)
    plotting.to_array(figure)
    labels = figure.axes[0].get_xticklabels()
    assert 2 <= len(labels) <= 9
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 + 3 < right.x0 for left, right in pairwise(boxes))


# --- Latent scatter -------------------------------------------------------------------------------


def scatter(points: Tensor, labels: Tensor | None, **options: Any) -> Figure:
    return plotting.latent_scatter(points, labels, axis_labels=("a", "b"), **options)


def test_points_have_the_color_of_their_class_in_the_legend() -> None:
    points, labels = noise(300, 2), torch.arange(300) % 3 + 4
    figure = scatter(points, labels, class_names=[f"name {k}" for k in range(10)])
    axes = figure.axes[0]
    places = np.asarray(axes.collections[0].get_offsets())
    colors = axes.collections[0].get_facecolors()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["name 4", "name 5", "name 6"]
    wanted = [to_rgba(handle.get_color()) for handle in legend.legend_handles]
    assert len(set(wanted)) == 3
    scale = axes.bbox.width / np.ptp(axes.get_xlim())
    for place, color in zip(places, colors, strict=True):
        distance = np.abs(points.numpy() - place).max(axis=1)
        assert distance.min() * scale < 0.51  # drawn at the nearest whole pixel
        assert color[:3] == pytest.approx(wanted[labels[distance.argmin()] - 4][:3])


def test_classes_keep_their_colours_when_others_are_missing() -> None:
    def shade(labels: list[int]) -> np.ndarray:
        figure = scatter(noise(len(labels), 2), torch.tensor(labels))
        return figure.axes[0].get_legend().legend_handles[-1].get_color()

    assert shade([0, 1, 7]) == shade([7])


def test_twenty_classes_have_distinct_colours() -> None:
    figure = scatter(noise(40, 2), torch.arange(40) % 20)
    assert len(figure.axes) == 1
    assert len({tuple(c) for c in figure.axes[0].collections[0].get_facecolors()}) == 20


def test_points_are_drawn_right_and_upwards() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    pixels = panel(scatter(points, None)).astype(int)
    ys, xs = np.nonzero(np.abs(pixels - [0x1F, 0x59, 0xB2]).sum(axis=2) < 30)
    right = xs > pixels.shape[1] / 2
    assert 0 < right.sum() < len(right)
    assert (ys[right] < len(pixels) / 2).all()
    assert (ys[~right] > len(pixels) / 2).all()


@pytest.mark.parametrize("names", [None, [f"class number {k}" for k in range(30)]])
def test_many_classes_get_a_color_bar(names: list[str] | None) -> None:
    figure = scatter(noise(60, 2), torch.arange(60) % 30, class_names=names)
    axes, bar = figure.axes
    assert axes.get_legend() is None
    assert bar.get_ylim() == (0, 29)
    assert tick_texts(bar, "y")[0] == ("0" if names is None else names[0])


def test_fractional_labels_get_a_color_bar() -> None:
    assert len(scatter(noise(60, 2), noise(60)).axes) == 2


def test_nan_points_are_left_out_and_counted() -> None:
    points, labels = noise(20, 2), torch.arange(20) % 2
    points[3, 1] = math.nan
    points[4, 0] = math.inf
    figure = scatter(points, labels, title="Latent space")
    assert "2 points" in figure.get_suptitle()
    assert "NaN" in figure.get_suptitle()
    assert len(figure.axes[0].collections[0].get_offsets()) == 18
    for none_left in (torch.full((3, 2), math.nan), torch.zeros(0, 2)):
        plotting.to_array(scatter(none_left, torch.zeros(len(none_left), dtype=torch.long)))


@pytest.mark.parametrize("spread", [(1.0, 1.0), (100.0, 1.0), (1e-3, 1e3), (0.0, 1.0), (0.0, 0.0)])
def test_scatter_contains_points_of_any_spread(spread: tuple[float, float]) -> None:
    points = (noise(30, 2) + 5) * torch.tensor(spread)
    axes = scatter(points, None).axes[0]
    for k, (low, high) in enumerate((axes.get_xlim(), axes.get_ylim())):
        assert low < points[:, k].min()
        assert points[:, k].max() < high


def test_similar_spreads_are_drawn_in_equal_units() -> None:
    axes = scatter(noise(99, 2) * torch.tensor([3.0, 1.0]), None).axes[0]
    units = [axes.bbox.width / np.ptp(axes.get_xlim()), axes.bbox.height / np.ptp(axes.get_ylim())]
    assert units[0] == pytest.approx(units[1])


# --- Codes ----------------------------------------------------------------------------------------


def test_code_usage_is_sorted_and_summed_up() -> None:
    counts = torch.tensor([2, 0, 5, 1, 0, 2])
    figure = plotting.code_usage(counts)
    (bars,) = figure.axes[0].patches[:1]
    shares, _, baseline = bars.get_data()
    assert np.allclose(shares, [0.5, 0.2, 0.2, 0.1])
    assert baseline == 0
    entropy = -(0.5 * math.log(0.5) + 0.4 * math.log(0.2) + 0.1 * math.log(0.1))
    assert texts(figure).endswith(f"4 of 6 codes used, perplexity {math.exp(entropy):.1f}")
    assert figure.axes[0].get_yscale() == "linear"


def test_code_usage_is_logarithmic_when_shares_differ_widely() -> None:
    axes = plotting.code_usage(torch.tensor([9000.0, 80.0, 0.5])).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < 0.5 / 9080.5
    assert len(tick_texts(axes, "y")) >= 3


@pytest.mark.parametrize("counts", [[0, 0, 0], [4], [0.0] * 511 + [1e-9], [1] * 2048])
def test_code_usage_of_extreme_counts(counts: list[float]) -> None:
    figure = plotting.code_usage(torch.tensor(counts))
    plotting.to_array(figure)
    used = sum(count > 0 for count in counts)
    assert f"{used} of {len(counts)} codes" in texts(figure)
    if used:
        assert f"perplexity {used:.1f}" in texts(figure)


@pytest.mark.parametrize("codebook_size", [6, 512])
def test_code_maps_have_one_color_per_code(codebook_size: int) -> None:
    originals = flat(torch.tensor([0.1, 0.2]), size=(12, 12))
    codes = torch.tensor([[[0, 1, 2], [3, 4, 0]], [[5, 5, 1], [2, 3, 4]]])
    vectors = noise(codebook_size, 4)
    figure = plotting.code_maps(originals, 0.5 + originals, {"": codes}, {"": vectors})
    pixels, axes = panel(figure), figure.axes[0]
    assert tick_texts(axes, "y") == ["original", "codes", "reconstruction"]
    colors = tile_centers(pixels, 3, 2)
    assert colors[0, :, 0].tolist() == [level(0.1), level(0.2)]
    assert colors[2, :, 0].tolist() == [level(0.6), level(0.7)]
    size = (pixels.shape[1] - GAP) // 2
    seen: dict[int, set[tuple[int, ...]]] = {}
    for n in range(2):
        left, top = n * (size + GAP), size + GAP
        picture = pixels[top : top + size, left : left + size]
        for code, color in zip(
            codes[n].flatten().tolist(), tile_centers(picture, 2, 3).reshape(-1, 3), strict=True
        ):
            seen.setdefault(code, set()).add(tuple(color))
    assert all(len(found) == 1 for found in seen.values())
    assert len(set.union(*seen.values())) == 6
    assert f"6 of {codebook_size} codes" in texts(figure)


def test_code_maps_need_not_divide_the_image() -> None:
    images = noise(2, 3, 10, 10)
    codes = {"": torch.zeros(2, 3, 7).long()}
    plotting.to_array(plotting.code_maps(images, images, codes, {"": torch.zeros(1, 2)}))


# --- Errors ---------------------------------------------------------------------------------------

OK = torch.zeros(2, 1, 4, 4)
ROWS = torch.zeros(2, 3, 1, 4, 4)
SQUARE = torch.zeros(2, 2, 1, 4, 4)
CODES = torch.zeros(2, 2, 2, dtype=torch.long)
BOOK = {"": torch.zeros(4, 3)}
POINTS = torch.zeros(3, 2)
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "no batch": (lambda: plotting.image_grid(OK[0]), r"shape \(1, 4, 4\)"),
    "no images": (lambda: plotting.image_grid(OK[:0]), "at least one image"),
    "channels": (lambda: plotting.image_grid(torch.zeros(2, 28, 28, 3)), "28 channels"),
    "bytes": (lambda: plotting.image_grid(OK.byte()), "uint8"),
    "array": (lambda: plotting.image_grid(OK.numpy()), "ndarray"),  # type: ignore[arg-type]
    "columns": (lambda: plotting.image_grid(OK, columns=0), "columns is 0"),
    "pairs": (lambda: plotting.reconstructions(OK, OK[:1]), "differ in shape"),
    "row labels": (lambda: plotting.traversals(ROWS, ["a"], [1, 2, 3]), "row_labels has 1"),
    "values": (lambda: plotting.traversals(ROWS, ["a", "b"], [1, 2]), "values has 2"),
    "nan value": (lambda: plotting.traversals(ROWS, ["a", "b"], [1, 2, math.nan]), "finite"),
    "names": (lambda: plotting.class_grid(ROWS, ["a", "b", "c"]), "class_names has 3"),
    "class images": (lambda: plotting.class_grid(OK, ["a", "b"]), r"\(K, S, C, H, W\)"),
    "not square": (lambda: plotting.manifold(ROWS, [1, 2]), "2 rows and 3 columns"),
    "decreasing": (lambda: plotting.manifold(SQUARE, [2, 1]), "not increase"),
    "manifold values": (lambda: plotting.manifold(SQUARE, [1]), "values has 1"),
    "3 dimensions": (lambda: scatter(torch.zeros(3, 3), None), "principal_components"),
    "label count": (lambda: scatter(POINTS, torch.zeros(2)), "2 labels for 3 points"),
    "one-hot": (lambda: scatter(POINTS, torch.zeros(3, 2)), "labels has shape"),
    "unnamed": (
        lambda: scatter(POINTS, torch.tensor([0, 1, 2]), class_names=["a", "b"]),
        "label 2 has no name",
    ),
    "empty counts": (lambda: plotting.code_usage(torch.zeros(0)), "empty"),
    "negative": (lambda: plotting.code_usage(torch.tensor([1, -1])), "negative"),
    "count matrix": (lambda: plotting.code_usage(torch.zeros(2, 2)), r"shape \(2, 2\)"),
    "maps": (lambda: plotting.code_maps(OK, OK, {"": CODES[:1]}, BOOK), "for 2 images"),
    "float codes": (lambda: plotting.code_maps(OK, OK, {"": CODES.float()}, BOOK), "integer"),
    "large code": (lambda: plotting.code_maps(OK, OK, {"": CODES + 4}, BOOK), "from 0 to 3"),
    "gallery": (lambda: plotting.code_gallery(OK, OK[:1], CODES[:, 0, 0]), "differ in shape"),
    "k": (lambda: plotting.principal_components(POINTS, 3), "k is 3"),
    "no k": (lambda: plotting.principal_components(POINTS, 0), "k is 0"),
    "vector": (lambda: plotting.principal_components(POINTS[0]), r"\(N, D\)"),
    "no points": (lambda: plotting.principal_components(POINTS[:0]), "at least one row"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert str(error.value).endswith(".")
    assert "pass" in str(error.value)


# --- Principal components -------------------------------------------------------------------------


def correlated(count: int, dimensions: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(dimensions, dimensions, generator=generator)
    return torch.randn(count, dimensions, generator=generator) @ mix + 40


@pytest.mark.parametrize(("count", "dimensions", "k"), [(60, 6, 2), (60, 6, 6), (5, 30, 3)])
def test_components_match_the_covariance(count: int, dimensions: int, k: int) -> None:
    points = correlated(count, dimensions)
    state = torch.get_rng_state()
    projected, ratio = plotting.principal_components(points, k)
    assert torch.equal(torch.get_rng_state(), state)
    assert projected.dtype == ratio.dtype == torch.float32
    variances, directions = torch.linalg.eigh(points.double().T.cov())
    variances, directions = variances.flip(0), directions.flip(1)[:, :k]
    torch.testing.assert_close(ratio.double(), (variances / variances.sum())[:k], rtol=1e-5, atol=0)
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    wanted = (points.double() - points.double().mean(dim=0)) @ (directions * signs)
    torch.testing.assert_close(projected.double(), wanted, rtol=1e-4, atol=1e-4)


def test_components_match_torch() -> None:
    points = correlated(100, 8).double()
    with torch.random.fork_rng():
        _, sizes, loadings = torch.pca_lowrank(points, q=8, niter=8)
    projected, ratio = plotting.principal_components(points, 3)
    assert projected.dtype == torch.float64
    wanted = (points - points.mean(dim=0)) @ loadings[:, :3]
    torch.testing.assert_close(projected.abs(), wanted.abs())
    torch.testing.assert_close(ratio, sizes[:3] ** 2 / (sizes**2).sum())


def test_component_signs_do_not_depend_on_the_order_of_the_points() -> None:
    points = correlated(50, 4)
    projected, _ = plotting.principal_components(points)
    backwards, _ = plotting.principal_components(points.flip(0))
    torch.testing.assert_close(backwards.flip(0), projected)


def test_data_without_variance_is_zero() -> None:
    constant = torch.full((7, 4), 0.1)
    projected, ratio = plotting.principal_components(constant)
    assert not projected.any()
    assert not ratio.any()
    line = torch.arange(7.0).double()[:, None] * torch.tensor([1.0, 2.0, -3.0]) + 0.1
    projected, ratio = plotting.principal_components(line)
    assert ratio.tolist() == pytest.approx([1, 0])
    assert not projected[:, 1].any()
    projected, ratio = plotting.principal_components(torch.ones(1, 5), 3)  # fewer points than k
    assert projected.tolist() == [[0, 0, 0]]
    assert ratio.tolist() == [0, 0, 0]


def test_points_with_nan_stay_nan_and_do_not_disturb_others() -> None:
    points = correlated(20, 3)
    wanted, wanted_ratio = plotting.principal_components(points[1:])
    points[0, 2] = math.nan
    projected, ratio = plotting.principal_components(points)
    assert projected[0].isnan().all()
    torch.testing.assert_close(projected[1:], wanted)
    torch.testing.assert_close(ratio, wanted_ratio)
    plotting.to_array(scatter(projected, None))


@pytest.mark.filterwarnings("error")
def test_classes_in_a_script_without_a_font_are_numbers() -> None:
    """Boxes would look alike, and matplotlib would warn about each of them."""
    names = ["cat", "\U0001078a\U0001078b", "été $5", "\U0001078a"]
    labels = torch.arange(40) % 4
    figure = plotting.latent_scatter(
        torch.randn(40, 2), labels, axis_labels=("a", "b"), class_names=names
    )
    plotting.to_array(figure)
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "1", r"été \$5", "3"]
    grid = plotting.class_grid(torch.rand(4, 2, 1, 8, 8), names)
    plotting.to_array(grid)
    assert [t.get_text() for t in grid.axes[0].get_yticklabels()] == ["cat", "1", r"été \$5", "3"]


def test_no_text_covers_points() -> None:
    """Names of classes are in the legend only, where nothing cuts them."""
    labels = torch.arange(400) % 4
    points = torch.randn(400, 2) + 5 * labels[:, None]
    names = ["a rather long name", "b", "c", "another long name"]
    figure = plotting.latent_scatter(points, labels, axis_labels=("a", "b"), class_names=names)
    (axes,) = figure.axes
    assert not axes.texts
    plotting.to_array(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for text in axes.get_legend().get_texts():
        box = text.get_window_extent()
        assert axes.get_window_extent().x1 <= box.x0
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height


def test_similar_codes_have_similar_colors():
    """Codes along a line: the nearer, the more similar; a distant one does not change that."""
    vectors = torch.randn(1, 8) * torch.arange(40.0)[:, None]
    vectors[-1] *= 1000
    codes = torch.arange(40).reshape(1, 5, 8)
    x = torch.zeros(1, 1, 5, 8)
    figure = plotting.code_maps(x, x, {"": codes}, {"": vectors})
    pixels = plotting.to_array(figure).astype(int)
    colors = plotting.codes.similar_colors(vectors).astype(int)
    assert len(np.unique(colors, axis=0)) == 40
    steps = np.abs(np.diff(colors, axis=0)).sum(1)
    assert steps.max() <= 2 * steps.min()
    assert (pixels == colors[20]).all(-1).any()


def test_the_vectors_of_codes_are_rows_of_a_matrix():
    x = torch.zeros(1, 1, 4, 4)
    codes = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="codebook"):
        plotting.code_maps(x, x, {"": codes}, {"": torch.zeros(40)})


def test_traversals_leave_the_end_of_short_rows_white() -> None:
    black = torch.zeros(2, 4, 1, 8, 8)
    figure = plotting.traversals(black, ["z0", "c1"], [0, 1, 2, 3], counts=[4, 2])
    pixels = np.asarray(figure.axes[0].images[0].get_array())
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 4
    means = [
        [pixels[r * height :][:height, c * width :][:, :width].mean() for c in range(4)]
        for r in range(2)
    ]
    assert np.less(means, 100).tolist() == [[True] * 4, [True, True, False, False]]


def test_traversals_of_one_column_have_room_for_the_decoded_image_only() -> None:
    images, one = torch.rand(2, 1, 1, 8, 8), torch.rand(1, 8, 8)
    figure = plotting.traversals(images, ["z0", "z1"], [0.0], original=one, decoded=one)
    assert tick_texts(figure.axes[0], "y")[0] == "decoded"


def test_the_bound_of_a_latent_space_is_drawn_whole():
    points = torch.tensor([[0.1, 0.2], [0.3, -0.1]])
    options = {"labels": None, "axis_labels": ("a", "b")}
    (axes,) = plotting.latent_scatter(points, **options, radius=1.5).axes
    (circle,) = axes.patches
    assert circle.get_radius() == 1.5
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < -1.5
        assert high > 1.5
    assert not plotting.latent_scatter(points, **options).axes[0].patches
