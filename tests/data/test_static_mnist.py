import gzip
import hashlib
import http.client
import io
import os
import urllib.error
from pathlib import Path

import pytest
import torch

from vae_lightning import StaticMNIST
from vae_lightning.data import static_mnist
from vae_lightning.errors import UserError

SIZES = {"train": 9, "val": 4, "test": 5}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bits(monkeypatch):
    """Pixels of a small data set, whose files are from now on those of the author."""
    bits = {split: torch.randint(0, 2, (n, 784)) for split, n in SIZES.items()}
    for split, file in static_mnist.FILES.items():
        digest = hashlib.sha256(text(bits[split])).hexdigest()
        file = file._replace(images=SIZES[split], sha256=digest)
        monkeypatch.setitem(static_mnist.FILES, split, file)
    return bits


def text(rows) -> bytes:
    return "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()).encode()


@pytest.fixture
def root(tmp_path, bits):
    """The folder of data sets: one file is not compressed."""
    folder = tmp_path / "datasets" / "binarized_mnist"
    folder.mkdir(parents=True)
    for split, rows in bits.items():
        name = static_mnist.FILES[split].name
        if split == "val":
            (folder / name).write_bytes(text(rows))
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text(rows)))
    return folder.parent


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """What was to be downloaded; there is no network."""
    asked = []

    def no_network(url, *args, **kwargs):
        asked.append(url)
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return asked


def loaded(root, **kwargs) -> StaticMNIST:
    data = StaticMNIST(root=str(root), **kwargs)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def check(data, bits):
    for split, rows in bits.items():
        images = data.datasets[split].images
        assert images.x.dtype == torch.uint8
        assert images.x.equal(255 * rows.view(-1, 1, 28, 28).byte()), split
        assert images.y is None


def test_images_are_those_of_the_files_in_their_order(root, bits, asked):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    data = loaded(root)
    check(data, bits)
    assert data.num_classes == 0
    assert not asked
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("binarization", ["none", "threshold", "dynamic", None])
def test_binarization_changes_nothing(root, bits, binarization):
    data = loaded(root, **({"binarization": binarization} if binarization else {}))
    (batch,) = data.test_dataloader()
    x = data.on_after_batch_transfer(batch, 0).x
    assert x.equal(bits["test"].view(5, 1, 28, 28).float()[batch.indices])
    mean = data.mean_image().flatten()
    torch.testing.assert_close(mean, bits["train"].float().mean(0))


@pytest.mark.parametrize("binarization", ["none", "threshold", "dynamic"])
def test_is_binary_whatever_binarization_says(binarization):
    assert StaticMNIST(binarization=binarization).is_binary


def test_train_on_val(root, bits):
    data = loaded(root, train_on_val=True, batch_size=5)
    batches = list(data.train_dataloader())
    index = torch.cat([batch.indices for batch in batches])
    assert sorted(index.tolist()) == list(range(13))
    rows = torch.cat([bits["train"], bits["val"]])[index]
    assert torch.cat([batch.x for batch in batches]).flatten(1).equal(255 * rows.byte())


def test_root_comes_from_argument_then_environment_then_default(root, bits, monkeypatch):
    monkeypatch.setenv("VAE_DATA_ROOT", str(root))
    assert StaticMNIST(root="/given").root == Path("/given")
    check(loaded(""), bits)
    monkeypatch.delenv("VAE_DATA_ROOT")
    assert StaticMNIST().root == Path("data")


def test_files_are_needed_once(root, bits):
    loaded(root)
    for path in (root / "binarized_mnist").iterdir():
        path.unlink()
    check(loaded(root), bits)
    check(loaded("/another/folder"), bits)
    data = StaticMNIST(root=str(root))  # another process, which prepares nothing
    data.setup("test")
    assert len(data.datasets["test"]) == 5


def test_cache_takes_a_bit_for_a_pixel(root, cache):
    loaded(root)
    (path,) = cache.rglob("*.pt")
    assert path.stat().st_size < 18 * 98 + 3000


def test_damaged_cache_is_made_anew(root, bits, cache):
    loaded(root)
    (path,) = cache.rglob("*.pt")
    path.write_bytes(path.read_bytes()[:500])
    check(loaded(root), bits)


