"""CIFAR, SVHN, USPS and EMNIST: small files in the format of the published ones."""

import bz2
import gzip
import hashlib
import io
import pickle

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets

from vae_lightning import CIFAR10, CIFAR100, EMNIST, SVHN, USPS
from vae_lightning.data import emnist
from vae_lightning.errors import UserError

RNG = np.random.default_rng(0)


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()


def loaded(cls, root, **kwargs):
    data = cls(root=str(root), **kwargs)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    for split, dataset in data.datasets.items():
        assert len(dataset) == data.split_size(split)
        assert dataset.images.x.dtype == torch.uint8
        assert dataset.images.x.shape[1:] == data.image_shape
        assert dataset.images.x.is_contiguous()
        assert dataset.images.y.dtype == torch.int64
    assert len(data.class_names) == data.num_classes
    return data


def joined(data):
    """Training and validation images and labels, sorted by their first pixels."""
    parts = [data.datasets[split].images for split in ("train", "val")]
    return sorted(
        (x.flatten()[:8].tolist(), int(y)) for part in parts for x, y in zip(*part, strict=True)
    )


def check_train(data, x, y):
    """The training and the validation images are a partition of the published ones."""
    expected = zip(x.reshape(len(x), -1)[:, :8].tolist(), y.tolist(), strict=True)
    assert joined(data) == sorted(expected)


# CIFAR


class Old(pickle.Pickler):
    """Pickles arrays as the numpy of 2009 did, which numpy 2.4 warns about."""

    def reducer_override(self, value):
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def pickled(value) -> bytes:
    file = io.BytesIO()
    Old(file, protocol=2).dump(value)
    return file.getvalue()


def write_cifar(root, monkeypatch, source, train, test):
    """Write batches of (name, images (n, 3072), labels), with their checksums."""
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    key = "labels" if source is torchvision.datasets.CIFAR10 else "fine_labels"
    for name, x, y in (*train, *test):
        (folder / name).write_bytes(pickled({"data": x, key: y.tolist(), "batch_label": name}))
    meta = folder / source.meta["filename"]
    meta.write_bytes(pickled({source.meta["key"]: ["not used"]}))
    for attribute, batches in (("train_list", train), ("test_list", test)):
        listed = [[name, md5(folder / name)] for name, *_ in batches]
        monkeypatch.setattr(source, attribute, listed)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(meta)})
    return folder


def batch(name, n, classes=10):
    return name, RNG.integers(0, 256, (n, 3072), dtype=np.uint8), RNG.integers(0, classes, n)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    train = [batch("data_batch_1", 6), batch("data_batch_2", 5)]
    test = [batch("test_batch", 4)]
    folder = write_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10, train, test)
    monkeypatch.setattr(CIFAR10, "published_sizes", (11, 4))
    return folder, train, test


def test_cifar10(cifar, tmp_path):
    _, train, test = cifar
    data = loaded(CIFAR10, tmp_path, val_size=3)
    check_train(
        data, np.concatenate([x for _, x, _ in train]), np.concatenate([y for *_, y in train])
    )
    (_, x, y) = test[0]
    # Red, green and blue planes, each row by row.
    assert data.datasets["test"].images.x.numpy().tolist() == x.reshape(-1, 3, 32, 32).tolist()
    assert data.datasets["test"].images.y.tolist() == y.tolist()
    assert data.class_names[0] == "airplane"
    assert [data.split_size(split) for split in ("train", "val", "test")] == [8, 3, 4]


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    source = torchvision.datasets.CIFAR100
    train, test = [batch("train", 8, 100)], [batch("test", 4, 100)]
    write_cifar(tmp_path, monkeypatch, source, train, test)
    monkeypatch.setattr(CIFAR100, "published_sizes", (8, 4))
    data = loaded(CIFAR100, tmp_path, val_size=3)
    check_train(data, *train[0][1:])
    assert data.num_classes == 100
    assert len(set(data.class_names)) == 100
    assert list(data.class_names) == sorted(data.class_names)


