import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_lightning.data import on_demand
from vae_lightning.data.on_demand import OnDemand, StoredImages
from vae_lightning.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vae_lightning"


def store(images, is_binary=False, parts=3, **kwargs):
    arguments = {"size": len(images), "image_shape": images.shape[1:], **kwargs}
    return StoredImages.store(
        "set-1", is_binary=is_binary, parts=lambda: np.array_split(images, parts), **arguments
    )


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 3)])
@pytest.mark.parametrize("is_binary", [False, True])
def test_images_come_back(shape, is_binary):
    images = RNG.integers(0, 256, (7, *shape), dtype=np.uint8)
    if is_binary:
        images = 255 * (images > 127).astype(np.uint8)
    stored = store(images, is_binary)
    positions = torch.tensor([6, 0, 3, 3])
    assert stored(positions).numpy().tolist() == images[[6, 0, 3, 3]].tolist()


def test_a_bit_for_a_pixel(cache):
    store(np.zeros((8, 1, 16, 16), dtype=np.uint8), is_binary=True)
    (path,) = cache.iterdir()
    assert path.stat().st_size == 128 + 8 * 32


def test_unpacked_once(cache, capsys):
    images = RNG.integers(0, 256, (7, 1, 2, 2), dtype=np.uint8)
    store(images)
    assert "Unpacking to" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}

    def fail():
        raise AssertionError("unpacked again")

    again = StoredImages.store("set-1", 7, (1, 2, 2), False, fail)
    assert again(torch.arange(7)).numpy().tolist() == images.tolist()
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("length", [0, 50, 140])
def test_damaged_cache_is_made_anew(cache, length):
    images = RNG.integers(0, 256, (7, 1, 2, 2), dtype=np.uint8)
    stored = store(images)
    stored.path.write_bytes(stored.path.read_bytes()[:length])
    assert store(images)(torch.arange(7)).numpy().tolist() == images.tolist()


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (np.zeros((7, 1, 2, 2), dtype=np.uint8), {"size": 8}),
        (np.zeros((7, 1, 2, 2), dtype=np.uint8), {"size": 6}),
        (np.zeros((7, 1, 2, 2), dtype=np.uint8), {"image_shape": (1, 4, 1)}),
        (np.zeros((7, 1, 2, 2)), {}),
        (np.full((7, 1, 2, 2), 7, dtype=np.uint8), {"is_binary": True}),
    ],
)
def test_other_images_than_expected(cache, images, options):
    with pytest.raises(ValueError, match="found"):
        store(images, **options)
    assert not list(cache.iterdir())


def test_full_disk(cache, monkeypatch):
    """``/dev/full`` fails as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    opened = open

    def full(path, *args, **kwargs):
        is_cache = str(path).startswith(str(cache))
        return opened("/dev/full" if is_cache and "wb" in args else path, *args, **kwargs)

    monkeypatch.setattr(on_demand, "open", full, raising=False)
    with pytest.raises(UserError, match=r"set-1\.npy \(0\.0 GB\) could not be written \(No space"):
        store(np.zeros((7, 1, 2, 2), dtype=np.uint8))


def test_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        store(np.zeros((7, 1, 2, 2), dtype=np.uint8))


def test_only_the_path_is_sent_to_other_processes():
    images = RNG.integers(0, 256, (100, 3, 8, 8), dtype=np.uint8)
    stored = store(images)
    sent = pickle.dumps(stored)
    assert len(sent) < 1000
    assert pickle.loads(sent)(torch.tensor([5])).numpy().tolist() == images[[5]].tolist()


def test_batches():
    images = RNG.integers(0, 256, (200, 1, 4, 4), dtype=np.uint8)
    positions = torch.randperm(200)[:150]
    dataset = OnDemand(store(images), positions, positions % 3)
    batch = dataset.__getitems__([149, 0, 7])
    chosen = positions[[149, 0, 7]]
    assert batch.x.numpy().tolist() == images[chosen.numpy()].tolist()
    assert batch.y.tolist() == (chosen % 3).tolist()
    assert batch.indices.tolist() == [149, 0, 7]
    assert OnDemand(store(images), positions)[3].y is None
    held = dataset.read_all((1, 4, 4))
    assert held.x.numpy().tolist() == images[positions.numpy()].tolist()
    assert held.y.equal(positions % 3)


def test_memory_holds_a_batch():
    """All images take 12 MB, a part or batch 0.6 MB."""

    def parts():
        for i in range(20):
            yield np.full((50, 3, 64, 64), i, dtype=np.uint8)

    tracemalloc.start()  # arrays are traced, mapped files are not
    stored = StoredImages.store("large", 1000, (3, 64, 64), False, parts)
    dataset = OnDemand(stored, torch.randperm(1000))
    for start in range(0, 1000, 50):
        batch = dataset.__getitems__(range(start, start + 50))
        assert batch.x[:, 0, 0, 0].equal((dataset.positions[start : start + 50] // 50).byte())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4e6
