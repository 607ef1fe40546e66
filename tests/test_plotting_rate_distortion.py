"""The rate-distortion plane: what is drawn where."""

import math

import numpy as np
import pytest

from vae_lightning.cli.rate_distortion import Measured, figure
from vae_lightning.plotting import RatePoint, rate_distortion, to_array


def curve(*labels):
    return [RatePoint(text, [20 - 5 * i], [80 + 4 * i**2]) for i, text in enumerate(labels)]


def curves_of(axes):
    """The lines that join means."""
    return [
        line
        for line in axes.lines
        if line.get_linestyle() == "-" and line.get_marker() == "o" and len(line.get_xdata())
    ]


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def test_lines_of_equal_elbo_have_the_slope_minus_one_and_their_values():
    drawn = rate_distortion({"": curve("1", "2", "4")})
    axes = drawn.axes[0]
    bounds = [line for line in axes.lines if line.get_marker() == "None"]
    totals = set()
    for line in bounds:
        x, y = np.array(line.get_xdata()), np.array(line.get_ydata())
        np.testing.assert_allclose(np.diff(x + y), 0, atol=1e-9)
        totals.add(round(float((x + y)[0]), 6))
    assert len(totals) > 4
    for text in axes.texts:
        number = text.get_text().rpartition("= ")[2]
        if text.get_rotation() % 360:
            x, y = text.xy
            assert float(number) == pytest.approx(x + y)
            assert float(number) in totals
    assert sum("ELBO" in text for text in texts_of(axes)) == 1
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert right - left == pytest.approx(high - low)  # as wide as high: lines at 45 degrees
    assert to_array(drawn).std() > 0


def test_runs_are_points_around_their_mean():
    points = [RatePoint("1", [20, 22, math.nan], [80, 84, 1.0]), RatePoint("4", [9], [100])]
    axes = rate_distortion({"": points}).axes[0]
    (means,) = curves_of(axes)
    np.testing.assert_allclose(means.get_xdata(), [21, 9])
    np.testing.assert_allclose(means.get_ydata(), [82, 100])
    (runs,) = [line for line in axes.lines if line.get_alpha() == 0.35]
    np.testing.assert_allclose(runs.get_xdata(), [20, 22])
    assert {"1", "4"} <= set(texts_of(axes))
    with pytest.raises(ValueError, match="no finite point"):
        rate_distortion({"": [RatePoint("1", [math.nan], [1.0])]})


def test_a_mean_is_not_a_median():
    axes = rate_distortion({"": [RatePoint("1", [20, 22, 27], [80, 84, 91])]}).axes[0]
    (means,) = curves_of(axes)
    assert (means.get_xdata()[0], means.get_ydata()[0]) == pytest.approx((23, 85))


@pytest.mark.parametrize("points", [[(5, 100)], [(5, 100), (5, 100)], [(0.001, 100), (30, 100.2)]])
def test_points_that_hardly_differ(points):
    axes = rate_distortion({"a": [RatePoint("", [x], [y]) for x, y in points]}).axes[0]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left >= 0
    for x, y in points:
        assert left <= x <= right
        assert low <= y <= high


def sweep(**changes):
    """Two latent sizes, three betas, two seeds; parameters in the order of a file."""
    return [
        Measured(
            f"beta={beta}",
            {"model.beta": beta, "model.latent_dim": size, "seed_everything": seed, **changes},
            20 / beta + seed,
            80 + 5 * beta - seed,
        )
        for size in (10, 20)
        for beta in (4, 1, 2)
        for seed in (0, 1)
    ]


def test_a_sweep_has_a_curve_for_each_other_setting():
    axes = figure(sweep()).axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["latent_dim 10", "latent_dim 20"]
    curves = curves_of(axes)
    assert len(curves) == 2
    # In the order of beta, and means over the seeds.
    np.testing.assert_allclose(curves[0].get_xdata(), [20.5, 10.5, 5.5])
    assert texts_of(axes).count("beta 1") == 2
    along = figure(sweep(), along="model.latent_dim").axes[0]
    assert [t.get_text() for t in along.get_legend().get_texts()] == ["beta 4", "beta 1", "beta 2"]
    assert axes.get_xlabel() == "rate: KL in nats per image"


def test_runs_without_a_common_parameter_are_not_joined():
    runs = [Measured(name, {}, i, 10 - i) for i, name in enumerate(("a", "b", "c"))]
    axes = figure(runs).axes[0]
    assert {"a", "b", "c"} <= set(texts_of(axes))
    assert not curves_of(axes)


def means_of(axes):
    """The places of the means without lines."""
    return {
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() == "o" and line.get_alpha() is None and line.get_linestyle() != "-"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


@pytest.mark.parametrize("values", [("MLPDecoder", "ConvDecoder"), (False, True)])
def test_seeds_of_settings_that_are_no_numbers_are_one_point(values):
    runs = [
        Measured(f"{value},{seed}", {"model.x": value, "seed": seed}, 10 * i + seed, 50 - seed)
        for i, value in enumerate(values)
        for seed in (0, 2)
    ]
    axes = figure(runs).axes[0]
    assert not curves_of(axes)
    assert {(1.0, 49.0), (11.0, 49.0)} <= means_of(axes)


def test_too_many_curves_are_drawn_as_points():
    for sizes, curves in ((12, 12), (13, 0)):
        runs = [
            Measured(f"{size},{beta}", {"model.beta": beta, "model.size": size}, beta, size)
            for size in range(sizes)
            for beta in (1, 2)
        ]
        assert len(curves_of(figure(runs, along="model.beta").axes[0])) == curves


def test_a_loss_that_is_no_likelihood_has_no_elbo():
    axes = figure(sweep(), unit="loss per image").axes[0]
    assert axes.get_ylabel() == "distortion: reconstruction in loss per image"
    assert not any("ELBO" in text for text in texts_of(axes))
