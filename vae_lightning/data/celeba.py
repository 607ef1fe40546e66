"""CelebA.

References:
    Liu et al. (2015), Deep learning face attributes in the wild, https://arxiv.org/abs/1411.7766,
    http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html
    Larsen et al. (2016), Autoencoding beyond pixels using a learned similarity metric (the usual
    crop), https://arxiv.org/abs/1512.09300
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.batch import Batch
from vae_lightning.data.base import ImageData, InMemory, PredictSplit, data_root
from vae_lightning.data.on_demand import OnDemand
from vae_lightning.data.published import Published
from vae_lightning.errors import UserError, nearest
from vae_lightning.images.folder_listing import Split
from vae_lightning.nets import ImageShape

SIZES: dict[Split, int] = {"train": 162_770, "val": 19_867, "test": 19_962}
"""Number of images of each published split."""

WIDTH, HEIGHT = 178, 218
"""Size of the aligned images in pixels."""

Box = tuple[int, int, int, int]


class CelebA(ImageData):
    """Aligned faces of celebrities, 64x64 RGB: 162,770 / 19,867 / 19,962 images.

    The files are those of torchvision, ``<root>/celeba/img_align_celeba/*.jpg`` and
    ``<root>/celeba/list_eval_partition.txt``, which has the split. They are downloaded once if the
    package ``gdown`` is installed. Images are cropped and scaled with bilinear interpolation. A
    split is held in memory if it fits into ``memory_limit``, else images are read on demand
    (``num_workers`` then helps).

    Args:
        root: Folder of data sets. Defaults to the environment variable ``VAE_DATA_ROOT``, else
            ``data``.
        size: Height and width of the images.
        box: Left, upper, right and lower edge of the crop in the aligned images of 178x218 pixels.
            The default is that of Larsen et al. and, for example, NVAE. The center crops of 148 and
            140 pixels of other papers are ``[15, 35, 163, 183]`` and ``[19, 39, 159, 179]``.
        attribute: Attribute that is the class, such as ``Smiling``; see
            ``<root>/celeba/list_attr_celeba.txt``. There are no labels by default.
        memory_limit: Largest size of a split in memory in GB. At 64x64, the training images are 2.
        **kwargs: See `ImageData`.

    Raises:
        ValueError: If ``size`` is not positive, or ``box`` is not inside the images.
    """

    def __init__(
        self,
        root: str | None = None,
        size: int = 64,
        box: Box = (15, 40, 163, 188),
        attribute: str | None = None,
        memory_limit: float = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = data_root(root)
        left, upper, right, lower = box
        if size < 1:
            raise ValueError(f"data.size must be positive, got {size}")
        if not (0 <= left < right <= WIDTH and 0 <= upper < lower <= HEIGHT):
            raise ValueError(
                f"data.box must be edges [left, upper, right, lower] in images of {WIDTH}x{HEIGHT}"
                f" pixels, got {list(box)}"
            )
        self.size = size
        self.box = box
        self.attribute = attribute
        self.memory_limit = memory_limit

    @property
    def image_shape(self) -> ImageShape:
        """See `ImageData.image_shape`."""
        return (3, self.size, self.size)

    @property
    def num_classes(self) -> int:
        """Two if there is an attribute, else 0."""
        return 2 if self.attribute else 0

    @property
    def class_names(self) -> Sequence[str] | None:  # type: ignore[override]
        """Absence and presence of the attribute."""
        return (f"not {self.attribute}", self.attribute) if self.attribute else None

    @property
    def files(self) -> Published:
        """The published files."""
        source = torchvision.datasets.CelebA
        listed = {name: md5 for _, md5, name in source.file_list if name.endswith(".txt")}
        names = ["list_eval_partition.txt"] + ["list_attr_celeba.txt"] * bool(self.attribute)
        md5: dict[str, str | None] = {name: listed[name] for name in names}
        url = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
        return Published(self.root, source.base_folder, {"img_align_celeba": None, **md5}, url)

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        return SIZES[split]

    def prepare_data(self) -> None:
        """Download missing files; called in one process only."""

        def get(folder: Path) -> Path:
            torchvision.datasets.CelebA(folder, download=True)
            return folder / self.files.inside

        self.files.download(get)

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If a file is missing, damaged, or not the published one.
        """
        with self.files.reading():
            y = self._labels()
        positions = self._positions(split)
        read = _Faces(self.files.folder / "img_align_celeba", self._names, self.box, self.size)
        dataset = OnDemand(read, positions, None if y is None else y[positions])
        if len(dataset) * torch.Size(self.image_shape).numel() > self.memory_limit * 1e9:
            return dataset
        return InMemory(dataset.read_all(self.image_shape))

    def item_name(self, split: PredictSplit, position: int) -> str:
        """Return the name of the file of an image."""
        parts: dict[PredictSplit, tuple[Split, ...]] = {"all": ("train", "val", "test")}
        if self.train_on_val:
            parts["train"] = ("train", "val")
        names: tuple[Split, ...] = parts.get(split, (split,))  # type: ignore[arg-type]
        positions = torch.cat([self._positions(name) for name in names])
        return str(self._names[int(positions[position])])

    @property
    def _names(self) -> NDArray[np.str_]:
        """Name of the file of each image."""
        return self._partition[0]

    def _positions(self, split: Split) -> Tensor:
        """Return the positions of the images of a split among all images."""
        return (self._partition[1] == list(SIZES).index(split)).nonzero()[:, 0]

    @cached_property
    def _partition(self) -> tuple[NDArray[np.str_], Tensor]:
        """Name of the file of each image, and its split: 0, 1 or 2."""
        path = self.files.folder / "list_eval_partition.txt"
        with self.files.reading():
            rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
            names, splits = zip(*rows, strict=True)
            partition = np.array(names), torch.tensor([int(split) for split in splits])
            sizes = partition[1].bincount(minlength=len(SIZES)).tolist()
            if sizes != list(SIZES.values()):
                raise ValueError(f"its splits have {', '.join(map(str, sizes))} images")
        return partition

    def _labels(self) -> Tensor | None:
        """Return whether each image has the attribute, int64, (N,)."""
        if not self.attribute:
            return None
        path = self.files.folder / "list_attr_celeba.txt"
        _, header, *rows = path.read_text(encoding="utf-8").splitlines()
        attributes = header.split()
        if self.attribute not in attributes:
            raise UserError(
                f"data.attribute: there is no {self.attribute} in {path}"
                f"{nearest(self.attribute, attributes)}"
            )
        column = 1 + attributes.index(self.attribute)
        found = {name: values for name, *values in (row.split() for row in rows if row)}
        labels = [int(found[name][column - 1]) > 0 for name in self._names.tolist()]
        return torch.tensor(labels).long()


@dataclass(frozen=True)
class _Faces:
    """Reader of cropped and scaled images."""

    folder: Path
    names: NDArray[np.str_]
    box: Box
    size: int

    def __call__(self, positions: Tensor) -> Tensor:
        """Return the images at positions (n,), uint8, (n, 3, size, size)."""
        images = [self._read(self.folder / name) for name in self.names[positions.numpy()].tolist()]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                if image.size != (WIDTH, HEIGHT):
                    raise ValueError(f"it has {image.width}x{image.height} pixels")
                face = image.convert("RGB").crop(self.box)
                return np.asarray(face.resize((self.size, self.size), Image.Resampling.BILINEAR))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise errors of any kind
            raise UserError(
                f"{path} is missing or is not an aligned image of CelebA ({error}): extract "
                "img_align_celeba.zip again"
            ) from error
