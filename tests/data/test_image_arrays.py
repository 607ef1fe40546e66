"""Values of more than 8 bits: what headers say, how they are read and scaled."""

import sys
import zlib
from itertools import product

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from vae_lightning.errors import UserError
from vae_lightning.images.arrays import fit_array, read_arrays
from vae_lightning.images.headers import Header, ValueType, describe, look


def values(shape, dtype, seed=0) -> np.ndarray:
    """Values in the whole range of a type."""
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(scale=1e3, size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, size=shape, dtype=dtype, endpoint=True)


def same(read, expected) -> bool:
    return read.dtype == expected.dtype and np.array_equal(read, expected)


# TIFF


@pytest.mark.parametrize(
    "dtype", ["uint16", "int16", "uint32", "int32", "float16", "float32", "float64", "int8"]
)
@pytest.mark.parametrize(("byteorder", "bigtiff"), [("<", False), (">", False), ("<", True)])
def test_every_type_of_value(tmp_path, dtype, byteorder, bigtiff):
    path, expected = tmp_path / "a.tif", values((5, 7), dtype)
    tifffile.imwrite(path, expected, byteorder=byteorder, bigtiff=bigtiff)
    assert describe(path) == Header(dtype, channels=1, pages=1, height=5, width=7)
    (read,) = read_arrays(path, [0])
    assert same(read, expected)
    assert read.dtype.isnative


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_compressed_and_tiled(tmp_path, compression, predictor, tile):
    path, expected = tmp_path / "a.tif", values((40, 24), "uint16")
    predictor = predictor and compression != "packbits"
    tifffile.imwrite(path, expected, compression=compression, predictor=predictor, tile=tile)
    (read,) = read_arrays(path, [0])
    assert same(read, expected)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_samples_are_channels(tmp_path, channels, planar):
    path, expected = tmp_path / "a.tif", values((6, 8, channels), "uint16")
    stored = expected if planar == "contig" else np.moveaxis(expected, -1, 0)
    colors = {2: "minisblack", 3: "rgb", 4: "rgb"}[channels]
    extra = {2: ["unassalpha"], 3: [], 4: ["unassalpha"]}[channels]
    tifffile.imwrite(path, stored, photometric=colors, planarconfig=planar, extrasamples=extra)
    is_color = colors == "rgb" and planar == "contig"  # of which Pillow reads 8 bits
    assert describe(path) == Header("uint16", channels, 1, height=6, width=8, reducible=is_color)
    (read,) = read_arrays(path, [0])
    assert same(read, expected)


@pytest.mark.parametrize("kind", ["shaped", "plain", "imagej", "ome"])
def test_pages_are_images(tmp_path, kind):
    expected = values((5, 6, 8), "uint16")
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    how = {
        "shaped": {},
        "plain": {"metadata": None},
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "ome": {"metadata": {"axes": "ZYX"}},
    }
    tifffile.imwrite(path, expected, photometric="minisblack", **how[kind])
    assert describe(path) == Header("uint16", channels=1, pages=5, height=6, width=8)
    assert look(str(path)) == (5, ValueType("uint16", 1))
    for frames in ([0, 1, 2, 3, 4], [1, 4]):
        read = list(read_arrays(path, frames))
        assert all(same(a, expected[i]) for a, i in zip(read, frames, strict=True))