def test_published_sizes():
    assert [CIFAR10().split_size(split) for split in ("train", "val", "test")] == [
        45_000,
        5_000,
        10_000,
    ]
    assert CIFAR10(train_on_val=True).num_train == 50_000


def test_nothing_is_unpickled_that_was_not_published(cifar, tmp_path):
    folder, *_ = cifar
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "harmed").encode() + b"'\ntR."
    (folder / "data_batch_2").write_bytes(evil)
    with pytest.raises(UserError, match=r"data_batch_2 in .*cifar-10-batches-py is damaged"):
        loaded(CIFAR10, tmp_path, val_size=3)
    assert not (tmp_path / "harmed").exists()


def test_missing_cifar_without_network(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError) as raised:
        CIFAR10(root=str(tmp_path)).prepare_data()
    message = str(raised.value)
    for part in ("data_batch_1", "unreachable", "cs.toronto.edu", "cifar-10-batches-py"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


# SVHN


def write_svhn(folder, monkeypatch):
    folder.mkdir(parents=True, exist_ok=True)
    listed, arrays = {}, {}
    for split, n in (("train", 9), ("test", 5)):
        # Matlab's order: height, width, channel, image; labels in a column, 10 for the digit 0.
        x = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        y = RNG.permutation(np.arange(1, n + 1)).astype(np.uint8)[:, None]
        y[0] = 10
        path = folder / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": x, "y": y})
        listed[split] = [
            f"http://ufldl.stanford.edu/housenumbers/{path.name}",
            path.name,
            md5(path),
        ]
        arrays[split] = x.transpose(3, 2, 0, 1), y[:, 0] % 10
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    monkeypatch.setattr(SVHN, "published_sizes", (9, 5))
    return arrays


@pytest.mark.parametrize("inside", ["SVHN", "."])
def test_svhn(tmp_path, monkeypatch, inside):
    arrays = write_svhn(tmp_path / inside, monkeypatch)
    data = loaded(SVHN, tmp_path, val_size=2)
    check_train(data, *arrays["train"])
    x, y = arrays["test"]
    assert data.datasets["test"].images.x.numpy().tolist() == x.tolist()
    assert data.datasets["test"].images.y.tolist() == y.tolist()
    assert data.datasets["test"].images.y[0] == 0


def test_damaged_svhn(tmp_path, monkeypatch):
    write_svhn(tmp_path / "SVHN", monkeypatch)
    path = tmp_path / "SVHN" / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"test_32x32\.mat in .* is damaged"):
        loaded(SVHN, tmp_path, val_size=2)


# USPS


def write_usps(folder, sizes=(7, 4)):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for name, n in zip(("usps.bz2", "usps.t.bz2"), sizes, strict=True):
        gray = RNG.integers(0, 256, (n, 256))
        y = RNG.integers(0, 10, n)
        # Labels from 1 and pixels from -1 to 1.
        lines = [
            " ".join([str(label + 1), *(f"{i + 1}:{p / 127.5 - 1:.7f}" for i, p in enumerate(row))])
            for label, row in zip(y, gray, strict=True)
        ]
        (folder / name).write_bytes(bz2.compress("\n".join(lines).encode()))
        arrays.append((gray, y))
    return arrays


@pytest.mark.parametrize("inside", ["USPS", "."])
def test_usps(tmp_path, monkeypatch, inside):
    _, (gray, y) = write_usps(tmp_path / inside)
    monkeypatch.setattr(USPS, "published_sizes", (7, 4))
    data = loaded(USPS, tmp_path, val_size=2)
    images = data.datasets["test"].images
    assert images.y.tolist() == y.tolist()
    # torchvision rounds down.
    difference = torch.from_numpy(gray).view(-1, 1, 16, 16) - images.x
    assert 0 <= difference.min() <= difference.max() <= 1