def test_cache_that_cannot_be_written_to(root, bits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    read = []
    monkeypatch.setattr(gzip, "decompress", lambda b, d=gzip.decompress: read.append(b) or d(b))
    check(loaded(root), bits)
    assert len(read) == 2  # the two compressed files, once each


def test_cache_of_other_files_is_not_taken(root, bits, monkeypatch):
    loaded(root)
    other = static_mnist.FILES["train"]._replace(sha256="0" * 64)
    monkeypatch.setitem(static_mnist.FILES, "train", other)
    with pytest.raises(UserError, match="is not the published file"):
        loaded(root)


def sentence(root) -> str:
    """The error, which is one sentence."""
    with pytest.raises(UserError) as error:
        loaded(root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("split", SIZES)
def test_files_with_another_content_are_named(root, bits, split, cache):
    name = static_mnist.FILES[split].name
    rows = bits[split].clone()
    rows[1, 5] = 1 - rows[1, 5]
    for path in (root / "binarized_mnist").glob(f"{name}*"):
        path.unlink()
    (root / "binarized_mnist" / name).write_bytes(text(rows))
    message = sentence(root)
    assert f"{root / 'binarized_mnist' / name} is not the published file" in message
    assert static_mnist.FILES[split].sha256[:12] in message
    assert not list(cache.rglob("*.pt"))  # nothing of it is kept


@pytest.mark.parametrize("how", ["half", "altered", "something else", "empty"])
def test_damaged_compressed_files_are_named(root, how):
    path = root / "binarized_mnist" / "binarized_mnist_test.amat.gz"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "half": content[:half],
            "altered": content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :],
            "something else": b"<html>not found</html>",
            "empty": b"",
        }[how]
    )
    assert "binarized_mnist_test.amat" in sentence(root)


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Network is unreachable"),
        urllib.error.HTTPError("http://x", 404, "Not Found", None, None),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"half"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_missing_without_network(tmp_path, bits, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("urllib.request.urlopen", fail)
    message = sentence(tmp_path)
    assert str(tmp_path / "binarized_mnist" / "binarized_mnist_train.amat") in message
    assert static_mnist.SOURCE in message
    assert "put it there" in message
    assert "--data.root" in message
    assert "VAE_DATA_ROOT" in message


def server(contents):
    return lambda url, timeout: io.BytesIO(contents[url])


def urls(bits):
    return {static_mnist.SOURCE + static_mnist.FILES[s].name: text(bits[s]) for s in bits}


def test_missing_files_are_downloaded_once(tmp_path, bits, monkeypatch, asked):
    with monkeypatch.context() as patch:
        patch.setattr("urllib.request.urlopen", server(urls(bits)))
        check(loaded(tmp_path), bits)
    check(loaded(tmp_path), bits)
    assert not asked


def test_only_the_missing_file_is_downloaded(root, bits, monkeypatch):
    (root / "binarized_mnist" / "binarized_mnist_valid.amat").unlink()
    url = static_mnist.SOURCE + "binarized_mnist_valid.amat"
    monkeypatch.setattr("urllib.request.urlopen", server({url: text(bits["val"])}))
    check(loaded(root), bits)


def test_downloads_are_checked(tmp_path, bits, monkeypatch, cache):
    contents = dict.fromkeys(urls(bits), b"<html>Please log in</html>")
    monkeypatch.setattr("urllib.request.urlopen", server(contents))
    assert "binarized_mnist_train.amat is not the published file" in sentence(tmp_path)
    assert not list(cache.rglob("*.pt"))


def test_real_files():
    root = os.environ.get("VAE_DATA_ROOT")
    if not root or not (Path(root) / "binarized_mnist").is_dir():
        pytest.skip("needs VAE_DATA_ROOT with binarized_mnist in it")
    data = loaded(root)
    images = {split: data.datasets[split].images.x for split in ("train", "val", "test")}
    assert [len(x) for x in images.values()] == [50_000, 10_000, 10_000]
    for x in images.values():
        assert x.unique().tolist() == [0, 255]
    path = Path(root) / "binarized_mnist" / "binarized_mnist_test.amat"
    compressed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes() if path.is_file() else gzip.decompress(compressed.read_bytes())
    rows = [[int(pixel) for pixel in line.split()] for line in content.splitlines()[:3]]
    assert (images["test"][:3] // 255).flatten(1).tolist() == rows
