"""Arrays of a user: files and folders, axes, labels, splits, scaling, memory."""

import pickle
import resource

import numpy as np
import pytest
import torch

from vae_lightning.data import scaled
from vae_lightning.data.array_files import MappedArray
from vae_lightning.data.arrays import Arrays
from vae_lightning.data_record import DataRecord
from vae_lightning.errors import UserError


def batch_of(data, split="train"):
    data.setup("predict" if split == "all" else "fit")
    dataset = data.datasets[split]
    return dataset.__getitems__(range(len(dataset)))


def in_units(data, batch):
    return data.record.to_items(data.preprocess(batch.x, batch.indices, 0, "test"))


@pytest.mark.parametrize(
    ("shape", "options", "image_shape"),
    [
        ((40, 9), {}, (1, 1, 9)),
        ((40, 2, 30), {}, (2, 1, 30)),
        ((40, 12, 500), {}, (12, 1, 500)),
        ((40, 8, 8), {}, (1, 8, 8)),
        ((40, 3, 12), {"layout": "NHW"}, (1, 3, 12)),
        ((40, 6, 5, 3), {}, (3, 6, 5)),
        ((40, 3, 6, 5), {}, (3, 6, 5)),
        ((40, 8, 9, 7), {}, (7, 8, 9)),
        ((40, 12), {"shape": [3, 4]}, (1, 3, 4)),
        ((40, 60), {"shape": [2, 5, 6]}, (2, 5, 6)),
        ((40, 24), {"shape": [3, 4, 2], "layout": "NHWC"}, (2, 3, 4)),
    ],
)
def test_axes(tmp_path, shape, options, image_shape):
    x = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "x.npy", x)
    data = Arrays(tmp_path / "x.npy", predict_split="all", **options)
    assert data.image_shape == image_shape
    batch = batch_of(data, "all")
    assert batch.x.shape == (40, *image_shape)
    wanted = x.reshape(40, *options["shape"]) if "shape" in options else x
    # Validation and test values beyond the training range are clipped, the others come back.
    train = data.positions["train"]
    assert np.allclose(in_units(data, batch)[train], wanted[train], atol=1e-5)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "int64", "float16", "float32", ">f4", "float64", "bool"]
)
def test_any_type_is_scaled_to_the_unit_interval(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 200, (30, 4, 4))
    np.save(tmp_path / "x.npy", values.astype(dtype))
    data = Arrays(tmp_path / "x.npy")
    batch = batch_of(data)
    x = data.preprocess(batch.x, batch.indices, 0, "test")
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1
    assert np.allclose(in_units(data, batch), values[data.positions["train"]], atol=1e-3)
    assert data.is_binary == (dtype == "bool")


def test_scaling_sees_the_training_items_only(tmp_path):
    x = np.zeros((30, 4))
    np.save(tmp_path / "x.npy", x)
    train = Arrays(tmp_path / "x.npy").positions["train"]
    x[train] = np.random.default_rng(0).uniform(2, 3, (len(train), 4))
    x[np.setdiff1d(np.arange(30), train)] = 1000
    np.save(tmp_path / "x.npy", x)
    for how in ("minmax", "standardize", "percentile"):
        record = Arrays(tmp_path / "x.npy", scaling=how).record
        assert max(record.high) <= 3
        assert abs(record.offset[0]) < 4


