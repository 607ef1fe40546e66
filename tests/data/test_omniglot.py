import io
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image

from vae_lightning import Omniglot
from vae_lightning.data import omniglot
from vae_lightning.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def burda(tmp_path, monkeypatch):
    """A small chardata.mat: one image per column, with the pixels in Matlab's order."""
    monkeypatch.setitem(omniglot.SIZES, "burda", (40, 30))
    upright = {"data": RNG.random((40, 28, 28)), "testdata": RNG.random((30, 28, 28))}
    columns = {name: x.transpose(0, 2, 1).reshape(len(x), -1).T for name, x in upright.items()}
    (tmp_path / "OMNIGLOT").mkdir()
    scipy.io.savemat(tmp_path / "OMNIGLOT" / "chardata.mat", {**columns, "target": np.eye(40)})
    return upright


def loaded(root, **kwargs):
    data = Omniglot(root=str(root), **{"val_size": 10, **kwargs})
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def test_gray_values_are_upright(tmp_path, burda):
    data = loaded(tmp_path, static=False)
    images = data.datasets["test"].images
    assert images.y is None
    assert data.num_classes == 0
    assert not data.is_binary
    expected = torch.from_numpy(burda["testdata"])[:, None]
    torch.testing.assert_close(images.x.double() / 255, expected, atol=0.5 / 255, rtol=0)
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [30, 10, 30]


def test_pixels_are_drawn_once_with_the_gray_value(tmp_path, burda):
    data = loaded(tmp_path)
    assert data.is_binary
    drawn = data.datasets["test"].images.x
    assert drawn.unique().tolist() == [0, 255]
    gray = torch.from_numpy(burda["testdata"])[:, None]
    residual = drawn.double() / 255 - gray
    # The mean of 23,520 Bernoulli pixels has a standard error of 0.003, 0.004 in either half.
    assert abs(residual.mean()) < 0.015
    assert abs(residual[gray > 0.5].mean()) < 0.02
    again = loaded(tmp_path).datasets["test"].images.x
    assert again.equal(drawn)
    assert not loaded(tmp_path, split_seed=1).datasets["test"].images.x.equal(drawn)


@pytest.mark.parametrize("binarization", ["none", "threshold", "dynamic"])
def test_binarization_has_no_effect_on_static_pixels(tmp_path, burda, binarization):
    data = loaded(tmp_path, binarization=binarization)
    (batch,) = data.test_dataloader()
    x = data.on_after_batch_transfer(batch, 0).x
    assert x.equal(data.datasets["test"].images.x[batch.indices] / 255)


def test_dynamic_pixels_as_in_the_paper(tmp_path, burda):
    data = loaded(tmp_path, static=False, binarization="dynamic")
    assert data.is_binary
    x = data.datasets["train"].images.x
    views = [data.preprocess(x, torch.arange(len(x)), 0, "train", epoch) for epoch in (0, 1)]
    assert views[0].unique().tolist() == [0, 1]
    assert not views[0].equal(views[1])


def png(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert("1").save(file, "png")
    return file.getvalue()


def write_lake(root, monkeypatch, sizes=(6, 4)):
    """Black strokes on white, 105x105 with one bit: a bar at the left that is wider every time."""
    folder = root / "omniglot-py"
    folder.mkdir(parents=True)
    for name, n in zip(("images_background", "images_evaluation"), sizes, strict=True):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/Latin/character01/", "")
            for i in reversed(range(n)):
                image = np.full((105, 105), 255, dtype=np.uint8)
                image[:, : 15 * (i + 1)] = 0
                path = f"{name}/Latin/character01/{i:04d}_01.png"
                archive.writestr(path, png(image))
    monkeypatch.setitem(omniglot.SIZES, "lake", sizes)


def test_background_and_evaluation(tmp_path, monkeypatch):
    write_lake(tmp_path, monkeypatch)
    data = loaded(tmp_path, split="lake", static=False, val_size=2)
    x = data.datasets["test"].images.x
    assert x.shape == (4, 1, 28, 28)
    for i, image in enumerate(x):
        # 15 of 105 columns are 4 of 28.
        assert (image[0, :, : 4 * (i + 1)] == 255).all()
        assert (image[0, :, 4 * (i + 1) :] == 0).all()
    widths = [
        (image[0, 0] == 255).sum().item()
        for split in ("train", "val")
        for image in data.datasets[split].images.x
    ]
    assert sorted(widths) == [4, 8, 12, 16, 20, 24]


def test_published_sizes():
    for split, sizes in (("burda", [23_000, 1345, 8070]), ("lake", [17_935, 1345, 13_180])):
        data = Omniglot(split=split)
        assert [data.split_size(name) for name in ("train", "val", "test")] == sizes


def test_files_of_torchvision_are_its_own():
    data = Omniglot(root="sets", split="lake")
    source = torchvision.datasets.Omniglot
    assert data.files.folder.name == source.folder
    assert {name[:-4]: md5 for name, md5 in data.files.md5.items()} == source.zips_md5


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
@pytest.mark.parametrize("split", ["burda", "lake"])
def test_damaged(tmp_path, monkeypatch, split, content):
    write_lake(tmp_path, monkeypatch)
    (tmp_path / "OMNIGLOT").mkdir()
    for name in ("OMNIGLOT/chardata.mat", "omniglot-py/images_background.zip"):
        (tmp_path / name).write_bytes(content)
    name = {"burda": "chardata.mat", "lake": "images_background.zip"}[split]
    with pytest.raises(UserError, match=f"{name}.* (is|are) damaged"):
        loaded(tmp_path, split=split)


def test_missing_without_network(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError, match=r"OMNIGLOT lacks chardata\.mat.*unreachable.*yburda/iwae"):
        Omniglot(root=str(tmp_path)).prepare_data()
    with pytest.raises(UserError, match=r"lacks images_background\.zip.*brendenlake/omniglot"):
        Omniglot(root=str(tmp_path), split="lake").prepare_data()


def test_no_such_split():
    with pytest.raises(ValueError, match=r"data\.split must be one of burda, lake"):
        Omniglot(split="background")
