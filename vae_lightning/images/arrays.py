"""Values of images in their own type, for those with more than 8 bits."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vae_lightning.errors import UserError
from vae_lightning.images import tiff
from vae_lightning.images.decoding import orientation_of, upright
from vae_lightning.images.headers import describe, plain_mode
from vae_lightning.images.reading import PACKAGES, Unreadable, printable, reading
from vae_lightning.nets import ImageShape


def read_arrays(path: str | Path, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Read images of a file with the values that are in it, neither scaled nor cut.

    TIFF files of more than 8 bits need the package ``tifffile``, compressed ones and 16-bit colors
    of PNG files ``imagecodecs``; both are installed by ``pip install 'vae-lightning[tiff]'``. The
    channels of a hyperstack (ImageJ, OME) belong to an image; its times and depths are images. See
    `describe` for what a file holds.

    Args:
        path: The file.
        frames: Numbers of the images, in increasing order.

    Yields:
        Arrays in the type of the file (uint8, uint16, int16, float32, ...), (H, W), or (H, W, C)
        for several channels, turned as the file's orientation says. Palettes are converted to
        colors; transparency is a channel.

    Raises:
        UserError: If the file cannot be read, or a package is missing.
    """
    header = describe(path)
    with reading(path), open(path, "rb") as file:
        if tiff.is_tiff(file.read(4)) and header.dtype != "uint8":
            orientation = tiff.read_tags(path).orientation
            for array in tiff.read(path, frames):
                yield _turn(array, orientation)
            return
        file.seek(0)
        with Image.open(file) as image:
            if image.format == "PNG" and header.dtype == "uint16":
                yield from _wide_png(path, image, frames)
                return
            for frame in frames:
                if frame:
                    image.seek(frame)
                turned = upright(image)
                if header.dtype == "uint8":
                    turned = turned.convert(plain_mode(turned))
                yield np.array(turned)


def read_values(
    path: str | Path, frames: Sequence[int], image_shape: ImageShape
) -> Iterator[Tensor]:
    """Read images as `read_arrays` does, and fit them to a size as `fit_array` does.

    Args:
        path: The file.
        frames: Numbers of the images, in increasing order.
        image_shape: (C, H, W).

    Yields:
        Values in the units of the file, float32, (C, H, W).

    Raises:
        UserError: If the file cannot be read, or has another number of channels.
    """
    channels, height, width = image_shape
    for array in read_arrays(path, frames):
        x = fit_array(array, height, width)
        if len(x) != channels:
            reason = f"{len(x)} channels instead of {channels}"
            raise Unreadable(f"{printable(path)} has {reason}: convert it", reason)
        yield torch.from_numpy(x)


def _wide_png(path: str | Path, image: Image.Image, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Read a PNG file of 16 bits; Pillow keeps them for gray only."""
    if image.mode.startswith("I"):
        array = np.array(image).astype(np.uint16)  # Pillow before 11.3 has mode I
    else:
        try:
            import imagecodecs
        except ImportError as error:
            raise UserError(
                f"{printable(path)} has colors of 16 bits, which need imagecodecs: {PACKAGES}"
            ) from error
        array = imagecodecs.png_decode(Path(path).read_bytes())
    for _ in frames:
        yield _turn(array, orientation_of(image))


def _turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array, (H, W) or (H, W, C), as an orientation of EXIF says."""
    if orientation > 4:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def fit_array(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop an array at the center to an aspect ratio, and scale it to a size.

    Scaling is linear and with antialiasing, so no value is outside the range of the original. An
    array of the requested size is returned with the same values, apart from rounding to float32.

    Args:
        array: Values of any real type, (H, W) or (H, W, C).
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        float32, (C, height, width).

    Raises:
        ValueError: If the array has another number of dimensions or complex values, or a size is
            not positive.

    Example:
        >>> fit_array(np.full((20, 30), 1000, dtype=np.uint16), 4, 8).shape
        (1, 4, 8)
    """
    if array.ndim not in (2, 3) or np.iscomplexobj(array):
        raise ValueError(
            "an image is an array (H, W) or (H, W, C) of real numbers, got "
            f"{array.dtype} of shape {array.shape}"
        )
    if min(height, width) < 1:
        raise ValueError(f"height and width must be positive, got {height} and {width}")
    x = np.atleast_3d(array)
    scale = min(x.shape[0] / height, x.shape[1] / width)
    size = [max(1, round(scale * height)), max(1, round(scale * width))]
    top, left = ((have - keep) // 2 for have, keep in zip(x.shape, size, strict=False))
    x = x[top : top + size[0], left : left + size[1]].transpose(2, 0, 1)
    x = np.ascontiguousarray(x, dtype=np.float32)
    if size == [height, width]:
        return x
    scaled = interpolate(
        torch.from_numpy(x)[None], (height, width), mode="bilinear", antialias=True
    )
    return scaled[0].numpy()