def test_labels_in_an_archive(tmp_path):
    names = np.array(["dog", "cat"] * 20)
    np.savez(tmp_path / "x.npz", x=np.arange(40.0).reshape(40, 1), y=names)
    data = Arrays(tmp_path / "x.npz", predict_split="all")
    assert data.class_names == ["cat", "dog"]
    batch = batch_of(data, "all")
    assert [data.class_names[i] for i in batch.y] == names.tolist()
    assert sum(data.record.class_counts) == data.num_train


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([3.0, 7.0] * 20), ("3", "7")),
        (np.eye(2)[[0, 1] * 20], ("0", "1")),
        (np.array([[1], [2]] * 20), ("1", "2")),
        (np.array([b"a", b"b"] * 20), ("a", "b")),
        (np.array([True, False] * 20), ("False", "True")),
    ],
)
def test_labels_in_a_file_of_their_own(tmp_path, labels, names):
    np.save(tmp_path / "x.npy", np.zeros((40, 3)))
    np.save(tmp_path / "y.npy", labels)
    data = Arrays(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    assert data.class_names == list(names)
    assert data.y.tolist() == ([1, 0] * 20 if names[0] == "False" else [0, 1] * 20)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.linspace(0, 1, 40), "which are not classes"),
        (np.arange(39), "39 labels for 40 items"),
        (np.zeros((40, 2, 2)), "one label for each"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    np.savez(tmp_path / "x.npz", x=np.zeros((40, 3)), y=labels)
    with pytest.raises(UserError, match=message):
        _ = Arrays(tmp_path / "x.npz").y


def test_splits_in_an_archive(tmp_path):
    arrays = {f"x_{name}": np.full((n, 4, 4), n) for name, n in (("train", 20), ("test", 6))}
    labels = {f"y_{name}": np.arange(n) % 3 for name, n in (("train", 20), ("test", 6))}
    np.savez(tmp_path / "mnist.npz", **arrays, **labels)
    data = Arrays(tmp_path / "mnist.npz")
    assert [data.split_size(split) for split in ("train", "val", "test")] == [18, 2, 6]
    assert data.items.read(data.positions["test"]).max() == 6
    assert data.num_classes == 3


def test_splits_in_a_folder(tmp_path):
    for name, n in (("train", 20), ("valid", 5), ("test", 6), ("other", 7)):
        np.save(tmp_path / f"{name}.npy", np.full((n, 9), float(n)))
    (tmp_path / "readme.md").write_text("hello")
    (tmp_path / ".hidden.npy").write_text("hello")
    data = Arrays(tmp_path)
    assert [data.split_size(split) for split in ("train", "val", "test")] == [20, 5, 6]
    assert dict(data.left_out) == {
        "readme.md": "no .npy or .npz file",
        "other.npy": "not in a split",
    }


def test_a_file_for_each_item_in_folders_of_classes(tmp_path):
    for name in ("sick", "healthy"):
        (tmp_path / name).mkdir()
        for i in range(10):
            np.save(tmp_path / name / f"{i}.npy", np.full((12, 10), i))
    data = Arrays(tmp_path, predict_split="all")
    assert data.image_shape == (1, 12, 10)
    assert data.class_names == ["healthy", "sick"]
    data.setup("predict")
    assert data.item_name("all", 0) == "healthy/0.npy"
    assert (tmp_path / data.item_name("all", 13)).is_file()
    assert data.class_names[data.y[13]] == "sick"


def test_parts_of_one_array_in_a_folder(tmp_path):
    for i, n in enumerate((10, 20, 5)):
        np.save(tmp_path / f"part{i}.npy", np.full((n, 16, 16), i))
    data = Arrays(tmp_path)
    assert len(data.items) == 35
    values = data.items.read(np.array([34, 0, 10, 9, 30]))[:, 0, 0, 0]
    assert values.tolist() == [2, 0, 1, 0, 2]
    assert data.items.name(30) == "part2.npy[0]"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: np.save(p / "x.npy", np.array([{}], object)), "Python objects"),
        (lambda p: np.save(p / "x.npy", np.zeros((9, 3), complex)), "complex"),
        (lambda p: np.save(p / "x.npy", np.array([["a"]])), "array of numbers"),
        (lambda p: np.save(p / "x.npy", np.zeros((0, 3))), "empty"),
        (lambda p: np.save(p / "x.npy", np.zeros((2, 3, 4, 5, 6))), "give an array of items"),
        (lambda p: np.save(p / "x.npy", np.zeros((2, 3))), "of which some are needed"),
        (lambda p: (p / "x.npy").write_bytes(b"nonsense"), "cannot be read as an array"),
        (lambda p: None, "does not exist"),
    ],
    ids=["objects", "complex", "text", "empty", "axes", "few", "damaged", "missing"],
)
def test_a_file_that_is_no_data(tmp_path, make, message):
    make(tmp_path)
    data = Arrays(tmp_path / "x.npy")
    with pytest.raises(UserError, match=message):
        data.split_size("train")


def test_an_archive_of_several_arrays_is_asked_about(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((9, 3)), b=np.ones((9, 3)))
    with pytest.raises(UserError, match=r"the arrays a, b: .* --data\.key"):
        _ = Arrays(tmp_path / "x.npz").items
    assert Arrays(tmp_path / "x.npz", key="b").items.read(np.arange(2)).min() == 1
    with pytest.raises(UserError, match="no array 'c', but a, b"):
        _ = Arrays(tmp_path / "x.npz", key="c").items


