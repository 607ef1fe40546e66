import hashlib
import os

import pytest

from vae_lightning.data.published import Published
from vae_lightning.errors import UserError

URL = "https://example.org/set"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def files(tmp_path):
    checksums = {"a.bin": md5(b"first"), "b.bin": md5(b"second"), "pictures": None}
    return Published(tmp_path / "sets", "one/raw", checksums, URL)


def get(folder):
    """In the place of a downloader."""
    inside = folder / "extracted"
    (inside / "pictures").mkdir(parents=True)
    (inside / "pictures" / "1.png").write_bytes(b"picture")
    (inside / "a.bin").write_bytes(b"first")
    (inside / "b.bin").write_bytes(b"second")
    (inside / "more.bin").write_bytes(b"not needed")
    return inside


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_needed_is_downloaded(files, tmp_path):
    files.download(get)
    assert not files.missing
    expected = {"a.bin": b"first", "b.bin": b"second", "pictures/1.png": b"picture"}
    assert content(tmp_path) == {f"sets/one/raw/{name}": data for name, data in expected.items()}


def test_nothing_is_overwritten_and_nothing_downloaded_twice(files):
    files.folder.mkdir(parents=True)
    (files.folder / "a.bin").write_bytes(b"mine")
    files.download(get)
    assert (files.folder / "a.bin").read_bytes() == b"mine"

    def fail(folder):
        raise AssertionError("downloaded again")

    files.download(fail)


@pytest.mark.parametrize(
    "error",
    [OSError("unreachable"), RuntimeError("unreachable:\nlong story"), KeyError("unreachable")],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_download_leaves_nothing_behind(files, tmp_path, error):
    def fail(folder):
        get(folder)
        raise error

    with pytest.raises(UserError) as raised:
        files.download(fail)
    assert list(tmp_path.iterdir()) == []
    message = str(raised.value)
    for part in (str(files.folder), "a.bin, b.bin, pictures", "unreachable", URL, "VAE_DATA_ROOT"):
        assert part in message
    assert "\n" not in message


def test_download_without_the_files(files, tmp_path):
    def incomplete(folder):
        get(folder)
        (folder / "extracted" / "b.bin").unlink()
        return folder / "extracted"

    with pytest.raises(UserError, match=r"b\.bin is not in the download"):
        files.download(incomplete)
    assert content(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable")
def test_folder_that_cannot_be_written(files, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="the download failed"):
        files.download(get)
    tmp_path.chmod(0o700)


def test_the_damaged_file_is_named(files):
    files.download(get)
    (files.folder / "b.bin").write_bytes(b"secand")
    with pytest.raises(UserError) as raised, files.reading():
        raise ValueError("cannot parse")
    message = str(raised.value)
    assert message.startswith(f"b.bin in {files.folder} is damaged (cannot parse)")
    assert URL in message


def test_missing_files_are_named_before_they_are_read(files):
    files.download(get)
    (files.folder / "a.bin").unlink()
    with pytest.raises(UserError, match=r"one/raw lacks a\.bin: get"), files.reading():
        raise AssertionError("read")


def test_own_errors_pass(files):
    files.download(get)
    with pytest.raises(UserError, match=r"^as it is$"), files.reading():
        raise UserError("as it is")


def test_patterns(tmp_path):
    files = Published(tmp_path, "cars", {"*.mat": None}, URL)
    assert files.missing == ["*.mat"]

    def cars(folder):
        for i in range(3):
            (folder / f"{i}.mat").write_bytes(b"car")
        return folder

    files.download(cars)
    assert sorted(content(tmp_path)) == ["cars/0.mat", "cars/1.mat", "cars/2.mat"]


def test_the_folder_that_has_all_files_is_taken(tmp_path):
    checksums = {"a.bin": None, "b.bin": None}

    def find():
        return Published.find(tmp_path, ("set", "."), checksums, URL).folder

    assert find() == tmp_path / "set"
    (tmp_path / "a.bin").touch()
    assert find() == tmp_path / "set"
    (tmp_path / "b.bin").touch()
    assert find() == tmp_path
