"""Scalings are fitted in one pass over parts, like those of NumPy over everything."""

import numpy as np
import pytest

from vae_lightning.data import scaling
from vae_lightning.data.array_files import LoadedArray
from vae_lightning.data.arrays import ArrayItems
from vae_lightning.errors import UserError


def items_of(array):
    return ArrayItems([LoadedArray(array)], ["x"], "NCHW")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(scaling, "_CHUNK_BYTES", 7 * 8 * 30)  # seven items


@pytest.mark.parametrize("groups", ["all", "channel", "column"])
def test_statistics_are_those_of_numpy(groups, small_chunks):
    """Also far from zero, where sums of squares in one pass would cancel."""
    x = np.random.default_rng(0).normal(1e6, 1e-2, (100, 2, 3, 5)) * [1, 2, 3, 4, 5]
    chosen = np.arange(0, 100, 3)
    found = scaling.statistics(items_of(x), chosen, groups)
    axes = {"all": (0, 1, 2, 3), "channel": (0, 2, 3), "column": (0, 1, 2)}[groups]
    part = x[chosen]
    assert np.allclose(found.mean, part.mean(axes), rtol=1e-14)
    assert np.allclose(found.std, part.std(axes), rtol=1e-7)
    assert np.array_equal(found.low, np.atleast_1d(part.min(axes)))
    assert np.array_equal(found.high, np.atleast_1d(part.max(axes)))


def test_percentiles_are_those_of_numpy(small_chunks):
    x = np.random.default_rng(0).gamma(1, 100, (50, 2, 3, 5))
    found = scaling.percentiles(items_of(x), np.arange(50), "channel", (1, 99))
    assert np.allclose(found, np.percentile(x, (1, 99), axis=(0, 2, 3)))


def test_percentiles_of_many_values_are_those_of_a_part(monkeypatch):
    monkeypatch.setattr(scaling, "_MOST_FOR_PERCENTILES", 30 * 400)
    x = np.random.default_rng(0).uniform(size=(4000, 1, 5, 6))
    found = scaling.percentiles(items_of(x), np.arange(4000), "all", (10, 90))
    assert np.allclose(found[:, 0], (0.1, 0.9), atol=0.02)


@pytest.mark.parametrize(
    ("values", "binary"), [([0, 1], 1), ([0, 255], 255), ([0, 1, 2], 0), ([0, 0], 1), ([1, 255], 0)]
)
def test_binary_values_are_recognized(values, binary, small_chunks):
    x = np.resize(np.array(values, dtype=np.uint8), (40, 1, 5, 6))
    assert scaling.statistics(items_of(x), np.arange(40), "all").binary == binary


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_item_that_is_not_finite_is_named(bad):
    x = np.zeros((20, 1, 5, 6))
    x[13, 0, 2, 2] = bad
    with pytest.raises(UserError, match=r"x\[13\] has values that are NaN or infinite"):
        scaling.statistics(items_of(x), np.arange(20), "all")


def test_offset_and_scale():
    x = np.random.default_rng(0).normal(5, 3, (100, 1, 2, 3)).astype(np.float32)
    found = scaling.statistics(items_of(x), np.arange(100), "all")
    offset, scale = scaling.coefficients("minmax", found, x.dtype)
    assert ((x - offset) / scale).min() == 0
    assert ((x - offset) / scale).max() == 1
    offset, scale = scaling.coefficients("standardize", found, x.dtype)
    assert ((x - offset) / scale).mean() == pytest.approx(0, abs=1e-6)
    assert ((x - offset) / scale).std() == pytest.approx(1, abs=1e-6)
    constant = scaling.statistics(items_of(np.full((9, 1, 2, 3), 4.0)), np.arange(9), "all")
    for kind in ("minmax", "standardize"):
        offset, scale = scaling.coefficients(kind, constant, np.dtype(float))
        assert (offset.item(), scale.item()) == (4, 1)


def test_eight_bits_are_scaled_by_their_type():
    x = np.full((9, 1, 2, 3), 100, np.uint8)
    found = scaling.statistics(items_of(x), np.arange(9), "all")
    offset, scale = scaling.coefficients("minmax", found, x.dtype)
    assert (offset.item(), scale.item()) == (0, 255)


@pytest.mark.parametrize("kind", ["minmax", "standardize"])
def test_values_that_are_the_same_up_to_rounding(kind):
    """The mean of 1,000 times 0.1 is not 0.1."""
    x = np.full((1000, 1, 1, 1), 0.1) + np.resize([0, 1e-17], (1000, 1, 1, 1))
    found = scaling.statistics(items_of(x), np.arange(1000), "all")
    assert scaling.coefficients(kind, found, x.dtype)[1].item() == 1


@pytest.mark.parametrize("kind", ["minmax", "standardize"])
def test_values_that_are_too_large(kind):
    x = np.resize([-1.7e308, 1.7e308], (10, 1, 2, 2))
    found = scaling.statistics(items_of(x), np.arange(10), "all")
    with pytest.raises(UserError, match="too large to be scaled"):
        scaling.coefficients(kind, found, x.dtype)


@pytest.mark.parametrize("dtype", ["bool", "int8"])
def test_percentiles_of_small_types(dtype):
    x = np.resize(np.array([-128, 127] if dtype == "int8" else [0, 1], dtype), (10, 1, 2, 2))
    found = scaling.percentiles(items_of(x), np.arange(10), "all", (0, 100))
    assert found[:, 0].tolist() == [float(x.min()), float(x.max())]
