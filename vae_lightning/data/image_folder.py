"""A folder of one's own images."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from vae_lightning import randomness
from vae_lightning.data.base import ImageData, Images, InMemory, Split
from vae_lightning.data.batch import Batch
from vae_lightning.errors import UserError
from vae_lightning.nets import ImageShape

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class ImageFolder(ImageData):
    """Any folder of images, scaled to one size; the names of sub-folders, if any, are the classes.

    Images are scaled so that they cover the size asked for and cut at the middle. They are held
    in memory as uint8 if they fit into ``memory_limit``, and read as they are needed otherwise
    (then ``num_workers`` helps). Training, validation and test are drawn by chance.

    Args:
        root: The folder. If every image lies in a sub-folder, the first level of sub-folders are
            the classes, in alphabetical order.
        size: Height and width in pixels, or one number for both.
        color: ``RGB`` or ``grey``.
        val_share: Share of the images that are kept for validation.
        test_share: Share of the images that are kept for the test.
        memory_limit: Largest size in memory, in GB.
        **kwargs: See `ImageData`.

    Raises:
        UserError: If the folder does not exist or holds no images.
        ValueError: If a size or share is out of range.
    """

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 64,
        color: Literal["RGB", "grey"] = "RGB",
        val_share: float = 0.1,
        test_share: float = 0.1,
        memory_limit: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.color = color
        self.shares = {"val": val_share, "test": test_share}
        self.memory_limit = memory_limit
        if min(self.size) < 1:
            raise ValueError(f"data.size must be positive, got {size}")
        if min(self.shares.values()) <= 0 or sum(self.shares.values()) >= 1:
            raise ValueError(
                "data.val_share and data.test_share must be positive and leave something for "
                f"training, got {val_share} and {test_share}"
            )

    @property
    def image_shape(self) -> ImageShape:
        """(3, height, width), or (1, height, width) for grey."""
        height, width = self.size
        return (3 if self.color == "RGB" else 1, height, width)

    @property
    def num_classes(self) -> int:
        """Number of sub-folders with images, 0 if there are images outside of them."""
        return len(self.class_names or ())

    @cached_property
    def _listing(self) -> "Listing":
        """All images, by name."""
        if not self.root.is_dir():
            raise UserError(
                f"{self.root} is not a folder: give the folder of images as --data.root"
            )
        listing = Listing.of(self.root)
        if len(listing.files) < 3:
            raise UserError(
                f"{self.root} has {len(listing.files)} images ({', '.join(sorted(_SUFFIXES))}), "
                "and at least three are needed: one to train on, one to validate, one to test"
            )
        return listing

    @property
    def files(self) -> "Paths":
        """All images, in alphabetical order."""
        return self._listing.files

    @property
    def class_names(self) -> Sequence[str] | None:  # type: ignore[override]
        """Names of the sub-folders, None if there are images outside of them."""
        return self._listing.class_names

    def state_dict(self) -> dict[str, Any]:
        """See `ImageData.state_dict`; the names of the classes, and which images there are."""
        return {
            **super().state_dict(),
            "class_names": list(self.class_names or ()),
            "files": self.files.digest(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `ImageData.load_state_dict`.

        Raises:
            UserError: If a conditional model was trained on other classes, or a training that is
                continued on other images, which would be split in another way.
        """
        super().load_state_dict(state_dict)
        is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
        if is_fit and state_dict.get("files", self.files.digest()) != self.files.digest():
            raise UserError(
                f"the images in {self.root} are not those that this training began with: put "
                "back what was there, or start anew"
            )
        model = None if self.trainer is None else self.trainer.lightning_module
        held, here = state_dict.get("class_names", []), list(self.class_names or ())
        if getattr(model, "conditional", False) and held and held != here:
            raise UserError(
                f"the classes of {self.root} are {', '.join(here)}, but the model was trained on "
                f"{', '.join(map(str, held))}: give a folder with the same sub-folders"
            )

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If an image cannot be read; the message names it.
        """
        n = len(self.files)
        order = torch.randperm(n, generator=randomness.generator(self.split_seed, "split"))
        n_val, n_test = (max(1, round(n * self.shares[name])) for name in ("val", "test"))
        sizes = (n_val, n_test, n - n_val - n_test)
        parts = dict(zip(("val", "test", "train"), order.split(sizes), strict=True))
        chosen = parts[split].sort().values
        y = self._listing.y
        dataset = Files(self.files.take(chosen), None if y is None else y[chosen], self.image_shape)
        if len(dataset) * torch.Size(self.image_shape).numel() > self.memory_limit * 1e9:
            return dataset
        return InMemory(dataset.read_all())


class Paths(Sequence[Path]):
    """Many paths, held as one block of bytes.

    Worker processes share the memory of the process that they are forked from until one of them
    writes to it, and Python writes into every object that it so much as looks at. Here is no object
    per path, so that a worker's memory does not grow with the number of images.

    Args:
        root: The folder that they are in.
        names: The paths, relative to it.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)
        self._starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._ends[:-1]])

    def take(self, indices: Tensor) -> "Paths":
        """The paths at ``indices``, (n,), which share the block."""
        taken = copy(self)
        taken._starts, taken._ends = self._starts[indices], self._ends[indices]
        return taken

    def digest(self) -> str:
        """A hash of the names, relative to the folder."""
        return hashlib.sha256(self._bytes + self._ends.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> "Paths": ...

    def __getitem__(self, index: int | slice) -> "Path | Paths":
        if isinstance(index, slice):
            return self.take(torch.arange(len(self))[index])
        name = self._bytes[int(self._starts[index]) : int(self._ends[index])]
        return self.root / os.fsdecode(name)


class Listing(NamedTuple):
    """What there is in a folder of images.

    Attributes:
        files: All images, sorted by the parts of their paths.
        class_names: Sub-folders of the first level with images, None if images lie beside them.
        y: Class of each image, int64, (N,), None likewise.
    """

    files: Paths
    class_names: list[str] | None
    y: Tensor | None

    @classmethod
    def of(cls, root: Path) -> "Listing":
        """List a folder, without opening a file."""
        names = list(_image_names(str(root)))
        files = Paths(root, names)
        if not all(os.sep in name for name in names):
            return cls(files, None, None)
        sizes = Counter(name.partition(os.sep)[0] for name in names)  # in the order of the names
        counts = torch.tensor([*sizes.values()], dtype=torch.int64)
        return cls(files, list(sizes), torch.repeat_interleave(counts))


def _image_names(root: str, inside: str = "") -> Iterator[str]:
    """Relative paths of the images in a folder, folder by folder; hidden files are left out.

    Args:
        root: The folder.
        inside: Of which this part is listed: a relative path that ends with a separator.
    """
    with os.scandir(os.path.join(root, inside)) as entries:
        # By the parts of a path, as `Path` sorts: all that is in "a" comes before "a.png".
        visible = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if not entry.name.startswith(".")
        )
    for name, is_folder in visible:
        if is_folder:
            yield from _image_names(root, f"{inside}{name}{os.sep}")
        elif os.path.splitext(name)[1].lower() in _SUFFIXES:
            yield inside + name


class Files(Dataset[Batch]):
    """Images read from disk as they are needed.

    Args:
        files: One path per image.
        y: Classes, int64, (N,), or None.
        image_shape: (C, H, W) to scale to.
    """

    def __init__(self, files: Paths, y: Tensor | None, image_shape: ImageShape) -> None:
        self.files = files
        self.y = y
        self.image_shape = image_shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        x = torch.stack([self.read(self.files[i]) for i in indices])
        return Batch(x, None if self.y is None else self.y[index], index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def read_all(self) -> Images:
        """All images, read by several threads: decoding releases Python's lock."""
        x = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)

        def read_from(start: int) -> None:
            for i in range(start, min(start + 64, len(self))):
                x[i] = self.read(self.files[i])

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read_from, range(0, len(self), 64)):
                pass
        return Images(x, self.y)

    def read(self, path: Path) -> Tensor:
        """One image as uint8, (C, H, W).

        Raises:
            UserError: If it cannot be decoded.
        """
        channels, height, width = self.image_shape
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}")
                upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
                return pil_to_tensor(ImageOps.fit(upright, (width, height)))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{path} cannot be read as an image ({error}): mend it or take it out of the folder"
            ) from error
