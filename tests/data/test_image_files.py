"""Image files as users have them: their pixels, and what is no image of theirs."""

import io
import os
import warnings
from importlib import reload

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from vae_lightning import ImageFolder
from vae_lightning.errors import UserError
from vae_lightning.images import headers
from vae_lightning.images.arrays import read_arrays
from vae_lightning.images.decoding import read_frames
from vae_lightning.images.headers import EIGHT_BITS, ValueType, look

RED = (200, 0, 0)
WHITE = (255, 255, 255)


def paint(path, color=RED, size=(8, 8), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **kwargs)


def folder(root, **kwargs) -> ImageFolder:
    return ImageFolder(root=str(root), size=8, **kwargs)


def names(data) -> list[str]:
    return [path.relative_to(data.root).as_posix() for path in data.files]


def read(path, channels=3, size=(8, 8), background=WHITE) -> np.ndarray:
    """The pixels of a file, (H, W, C)."""
    (image,) = read_frames(path, [0], (channels, *size), background)
    return image.permute(1, 2, 0).numpy()


# What systems leave in folders


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "a/.DS_Store",
        "a/._0.png",
        ".hidden/0.png",
        "__MACOSX/a/._0.png",
        "__MACOSX/a/0.png",
        "Thumbs.db",
        "a/thumbs.db",
        "a/ehthumbs.db",
        "desktop.ini",
        "a/Desktop.ini",
        "@eaDir/0.png/SYNOPHOTO_THUMB_XL.jpg",
        "$RECYCLE.BIN/0.png",
        "lost+found/0.png",
    ],
)
def test_files_of_the_system_are_ignored(tmp_path, name):
    """Without a word, even if they are images: the user did not put them there."""
    for i in range(3):
        paint(tmp_path / "a" / f"{i}.png")
        paint(tmp_path / "b" / f"{i}.png")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    paint(tmp_path / name, format="PNG")
    data = folder(tmp_path)
    assert names(data) == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"]
    assert data.class_names == ["a", "b"]
    assert not data.left_out


def test_names_that_only_begin_like_those_of_the_system(tmp_path):
    for name in ("__MACOSX images/0.png", "thumbs.db.png", "desktop.ini.png"):
        paint(tmp_path / name)
    assert len(folder(tmp_path).files) == 3


# Names


NAMES = [
    "two words",
    " leading",
    "Größe",
    "line\nbreak",
    "tab\tand'quote\"",
    "a\\b",
    "日本",
    "%s{}",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory_limit", [0, 1])
def test_names_of_folders(tmp_path, name, memory_limit):
    for i in range(5):
        paint(tmp_path / name / f"{name} {i}.png", (50, 0, 0))
        paint(tmp_path / "zzz" / f"{i}.png", (250, 0, 0))
    (tmp_path / name / "notes.txt").write_text("no image")
    (tmp_path / name / f"{name} 0.png").write_bytes(b"")
    data = folder(tmp_path, memory_limit=memory_limit, skip_unreadable=True)
    assert data.class_names == sorted([name, "zzz"])
    dataset = data.load("train")
    batch = dataset.__getitems__(range(len(dataset)))
    assert (batch.x[:, 0, 0, 0] > 100).equal(batch.y == data.class_names.index("zzz"))
    assert data.item_name("all", 0) == sorted([f"{name}/{name} 1.png", "zzz/0.png"])[0]
    left_out = [left for left, _ in data.left_out]
    assert len(left_out) == 2
    assert all(left.isprintable() for left in left_out)  # one line each in left_out.txt
    if name.isprintable():
        assert left_out == [f"{name}/notes.txt", f"{name}/{name} 0.png"]
    with pytest.raises(UserError) as caught:
        folder(tmp_path).load_all()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "PNG", "GIF", "TIFF", "WebP", "BMP"])