def test_pages_of_several_sizes(tmp_path):
    path = tmp_path / "a.tif"
    pages = [values(shape, "uint16") for shape in ((6, 8), (6, 8), (3, 4), (6, 8))]
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, metadata=None)
    assert describe(path).pages == 4
    read = list(read_arrays(path, range(4)))
    assert sorted(a.shape for a in read) == sorted(page.shape for page in pages)
    assert all(any(same(a, page) for a in read) for page in pages)


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        *product(["imagej", "ome", "ome, compressed"], ["TZCYX", "ZCYX", "CYX", "TCYX"]),
        *product(["ome", "ome, compressed"], ["CTYX", "ZCTYX", "TZCYXS"]),
    ],
)
def test_channels_of_hyperstacks_belong_to_an_image(tmp_path, kind, axes):
    sizes = {"T": 2, "Z": 3, "C": 4, "Y": 6, "X": 8, "S": 3}
    stack = values([sizes[axis] for axis in axes], "uint16")
    path = tmp_path / ("a.tif" if kind == "imagej" else "a.ome.tif")
    how = {"imagej": True} if kind == "imagej" else {}
    if "compressed" in kind:
        how["compression"] = "zlib"
    tifffile.imwrite(path, stack, metadata={"axes": axes}, **how)
    images = np.moveaxis(stack, axes.index("C"), axes.index("X"))  # ..., Y, X, C, then S
    images = images.reshape(-1, 6, 8, 12 if "S" in axes else 4)
    assert describe(path)[:5] == ("uint16", images.shape[-1], len(images), 6, 8)
    assert describe(path).reducible == ("S" in axes)
    frames = range(len(images))
    read = list(read_arrays(path, frames))
    assert all(same(a, image) for a, image in zip(read, images, strict=True))
    (last,) = read_arrays(path, [len(images) - 1])
    assert same(last, images[-1])


def test_one_page_that_stands_for_many(tmp_path):
    """ImageJ writes stacks of more than 4 GB so."""
    path, stack = tmp_path / "a.tif", values((3, 2, 6, 8), "uint16")
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZCYX"})
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert file.series[0].dataoffset is not None
        # Cut the chain of pages: the field behind the tags of the first one.
        end = page.offset + 2 + 12 * len(page.tags)
    content[end : end + 4] = bytes(4)
    path.write_bytes(content)
    assert describe(path) == Header("uint16", channels=2, pages=3, height=6, width=8)
    read = list(read_arrays(path, range(3)))
    assert all(same(a, np.moveaxis(image, 0, -1)) for a, image in zip(read, stack, strict=True))


def test_other_files_of_a_data_set_are_not_read(tmp_path):
    """OME-TIFF files may name each other; each is in the folder on its own."""
    stack = values((2, 3, 6, 8), "uint16")
    names = ["a.ome.tif", "b.ome.tif"]
    planes = "".join(
        f'<TiffData FirstZ="{z}" FirstT="{t}" IFD="{z}" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
        for t, name in enumerate(names)
        for z in range(3)
    )
    for t, name in enumerate(names):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{name}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            'DimensionOrder="XYZTC" Type="uint16" SizeX="8" SizeY="6" SizeZ="3" SizeC="1" '
            'SizeT="2"><Channel ID="Channel:0" SamplesPerPixel="1"/>'
            f"{planes}</Pixels></Image></OME>"
        )
        tifffile.imwrite(
            tmp_path / name, stack[t], description=xml, metadata=None, photometric="minisblack"
        )
    with tifffile.TiffFile(tmp_path / names[0]) as file:
        assert file.series[0].is_multifile
    for t, name in enumerate(names):
        assert describe(tmp_path / name).pages == 3
        read = list(read_arrays(tmp_path / name, range(3)))
        assert all(same(a, image) for a, image in zip(read, stack[t], strict=True))


def test_12_bits(tmp_path):
    path, expected = tmp_path / "a.tif", values((5, 8), "uint16") >> 4
    pairs = expected.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    )
    tifffile.imwrite(
        path,
        iter([packed.astype(np.uint8).tobytes()]),
        shape=(5, 8),
        dtype="uint16",
        bitspersample=12,
        rowsperstrip=5,
        metadata=None,
    )
    assert describe(path)[:3] == ("uint16", 1, 1)
    (read,) = read_arrays(path, [0])
    assert same(read, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["16-bit TIFF", "16-bit PNG", "16-bit gray PNG"])
