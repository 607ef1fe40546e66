"""Errors of image files that cannot be read, with reasons that a user understands."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vae_lightning.errors import UserError

PACKAGES = "pip install 'vae-lightning[tiff]'"
"""What installs the packages that read TIFF files and 16-bit colors."""


class Unreadable(UserError):
    """An image file that cannot be read.

    Args:
        message: The sentence for the user.
        reason: What is wrong with the file, in few words.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Convert any error while an image file is read to one that names the file.

    Args:
        path: The file.

    Raises:
        Unreadable: If the block raises an error, apart from a lack of memory.
    """
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:  # decoders raise errors of any kind
        reason = _reason(path, error)
        raise Unreadable(
            f"{printable(path)} cannot be read as an image ({reason}): repair it or remove it",
            reason,
        ) from error


def printable(name: str | Path) -> str:
    r"""Return a name in which line breaks and the like are escaped.

    Example:
        >>> printable("two\nlines é.png")
        'two\\nlines é.png'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))


def _reason(path: str | Path, error: Exception) -> str:
    """Return what is wrong with a file, in few words."""
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more than {limit:,} pixels, which Pillow takes for an attack"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    with contextlib.suppress(OSError):
        if not os.path.getsize(path):
            return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "damaged, or no image"
    return " ".join(str(error).split()) or type(error).__name__