def test_suffixes_in_any_case(tmp_path, suffix):
    for i in range(3):
        paint(tmp_path / f"{i}.{suffix}")
    data = folder(tmp_path)
    assert len(data.files) == 3
    assert abs(int(read(data.files[0])[0, 0, 0]) - 200) < 5


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp", "webp", "jp2", "pgm"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"])
def test_wrong_suffixes(tmp_path, suffix, kind):
    path = tmp_path / f"a.{suffix}"
    paint(path, format=kind)
    assert np.abs(read(path).astype(int) - RED).max() < 8
    assert look(str(path)) == (1, EIGHT_BITS)


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "webp", ""])
def test_frames_behind_a_wrong_suffix(tmp_path, suffix):
    """Where the file is looked into anyway. A suffix of a format without frames is trusted."""
    frames = [Image.new("L", (8, 8), 40 * i) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    path = tmp_path / (f"a.{suffix}" if suffix else "a")
    path.write_bytes(buffer.getvalue())
    assert look(str(path))[0] == 3
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue())
    assert look(str(path))[0] == 1


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
@pytest.mark.parametrize("kind", ["png", "tif", "tif, compressed", "jpg", "webp"])
def test_orientation(tmp_path, orientation, mode, kind):
    """Like the same pixels, turned by NumPy, without an orientation."""
    raw = np.kron(np.arange(6).reshape(2, 3) % 5 > 1, np.ones((8, 8))).astype(bool)
    suffix, *compressed = kind.split(", ")
    if suffix in ("jpg", "webp") and mode in ("P", "1"):
        mode = "RGB"
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 95} if suffix in ("jpg", "webp") else {}
    if compressed:
        options["compression"] = "tiff_deflate"
    image = Image.fromarray(raw).convert(mode)
    image.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    turned = {
        1: raw,
        2: raw[:, ::-1],
        3: raw[::-1, ::-1],
        4: raw[::-1],
        5: raw.T,
        6: np.rot90(raw, -1),
        7: np.rot90(raw, 2).T,
        8: np.rot90(raw),
    }[orientation]
    pixels = read(tmp_path / f"a.{suffix}", channels=1, size=turned.shape)[..., 0]
    assert np.array_equal(pixels > 127, turned)


# Colors


def test_gray_images_in_a_folder_of_colors(tmp_path):
    paint(tmp_path / "a.png", (10, 20, 30))
    Image.new("L", (8, 8), 77).save(tmp_path / "b.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "c.png")
    data = folder(tmp_path)
    pixels = [read(path)[0, 0].tolist() for path in data.files]
    assert pixels == [[10, 20, 30], [77, 77, 77], [255, 255, 255]]
    assert [read(path, channels=1)[0, 0, 0] for path in data.files] == [18, 77, 255]


def test_bits(tmp_path):
    expected = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(bool)
    for suffix in ("png", "tif", "bmp", "pbm", "gif"):
        Image.fromarray(expected).save(tmp_path / f"a.{suffix}")
        assert np.array_equal(read(tmp_path / f"a.{suffix}", 1)[..., 0], 255 * expected)


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
def test_palettes(tmp_path, suffix):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 4, 8))
    image.save(tmp_path / f"a.{suffix}")
    pixels = read(tmp_path / f"a.{suffix}")
    assert pixels[0, 0].tolist() == [200, 100, 50]
    assert pixels[0, 7].tolist() == [10, 20, 30]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palettes_with_transparency(tmp_path, suffix, transparency):
    if suffix == "gif" and isinstance(transparency, bytes):
        transparency = 1
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 4, 8))
    image.save(tmp_path / f"a.{suffix}", transparency=transparency)
    pixels = read(tmp_path / f"a.{suffix}", background=(1, 2, 3))
    assert pixels[0, 0].tolist() == [1, 2, 3]
    assert pixels[0, 7].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("LA", "png"),
        ("RGBA", "png"),
        ("PA", "tif"),
        ("LA", "tif"),
        ("RGBA", "tif"),
        ("RGBA", "webp"),
    ],
)
def test_transparency(tmp_path, mode, suffix):
    """A left half that is clear, and a right one that is half so."""
    if mode == "PA":
        image = Image.new("PA", (8, 8), (0, 128))
        image.putpalette([100, 100, 100])
        image.paste((0, 0), (0, 0, 4, 8))
    else:
        image = Image.new("RGBA", (8, 8), (100, 100, 100, 128))
        image.paste((100, 100, 100, 0), (0, 0, 4, 8))
        image = image.convert(mode)
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        assert opened.mode == mode
    pixels = read(tmp_path / f"a.{suffix}", background=(255, 0, 0)).astype(int)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert np.abs(pixels[0, 7] - [177, 50, 50]).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    """Adobe stores the colors of JPEG files inverted, and says so."""
    for ink, expected in {
        (0, 0, 0, 0): WHITE,
        (0, 255, 255, 0): (255, 0, 0),
        (0, 0, 0, 255): (0, 0, 0),
        (255, 0, 0, 0): (0, 255, 255),
    }.items():
        Image.new("CMYK", (8, 8), ink).save(tmp_path / f"a.{suffix}", quality=95)
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert image.mode == "CMYK"
        assert np.abs(read(tmp_path / f"a.{suffix}")[4, 4].astype(int) - expected).max() < 8