@pytest.mark.parametrize("content", [b"", b"1 1:0.5\n", b"<html>", b"1 1:a\n"])
def test_damaged_usps(tmp_path, monkeypatch, content):
    write_usps(tmp_path / "USPS")
    monkeypatch.setattr(USPS, "published_sizes", (7, 4))
    path = tmp_path / "USPS" / "usps.t.bz2"
    path.write_bytes(bz2.compress(content))
    with pytest.raises(UserError, match=r"usps\.t\.bz2|images of shape"):
        loaded(USPS, tmp_path, val_size=2)


# EMNIST


def write_emnist(root, split, first=0, classes=10, sizes=(9, 5)):
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, n in zip(("train", "test"), sizes, strict=True):
        upright = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        y = RNG.integers(0, classes, n)
        y[-1] = classes - 1
        images, labels = (
            f"emnist-{split}-{name}-{k}-ubyte" for k in ("images-idx3", "labels-idx1")
        )
        (folder / f"{images}.gz").write_bytes(gzip.compress(idx(upright.transpose(0, 2, 1).copy())))
        (folder / labels).write_bytes(idx((y + first).astype(np.uint8)))
        arrays[name] = upright, y
    return arrays


def test_emnist_is_upright(tmp_path, monkeypatch):
    monkeypatch.setitem(emnist.SIZES, "balanced", (9, 5))
    arrays = write_emnist(tmp_path, "balanced", classes=47)
    data = loaded(EMNIST, tmp_path, val_size=2)
    check_train(data, *arrays["train"])
    upright, y = arrays["test"]
    assert data.datasets["test"].images.x[:, 0].numpy().tolist() == upright.tolist()
    assert data.datasets["test"].images.y.tolist() == y.tolist()


def test_letters_begin_at_zero(tmp_path, monkeypatch):
    monkeypatch.setitem(emnist.SIZES, "letters", (9, 5))
    arrays = write_emnist(tmp_path, "letters", first=1, classes=26)
    data = loaded(EMNIST, tmp_path, split="letters", val_size=2)
    assert data.datasets["test"].images.y.tolist() == arrays["test"][1].tolist()
    assert data.class_names[:2] == ("A", "B")
    assert len(data.class_names) == 26


@pytest.mark.parametrize(
    ("split", "classes", "last"),
    [
        ("byclass", 62, "z"),
        ("bymerge", 47, "t"),
        ("balanced", 47, "t"),
        ("letters", 26, "Z"),
        ("digits", 10, "9"),
        ("mnist", 10, "9"),
    ],
)
def test_splits_of_emnist(split, classes, last):
    data = EMNIST(split=split)
    assert data.num_classes == classes
    assert data.class_names[-1] == last
    assert data.split_size("train") + 5000 == emnist.SIZES[split][0]


def test_no_such_split():
    with pytest.raises(ValueError, match=r"data\.split must be one of byclass, .*got uppercase"):
        EMNIST(split="uppercase")


def test_emnist_of_another_size(tmp_path, monkeypatch):
    monkeypatch.setitem(emnist.SIZES, "digits", (9, 6))
    write_emnist(tmp_path, "digits")
    with pytest.raises(UserError, match=r"images of shape \(5, 1, 28, 28\), not \(6, 1, 28, 28\)"):
        loaded(EMNIST, tmp_path, split="digits", val_size=2)


def test_labels_out_of_range(tmp_path, monkeypatch):
    monkeypatch.setitem(emnist.SIZES, "digits", (9, 5))
    write_emnist(tmp_path, "digits", classes=12)
    with pytest.raises(UserError, match="to 11, not of 10 classes"):
        loaded(EMNIST, tmp_path, split="digits", val_size=2)


def test_missing_emnist(tmp_path, monkeypatch):
    monkeypatch.setitem(emnist.SIZES, "digits", (9, 5))
    write_emnist(tmp_path, "digits")
    (tmp_path / "EMNIST" / "raw" / "emnist-digits-test-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="EMNIST/raw lacks emnist-digits-test-labels-idx1-ubyte"):
        EMNIST(root=str(tmp_path), split="digits", val_size=2).load("test")