def test_orientation(tmp_path, kind, orientation):
    """Against Pillow, which turns images of 8 bits."""
    raw = np.arange(24, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(raw).save(tmp_path / "8.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "8.png")))
    wide = raw.astype(np.uint16) * 256 + 1
    if kind == "16-bit TIFF":
        path = tmp_path / "16.tif"
        tifffile.imwrite(path, wide, extratags=[(274, "H", 1, orientation, True)])
    elif kind == "16-bit gray PNG":
        path = tmp_path / "16.png"
        Image.fromarray(wide).save(path, exif=exif)
    else:
        path = tmp_path / "16.png"
        content = imagecodecs.png_encode(wide[..., None].repeat(3, -1))
        chunk = b"eXIf" + exif.tobytes()[6:]
        size = len(chunk) - 4
        chunk = size.to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        path.write_bytes(content[:33] + chunk + content[33:])
    (read,) = read_arrays(path, [0])
    first = read[..., 0] if read.ndim == 3 else read
    assert np.array_equal(first, expected.astype(np.uint16) * 256 + 1)


# Other formats


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(tmp_path, channels):
    path = tmp_path / "a.png"
    expected = values((5, 7, channels) if channels > 1 else (5, 7), "uint16")
    path.write_bytes(imagecodecs.png_encode(expected))
    assert describe(path) == Header("uint16", channels, 1, 5, 7, reducible=channels > 1)
    assert look(str(path)) == (1, ValueType("uint16", channels, reducible=channels > 1))
    with Image.open(path) as image:
        assert image.mode.startswith("I") == (channels == 1)
    (read,) = read_arrays(path, [0])
    assert same(read, expected)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("L", "png", 1),
        ("LA", "png", 2),
        ("RGB", "png", 3),
        ("RGBA", "png", 4),
        ("L", "tif", 1),
        ("RGB", "tif", 3),
        ("RGB", "bmp", 3),
        ("RGBA", "webp", 4),
    ],
)
def test_values_of_8_bits(tmp_path, mode, suffix, channels):
    path = tmp_path / f"a.{suffix}"
    expected = values((5, 7, channels) if channels > 1 else (5, 7), "uint8")
    kwargs = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(expected).save(path, **kwargs)
    with Image.open(path) as image:
        assert image.mode == mode
    assert describe(path) == Header("uint8", channels, 1, height=5, width=7, reducible=True)
    (read,) = read_arrays(path, [0])
    assert same(read, expected)


def test_palettes_are_converted_to_colors(tmp_path):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    for suffix in ("png", "tif", "gif"):
        path = tmp_path / f"a.{suffix}"
        image.save(path)
        assert describe(path)[:2] == ("uint8", 3)
        (read,) = read_arrays(path, [0])
        assert same(read, np.tile(np.array([10, 20, 30], dtype=np.uint8), (2, 3, 1)))
    image.save(tmp_path / "clear.png", transparency=1)
    assert describe(tmp_path / "clear.png").channels == 4
    (read,) = read_arrays(tmp_path / "clear.png", [0])
    assert read[0, 0].tolist() == [10, 20, 30, 0]


def test_bits(tmp_path):
    expected = values((5, 7), "uint8") > 127
    for suffix in ("png", "tif"):
        Image.fromarray(expected).save(tmp_path / f"a.{suffix}")
        assert describe(tmp_path / f"a.{suffix}")[:2] == ("uint8", 1)
        (read,) = read_arrays(tmp_path / f"a.{suffix}", [0])
        assert same(read, 255 * expected.astype(np.uint8))


