"""3D Shapes.

References:
    Burgess and Kim (2018), 3D Shapes dataset, https://github.com/google-deepmind/3d-shapes
    Kim and Mnih (2018), Disentangling by factorising, https://arxiv.org/abs/1802.05983
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.utils import download_url

from vae_lightning.data.dsprites import check_order
from vae_lightning.data.factor_data import FactorData
from vae_lightning.data.published import Published
from vae_lightning.errors import UserError
from vae_lightning.nets import ImageShape

_NAME = "3dshapes.h5"
_URL = f"https://storage.googleapis.com/3d-shapes/{_NAME}"

_MOST = 256_000_000
"""Largest number of bytes that are unpacked at once."""


class Shapes3D(FactorData):
    """Shapes in a room, 64x64 RGB: 460,000 / 10,000 / 10,000 images.

    An image for every combination of the hues of floor, wall and object (10 values each), scale
    (8), shape (4) and orientation (15). The class is the shape. The file is
    ``<root>/3dshapes/3dshapes.h5``, or in ``<root>`` itself; to read it, install ``h5py``. Its
    images take 5.9 GB in the cache folder.

    Hues are treated as continuous, although the first and the last are similar.

    Args:
        **kwargs: See `FactorData`.
    """

    image_shape: ImageShape = (3, 64, 64)
    factor_names = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
    factor_sizes: Sequence[int] = (10, 10, 10, 8, 4, 15)
    categorical = (False, False, False, False, True, False)
    label = "shape"
    class_names: Sequence[str] = ("cube", "cylinder", "sphere", "capsule")

    @property
    def files(self) -> Published:
        """See `FactorData.files`."""
        return Published.find(self.root, ("3dshapes", "."), {_NAME: None}, _URL)

    def download(self, folder: Path) -> Path:
        """See `FactorData.download`."""
        download_url(_URL, folder)
        return folder

    def unpack(self) -> Iterator[NDArray[np.uint8]]:
        """See `FactorData.unpack`.

        Raises:
            UserError: If h5py is not installed.
        """
        try:
            import h5py
        except ImportError as error:
            raise UserError("Shapes3D needs h5py: pip install h5py") from error
        with h5py.File(self.files.folder / _NAME, "r") as file:
            check_order(file["labels"][:], self.factor_sizes)
            images = file["images"]
            # Whole chunks, which are compressed, so that none is decompressed twice.
            chunk = images.chunks[0] if images.chunks else 1
            bytes_per_image = images.dtype.itemsize * int(np.prod(images.shape[1:]))
            step = chunk * max(1, min(_MOST // bytes_per_image, 1000) // chunk)
            for start in range(0, len(images), step):
                yield np.ascontiguousarray(images[start : start + step].transpose(0, 3, 1, 2))
