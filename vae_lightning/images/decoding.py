"""Decode image files with Pillow: pixels of 8 bits as tensors."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import ExifTags, Image, ImageColor, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from vae_lightning.images.reading import reading
from vae_lightning.nets import ImageShape

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
    # Pillow maps the pixels of a file that it opens by its name, and mixes up the height and the
    # width of gray TIFF files on their side.
    with reading(path), open(path, "rb") as file, Image.open(file) as image:
        for frame in frames:
            if frame:
                image.seek(frame)
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}")
            opaque = _on_background(upright(image), background)
            converted = opaque.convert("RGB" if channels == 3 else "L")
            yield pil_to_tensor(ImageOps.fit(converted, (width, height)))


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says, whatever else is wrong with that."""
    image.load()  # which turns TIFF files already
    method = _TRANSPOSE.get(orientation_of(image))
    return image if method is None else image.transpose(method)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation in the EXIF of an image, 1 if there is none."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata say nothing about the pixels
        found = None
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _on_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Put an image with transparent pixels on a background."""
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA"))
    return canvas
