"""dSprites.

References:
    Matthey et al. (2017), dSprites: disentanglement testing sprites dataset,
    https://github.com/google-deepmind/dsprites-dataset
"""

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.utils import download_url

from vae_lightning.data.factor_data import FactorData
from vae_lightning.data.published import Published
from vae_lightning.nets import ImageShape

NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_URL = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{NAME}"

_ROWS = 4096
"""Images that are unpacked at once."""


class DSprites(FactorData):
    """White shapes on black, 64x64, in {0, 1}: 717,280 / 10,000 / 10,000 images.

    An image for every combination of shape, scale (6 values), orientation (40) and position (32 x
    32). The class is the shape. The file is
    ``<root>/dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``, or in ``<root>`` itself. Its
    images take 0.4 GB in the cache folder, with one bit per pixel.

    The values of the orientation range from 0 to 360 degrees, both included, and the square and the
    ellipse look the same at several orientations, so no model can predict it fully.

    Args:
        **kwargs: See `FactorData`.
    """

    image_shape: ImageShape = (1, 64, 64)
    factor_names = ("shape", "scale", "orientation", "x", "y")
    factor_sizes: Sequence[int] = (3, 6, 40, 32, 32)
    categorical = (True, False, False, False, False)
    label = "shape"
    class_names: Sequence[str] = ("square", "ellipse", "heart")
    has_binary_pixels = True

    @property
    def files(self) -> Published:
        """See `FactorData.files`."""
        return Published.find(self.root, ("dsprites", "."), {NAME: None}, _URL)

    def download(self, folder: Path) -> Path:
        """See `FactorData.download`."""
        download_url(_URL, folder)
        return folder

    def unpack(self) -> Iterator[NDArray[np.uint8]]:
        """See `FactorData.unpack`."""
        # Not by np.load, which would read all images at once. The pickled metadata are not read.
        with zipfile.ZipFile(self.files.folder / NAME) as archive:
            with zipfile.Path(archive, "latents_classes.npy").open("rb") as file:
                # The first factor, the color, is always white.
                check_order(np.lib.format.read_array(file)[:, 1:], self.factor_sizes)
            with zipfile.Path(archive, "imgs.npy").open("rb") as file:
                n, *shape = _read_header(file)
                for start in range(0, n, _ROWS):
                    rows = min(_ROWS, n - start)
                    content = file.read(rows * math.prod(shape))
                    yield 255 * np.frombuffer(content, np.uint8).reshape(rows, 1, *shape)
                file.read(1)  # the end, where the checksum is verified


def _read_header(file: IO[bytes]) -> tuple[int, ...]:
    """Read the header of a NumPy file of bytes, and return the shape of the array."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, is_fortran, dtype = readers[version](file)
    if is_fortran or dtype != np.uint8:
        raise ValueError(f"its images are {dtype}")
    return shape


def check_order(values: NDArray[np.generic], sizes: Sequence[int]) -> None:
    """Check that the factors of a data set are all combinations, the last one varying fastest.

    Args:
        values: Factors of all images, (N, F).
        sizes: Number of values of each factor, F entries.

    Raises:
        ValueError: If they are not.
    """
    expected = np.indices(sizes).reshape(len(sizes), -1).T
    if values.shape != expected.shape:
        raise ValueError(f"its factors have the shape {values.shape}, not {expected.shape}")
    for column, numbers in zip(values.T, expected.T, strict=True):
        if not np.array_equal(np.unique(column, return_inverse=True)[1], numbers):
            raise ValueError("its images are not in the published order of factors")
