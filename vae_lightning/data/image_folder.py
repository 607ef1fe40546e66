"""Images in a folder of the user."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning.batch import Batch
from vae_lightning.data.datasets import InMemory
from vae_lightning.data.folder_items import Files, FolderItems
from vae_lightning.data.scaled import Indices, Labels, ScaledData
from vae_lightning.data.scaling import Scaling, Statistics
from vae_lightning.data_record import DataRecord
from vae_lightning.errors import UserError
from vae_lightning.images.arrays import read_values
from vae_lightning.images.checking import find_unreadable, name_some
from vae_lightning.images.decoding import background_color, read_frames
from vae_lightning.images.folder_listing import Frames, Listing, Paths, Split
from vae_lightning.images.headers import EIGHT_BITS, ValueType, describe, is_image
from vae_lightning.images.reading import Unreadable, printable
from vae_lightning.nets import ImageShape

_MUCH_CROPPED = 0.05
"""Largest share of an image that is cropped without a remark."""


class ImageFolder(ScaledData):
    """Folder of images, scaled to one size, with subfolders as classes.

    Images are scaled to cover the requested size and center-cropped. They are held in memory if
    they fit into ``memory_limit``, else read on demand (``num_workers`` then helps).

    Every file that Pillow can decode is used, in subfolders and behind links, too. Hidden files and
    those of the system (``Thumbs.db``, ``__MACOSX``) are ignored. If the folder, or each class in
    it, has subfolders ``train`` and ``val`` or ``test`` (or ``training``, ``valid``,
    ``validation``, ``dev``, ``testing``), they are the splits, and a missing one is taken from the
    training images. Otherwise, the splits are random. Frames of one file are always in the same
    split.

    Images of 8 bits count as values from 0 to 1. Images of more bits, such as 16-bit TIFF files of
    a microscope, keep their values and channels and are scaled as ``scaling`` says; TIFF files then
    need ``pip install 'vae-lightning[tiff]'``. The channels of a hyperstack belong to an image, its
    times and depths are images.

    Args:
        root: The folder, or one file with several pages. Subfolders of the first level, or of the
            splits, are the classes, in alphabetical order, unless at least half of the images lie
            beside them. A few images beside them are left out.
        size: Height and width in pixels, or one number for both.
        color: ``RGB`` or ``gray``, for images of 8 bits.
        background: Color behind transparent pixels, such as ``black`` or ``#ff8000``.
        frames: Whether every frame or page of a file is an image, or only the first.
        skip_unreadable: Whether to train without the files that cannot be read. All files are then
            read once before the training to find them. A file with one damaged frame is left out as
            a whole. The classes are those of all files.
        scaling: See `ScaledData`.
        **kwargs: See `ScaledData`.

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
        skip_unreadable: bool = False,
        scaling: Scaling = "minmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, scaling, **kwargs)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.color = color
        self.background = background_color(background)
        self.frames: Frames = frames
        self.skip_unreadable = skip_unreadable
        if min(self.size) < 1:
            raise ValueError(f"data.size must be positive, got {size}")

    # The files

    @cached_property
    def _all(self) -> Listing:
        """The images in the folder, their classes and splits."""
        if not self.root.exists():
            raise UserError(
                f"{self.root.absolute()} does not exist: pass the folder of images as --data.root"
            )
        if self.root.is_file() and not is_image(str(self.root)):
            raise UserError(
                f"{self.root.absolute()} is not a folder: pass the folder of images as "
                "--data.root, or use --data Arrays for .npy and .npz, --data Table for .csv"
            )
        return Listing.of(self.root, self.frames)

    @property
    def value_type(self) -> ValueType:
        """Type of the values of the images, by the headers of the files.

        Raises:
            UserError: If the images have values of different types.
        """
        return self._all.common_type()

    @cached_property
    def _listing(self) -> Listing:
        """The images that are used: those that can be read, with ``skip_unreadable``."""
        listing = self._all
        listing.common_type()  # refuses files of different types
        if self.skip_unreadable:
            listing = listing.without(self._find_unreadable(listing))
        if len(listing.files) < (3 if self._trained_on is None else 1):
            others = ""
            if listing.left_out:
                name, reason = listing.left_out[-1]
                others = (
                    f" and {len(listing.left_out)} other files (such as {printable(name)}, "
                    f"{reason})"
                )
            raise UserError(
                f"{self.root.absolute()} has {len(listing.files)} images{others}, but at least "
                "three are needed: one each for training, validation and test"
            )
        return listing

    def _find_unreadable(self, listing: Listing) -> dict[str, str]:
        """Return the files that cannot be read, with the reasons."""
        return find_unreadable(
            listing.files,
            listing.frames,
            self._read,
            # There may be no trainer yet. None: only if the output is a terminal.
            hidden=True if getattr(rank_zero_only, "rank", 0) else None,
        )

    def _read(self, path: Path, frames: Sequence[int]) -> Iterator[Tensor]:
        """Read frames of a file, (C, H, W): uint8, or float32 in the units of the file."""
        if self.value_type.reducible:
            return read_frames(path, frames, self.image_shape, self.background)
        return read_values(path, frames, self.image_shape)

    @property
    def files(self) -> Paths:
        """File of each image, in alphabetical order."""
        return self._listing.files

    @cached_property
    def items(self) -> FolderItems:
        """See `ScaledData.items`; they are kept if they fit into memory beside the scaled ones."""
        listing = self._listing
        dtype = np.dtype(self.value_type.dtype)
        items = FolderItems(listing.files, listing.frames, self.image_shape, dtype, self._read)
        size = 4 * len(items) * math.prod(items.shape)
        if not self._is_plain and 2 * size <= self.memory_limit * 1e9:
            with self._unreadable_listed():
                items.keep()
        return items

    @cached_property
    def labels(self) -> Labels | None:
        """See `ScaledData.labels`."""
        names, y = self._listing.class_names, self._listing.y
        return None if names is None or y is None else Labels(tuple(names), y)

    @cached_property
    def positions(self) -> dict[Split, Indices]:
        """See `ScaledData.positions`; frames of a file stay together."""
        found = dict(self._listing.splits)
        missing: list[Split] = [name for name in ("val", "test") if name not in found]
        rest = found.get("train", torch.arange(len(self.files)))
        file_of = (self._listing.frames[rest] == 0).cumsum(0) - 1  # the same for frames of a file
        if int(file_of[-1:].sum()) < len(missing):
            file_of = torch.arange(len(rest))
        n = int(file_of[-1:].sum()) + bool(len(rest))
        for name, chosen in self.split_at_random(n, missing).items():
            found[name] = rest[torch.isin(file_of, torch.from_numpy(chosen))]
        return {name: chosen.numpy() for name, chosen in found.items()}

    # Their values

    @property
    def _is_plain(self) -> bool:
        """Whether images have 8 bits and are scaled as torchvision does."""
        known = self._trained_on
        plain = self.scaling == "minmax" if known is None else known.is_8_bit
        return plain and self.value_type.reducible

    @property
    def image_shape(self) -> ImageShape:
        """Shape of an image, (C, H, W)."""
        height, width = self.size
        kind = self.value_type
        if not kind.reducible:
            return (kind.channels, height, width)
        return (3 if self.color == "RGB" else 1, height, width)

    @property
    def bounded(self) -> bool:
        """Whether the model sees values in [0, 1] only."""
        return self._is_plain or super().bounded

    @property
    def is_binary(self) -> bool:
        """Whether all values that the model sees are 0 or 1."""
        return self.binarization != "none" if self._is_plain else super().is_binary

    @property
    def record(self) -> DataRecord:
        """See `ImageSource.record`; images of 8 bits have values from 0 to 1."""
        return self.record_of_8_bits() if self._is_plain else super().record

    @property
    def left_out(self) -> Sequence[tuple[str, str]]:  # type: ignore[override]
        """See `ImageSource.left_out`."""
        return [(printable(name), reason) for name, reason in self._listing.left_out]

    @property
    def remarks(self) -> Sequence[str]:  # type: ignore[override]
        """See `ImageSource.remarks`."""
        listing = self._listing
        wide = [i for i, kind in enumerate(listing.value_types) if kind != EIGHT_BITS]
        n = int(torch.isin(listing.value_type, torch.tensor(wide)).sum())
        reduced = self.value_type.reducible and n
        note = [f"{n:,} with 16-bit colors, of which 8 bits are used"] if reduced else []
        return [*listing.remarks, *note, *self._about_size()]

    def _about_size(self) -> Iterator[str]:
        """Yield remarks if the first image is enlarged to a square, or cropped to it."""
        if self.size[0] != self.size[1]:
            return
        try:
            found = describe(self.files[0])
        except UserError:
            return
        shorter = min(found.height, found.width)
        if shorter < self.size[0]:
            yield (
                f"the first one, whose shorter side has {shorter} pixels, is enlarged "
                f"(--data.size {shorter} keeps its size)"
            )
        lost = 1 - shorter / max(found.height, found.width)
        if lost > _MUCH_CROPPED:
            height, width = (
                round(self.size[0] * side / shorter) for side in (found.height, found.width)
            )
            yield (
                f"the first one, {found.width} pixels wide and {found.height} high, loses "
                f'{lost:.0%} to the square crop (--data.size "[{height},{width}]" keeps all)'
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names of the files."""
        return self.files.digest()

    def _load(self, indices: Indices) -> Dataset[Batch]:
        with self._unreadable_listed():
            if not self._is_plain:
                return super()._load(indices)
            chosen = torch.from_numpy(indices)
            files, frames = self.files.take(chosen), self._listing.frames[chosen]
            dataset = Files(files, frames, self.labels_of(indices), self.image_shape, self._read)
            if len(dataset) * math.prod(self.image_shape) > self.memory_limit * 1e9:
                return dataset
            return InMemory(dataset.read_all())

    @cached_property
    def statistics(self) -> Statistics:
        """See `ScaledData.statistics`."""
        with self._unreadable_listed():
            return super().statistics

    @contextlib.contextmanager
    def _unreadable_listed(self) -> Iterator[None]:
        """Convert the first image that cannot be read to a list of all of them."""
        try:
            yield
        except Unreadable as error:
            found = self._find_unreadable(self._listing)
            if not found:  # it can be read now
                raise
            n = int((self._listing.frames == 0).sum())
            raise UserError(
                f"{len(found):,} of the {n:,} files in {self.root.absolute()} cannot be read: "
                f"{name_some(found)}; repair or remove them, or --data.skip_unreadable true "
                "trains on the rest"
            ) from error
