"""What a folder of images may hold: links, odd files, splits, strays, frames, transparency."""

import io
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lightning import ImageFolder
from vae_lightning.errors import UserError

RED, BLUE = (200, 0, 0), (0, 0, 200)


def paths_of(data, split):
    return data.files.take(torch.from_numpy(data.positions[split]))


def paint(path, color=RED, size=(8, 8), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **kwargs)


def folder(root, **kwargs) -> ImageFolder:
    return ImageFolder(root=str(root), size=8, **kwargs)


def names(data) -> list[str]:
    return [path.relative_to(data.root).as_posix() for path in data.files]


def pixels(data, split="train") -> torch.Tensor:
    """The mean color of every image of a split."""
    dataset = data.load(split)
    return dataset.__getitems__(range(len(dataset))).x.float().mean((2, 3))


# Links


def test_links_to_folders_and_files_are_followed(tmp_path):
    for i in range(4):
        paint(tmp_path / "elsewhere" / "cats" / f"{i}.png")
        paint(tmp_path / "data" / "dog" / f"{i}.png", BLUE)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "data" / "dog" / "link.png").symlink_to(tmp_path / "elsewhere" / "cats" / "0.png")
    data = folder(tmp_path / "data")
    assert data.class_names == ["cat", "dog"]
    assert len(data.files) == 9
    assert not data.left_out


def test_a_folder_of_nothing_but_links(tmp_path):
    for i in range(3):
        paint(tmp_path / "real" / f"{i}.png")
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "real")
    assert len(folder(tmp_path / "data").files) == 6


@pytest.mark.parametrize("target", [".", ".."])
def test_loops_of_links_end(tmp_path, target):
    for i in range(3):
        paint(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "loop").symlink_to((tmp_path / "a" / target).resolve())
    data = folder(tmp_path)
    assert names(data) == ["a/0.png", "a/1.png", "a/2.png"]
    assert data.left_out == [("a/loop", "a link to a folder that it is in")]


def test_two_folders_that_link_to_each_other(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        paint(tmp_path / name / "0.png")
        paint(tmp_path / name / "1.png")
        (tmp_path / name / "other").symlink_to(tmp_path / other)
    data = folder(tmp_path)
    assert len(data.files) == 8  # each folder, and the other one inside it
    assert len(data.left_out) == 2


def test_broken_links_are_left_out(tmp_path):
    for i in range(3):
        paint(tmp_path / f"{i}.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    data = folder(tmp_path)
    assert len(data.files) == 3
    assert [reason for _, reason in data.left_out] == ["a link to nothing"] * 2


# Files


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("JP2", "JPEG2000"), ("tga", "TGA"), ("dib", "DIB")],
)
def test_everything_that_pillow_decodes_is_an_image(tmp_path, suffix, kind):
    for i in range(3):
        paint(tmp_path / f"{i}.{suffix}", format=kind)
    data = folder(tmp_path)
    assert len(data.files) == 3
    assert pixels(data)[0, 0] > 150


