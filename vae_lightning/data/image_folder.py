"""Images in a folder of the user."""

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
from vae_lightning.batch import Batch
from vae_lightning.data.base import ImageData, Images, InMemory, Split
from vae_lightning.errors import UserError
from vae_lightning.nets import ImageShape

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class ImageFolder(ImageData):
    """Folder of images, scaled to one size, with subfolders as classes.

    Images are scaled to cover the requested size and center-cropped. They are held in memory as
    uint8 if they fit into ``memory_limit``, else read on demand (``num_workers`` then helps). The
    splits are random.

    Args:
        root: The folder. If every image is in a subfolder, the subfolders of the first level are
            the classes, in alphabetical order.
        size: Height and width in pixels, or one number for both.
        color: ``RGB`` or ``gray``.
        val_share: Fraction of the images used for validation.
        test_share: Fraction of the images used for the test.
        memory_limit: Largest size in memory in GB.
        **kwargs: See `ImageData`.

    Raises:
        UserError: If the folder does not exist or has fewer than three images.
        ValueError: If a size or fraction is out of range.
    """

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 64,
        color: Literal["RGB", "gray"] = "RGB",
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
                "data.val_share and data.test_share must be positive and leave images for "
                f"training, got {val_share} and {test_share}"
            )

    @property
    def image_shape(self) -> ImageShape:
        """Shape of an image: (3, height, width), or (1, height, width) for gray images."""
        height, width = self.size
        return (3 if self.color == "RGB" else 1, height, width)

    @property
    def num_classes(self) -> int:
        """Number of subfolders with images, 0 if there are images outside of them."""
        return len(self.class_names or ())

    @cached_property
    def _listing(self) -> "Listing":
        """The images in the folder and their classes."""
        if not self.root.is_dir():
            raise UserError(
                f"{self.root} is not a folder: pass the folder of images as --data.root"
            )
        listing = Listing.of(self.root)
        if len(listing.files) < 3:
            raise UserError(
                f"{self.root} has {len(listing.files)} images ({', '.join(sorted(_SUFFIXES))}), "
                "but at least three are needed: one each for training, validation and test"
            )
        return listing

    @property
    def files(self) -> "Paths":
        """Paths of all images, in alphabetical order."""
        return self._listing.files

    @property
    def class_names(self) -> Sequence[str] | None:  # type: ignore[override]
        """Names of the subfolders, None if there are images outside of them."""
        return self._listing.class_names

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        return self._split_sizes[split]

    @property
    def _split_sizes(self) -> dict[Split, int]:
        n = len(self.files)
        val, test = (max(1, round(n * self.shares[name])) for name in ("val", "test"))
        return {"val": val, "test": test, "train": n - val - test}

    def state_dict(self) -> dict[str, Any]:
        """See `ImageData.state_dict`; adds the class names and a hash of the file names."""
        return {
            **super().state_dict(),
            "class_names": list(self.class_names or ()),
            "files": self.files.digest(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `ImageData.load_state_dict`.

        Raises:
            UserError: If a conditional model was trained on other classes, or a resumed run on
                other images, which would be split differently.
        """
        super().load_state_dict(state_dict)
        is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
        if is_fit and state_dict.get("files", self.files.digest()) != self.files.digest():
            raise UserError(
                f"the images in {self.root} are not those that this training began with: restore "
                "them, or start a new training"
            )
        module = None if self.trainer is None else self.trainer.lightning_module
        model = getattr(module, "model", None)
        held, here = state_dict.get("class_names", []), list(self.class_names or ())
        if getattr(model, "conditional", False) and held and held != here:
            raise UserError(
                f"the classes of {self.root} are {', '.join(here)}, but the model was trained on "
                f"{', '.join(map(str, held))}: pass a folder with the same subfolders"
            )

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageData.load`.

        Raises:
            UserError: If an image cannot be read.
        """
        n = len(self.files)
        order = torch.randperm(n, generator=randomness.generator(self.split_seed, "split"))
        sizes = self._split_sizes
        parts = dict(zip(sizes, order.split(list(sizes.values())), strict=True))
        chosen = parts[split].sort().values
        y = self._listing.y
        dataset = Files(self.files.take(chosen), None if y is None else y[chosen], self.image_shape)
        if len(dataset) * torch.Size(self.image_shape).numel() > self.memory_limit * 1e9:
            return dataset
        return InMemory(dataset.read_all())


class Paths(Sequence[Path]):
    """Sequence of paths, stored as one block of bytes.

    Forked worker processes share memory with their parent until one of them writes to it, and
    Python updates the reference count of every object that it reads. Without an object per path,
    the memory of a worker does not grow with the number of images.

    Args:
        root: Folder of the paths.
        names: Paths relative to the folder.

    Example:
        >>> len(Paths(Path("images"), ["a.png", "b.png"])[1:])
        1
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)
        self._starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._ends[:-1]])

    def take(self, indices: Tensor) -> "Paths":
        """Return the paths at ``indices``, (n,), which share the block of bytes."""
        taken = copy(self)
        taken._starts, taken._ends = self._starts[indices], self._ends[indices]
        return taken

    def digest(self) -> str:
        """Return a hash of the names relative to the folder."""
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
    """The images in a folder and their classes.

    Attributes:
        files: All images, sorted by the parts of their paths.
        class_names: Subfolders of the first level with images, None if images lie outside of them.
        y: Class of each image, int64, (N,), or None without classes.
    """

    files: Paths
    class_names: list[str] | None
    y: Tensor | None

    @classmethod
    def of(cls, root: Path) -> "Listing":
        """List a folder without opening files."""
        names = list(_image_names(str(root)))
        files = Paths(root, names)
        if not all(os.sep in name for name in names):
            return cls(files, None, None)
        sizes = Counter(name.partition(os.sep)[0] for name in names)  # in the order of the names
        counts = torch.tensor([*sizes.values()], dtype=torch.int64)
        return cls(files, list(sizes), torch.repeat_interleave(counts))


def _image_names(root: str, inside: str = "") -> Iterator[str]:
    """Yield the relative paths of the images in a folder, except hidden files.

    Args:
        root: The folder.
        inside: Part of the folder to list: empty or a relative path that ends with a separator.
    """
    with os.scandir(os.path.join(root, inside)) as entries:
        # By the parts of the path, as `Path` sorts: everything in "a" comes before "a.png".
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
    """Data set of images that are read from disk on demand.

    Args:
        files: Paths of the N images.
        y: Classes, int64, (N,), or None.
        image_shape: Shape to scale to, (C, H, W).
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
        """Read all images, in several threads because decoding releases the GIL."""
        x = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)

        def read_from(start: int) -> None:
            for i in range(start, min(start + 64, len(self))):
                x[i] = self.read(self.files[i])

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read_from, range(0, len(self), 64)):
                pass
        return Images(x, self.y)

    def read(self, path: Path) -> Tensor:
        """Read one image.

        Returns:
            The image, uint8, (C, H, W).

        Raises:
            UserError: If the image cannot be decoded.
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
                f"{path} cannot be read as an image ({error}): repair it or remove it"
            ) from error
