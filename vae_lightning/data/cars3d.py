"""Cars3D.

References:
    Reed et al. (2015), Deep visual analogy-making,
    https://papers.nips.cc/paper/5845-deep-visual-analogy-making
    Locatello et al. (2019), Challenging common assumptions in the unsupervised learning of
    disentangled representations (the treatment), https://arxiv.org/abs/1811.12359
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.utils import download_and_extract_archive

from vae_lightning.data.factor_data import FactorData
from vae_lightning.data.published import Published
from vae_lightning.nets import ImageShape

_URL = "http://www.scottreed.info/files/nips2015-analogy-data.tar.gz"
_MD5 = "4e866a7919c1beedf53964e6f7a23686"


class Cars3D(FactorData):
    """Drawings of cars, 64x64 RGB, without labels: 11,568 / 1,000 / 5,000 images.

    An image for every combination of 183 cars, azimuth (24 values) and elevation (4), scaled from
    128x128 as by Locatello et al. The files are ``<root>/cars/*.mat``, one for each car, in
    alphabetical order. The images take 0.2 GB in the cache folder.

    Args:
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        val_size: Number of validation images.
        test_size: Number of test images.
        **kwargs: See `ImageData`.
    """

    image_shape: ImageShape = (3, 64, 64)
    factor_names = ("car", "azimuth", "elevation")
    factor_sizes: Sequence[int] = (183, 24, 4)
    categorical = (True, False, False)

    def __init__(
        self, root: str | None = None, val_size: int = 1000, test_size: int = 5000, **kwargs: Any
    ) -> None:
        super().__init__(root, val_size, test_size, **kwargs)

    @property
    def files(self) -> Published:
        """See `FactorData.files`."""
        return Published(self.root, "cars", {"*.mat": None}, _URL)

    def download(self, folder: Path) -> Path:
        """See `FactorData.download`."""
        download_and_extract_archive(_URL, folder, md5=_MD5)
        return folder / "data" / "cars"

    @property
    def sources(self) -> Sequence[Path]:
        """See `FactorData.sources`."""
        return sorted(self.files.folder.glob("*.mat"))

    def unpack(self) -> Iterator[NDArray[np.uint8]]:
        """See `FactorData.unpack`."""
        # Imported here, because it takes time that other commands should not wait for.
        from scipy.io import loadmat  # type: ignore[import-untyped]

        if len(self.sources) != self.factor_sizes[0]:
            raise ValueError(f"found {len(self.sources)} .mat files, not {self.factor_sizes[0]}")
        for path in self.sources:
            # (height, width, channel, azimuth, elevation) in the file.
            images = loadmat(path, variable_names=["im"])["im"].transpose(3, 4, 0, 1, 2)
            if images.shape[:2] != tuple(self.factor_sizes[1:]):
                raise ValueError(f"{path.name} has {images.shape[:2]} views")
            scaled = [_scaled(image) for image in images.reshape(-1, *images.shape[2:])]
            yield np.stack(scaled).transpose(0, 3, 1, 2)


def _scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale an image (128, 128, 3) to half its size."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((64, 64), Image.Resampling.LANCZOS)
    return np.asarray(picture)