# Several images in a file


def test_previews_of_mpo_files_are_no_images(tmp_path):
    """Phones and stereo cameras put further versions of a photograph behind it."""
    for i in range(3):
        for suffix in ("jpg", "mpo", ""):
            path = tmp_path / (f"{i}.{suffix}" if suffix else str(i))
            preview = Image.new("RGB", (8, 8), (0, 0, 200))
            Image.new("RGB", (8, 8), RED).save(
                path, "MPO", save_all=True, append_images=[preview], quality=95
            )
            with Image.open(path) as image:
                assert image.format == "MPO"
                assert image.n_frames == 2
    data = folder(tmp_path)
    assert len(data.files) == 9
    pixels = data.load_all().images.x.float().mean((2, 3))
    assert (pixels - torch.tensor(RED)).abs().max() < 5


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_frames_that_change_a_part(tmp_path, suffix):
    """Of an animation, as it is shown: on top of the frames before."""
    frames = []
    for i in range(3):
        frame = Image.new("RGB", (16, 16), (255, 255, 255))
        frame.paste(RED, (0, 0, 16, 4))
        frame.paste((0, 0, 0), (0, 4 + 4 * i, 4, 8 + 4 * i))
        frames.append(frame)
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    found = list(read_frames(path, [0, 1, 2], (3, 16, 16), WHITE))
    for image, frame in zip(found, frames, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(frame))
    (last,) = read_frames(path, [2], (3, 16, 16), WHITE)
    assert last.equal(found[2])


# Damaged and huge files


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp", "jp2", "tga"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.1, 0.5])
def test_truncated_and_empty_files(tmp_path, suffix, keep):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a truncated TIFF file
        with pytest.raises(UserError, match=r"cannot be read as an image \(.+\): repair it") as e:
            read(path)
        look(str(path))
    assert ("the file is empty" in str(e.value)) == (keep == 0)
    assert str(e.value).count(str(tmp_path)) == 1
    assert "<_io" not in str(e.value)


def test_files_without_access(tmp_path, monkeypatch):
    paint(tmp_path / "a.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "a.png"))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image \(Permission denied\)"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_huge_images(tmp_path, monkeypatch, suffix):
    """Up to the size that Pillow refuses, they are read without a warning about an attack."""
    for i in range(3):
        paint(tmp_path / f"{i}.{suffix}", size=(15, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        reload(headers)  # pytest has replaced the filters since it was imported
        assert len(folder(tmp_path).load("train")) == 1
        headers.describe(tmp_path / f"0.{suffix}")
    assert not caught
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    with pytest.raises(UserError, match="more than 140 pixels, which Pillow takes for an attack"):
        folder(tmp_path).load("train")


# More than 8 bits


def wide(path, dtype="uint16", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), 300, dtype=dtype)).save(path, **kwargs)


def colors_of_16_bits(path, value=0x8040):
    path.write_bytes(imagecodecs.png_encode(np.full((8, 8, 3), value, dtype=np.uint16)))


@pytest.mark.parametrize(
    ("suffix", "dtype", "kind"),
    [
        ("png", "uint16", "uint16 in 1 channel"),
        ("tif", "uint16", "uint16 in 1 channel"),
        ("tif", "int32", "int32 in 1 channel"),
        ("tif", "float32", "float32 in 1 channel"),
    ],
)
def test_more_than_8_bits_are_recognized(tmp_path, suffix, dtype, kind):
    """And keep their values."""
    for i in range(3):
        wide(tmp_path / f"{i}.{suffix}", dtype)
    data = folder(tmp_path)
    assert data.value_type == ValueType(dtype, 1)
    assert str(data.value_type) == kind
    assert data.image_shape[0] == 1
    data.setup("fit")
    batch = data.datasets["train"].__getitems__([0])
    (written,) = {float(v) for v in np.unique(data.record.to_items(batch.x))}
    (given,) = {float(v) for v in np.unique(next(read_arrays(data.files[0], [0])))}
    assert written == given
    assert data.record.dtype == dtype


@pytest.mark.parametrize("skip_unreadable", [False, True])
def test_different_types_are_refused(tmp_path, skip_unreadable):
    for i in range(3):
        paint(tmp_path / "photos" / f"{i}.jpg")
        wide(tmp_path / "scans" / f"{i}.png")
    wide(tmp_path / "scans" / "9.tif", "float32")
    message = (
        r"values of different types \(photos/0\.jpg has 8 bits, scans/0\.png has uint16 in 1 "
        r"channel, scans/9\.tif has float32 in 1 channel\): convert"
    )
    data = folder(tmp_path, skip_unreadable=skip_unreadable)
    with pytest.raises(UserError, match=message):
        data.value_type  # noqa: B018
    with pytest.raises(UserError, match=message):
        data.num_train  # noqa: B018


def test_16_bit_colors_are_used_with_8_bits(tmp_path):
    for i in range(2):
        paint(tmp_path / f"{i}.jpg")
    colors_of_16_bits(tmp_path / "3.png")
    data = folder(tmp_path)
    assert data.value_type == EIGHT_BITS
    assert read(data.files[2])[0, 0].tolist() == [0x80] * 3
    assert "1 with 16-bit colors, of which 8 bits are used" in data.summary()
    assert "16-bit" not in folder_of_8_bits(tmp_path / "other").summary()


def test_channels_are_no_colors(tmp_path):
    """Three channels of a microscope are three pages, of which Pillow reads none with 8 bits."""
    for i in range(3):
        stack = np.full((3, 8, 8), 300, dtype=np.uint16)
        path = tmp_path / f"{i}.tif"
        tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "CYX"})
    data = folder(tmp_path)
    assert data.value_type == ValueType("uint16", 3)
    assert data.items.read(np.arange(3)).shape[:2] == (3, 3)
    assert data.record.high == (300.0,)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("colors", ["rgb", "rgba", "cmyk"])
