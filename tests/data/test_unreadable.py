"""Files of a folder that cannot be read: all are named, or left out before a training begins."""

import traceback

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vae_lightning import ImageFolder
from vae_lightning.data import image_folder
from vae_lightning.errors import UserError


def paint(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


def truncate(path):
    """Cut a file in the middle of its pixels, which only its decoder notices."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture
def damaged(tmp_path):
    """Three classes of ten images: four of ``b``, and all of ``c`` cannot be read."""
    for i in range(10):
        for value, name in ((50, "a"), (150, "b"), (200, "c")):
            paint(tmp_path / name / f"{i}.png", value + i)
    for path in (tmp_path / "c").iterdir():
        path.write_bytes(b"")
    truncate(tmp_path / "b" / "2.png")
    truncate(tmp_path / "b" / "3.jpg")
    (tmp_path / "b" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "b" / "5.png").write_text("<html>404</html>")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    return tmp_path


UNREADABLE = {
    "b/2.png": "truncated",
    "b/3.jpg": "truncated",
    "b/4.png": "damaged, or no image",
    "b/5.png": "damaged, or no image",
    **{f"c/{i}.png": "the file is empty" for i in range(10)},
}


def folder(root, **kwargs) -> ImageFolder:
    return ImageFolder(root=str(root), size=8, **kwargs)


def load_all_splits(data):
    for split in ("train", "val", "test"):
        data.load(split)


def test_all_are_named_once(damaged):
    """Those of other splits, too, with the number of all files."""
    for split in ("train", "val"):
        with pytest.raises(UserError) as caught:
            folder(damaged).load(split)
        message = str(caught.value)
        assert message.startswith(f"14 of the 31 files in {damaged} cannot be read: b/2.png (")
        assert [message.count(name) for name in UNREADABLE] == [1] * 3 + [0] * 11
        assert ", ...; repair or remove them, or --data." in message
        assert message.count(str(damaged)) == 1
        assert "\n" not in message


def test_a_single_one(tmp_path):
    for i in range(10):
        paint(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of the 10 files in .*: 3\.png \(the file is empty\);"):
        load_all_splits(folder(tmp_path))


def test_while_images_are_read_from_disk(tmp_path):
    """Then the first one ends the training."""
    for i in range(20):
        paint(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.png").write_bytes(b"")
    data = folder(tmp_path, memory_limit=0)
    data.setup("fit")
    with pytest.raises(UserError) as caught:
        next(iter(data.train_dataloader()))
    assert str(caught.value).endswith(
        ".png cannot be read as an image (the file is empty): repair it or remove it, or "
        "--data.skip_unreadable true trains on the rest"
    )
    assert str(caught.value).startswith(str(tmp_path))


def test_the_error_of_a_worker_process_has_no_traceback(tmp_path):
    """Torch raises one of the same class, whose message is the traceback in the worker."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        folder(tmp_path, memory_limit=0).load("train").__getitems__([0])
    text = "".join(traceback.format_exception(caught.value))
    raised = type(caught.value)(f"Caught UserError in worker process 0.\nOriginal {text}")
    assert str(raised) == str(caught.value)
    assert "\n" not in str(raised)


@pytest.mark.parametrize("memory_limit", [0, 1])
def test_skip(damaged, memory_limit):
    data = folder(damaged, memory_limit=memory_limit, skip_unreadable=True)
    # Sizes are right before images are loaded.
    assert data.num_train == 13
    assert [data.split_size(split) for split in ("train", "val", "test")] == [13, 2, 2]
    assert data.summary().startswith("17 images (13 train, 2 val, 2 test)")
    assert data.class_names == ["a", "b", "c"]
    assert data.num_classes == 3
    left_out = dict(data.left_out)
    assert left_out.pop("b/notes.txt") == "no image that Pillow can read"
    assert list(left_out) == list(UNREADABLE)
    assert all(UNREADABLE[name] in reason for name, reason in left_out.items())
    seen = []
    for split in ("train", "val", "test"):
        dataset = data.load(split)
        assert hasattr(dataset, "images") == bool(memory_limit)
        batch = dataset.__getitems__(range(len(dataset)))
        assert (batch.x[:, 0, 0, 0] >= 150).equal(batch.y == 1)
        names = [data.item_name(split, i) for i in range(len(dataset))]
        for name, value in zip(names, batch.x[:, 0, 0, 0].tolist(), strict=True):
            assert value == {"a": 50, "b": 150}[name[0]] + int(name[2])
        seen += names
    expected = {f"a/{i}.png" for i in range(10)} | {f"b/{i}.png" for i in (0, 1, 3, 6, 7, 8, 9)}
    assert len(seen) == len(expected)
    assert set(seen) == expected


def test_nothing_to_skip_changes_nothing(tmp_path):
    for i in range(10):
        paint(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    plain, skipping = folder(tmp_path), folder(tmp_path, skip_unreadable=True)
    assert plain.state_dict()["files"] == skipping.state_dict()["files"]
    assert not skipping.left_out
    for split in ("train", "val", "test"):
        a, b = plain.load(split).images, skipping.load(split).images
        assert a.x.equal(b.x)
        assert a.y.equal(b.y)


def test_splits_remain(tmp_path):
    for split, n in (("train", 6), ("val", 5), ("test", 3)):
        for i in range(n):
            paint(tmp_path / split / f"{i}.png", 10 * i)
    for name in ("train/0.png", "val/1.png", "val/3.png"):
        (tmp_path / name).write_bytes(b"")
    data = folder(tmp_path, skip_unreadable=True)
    assert [data.split_size(split) for split in ("train", "val", "test")] == [5, 3, 3]
    assert data.load("val").images.x[:, 0, 0, 0].tolist() == [0, 20, 40]
    for i in range(6):
        (tmp_path / "train" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="the train split of ImageFolder has no images"):
        folder(tmp_path, skip_unreadable=True).setup("fit")
    for i in range(3):
        (tmp_path / "test" / f"{i}.png").unlink()
    with pytest.raises(UserError, match="0 images to train on"):
        folder(tmp_path, skip_unreadable=True).split_size("train")


def test_a_file_with_a_damaged_frame_is_left_out_as_a_whole(tmp_path):
    generator = np.random.default_rng(0)
    for name in "abcd":
        frames = [
            Image.fromarray(generator.integers(0, 256, (32, 32), dtype=np.uint8)) for _ in range(4)
        ]
        frames[0].save(tmp_path / f"{name}.tif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "b.tif").read_bytes()
    with Image.open(tmp_path / "b.tif") as image:
        image.seek(2)
        (offset,) = image.tag_v2[273]
    # The third page begins outside the file.
    where = content.index(offset.to_bytes(4, "little"))
    (tmp_path / "b.tif").write_bytes(
        content[:where] + (10**6).to_bytes(4, "little") + content[where + 4 :]
    )
    data = folder(tmp_path, skip_unreadable=True)
    assert [name for name, _ in data.left_out] == ["b.tif"]
    assert [path.name for path in data.files] == ["a.tif"] * 4 + ["c.tif"] * 4 + ["d.tif"] * 4
    assert data._listing.frames.tolist() == [0, 1, 2, 3] * 3
    assert [data.split_size(split) for split in ("train", "val", "test")] == [4, 4, 4]
    with pytest.raises(UserError, match=r"1 of the 4 files in .*: b\.tif"):
        load_all_splits(folder(tmp_path))


def test_too_few_remain(tmp_path):
    for i in range(5):
        paint(tmp_path / f"{i}.png")
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"has 2 images and 3 other files \(such as 2\.png, the fi"):
        folder(tmp_path, skip_unreadable=True).num_train  # noqa: B018


def test_memory_errors_are_no_reason(tmp_path, monkeypatch):
    """A machine that is too small would silently train on other images."""
    for i in range(5):
        paint(tmp_path / f"{i}.png")

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        folder(tmp_path, skip_unreadable=True).num_train  # noqa: B018


def test_files_are_checked_once(damaged, monkeypatch):
    calls = []
    read = image_folder.read_frames

    def count(path, *args):
        calls.append(path)
        return read(path, *args)

    monkeypatch.setattr(image_folder, "read_frames", count)
    data = folder(damaged, memory_limit=0, skip_unreadable=True)
    data.setup("fit")
    data.setup("test")
    data.state_dict()
    data.summary()
    assert len(calls) == 31
    assert len(set(calls)) == 31
    folder(damaged, memory_limit=0).setup("fit")
    assert len(calls) == 31  # not without the option


def test_more_files_than_a_part(tmp_path):
    """Files are checked in parts of 64."""
    for i in range(150):
        path = tmp_path / f"{i:03d}.png"
        paint(path)
        if i % 3 == 0:
            path.write_bytes(b"")
    data = folder(tmp_path, skip_unreadable=True)
    assert [name for name, _ in data.left_out] == [f"{i:03d}.png" for i in range(0, 150, 3)]
    assert len(data.files) == 100


# Resuming


class Nothing(pl.LightningModule):
    """A module that only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch):
        self.seen.append(sorted(batch.x[:, 0, 0, 0].tolist()))
        return self.weight

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(data, epochs, **kwargs) -> Nothing:
    module = Nothing()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, **kwargs)
    trainer.save_checkpoint("last.ckpt")
    return module


def test_a_resumed_training_has_the_same_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "images"
    for i in range(12):
        paint(root / f"{i:02d}.png", i)
    for i in (2, 7):
        (root / f"{i:02d}.png").write_bytes(b"")

    def data() -> ImageFolder:
        return folder(root, skip_unreadable=True, batch_size=4)

    whole = train(data(), 2)
    half = train(data(), 1)
    # The same images without the damaged files.
    for i in (2, 7):
        (root / f"{i:02d}.png").unlink()
    rest = train(data(), 2, ckpt_path="last.ckpt", weights_only=True)
    assert half.seen + rest.seen == whole.seen
    # A file that is repaired belongs to other splits.
    paint(root / "02.png", 2)
    with pytest.raises(UserError, match="are not those that this training began with"):
        train(data(), 3, ckpt_path="last.ckpt", weights_only=True)
