"""TIFF files with values of more than 8 bits, read by the package ``tifffile``."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import TiffImagePlugin
from PIL.TiffTags import TAGS_V2

from vae_lightning.errors import UserError
from vae_lightning.images.reading import PACKAGES, printable

_TAGS = {tag.name: number for number, tag in TAGS_V2.items()}
_FORMATS = {1: "uint", 2: "int", 3: "float", 4: "uint", 5: "complex", 6: "complex"}
"""Kinds of numbers by the tag SampleFormat."""
_RGB, _PALETTE, _CMYK = 2, 3, 5
"""Values of the tag PhotometricInterpretation."""
_IN_PIXELS = 1
"""Value of the tag PlanarConfiguration if the colors of a pixel are stored together."""


class Tags(NamedTuple):
    """What the first page of a TIFF file says; see `Header` for the first five."""

    dtype: str
    channels: int
    pages: int
    height: int
    width: int
    is_color: bool
    orientation: int
    description: str


def is_tiff(start: bytes) -> bool:
    """Return whether a file that starts like this is a TIFF or little-endian BigTIFF file."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0")


def read_tags(path: str | Path) -> Tags:
    """Read the tags of the first page, and count the pages.

    Raises:
        KeyError: If a tag is missing.
        Exception: If the file is damaged.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        is_big = start[2:3] == b"+"
        tags = TiffImagePlugin.ImageFileDirectory_v2(start + (file.read(8) if is_big else b""))
        seen: set[int] = set()
        first = None
        while tags.next and tags.next not in seen:
            seen.add(tags.next)
            file.seek(tags.next)
            tags.load(file)
            if first is None:
                first = _first_page(tags)
    if first is None:
        raise ValueError("it has no pages")
    return first._replace(pages=len(seen))


def _first_page(tags: Any) -> Tags:
    bits = max(tags.get(_TAGS["BitsPerSample"], (1,)))
    kind = _FORMATS[tags.get(_TAGS["SampleFormat"], (1,))[0]]
    channels = tags.get(_TAGS["SamplesPerPixel"], 1)
    meaning = tags.get(_TAGS["PhotometricInterpretation"])
    channels = 3 if meaning == _PALETTE else channels
    size = next(size for size in (8, 16, 32, 64, 128) if bits <= size)  # 12 bits are in 16
    height, width = tags[_TAGS["ImageLength"]], tags[_TAGS["ImageWidth"]]
    orientation = tags.get(_TAGS["Orientation"], 1)
    description = str(tags.get(_TAGS["ImageDescription"], ""))
    # Pillow takes the wrong byte of colors that are stored one after the other.
    together = tags.get(_TAGS["PlanarConfiguration"], _IN_PIXELS) == _IN_PIXELS
    is_color = meaning in (_RGB, _CMYK) and channels in (3, 4) and together
    return Tags(f"{kind}{size}", channels, 1, height, width, is_color, orientation, description)


def count(path: str | Path, tags: Tags) -> tuple[int, int]:
    """Return the numbers of channels and of images in a file.

    They are those of the tags, unless ``tifffile`` is installed and knows of a hyperstack.
    """
    is_plain = tags.pages == 1 and not tags.description.startswith(("ImageJ", "<?xml", "{"))
    if not is_plain:
        with contextlib.suppress(ImportError), _opened(path) as file:
            parts = _parts(file)
            return parts[0].channels, sum(part.count for part in parts)
    return tags.channels, tags.pages


def read(path: str | Path, pages: Sequence[int]) -> Iterator[np.ndarray]:
    """Read images of a TIFF file, without loading the others.

    Args:
        path: The file.
        pages: Positions of the images.

    Yields:
        Arrays in the type of the file, (H, W) or (H, W, C).

    Raises:
        UserError: If a package is missing.
        Exception: If the file is damaged.
    """
    try:
        with _opened(path) as file:
            parts = _parts(file)
            for page in pages:
                position = page
                for part in parts:
                    if position < part.count:
                        yield part.read(position)
                        break
                    position -= part.count
                else:
                    raise EOFError(f"it has no page {page}")
    except ImportError as error:
        raise UserError(
            f"{printable(path)} holds more than 8 bits per value, which needs tifffile: {PACKAGES}"
        ) from error
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise UserError(
            f"{printable(path)} is compressed in a way that needs imagecodecs: {PACKAGES}"
        ) from error


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a file without the other files that its metadata may name."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        if not any(series.is_multifile for series in file.series):
            yield file
            return
    with tifffile.TiffFile(path, is_ome=False) as file:
        yield file


def _parts(file: Any) -> "list[_Series]":
    """Return the series of a file whose values are like those of the first, one at least."""
    found = [_Series(file, series) for series in file.series]
    kinds = [(series.series.dtype, series.channels) for series in found]
    return [series for series, kind in zip(found, kinds, strict=True) if kind == kinds[0]]


class _Series:
    """Images of one shape in a TIFF file.

    The axes X, Y, C (channels) and S (samples, such as red, green and blue) belong to an image.
    The images go through all others, such as T (time) and Z (depth), the last one fastest.

    Args:
        file: A ``tifffile.TiffFile``.
        series: One of its series.
    """

    def __init__(self, file: Any, series: Any) -> None:
        self.file = file
        self.series = series
        self.axes: str = series.axes
        sizes = dict(zip(self.axes, series.shape, strict=True))
        if not {"X", "Y"} <= sizes.keys():
            raise ValueError(f"its axes {self.axes} have no height and width")
        self.channels = sizes.get("C", 1) * sizes.get("S", 1)
        self.outer = [axis for axis in self.axes if axis not in "XYCS"]
        self.count = math.prod(sizes[axis] for axis in self.outer)

    def read(self, position: int) -> np.ndarray:
        """Return an image, (H, W) or (H, W, C), upright."""
        sizes = dict(zip(self.axes, self.series.shape, strict=True))
        index = np.unravel_index(position, [sizes[a] for a in self.outer]) if self.outer else ()
        chosen: dict[str, Any] = dict(zip(self.outer, map(int, index), strict=True))
        array = self._read_pages([chosen.get(axis, slice(None)) for axis in self.axes])
        axes = [axis for axis in self.axes if axis not in self.outer]
        order = [axis for axis in "YXCS" if axis in axes]
        array = array.transpose([axes.index(axis) for axis in order])
        array = array.reshape(*array.shape[:2], -1) if array.ndim > 2 else array
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _read_pages(self, index: list[Any]) -> np.ndarray:
        """Return a part of the series, and read no more pages than it needs."""
        series, page = self.series, self.series.keyframe
        between = len(series.shape) - len(page.shape)
        if series.is_truncated or series.shape[between:] != page.shape:
            # One page that says where all others are.
            return np.array(self._mapped()[tuple(index)])
        numbers = np.arange(math.prod(series.shape[:between])).reshape(series.shape[:between])
        wanted = numbers[tuple(index[:between])]
        pages = self.file.asarray(key=wanted.ravel().tolist(), series=series)
        kept = [slice(None)] * wanted.ndim
        return pages.reshape(*wanted.shape, *page.shape)[(*kept, *index[between:])]

    def _mapped(self) -> np.ndarray:
        if self.series.dataoffset is None:
            return self.series.asarray()
        return np.memmap(
            self.file.filehandle.path,
            self.series.dtype.newbyteorder(self.file.byteorder),
            "r",
            self.series.dataoffset,
            self.series.shape,
        )
