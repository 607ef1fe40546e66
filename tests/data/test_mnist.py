import gzip
import shutil
import stat
from pathlib import Path

import pytest
import torch

from vae_lightning import MNIST, FashionMNIST
from vae_lightning.data.mnist import read_idx
from vae_lightning.errors import UserError


def idx(array: torch.Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + bytes(array.flatten().tolist())


@pytest.fixture
def root(tmp_path):
    """A small MNIST: the file format, not the digits."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, n in (("train", 30), ("t10k", 12)):
        images = torch.arange(n)[:, None, None].expand(n, 28, 28)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(torch.arange(n) % 10))
    return tmp_path


def small(root, **kwargs) -> MNIST:
    data = MNIST(root=str(root), val_size=5, **kwargs)
    data.prepare_data()
    return data


def test_files_are_found_gzipped_or_not_and_nothing_is_written(root):
    before = sorted(root.rglob("*"))
    for path in before:
        path.chmod(path.stat().st_mode & ~stat.S_IWUSR)
    data = small(root)
    data.setup("fit")
    data.setup("test")
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [25, 5, 12]
    assert sorted(root.rglob("*")) == before
    batch = data.datasets["test"].__getitems__([3, 11])
    assert batch.x.shape == (2, 1, 28, 28)
    assert batch.x[:, 0, 0, 0].tolist() == [3, 11]
    assert batch.y.tolist() == [3, 1]
    assert batch.indices.tolist() == [3, 11]


def test_train_and_val_are_a_partition(root):
    data = small(root)
    data.setup("fit")
    values = [data.datasets[split].images.x[:, 0, 0, 0].tolist() for split in ("train", "val")]
    assert sorted(values[0] + values[1]) == list(range(30))


def test_root_comes_from_argument_then_environment_then_default(monkeypatch):
    monkeypatch.setenv("VAE_DATA_ROOT", "/from/environment")
    assert str(MNIST(root="/given").folder) == "/given/MNIST/raw"
    assert str(FashionMNIST().folder) == "/from/environment/FashionMNIST/raw"
    monkeypatch.delenv("VAE_DATA_ROOT")
    assert str(MNIST().folder) == "data/MNIST/raw"


def test_missing_files_without_network(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError) as error:
        MNIST(root=str(tmp_path)).prepare_data()
    message = str(error.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "train-images-idx3-ubyte.gz" in message
    assert "--data Digits" in message


def damage(path, how):
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:half],
            "empty": b"",
            "altered": content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :],
            "something else": b"<html>not found</html>",
        }[how]
    )


@pytest.mark.parametrize("how", ["truncated", "empty", "altered", "something else"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"])
def test_damaged_files_are_named(root, name, how):
    path = root / "MNIST" / "raw" / name
    damage(path, how)
    if how == "altered" and not name.endswith(".gz"):
        pytest.skip("without a checksum an altered byte cannot be seen unless no label is left")
    with pytest.raises(UserError, match=name):
        small(root).setup("fit")


def test_labels_out_of_range(root):
    path = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(torch.arange(12)))
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte does not match"):
        small(root).setup("test")


def test_as_many_labels_as_images(root):
    path = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(torch.zeros(11, dtype=torch.int64)))
    with pytest.raises(UserError, match="11 labels"):
        small(root).setup("test")


def test_file_without_images(tmp_path):
    path = tmp_path / "none-images-idx3-ubyte"
    path.write_bytes(idx(torch.zeros(0, 28, 28)))
    with pytest.raises(UserError, match="none-images-idx3-ubyte is corrupt"):
        read_idx(path)


def test_unreadable_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_idx(tmp_path / "absent")


def test_real_mnist(mnist_root):
    data = MNIST(root=str(mnist_root))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    sizes = [len(data.datasets[split]) for split in ("train", "val", "test")]
    assert sizes == [55_000, 5_000, 10_000]
    test = data.datasets["test"].images
    assert test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert test.x.float().mean().item() == pytest.approx(33.79, abs=0.01)


def test_copy_of_another_family(root):
    shutil.move(root / "MNIST", root / "FashionMNIST")
    data = FashionMNIST(root=str(root), val_size=5)
    data.prepare_data()
    data.setup("test")
    assert len(data.datasets["test"]) == 12
    assert data.class_names[0] == "T-shirt/top"


def test_a_download_writes_over_nothing_and_leaves_nothing_behind(tmp_path, monkeypatch):
    class Source:
        """In the place of torchvision: writes its files, then fails or not."""

        fails = True

        def __init__(self, root, download):
            folder = Path(root) / "MNIST" / "raw"
            folder.mkdir(parents=True)
            for name, n in (("train", 30), ("t10k", 12)):
                (folder / f"{name}-images-idx3-ubyte").write_bytes(
                    idx(torch.zeros(n, 28, 28).byte())
                )
                (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(torch.zeros(n).byte()))
            if self.fails:
                raise RuntimeError("Error downloading")

    Source.__name__ = "MNIST"
    monkeypatch.setattr(MNIST, "source", Source)
    root = tmp_path / "new"
    with pytest.raises(UserError, match="could not be downloaded"):
        small(root)
    assert list(tmp_path.iterdir()) == []
    mine = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(idx(torch.arange(30) % 10))
    Source.fails = False
    data = small(root)
    data.setup("fit")
    assert data.datasets["train"].images.y.max() == 9  # those that were there
    assert {path.name for path in mine.parent.iterdir()} == {
        f"{split}-{kind}-ubyte"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    }
