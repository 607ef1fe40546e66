import os
import pickle
import tracemalloc

import pytest
import torch
from PIL import Image

from vae_lightning import ImageFolder
from vae_lightning.data.image_folder import Paths
from vae_lightning.errors import UserError


def paint(path, color, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def classes(tmp_path):
    for i in range(10):
        paint(tmp_path / "red" / f"{i}.png", (200, 0, 0))
        paint(tmp_path / "blue" / "deep" / f"{i}.jpg", (0, 0, 200), size=(7, 30))
    (tmp_path / "red" / "notes.txt").write_text("no image")
    return tmp_path


def load(root, **kwargs) -> ImageFolder:
    data = ImageFolder(root=str(root), size=8, **kwargs)
    data.setup("fit")
    data.setup("test")
    return data


def test_sub_folders_are_classes(classes):
    data = load(classes)
    assert data.class_names == ["blue", "red"]
    assert data.num_classes == 2
    assert data.image_shape == (3, 8, 8)
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [16, 2, 2]
    images = data.datasets["train"].images
    red = images.x[:, 0].float().mean((1, 2))
    assert (red > 100).equal(images.y == 1)


def test_gray(classes):
    data = load(classes, color="gray")
    assert data.image_shape == (1, 8, 8)
    assert data.datasets["train"].images.x.shape[1:] == (1, 8, 8)


def test_read_as_needed_when_memory_is_short(classes):
    held, read = load(classes), load(classes, memory_limit=0)
    for split in ("train", "val", "test"):
        indices = [1, 0]
        a, b = (d.datasets[split].__getitems__(indices) for d in (held, read))
        assert a.x.equal(b.x)
        assert a.y.equal(b.y)
        assert b.indices.tolist() == [1, 0]
        assert not hasattr(read.datasets[split], "images")


@pytest.mark.parametrize("memory_limit", [0, 1])
def test_train_on_val(classes, memory_limit):
    """Also in batches without any image of the validation split."""
    data = load(classes, memory_limit=memory_limit, train_on_val=True, batch_size=2)
    batches = list(data.train_dataloader())
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(18))
    for batch in batches:
        assert (batch.x[:, 0].float().mean((1, 2)) > 100).equal(batch.y == 1)
    assert data.mean_image().shape == (3, 8, 8)


def test_worker_processes(classes):
    data = load(classes, memory_limit=0, num_workers=1, batch_size=4)
    seen = torch.cat([batch.indices for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(16))


def test_splits_are_disjoint(classes):
    data = load(classes, memory_limit=0)
    files = [path for d in data.datasets.values() for path in d.files]
    assert sorted(files) == sorted(data.files)


def test_order_is_that_of_sorted_paths(tmp_path):
    """In which a folder's images come before those of a folder with a longer name."""
    names = ["b/a.png", "a.x/b.png", "a/b.PNG", "a/b/c.jpg", "a/b.x/c.gif", "a b/é.png", "a/_.png"]
    for name in names:
        paint(tmp_path / name, (0, 0, 0))
    (tmp_path / "a" / "folder.png").mkdir()
    data = ImageFolder(root=str(tmp_path))
    assert list(data.files) == sorted(tmp_path / name for name in names)
    assert list(data.files[1:3]) == list(data.files)[1:3]
    assert data.files[-1] == tmp_path / "b" / "a.png"
    assert data.class_names == ["a", "a b", "a.x", "b"]
    assert data._listing.y.tolist() == [0, 0, 0, 0, 1, 2, 3]


def test_files_are_listed_without_a_look_inside(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.png").touch()
    data = load(tmp_path, memory_limit=0)
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [16, 2, 2]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"\xff.png")
    try:
        Image.new("L", (4, 4)).save(tmp_path / name, "PNG")
    except OSError:
        pytest.skip("this file system has no such names")
    for i in range(2):
        paint(tmp_path / f"{i}.png", (0, 0, 0))
    data = ImageFolder(root=str(tmp_path))
    assert data.files[2] == tmp_path / name
    data.setup("fit")


def test_a_path_takes_no_more_memory_than_its_letters(tmp_path):
    """And there is no object for it, which worker processes would copy when they look at it."""
    tracemalloc.start()
    paths = Paths(tmp_path, (f"folder/{i:05d}.png" for i in range(20_000)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(paths) < len("folder/00000.png") + 1
    assert len(pickle.dumps(paths.take(torch.arange(10_000)))) / 10_000 < 60
    assert paths[19_999] == tmp_path / "folder" / "19999.png"


def test_rectangles(classes):
    data = ImageFolder(root=str(classes), size=(6, 9))
    data.setup("fit")
    assert data.datasets["train"].images.x.shape[1:] == (3, 6, 9)


def test_hidden_files_are_left_out(classes):
    paint(classes / ".thumbs" / "a.png", (0, 0, 0))
    paint(classes / "red" / "._a.png", (0, 0, 0))
    data = ImageFolder(root=str(classes))
    assert len(data.files) == 20
    assert data.class_names == ["blue", "red"]


def test_no_folder_and_no_images(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ImageFolder(root=str(tmp_path / "absent")).setup("fit")
    with pytest.raises(UserError, match="has 0 images"):
        ImageFolder(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 0}, "size must be positive"),
        ({"val_share": 0.5, "test_share": 0.5}, "leave items for training"),
        ({"val_share": 0.0}, "must be positive"),
    ],
)
def test_bad_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(root=str(tmp_path), **kwargs)