def test_16_bit_colors_of_tiff_files(tmp_path, compression, byteorder, colors):
    """Pillow takes the upper byte."""
    values = {"rgb": [0x8040] * 3, "rgba": [0x8040] * 3 + [0xFFFF], "cmyk": [0, 0, 0, 0x7F40]}
    array = np.tile(np.array(values[colors], dtype=np.uint16), (8, 8, 1))
    options = {"photometric": "rgb"}
    if colors == "rgba":
        options["extrasamples"] = ["unassalpha"]
    elif colors == "cmyk":
        options["photometric"] = "separated"
    for i in range(3):
        path = tmp_path / f"{i}.tif"
        tifffile.imwrite(path, array, byteorder=byteorder, compression=compression, **options)
    data = folder(tmp_path)
    assert data.value_type == ValueType("uint16", array.shape[-1], reducible=True)
    assert read(data.files[0])[0, 0].tolist() == [0x80] * 3
    assert "3 with 16-bit colors, of which 8 bits are used" in data.summary()


def test_16_bit_colors_in_planes(tmp_path):
    """Of which Pillow would take the lower byte."""
    for i in range(3):
        array = np.full((3, 8, 8), 0x8040, dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"{i}.tif", array, photometric="rgb", planarconfig="separate")
    assert folder(tmp_path).items.read(np.arange(3)).max() == 0x8040


def folder_of_8_bits(root) -> ImageFolder:
    for i in range(3):
        paint(root / f"{i}.png")
    return folder(root)


def test_a_damaged_header_does_not_decide(tmp_path):
    data = folder_of_8_bits(tmp_path)
    (tmp_path / "4.tif").write_bytes(b"II*\0 damaged")
    assert data.value_type == EIGHT_BITS
    assert [name for name, _ in folder(tmp_path, skip_unreadable=True).left_out] == ["4.tif"]


def test_links_to_files_twice(tmp_path):
    """A link to an image of the folder is an image of its own, as the user made it one."""
    for i in range(3):
        paint(tmp_path / "a" / f"{i}.png")
    (tmp_path / "b").mkdir()
    os.symlink(tmp_path / "a" / "0.png", tmp_path / "b" / "0.png")
    assert names(folder(tmp_path))[-1] == "b/0.png"


def test_images_are_scaled_like_pillow_does(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    expected = np.asarray(ImageOps.fit(Image.fromarray(noise), (9, 12)))
    assert np.array_equal(read(tmp_path / "a.png", size=(12, 9)), expected)
