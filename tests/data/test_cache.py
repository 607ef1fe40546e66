from pathlib import Path

import pytest
import torch

from vae_lightning.data.cache import cache_folder, cached


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vae_lightning"


class Maker:
    """Counts how often it had to make the tensors."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"a": torch.arange(5, dtype=torch.uint8), "b": torch.ones(2, 3)}

    def get(self) -> None:
        tensors = cached("a.pt", self)
        assert set(tensors) == {"a", "b"}
        assert tensors["a"].equal(torch.arange(5, dtype=torch.uint8))
        assert tensors["b"].equal(torch.ones(2, 3))


@pytest.fixture
def make():
    return Maker()


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_where_the_folder_is(folder, monkeypatch):
    assert cache_folder() == folder
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert str(cache_folder()) == "/home/somebody/.cache/vae_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_folder()) == "/home/somebody/.cache/vae_lightning"


def test_made_once(make, folder):
    make.get()
    make.get()
    assert make.times == 1
    assert names(folder) == ["a.pt"]
    cached("b.pt", make)
    assert make.times == 2


@pytest.mark.parametrize("content", [b"", b"no tensors", None], ids=["empty", "text", "half"])
def test_damaged_file_is_made_anew(make, folder, content):
    make.get()
    path = folder / "a.pt"
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    make.get()
    assert make.times == 2
    make.get()
    assert make.times == 2  # and was mended
    assert names(folder) == ["a.pt"]


def test_folder_that_cannot_be_made_is_no_error(make, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    make.get()
    make.get()
    assert make.times == 2


def refuse(*args, **kwargs):
    raise PermissionError("Read-only file system")


@pytest.mark.parametrize("method", ["mkdir", "replace"])
def test_folder_that_cannot_be_written_to_is_no_error(make, folder, monkeypatch, method):
    folder.mkdir(parents=True)
    monkeypatch.setattr(Path, method, refuse)
    make.get()
    assert names(folder) == []


def test_damaged_file_in_a_folder_that_cannot_be_written_to_is_no_error(make, folder, monkeypatch):
    folder.mkdir(parents=True)
    (folder / "a.pt").write_text("no tensors")
    for method in ("unlink", "replace"):
        monkeypatch.setattr(Path, method, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    make.get()
    assert make.times == 1


def test_full_disk_leaves_no_part_of_a_file(make, folder, monkeypatch):
    def fill(tensors, path):
        path.write_bytes(b"half of")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        make.get()
    assert names(folder) == []
    make.get()
    assert names(folder) == ["a.pt"]