def test_a_large_array_stays_in_its_file(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(200, 30, 30)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    small = Arrays(tmp_path / "x.npy", memory_limit=1e-5, predict_split="all")
    large = Arrays(tmp_path / "x.npy", predict_split="all")
    streamed, loaded = batch_of(small, "all"), batch_of(large, "all")
    assert isinstance(small.datasets["all"], scaled.ScaledItems)
    assert isinstance(small.items.arrays[0], MappedArray)
    assert len(pickle.dumps(small.datasets["all"])) < 10_000  # what a worker process gets
    assert torch.equal(streamed.x, loaded.x)
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(UserError, match="cannot be read in parts"):
        _ = Arrays(tmp_path / "x.npz", memory_limit=1e-5).items


def test_flat_images_are_pointed_out(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((50, 784)))
    assert "--data.shape [28,28]" in Arrays(tmp_path / "x.npy").summary()


def test_classes_keep_their_numbers_with_a_trained_model(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.rand(40, 3), y=["a", "b", "c", "d"] * 10)  # noqa: NPY002
    np.savez(tmp_path / "new.npz", x=np.random.rand(4, 3), y=["d", "b", "d", "b"])  # noqa: NPY002
    record = Arrays(tmp_path / "x.npz").record
    new = Arrays(tmp_path / "new.npz")
    new.use_record(record)
    assert new.num_classes == 4
    assert new.y.tolist() == [3, 1, 3, 1]


def test_more_files_than_may_be_open(tmp_path):
    for i in range(300):
        np.save(tmp_path / f"{i:03d}.npy", np.full((4, 4), float(i)))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        data = Arrays(tmp_path, predict_split="all")
        assert batch_of(data, "all").x.shape == (300, 1, 4, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert data.items.read(np.array([299, 0, 7]))[:, 0, 0, 0].tolist() == [299, 0, 7]


def test_files_of_splits_hold_several_items(tmp_path):
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}.npy", np.zeros((100, 64)))
    assert Arrays(tmp_path).image_shape == (1, 1, 64)


def test_a_trained_model_knows_what_an_item_is(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 12, 10)))
    new = tmp_path / "new"
    new.mkdir()
    np.save(new / "one.npy", np.zeros((12, 10)))
    data = Arrays(new)
    data.use_record(Arrays(tmp_path / "x.npy").record)
    assert data.image_shape == (1, 12, 10)
    assert len(data.items) == 1


def test_one_item_is_left_to_train_on(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 3)))
    data = Arrays(tmp_path / "x.npy", val_share=0.45, test_share=0.5)
    assert data.split_size("train") >= 1


def test_a_pixel_that_is_too_bright_does_not_refuse_the_data(tmp_path):
    x = np.random.default_rng(0).integers(900, 1300, (200, 8, 8)).astype(np.uint16)
    x[17, 3, 3] = 65535
    np.save(tmp_path / "x.npy", x)
    data = Arrays(tmp_path / "x.npy")
    record = data.record
    again = Arrays(tmp_path / "x.npy")
    again.use_record(record)
    for split in ("train", "val", "test"):
        again.load(split)


def test_bytes_for_a_model_of_images(tmp_path):
    """Values of 8 bits are those of image files."""
    np.save(tmp_path / "x.npy", np.full((10, 4, 4), 51, np.uint8))
    data = Arrays(tmp_path / "x.npy", predict_split="all")
    data.use_record(DataRecord((1, 4, 4)))
    batch = batch_of(data, "all")
    assert data.preprocess(batch.x, batch.indices, 0, "test").unique().tolist() == [
        pytest.approx(0.2)
    ]


def test_bytes_with_an_offset_are_not_divided_by_255(tmp_path):
    np.save(tmp_path / "x.npy", np.full((10, 4, 4), 106, np.uint8))
    data = Arrays(tmp_path / "x.npy", predict_split="all")
    numbers = (-100.0,), (255.0,), (-100.0,), (155.0,), (50.0,), (60.0,)
    data.use_record(DataRecord((1, 4, 4), "int16", "minmax", *numbers))
    batch = batch_of(data, "all")
    x = data.preprocess(batch.x, batch.indices, 0, "test")
    assert x.unique().item() == pytest.approx(206 / 255)


def test_binarization_needs_values_between_0_and_1(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    data = Arrays(tmp_path / "x.npy", scaling="standardize", binarization="dynamic")
    with pytest.raises(UserError, match=r"binarization dynamic needs values in \[0, 1\]"):
        _ = data.record


def test_equal_values_are_not_binary(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((40, 3)))
    assert not Arrays(tmp_path / "x.npy").is_binary