def test_files_without_a_known_suffix_are_looked_into(tmp_path):
    for i in range(3):
        paint(tmp_path / f"scan{i}", format="PNG")
    paint(tmp_path / "photo.image", format="JPEG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "film.mp4").write_bytes(b"\x00\x00\x01\xba" + bytes(100))
    (tmp_path / "table.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    data = folder(tmp_path)
    assert names(data) == ["photo.image", "scan0", "scan1", "scan2"]
    assert sorted(name for name, _ in data.left_out) == ["film.mp4", "notes.txt", "table.h5"]


def exif(orientation: int, resolution: tuple[int, int]) -> bytes:
    """EXIF with an orientation and a resolution, which is a rational number."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack("<HHII", 0x011A, 5, 1, 38)
    rational = struct.pack("<II", *resolution)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + rational


@pytest.mark.parametrize("resolution", [(72, 1), (1, 0), (0, 0), (2**32 - 1, 1)])
@pytest.mark.parametrize("orientation", [1, 6, 99])
def test_metadata_do_not_decide_over_pixels(tmp_path, resolution, orientation):
    for i in range(3):
        image = Image.new("RGB", (8, 8), RED)
        image.paste(BLUE, (0, 4, 8, 8))  # the lower half
        image.save(tmp_path / f"{i}.jpg", exif=exif(orientation, resolution), quality=95)
    x = folder(tmp_path).load("train").__getitems__([0]).x[0].float()
    turned = orientation == 6  # a quarter to the right: what was below is on the left
    blue = x[2, :, :3] if turned else x[2, 5:]
    assert blue.min() > 150
    assert x[0].flip(-1)[:, :3].min() > 150 if turned else x[0, :3].min() > 150


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_damaged_metadata(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(buffer, "JPEG", exif=exif(6, (1, 1)))
    content = buffer.getvalue()
    # The entry says that its number lies far behind the end.
    damaged = content.replace(
        struct.pack("<HHII", 0x011A, 5, 1, 38), b"\x1a\x01\x05\0" + b"\xff" * 8
    )
    assert damaged != content
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(damaged)
    assert pixels(folder(tmp_path))[0, 0] > 150


@pytest.mark.parametrize(
    "error", [struct.error("argument out of range"), TypeError("no"), KeyError(7)]
)
def test_an_error_of_any_kind_names_the_file(tmp_path, monkeypatch, error):
    for i in range(3):
        paint(tmp_path / f"{i}.png")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(UserError, match=r"3 of the 3 files in .*: 0\.png \(.+\), 1\.png"):
        folder(tmp_path).load("train")
    with pytest.raises(UserError, match=r"\d.png cannot be read as an image \(.+\): repair"):
        folder(tmp_path, memory_limit=0).load("train").__getitems__([0])


def test_a_folder_without_access_is_named(tmp_path, monkeypatch):
    paint(tmp_path / "closed" / "0.png")
    scan = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="closed/ cannot be read"):
        folder(tmp_path).files  # noqa: B018


# Splits and classes


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("train", "valid", "test"),
        ("train", "dev", "test"),
    ],
)
@pytest.mark.parametrize("above", ["", "images/"])
def test_folders_of_splits_are_the_splits(tmp_path, train, val, test, above):
    for split, n in ((train, 5), (val, 3), (test, 2)):
        for i in range(n):
            paint(tmp_path / f"{above}{split}" / "red" / f"{i}.png", RED)
            paint(tmp_path / f"{above}{split}" / "blue" / f"{i}.png", BLUE)
    data = folder(tmp_path)
    assert data.class_names == ["blue", "red"]
    assert [data.split_size(split) for split in ("train", "val", "test")] == [10, 6, 4]
    for split, name in (("train", train), ("val", val), ("test", test)):
        dataset = data.load(split)
        assert all(
            f"{above}{name}" in str(path)
            for path in data.files.take(torch.from_numpy(data.positions[split]))
        )
        batch = dataset.__getitems__(range(len(dataset)))
        assert (batch.x[:, 0].float().mean((1, 2)) > 100).equal(batch.y == 1)


def test_splits_in_the_folder_of_each_class(tmp_path):
    """Their names may differ between classes."""
    for name, color, train, test in (("red", RED, "train", "val"), ("blue", BLUE, "Train", "test")):
        for i in range(9):
            paint(tmp_path / name / train / "deep" / f"{i}.png", color)
        for i in range(3):
            paint(tmp_path / name / test / f"{i}.png", color)
    paint(tmp_path / "red" / "cover.png")
    data = folder(tmp_path)
    assert data.class_names == ["blue", "red"]
    assert [data.split_size(split) for split in ("train", "val", "test")] == [18, 3, 3]
    batch = data.load("train").__getitems__(range(18))
    assert (batch.x[:, 0].float().mean((1, 2)) > 100).equal(batch.y == 1)
    assert data.left_out == [("red/cover.png", "not in a folder of a split")]


def test_one_class_without_splits_makes_them_ordinary_folders(tmp_path):
    for name in ("red/train", "red/test", "blue"):
        for i in range(3):
            paint(tmp_path / name / f"{i}.png")
    data = folder(tmp_path)
    assert data.class_names == ["blue", "red"]
    assert not data.left_out
    assert data.remarks == ["folders test and train are no splits: blue has none"]
    assert sum(data.split_size(split) for split in ("train", "val", "test")) == 9


@pytest.mark.parametrize("there", ["val", "test"])
def test_a_missing_split_is_taken_from_the_images_to_train_on(tmp_path, there):
    for i in range(20):
        paint(tmp_path / "train" / f"{i}.png")
    for i in range(4):
        paint(tmp_path / there / f"{i}.png", BLUE)
    data = folder(tmp_path)
    assert data.class_names is None
    other = {"val": "test", "test": "val"}[there]
    assert [data.split_size(s) for s in ("train", other, there)] == [18, 2, 4]
    assert (pixels(data, there)[:, 2] > 100).all()
    assert (pixels(data, other)[:, 0] > 100).all()
    train, taken = (
        {str(p) for p in data.files.take(torch.from_numpy(data.positions[s]))}
        for s in ("train", other)
    )
    assert not train & taken


def test_train_alone_may_be_a_class(tmp_path):
    for name in ("bus", "train"):
        for i in range(3):
            paint(tmp_path / name / f"{i}.png")
    assert folder(tmp_path).class_names == ["bus", "train"]


def test_two_folders_of_the_same_split_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        paint(tmp_path / name / "0.png")
    with pytest.raises(UserError, match="val and valid are the same split"):
        folder(tmp_path).files  # noqa: B018


def test_a_test_split_without_classes(tmp_path):
    for i in range(20):
        paint(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
        paint(tmp_path / "test" / f"{i}.png")
    paint(tmp_path / "sample.png")
    data = folder(tmp_path)
    assert data.class_names == ["a", "b"]
    assert data.load("train").images.y is not None
    assert data.load("test").images.y is None
    assert data.left_out == [("sample.png", "not in a folder of a split")]


def test_a_stray_image_does_not_remove_the_classes(tmp_path):
    for i in range(5):
        paint(tmp_path / "cat" / f"{i}.png")
        paint(tmp_path / "dog" / f"{i}.png")
    paint(tmp_path / "logo.png", BLUE)
    data = folder(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert len(data.files) == 10
    assert data.left_out == [("logo.png", "beside the class folders")]


def test_images_beside_a_small_folder_have_no_classes(tmp_path):
    for i in range(5):
        paint(tmp_path / f"{i}.png")
    paint(tmp_path / "more" / "0.png")
    data = folder(tmp_path)
    assert data.class_names is None
    assert len(data.files) == 6
    assert "no classes, because images lie beside the subfolders (0.png, ...)" in data.summary()


# Pixels


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_the_background(tmp_path, mode):
    hidden = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    kwargs = {}
    if mode == "P":
        hidden, kwargs = Image.new("P", (8, 8), 0), {"transparency": 0}
    elif mode == "RGB":
        hidden, kwargs = hidden.convert("RGB"), {"transparency": (9, 9, 9)}
    else:
        hidden = hidden.convert(mode)
    for i in range(3):
        hidden.save(tmp_path / f"{i}.png", **kwargs)
    for name, color in {"white": (255, 255, 255), "#ff8000": (255, 128, 0)}.items():
        assert pixels(folder(tmp_path, background=name))[0].tolist() == list(color)
    gray = folder(tmp_path, color="gray", background="black")
    assert pixels(gray)[0].item() == 0


def test_half_transparent_pixels_are_mixed(tmp_path):
    for i in range(3):
        Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / f"{i}.png")
    assert pixels(folder(tmp_path))[0].tolist() == [127, 127, 127]


def test_no_such_color(tmp_path):
    with pytest.raises(ValueError, match="unknown color"):
        folder(tmp_path, background="whitish")


# Frames


def stack(path, n, first=0):
    """A file whose frames have the gray values ``first``, ``first + 10``, ..."""
    frames = [Image.fromarray(np.full((8, 8), first + 10 * i, dtype=np.uint8)) for i in range(n)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
@pytest.mark.parametrize("memory_limit", [0, 1])
def test_every_frame_is_an_image(tmp_path, suffix, memory_limit):
    for i in range(5):
        stack(tmp_path / f"{i}.{suffix}", 4, first=40 * i)
    kwargs = {"color": "gray", "memory_limit": memory_limit}
    data = folder(tmp_path, **kwargs)
    assert len(data.files) == 20
    assert [data.split_size(split) for split in ("train", "val", "test")] == [12, 4, 4]
    found = {split: pixels(data, split)[:, 0] for split in ("train", "val", "test")}
    assert (torch.cat([*found.values()]).sort().values - 10 * torch.arange(20)).abs().max() <= 2
    for values in found.values():  # frames of a file are never in two splits
        assert ((values + 5) // 40).unique(return_counts=True)[1].eq(4).all()
    assert "20 frames of 5 files" in data.summary()
    first = folder(tmp_path, frames="first", **kwargs)
    assert len(first.files) == 5
    assert "only the first frame of 5 files that have several" in first.summary()


def test_one_file_of_many_pages(tmp_path):
    stack(tmp_path / "all.tif", 20)
    data = folder(tmp_path, color="gray")
    assert [data.split_size(split) for split in ("train", "val", "test")] == [16, 2, 2]
    values = torch.cat([pixels(data, split)[:, 0] for split in ("train", "val", "test")])
    assert values.sort().values.tolist() == list(range(0, 200, 10))


# What is said


@pytest.mark.parametrize(
    ("size", "shorter"), [((5, 6), 5), ((5, 5), 5), ((30, 7), 7), ((8, 9), None)]
)
def test_enlarged_images_are_said(tmp_path, size, shorter):
    for i in range(4):
        paint(tmp_path / f"{i}.png", size=size)
    summary = folder(tmp_path).summary()
    assert ("enlarged" in summary) == bool(shorter)
    assert f"{shorter} pixels, is enlarged (--data.size {shorter}" in summary or not shorter


@pytest.mark.parametrize(
    ("size", "remark"),
    [
        ((32, 16), '32 pixels wide and 16 high, loses 50% to the square crop (--data.size "[8,16]'),
        ((16, 24), '16 pixels wide and 24 high, loses 33% to the square crop (--data.size "[12,8]'),
        ((33, 32), None),
    ],
)
def test_much_cropped_images_are_said(tmp_path, size, remark):
    for i in range(4):
        paint(tmp_path / f"{i}.png", size=size)
    summary = folder(tmp_path).summary()
    assert ("square crop" in summary) == (remark is not None)
    assert remark is None or remark in summary
    fitting = ImageFolder(root=str(tmp_path), size=(8, 8 * size[0] // size[1]))
    assert "crop" not in fitting.summary()


def test_summary(tmp_path):
    for i in range(20):
        paint(tmp_path / "cat" / f"{i}.png")
        paint(tmp_path / "dog" / f"{i}.png")
    data = folder(tmp_path)
    trained_on = data.positions["train"]
    cats = sum(path.parent.name == "cat" for path in paths_of(data, "train"))
    assert data.summary() == (
        "40 images (32 train, 4 val, 4 test), 8x8 RGB, "
        f"in 2 classes (cat: {cats}, dog: {len(trained_on) - cats} training images)"
    )
