"""Images in a folder of the user."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.data.base import ImageData, Images, InMemory, PredictSplit
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.images.decoding import background_color, read_frames
from vae_lightning.images.folder_listing import Frames, Listing, Paths, Split
from vae_lightning.nets import ImageShape


class ImageFolder(ImageData):
    """Folder of images, scaled to one size, with subfolders as classes.

    Images are scaled to cover the requested size and center-cropped. They are held in memory as
    uint8 if they fit into ``memory_limit``, else read on demand (``num_workers`` then helps).

    Every file that Pillow can decode is used, in subfolders and behind links, too. Hidden files are
    ignored. If the folder, or each class in it, has subfolders ``train`` and ``val`` or ``test``
    (or ``training``, ``valid``, ``validation``, ``dev``, ``testing``), they are the splits, and a
    missing one is taken from the training images. Otherwise, the splits are random. Frames of one
    file are always in the same split.

    Args:
        root: The folder. Subfolders of the first level, or of the splits, are the classes, in
            alphabetical order, unless at least half of the images lie beside them. A few images
            beside them are left out.
        size: Height and width in pixels, or one number for both.
        color: ``RGB`` or ``gray``.
        background: Color behind transparent pixels, such as ``black`` or ``#ff8000``.
        frames: Whether every frame or page of a file is an image, or only the first.
        val_share: Fraction of the images used for validation.
        test_share: Fraction of the images used for the test.
        memory_limit: Largest size in memory in GB.
        **kwargs: See `ImageData`.

    Raises:
        UserError: If the folder does not exist or has fewer than three images.
        ValueError: If a size or fraction is out of range, or there is no such color.
    """

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 64,
        color: Literal["RGB", "gray"] = "RGB",
        background: str = "white",
        frames: Frames = "all",
        val_share: float = 0.1,
        test_share: float = 0.1,
        memory_limit: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = expand(root)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.color = color
        self.background = background_color(background)
        self.frames: Frames = frames
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
    def _listing(self) -> Listing:
        """The images in the folder, their classes and splits."""
        if not self.root.is_dir():
            raise UserError(
                f"{self.root.absolute()} is not a folder: pass the folder of images as --data.root"
            )
        listing = Listing.of(self.root, self.frames)
        if len(listing.files) < 3:
            others = ""
            if listing.left_out:
                name, reason = listing.left_out[0]
                others = f" and {len(listing.left_out)} other files (such as {name}, {reason})"
            raise UserError(
                f"{self.root.absolute()} has {len(listing.files)} images{others}, but at least "
                "three are needed: one each for training, validation and test"
            )
        return listing

    @property
    def files(self) -> Paths:
        """File of each image, in alphabetical order."""
        return self._listing.files

    @property
    def class_names(self) -> Sequence[str] | None:  # type: ignore[override]
        """Names of the classes, None without classes."""
        return self._listing.class_names

    @property
    def left_out(self) -> Sequence[tuple[str, str]]:  # type: ignore[override]
        """See `ImageData.left_out`."""
        return self._listing.left_out

    @property
    def remarks(self) -> Sequence[str]:  # type: ignore[override]
        """See `ImageData.remarks`."""
        return self._listing.remarks

    def split_size(self, split: Split) -> int:
        """See `ImageData.split_size`."""
        return len(self._positions[split])

    @cached_property
    def _positions(self) -> dict[Split, Tensor]:
        """Positions of the images of each split among all images, sorted."""
        found = dict(self._listing.splits)
        missing: list[Split] = [name for name in ("val", "test") if name not in found]
        rest = found.get("train", torch.arange(len(self.files)))
        file_of = (self._listing.frames[rest] == 0).cumsum(0) - 1  # the same for frames of a file
        if int(file_of[-1]) < len(missing):
            file_of = torch.arange(len(rest))
        n = int(file_of[-1]) + 1
        if n <= len(missing):
            raise UserError(
                f"{self.root.absolute()} has {n} images to train on, of which some are needed for "
                f"{' and '.join(missing)}: add images"
            )
        sizes = {name: max(1, round(n * self.shares[name])) for name in missing}
        order = torch.randperm(n, generator=randomness.generator(self.split_seed, "split"))
        parts = order.split([*sizes.values(), n - sum(sizes.values())])
        for name, part in zip([*missing, "train"], parts, strict=True):
            found[name] = rest[torch.isin(file_of, part)]
        return found

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
        return self._load(self._positions[split])

    def item_name(self, split: PredictSplit, position: int) -> str:
        """Return the path of an image in the folder, with the number of a later frame."""
        if split != "all":
            places = self._positions[split]
            if split == "train" and self.train_on_val:
                places = torch.cat([places, self._positions["val"]])
            position = int(places[position])
        frame = int(self._listing.frames[position])
        name = self.files[position].relative_to(self.root)
        return f"{name}[{frame}]" if frame else str(name)

    def load_all(self) -> Dataset[Batch]:
        """Return all images, in the order of `files`."""
        return self._load(torch.arange(len(self.files)))

    def _load(self, chosen: Tensor) -> Dataset[Batch]:
        y = None if self._listing.y is None else self._listing.y[chosen]
        if y is not None and y.lt(0).any():
            y = None  # a split without classes
        dataset = Files(
            self.files.take(chosen),
            self._listing.frames[chosen],
            y,
            self.image_shape,
            self.background,
        )
        if len(dataset) * torch.Size(self.image_shape).numel() > self.memory_limit * 1e9:
            return dataset
        return InMemory(dataset.read_all())


class Files(Dataset[Batch]):
    """Data set of images that are read from disk on demand.

    Args:
        files: Files of the N images.
        frames: Numbers of their frames, (N,).
        y: Classes, int64, (N,), or None.
        image_shape: Shape to scale to, (C, H, W).
        background: Color behind transparent pixels.
    """

    def __init__(
        self,
        files: Paths,
        frames: Tensor,
        y: Tensor | None,
        image_shape: ImageShape,
        background: tuple[int, int, int],
    ) -> None:
        self.files = files
        self.frames = frames
        self.y = y
        self.image_shape = image_shape
        self.background = background

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        x = torch.stack(list(self._read(indices)))
        return Batch(x, None if self.y is None else self.y[index], index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def read_all(self) -> Images:
        """Read all images, in several threads because decoding releases the GIL.

        Raises:
            UserError: If an image cannot be decoded.
        """
        x = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)

        def read_from(start: int) -> None:
            indices = range(start, min(start + 64, len(self)))
            for i, image in zip(indices, self._read(indices), strict=True):
                x[i] = image

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read_from, range(0, len(self), 64)):
                pass
        return Images(x, self.y)

    def _read(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Read images, uint8, (C, H, W), and open a file once for successive frames."""

        def run(place: int) -> tuple[Path, int]:
            # Successive frames of a file have increasing numbers, like their places.
            return self.files[indices[place]], int(self.frames[indices[place]]) - place

        for (path, _), places in groupby(range(len(indices)), run):
            frames = [int(self.frames[indices[place]]) for place in places]
            yield from read_frames(path, frames, self.image_shape, self.background)
