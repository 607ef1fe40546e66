"""What the headers of image files say: formats, numbers of pages, and types of values."""

import os
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFile

from vae_lightning.images import tiff
from vae_lightning.images.reading import reading

_NO_PIXELS = {"MPEG"}
"""Formats that Pillow recognizes but cannot decode, beside its stubs."""

_ANIMATED = {"AVIF", "DCX", "FLI", "GIF", "PNG", "TIFF", "WEBP"}
"""Formats whose frames or pages are images. Those of MPO are previews, and those of PSD layers."""

_MORE_THAN_8_BITS = {"FITS", "IM", "JPEG2000", "MCIDAS", "PFM", "PPM", "SPIDER"}
"""Further formats whose files may hold more than 8 bits per value."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_START = 1024
"""Bytes of a PNG file in which the chunk that announces an animation is looked for."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Number of channels by the color type of a PNG file."""

_WIDE_MODES = {
    "I;16": "uint16",
    "I;16L": "uint16",
    "I;16B": "uint16",
    "I;16N": "uint16",
    "I": "int32",
    "F": "float32",
}
"""Types of the values of the modes of Pillow that have more than 8 bits."""

# The files belong to the user, so a large image is no attack. Pillow still refuses twice the size.
# Appended: filters of the user come first.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)


class ValueType(NamedTuple):
    """Type of the values of an image.

    Attributes:
        dtype: Name of a NumPy type, such as ``uint16``.
        channels: Number of channels; 0 for 8 bits, whose colors are converted.
        reducible: Whether Pillow reads 8 bits of it that keep the brightness, as it does for
            colors of 16 bits.
    """

    dtype: str
    channels: int
    reducible: bool = False

    def __str__(self) -> str:
        if self == EIGHT_BITS:
            return "8 bits"
        return f"{self.dtype} in {self.channels} channel{'s' if self.channels > 1 else ''}"


EIGHT_BITS = ValueType("uint8", 0, reducible=True)


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        dtype: Name of the NumPy type of its values, such as ``uint8`` or ``float32``.
        channels: Number of channels of an image, transparency included.
        pages: Number of images: frames, pages, or the times and depths of a hyperstack.
        height: Height of the first image in pixels, as it is stored.
        width: Width of the first image in pixels, as it is stored.
        reducible: See `ValueType`.
    """

    dtype: str
    channels: int
    pages: int
    height: int
    width: int
    reducible: bool = False

    @property
    def value_type(self) -> ValueType:
        """Type of the values; the same for all images of 8 bits."""
        if self.dtype == "uint8":
            return EIGHT_BITS
        return ValueType(self.dtype, self.channels, self.reducible)


@cache
def formats() -> dict[str, str]:
    """Return the formats that Pillow can decode, by suffix."""
    Image.init()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    usable = (Image.OPEN.keys() | {"MPO"}) - stubs - _NO_PIXELS  # MPO is opened as JPEG
    return {s: name for s, name in Image.registered_extensions().items() if name in usable}


def is_image(path: str) -> bool:
    """Return whether Pillow can decode a file: by its suffix, or else by its first bytes."""
    if os.path.splitext(path)[1].lower() in formats():
        return True
    try:
        with Image.open(path) as image:
            return image.format in formats().values()
    except Exception:  # whatever a decoder says about bytes that are no image
        return False


def describe(path: str | Path) -> Header:
    """Read the header of an image file, and no pixels.

    The pages and channels of a TIFF hyperstack are told apart by ``tifffile``. Without it, each
    page of the file counts as an image.

    Args:
        path: The file.

    Raises:
        UserError: If the file cannot be read.
    """
    with reading(path):
        with open(path, "rb") as file:
            start = file.read(_PNG_START)
        if tiff.is_tiff(start):
            found = tiff.read_tags(path)
            is_short = found.dtype == "uint8"
            counts = (found.channels, found.pages) if is_short else tiff.count(path, found)
            reducible = is_short or (found.is_color and found.dtype == "uint16")
            return Header(found.dtype, *counts, found.height, found.width, reducible)
        if start.startswith(_PNG_SIGNATURE):
            width, height, bits, color = struct.unpack(">IIBB", start[16:26])
            if bits == 16:
                return Header("uint16", _PNG_CHANNELS[color], 1, height, width, color != 0)
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
            if dtype := _WIDE_MODES.get(image.mode):
                return Header(dtype, 1, int(frames), image.height, image.width)
            channels = len(plain_mode(image))
            return Header("uint8", channels, int(frames), image.height, image.width, True)


def plain_mode(image: Image.Image) -> str:
    """Return the mode, ``L``, ``LA``, ``RGB`` or ``RGBA``, that holds an 8-bit image."""
    colors = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return f"{colors}A" if image.has_transparency_data else colors


def look(path: str) -> tuple[int, ValueType | None]:
    """Return the number of images in a file and the type of their values.

    Only files of formats that may hold several images or more than 8 bits are opened.

    Returns:
        The number, 1 if the file cannot be read, and the type, then None.
    """
    name = formats().get(os.path.splitext(path)[1].lower())
    if name is not None and name not in _ANIMATED | _MORE_THAN_8_BITS:
        return 1, EIGHT_BITS
    try:
        if name == "PNG":
            with open(path, "rb", buffering=0) as file:
                start = file.read(_PNG_START)
            if start.startswith(_PNG_SIGNATURE) and b"acTL" not in start and start[24] != 16:
                return 1, EIGHT_BITS
        header = describe(path)
    except Exception:  # said when the image is read
        return 1, None
    return header.pages, header.value_type
