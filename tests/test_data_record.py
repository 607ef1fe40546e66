"""What a checkpoint keeps of the data: values and axes there and back, ranges, plain data."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vae_lightning.data_record import LAYOUTS, DataRecord
from vae_lightning.errors import UserError

SHAPES = {"D": (1, 1, 7), "CD": (2, 1, 7), "HW": (1, 5, 7), "HWC": (3, 5, 7), "CHW": (3, 5, 7)}


def record_of(layout, **changes):
    channels = SHAPES[layout][0]
    numbers = {
        "offset": tuple(-2.0 * i for i in range(1, channels + 1)),
        "scale": tuple(4.0 * i for i in range(1, channels + 1)),
        "low": (-2.0,) * channels,
        "high": (2.0,) * channels,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    return DataRecord(
        SHAPES[layout],
        "float64",
        "standardize",
        **{**numbers, "bounded": False, "layout": layout, **changes},
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_items_come_back_as_they_are_in_the_files(layout):
    record = record_of(layout)
    items = np.random.default_rng(0).normal(size=(4, *record.item_shape))
    x = record.from_items(items)
    assert x.shape == (4, *record.shape)
    assert x.dtype == torch.float32
    assert np.allclose(record.to_items(x), items, atol=1e-6)
    # One value by hand: the last one of the first channel.
    first = items[0].flat[-1] if layout in ("D", "HW") else None
    if first is not None:
        assert x[0].flatten()[-1].item() == pytest.approx((first + 2) / 4)


def test_images_of_eight_bits_stay_as_they_are():
    record = DataRecord((3, 5, 7))
    x = torch.rand(2, 3, 5, 7)
    assert np.array_equal(record.to_items(x), x.numpy())
    assert record.describe() == ""


def test_values_outside_are_clipped_only_where_a_model_needs_it():
    bounded = DataRecord((1, 1, 3), "int16", "minmax", (10.0,), (10.0,), (10.0,), (20.0,))
    values = np.array([[[[5, 15, 25]]]])
    assert bounded.to_model(values).tolist() == [[[[0.0, 0.5, 1.0]]]]
    free = dataclasses.replace(bounded, bounded=False)
    assert free.to_model(values).tolist() == [[[[-0.5, 0.5, 1.5]]]]


def test_large_offsets_lose_no_digits():
    """A time stamp in float32 would be off by 64 seconds."""
    record = DataRecord(
        (1, 1, 1), "float64", "minmax", (1.7e9,), (100.0,), (1.7e9,), (1.7e9 + 100,)
    )
    assert record.to_model(np.full((1, 1, 1, 1), 1.7e9 + 25)).item() == 0.25


def test_a_picture_shows_the_range_of_the_training():
    record = record_of("CD", low=(-10.0, 0.0), high=(10.0, 1.0))
    units = np.array([[[-10.0] * 7, [0.5] * 7]])
    picture = record.to_picture(record.from_items(units))
    assert torch.allclose(picture[0, :, 0, 0], torch.tensor([0.0, 0.5]))


def record_with(mean, std):
    n = len(mean)
    shape = (1, 1, n) if n > 1 else (1, 4, 4)
    ones = (1.0,) * n
    return DataRecord(
        shape, "float32", "minmax", (0.0,) * n, ones, (0.0,) * n, ones, tuple(mean), tuple(std)
    )


@pytest.mark.parametrize(
    ("mean", "std", "fits"),
    [
        (50, 30, True),
        (200, 100, True),  # brighter
        (50, 0, True),  # a constant image
        (0.5, 0.3, False),  # divided by 100
        (5000, 3000, False),
        (1e6, 30, False),
    ],
)
def test_other_units_are_refused(mean, std, fits):
    record = record_with([50.0], [30.0])
    given = np.array([float(mean)]), np.array([float(std)]), 1000, "x.npy"
    if fits:
        record.check_values(*given)
        return
    with pytest.raises(UserError, match=r"x\.npy has values of .* trained on values of 50 \S 30"):
        record.check_values(*given)


def test_an_unusual_row_has_no_other_units():
    record = record_with([0.0] * 5, [1.0] * 5)
    unusual = np.array([1000.0, 0, 0.1, 0, 0])
    record.check_values(unusual, np.zeros(5), 1, "new.csv")
    with pytest.raises(UserError, match="convert them to the same units"):
        record.check_values(np.full(5, 1000.0), np.ones(5), 50, "new.csv")


def test_a_density_of_scaled_values_loses_the_scale():
    """p(value) = p(x) / scale for each value."""
    record = record_of("CD")  # two channels of seven values, scales 4 and 8
    assert record.log_scale() == pytest.approx(7 * np.log(4) + 7 * np.log(8))


def test_values_too_large_for_a_network_are_refused():
    record = DataRecord((1, 1, 1), "float64", "none", bounded=False)
    with pytest.raises(UserError, match="too large for a network"):
        record.to_model(np.full((1, 1, 1, 1), 1e39))


def test_a_record_is_plain_data():
    record = record_of("HWC", class_names=("a", "b"), class_counts=(3, 4))
    assert DataRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize(
    "change",
    [
        {"scale": [0.0]},
        {"scale": [float("nan")]},
        {"offset": [0.0, 1.0]},
        {"layout": "XYZ"},
        {"shape": [1, 2]},
        {"low": None},
    ],
)
def test_a_damaged_record_is_refused(change):
    held = {**DataRecord((1, 4, 4)).to_dict(), **change}
    with pytest.raises(ValueError):  # noqa: PT011
        DataRecord.from_dict(held)
    del held["offset"]
    with pytest.raises(ValueError, match="offset"):
        DataRecord.from_dict(held)
