"""Decode image files with Pillow: what it can open, how many frames, and pixels as tensors."""

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import ExifTags, Image, ImageColor, ImageFile, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from vae_lightning.errors import UserError
from vae_lightning.nets import ImageShape

_NO_PIXELS = {"MPEG"}
"""Formats that Pillow recognizes but cannot decode, beside its stubs."""

_ANIMATED = {"AVIF", "DCX", "FLI", "GIF", "TIFF", "WEBP"}
"""Formats whose files may hold several frames or pages; PNG is looked at separately."""

_PNG_HEADER = 1024
"""Bytes of a PNG file in which the chunk that announces an animation is looked for."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation in EXIF."""


@cache
def _formats() -> dict[str, str]:
    """Return the formats that Pillow can decode, by suffix."""
    Image.init()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    usable = Image.OPEN.keys() - stubs - _NO_PIXELS
    return {s: name for s, name in Image.registered_extensions().items() if name in usable}


def is_image(path: str) -> bool:
    """Return whether Pillow can decode a file: by its suffix, or else by its first bytes."""
    formats = _formats()
    if os.path.splitext(path)[1].lower() in formats:
        return True
    try:
        with Image.open(path) as image:
            return image.format in formats.values()
    except Exception:  # whatever a decoder says about bytes that are no image
        return False


def count_frames(path: str) -> int:
    """Return the number of frames or pages of an image file, 1 if it cannot be read."""
    name = _formats().get(os.path.splitext(path)[1].lower())
    try:
        if name == "PNG":
            with open(path, "rb", buffering=0) as file:
                if b"acTL" not in file.read(_PNG_HEADER):
                    return 1
        elif name not in _ANIMATED and name is not None:
            return 1
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # said when the image is read
        return 1


def background_color(name: str) -> tuple[int, int, int]:
    """Return the red, green and blue of a color such as ``white`` or ``#ff8000``.

    Raises:
        ValueError: If there is no such color.

    Example:
        >>> background_color("white")
        (255, 255, 255)
    """
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue


def read_frames(
    path: Path, frames: Sequence[int], image_shape: ImageShape, background: tuple[int, int, int]
) -> Iterator[Tensor]:
    """Read frames of an image file, each scaled to cover a size and center-cropped.

    Args:
        path: The file.
        frames: Numbers of the frames, in increasing order.
        image_shape: (C, H, W), with 3 channels for RGB or 1 for gray.
        background: Color behind transparent pixels.

    Yields:
        uint8 images, (C, H, W).

    Raises:
        UserError: If the file cannot be decoded.
    """
    channels, height, width = image_shape
    try:
        with Image.open(path) as image:
            for frame in frames:
                if frame:
                    image.seek(frame)
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}")
                opaque = _on_background(_upright(image), background)
                converted = opaque.convert("RGB" if channels == 3 else "L")
                yield pil_to_tensor(ImageOps.fit(converted, (width, height)))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise errors of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as an image ({reason}): repair it or remove it"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says, whatever else is wrong with that."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata say nothing about the pixels
        orientation = None
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _on_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Put an image with transparent pixels on a background."""
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA"))
    return canvas