def test_frames_of_8_bits(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), 40 * i, dtype=np.uint8)) for i in range(5)]
    for suffix in ("tif", "gif", "png"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert describe(path).pages == 5
        read = list(read_arrays(path, [1, 4]))
        assert [a.flat[0] for a in read] == [40, 160]


def test_a_16_bit_map_of_pgm(tmp_path):
    path, expected = tmp_path / "a.pgm", values((5, 7), "uint16")
    path.write_bytes(b"P5 7 5 65535\n" + expected.astype(">u2").tobytes())
    assert describe(path)[:3] == ("int32", 1, 1)
    (read,) = read_arrays(path, [0])
    assert np.array_equal(read, expected)


# What cannot be read


@pytest.mark.parametrize("content", [b"", b"II*\0", b"II*\0\x08\0\0\0\0\0", b"\x89PNG\r\n\x1a\n"])
def test_damaged_headers(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif cannot be read as an image \(.+\): repair"):
        describe(path)
    assert look(str(path)) == (1, None)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_values(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values((64, 64), "uint16"), compression=compression, metadata=None)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match=r"a\.tif cannot be read as an image"):
        list(read_arrays(path, [0]))


def test_a_page_that_is_not_there(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values((4, 4), "uint16"))
    with pytest.raises(UserError, match=r"no page 1"):
        list(read_arrays(path, [1]))


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("missing", ["tifffile", "imagecodecs"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, suffix, missing):
    expected = values((5, 7, 3), "uint16")
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, expected, compression="lzw", photometric="rgb")
    else:
        path.write_bytes(imagecodecs.png_encode(expected))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tifffile"]:
        monkeypatch.delitem(sys.modules, name)  # it looks for imagecodecs when it is imported
    monkeypatch.setitem(sys.modules, missing, None)
    assert describe(path)[:3] == ("uint16", 3, 1)
    if (suffix, missing) == ("png", "tifffile"):
        assert same(next(read_arrays(path, [0])), expected)
        return
    message = rf"a\.{suffix} .* needs? {missing}: pip install 'vae-lightning\[tiff\]'$"
    with pytest.raises(UserError, match=message):
        next(read_arrays(path, [0]))


def test_pages_without_the_package(tmp_path, monkeypatch):
    """The header still says that there are more than 8 bits, and how many pages the file has."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values((3, 2, 6, 8), "uint16"), imagej=True, metadata={"axes": "ZCYX"})
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert describe(path) == Header("uint16", channels=1, pages=6, height=6, width=8)


# Scaling


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 4)])
def test_the_same_size_is_the_same_values(dtype, shape):
    array = values(shape, dtype)
    fitted = fit_array(array, 5, 7)
    assert fitted.dtype == np.float32
    assert np.array_equal(fitted, np.moveaxis(array.reshape(5, 7, -1), -1, 0).astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "size", "crop"),
    [
        ((40, 40), (10, 10), np.s_[:, :]),
        ((40, 60), (10, 10), np.s_[:, 10:50]),
        ((64, 24), (8, 12), np.s_[24:40, :]),
        ((10, 20), (30, 30), np.s_[:, 5:15]),
        ((21, 35), (8, 8), np.s_[:, 7:28]),
    ],
)
def test_scaling_is_that_of_pillow(shape, size, crop):
    array = values(shape, "float32")
    cropped = Image.fromarray(np.ascontiguousarray(array[crop]))
    expected = cropped.resize(size[::-1], Image.Resampling.BILINEAR)
    fitted = fit_array(array, *size)[0]
    assert np.abs(fitted - np.asarray(expected)).max() < 1e-2  # of values around 1000


def test_scaling_keeps_range_and_mean():
    array = np.zeros((31, 50), dtype=np.uint16)
    array[:, 25:] = 60_000
    fitted = fit_array(array, 7, 9)
    assert fitted.shape == (1, 7, 9)
    assert 0 <= fitted.min() <= fitted.max() <= 60_000.1  # rounding
    large = fit_array(values((210, 300), "uint16"), 2, 2)  # each the mean of many
    assert np.abs(large / 65535 - 0.5).max() < 0.03


def test_cropping_is_at_the_center():
    array = np.zeros((8, 20), dtype=np.float32)
    array[:, 6:14] = 1
    assert fit_array(array, 8, 8).tolist() == np.ones((1, 8, 8)).tolist()
    assert fit_array(array.T, 4, 4).tolist() == np.ones((1, 4, 4)).tolist()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_extreme_shapes(shape):
    fitted = fit_array(np.full(shape, 7, dtype=np.int16), 5, 3)
    assert fitted.shape == (1, 5, 3)
    assert np.abs(fitted - 7).max() < 1e-5


def test_bad_arrays():
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        fit_array(np.zeros(3), 2, 2)
    with pytest.raises(ValueError, match="complex"):
        fit_array(np.zeros((3, 3), dtype=complex), 2, 2)
    with pytest.raises(ValueError, match="positive"):
        fit_array(np.zeros((3, 3)), 0, 2)


def test_tensors_can_be_made_of_the_result(tmp_path):
    """Torch refuses negative strides, which turning an array makes."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values((5, 7), "float32"), extratags=[(274, "H", 1, 3, True)])
    (read,) = read_arrays(path, [0])
    assert torch.from_numpy(fit_array(read, 5, 7)).shape == (1, 5, 7)
