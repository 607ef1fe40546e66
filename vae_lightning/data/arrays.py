"""Arrays of a user: images, signals and spectra in NumPy files."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_lightning.data import array_files
from vae_lightning.data.array_files import Array, Found, Layout, StoredArray
from vae_lightning.data.scaled import Labels, ScaledData
from vae_lightning.data.scaling import Scaling
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.images.folder_listing import Split

_SQUARE = 7
"""Smallest side of an image for which flat items are said to look like images."""


class ArrayItems:
    """See `RawItems`: items in one or several arrays.

    Args:
        arrays: The arrays.
        names: Their names.
        axes: Their axes, see `array_files.channels_first`; without N, each array is one item.
        item_shape: Shape to give to flat items.
    """

    def __init__(
        self,
        arrays: Sequence[StoredArray],
        names: Sequence[str],
        axes: str,
        item_shape: Sequence[int] | None = None,
    ) -> None:
        self.arrays = arrays
        self.names = names
        self.axes = axes
        self.item_shape = item_shape
        self.single = not axes.startswith("N")
        sizes: list[int] = []
        for array, name in zip(arrays, names, strict=True):
            # The axes of an array without its values.
            n, *shape = self._items(np.broadcast_to(np.int8(0), array.shape), name).shape
            if not sizes:
                channels, height, width = shape
                self.shape = channels, height, width
            elif tuple(shape) != self.shape:
                raise UserError(
                    f"{name} has items of shape {tuple(shape)}, but {names[0]} of {self.shape}: "
                    "put arrays of one shape into a folder"
                )
            sizes.append(n)
        self.starts = np.cumsum([0, *sizes])
        self.dtype = np.result_type(*{array.dtype for array in arrays})

    def _items(self, array: Array, name: str) -> Array:
        """Return the items of an array, (n, C, H, W)."""
        return array_files.channels_first(array, self.axes, self.item_shape, name)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, indices: npt.NDArray[np.int64]) -> Array:
        """See `RawItems.read`; opens an array once."""
        found = np.empty((len(indices), *self.shape), self.dtype.newbyteorder("="))
        order = np.argsort(indices, kind="stable")
        array_of = np.searchsorted(self.starts, indices[order], side="right") - 1
        bounds = [*np.flatnonzero(np.diff(array_of, prepend=-1)), len(order)]
        for start, end in pairwise(bounds):
            i = array_of[start]
            here = order[start:end]
            items = self._items(self.arrays[i].load(), self.names[i])
            found[here] = items[indices[here] - self.starts[i]]
        return found

    def name(self, index: int) -> str:
        """See `RawItems.name`."""
        i = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.names[i] + ("" if self.single else f"[{index - self.starts[i]}]")


class Arrays(ScaledData):
    """Arrays in NumPy files: images, signals or spectra of any real or integer type.

    ``.npy`` files are mapped into memory and read in parts if they are larger than
    ``memory_limit``. In a ``.npz`` file, the array of items is the only one, or one called ``x``,
    ``images`` or ``data``, and labels are called ``y``, ``labels`` or ``targets``. Names such as
    ``x_train`` and ``x_test``, or files ``train.npy`` and ``test.npy`` in a folder, are the splits;
    otherwise, the splits are random. In a folder, files of equal shape are one item each if they
    look like one (an image or a signal), and subfolders are then the classes; others are arrays of
    items.

    A signal of D values is an image of height 1 for the networks, which then convolve in one
    dimension.

    Args:
        root: A ``.npy`` or ``.npz`` file, or a folder of them.
        key: Name of the array of items in a ``.npz`` file.
        labels: Name of the labels in a ``.npz`` file, or a ``.npy`` file of labels. Integers or
            names, one for each item.
        layout: Axes of the array: N items, C channels, height H, width W, D values of a signal; by
            default they are guessed: (N, D), (N, H, W), and (N, C, D), (N, H, W, C) or (N, C, H, W)
            with up to four channels. Without N, each file is one item.
        shape: Shape of an item whose values are stored flat, such as ``[28, 28]``.
        scaling: See `ScaledData`. Channels are scaled by themselves, except for the colors of
            images with three channels.
        **kwargs: See `ScaledData`.

    Raises:
        UserError: If a file cannot be read, or its arrays do not fit each other.
    """

    def __init__(
        self,
        root: str,
        key: str | None = None,
        labels: str | None = None,
        layout: Layout | None = None,
        shape: list[int] | None = None,
        scaling: Scaling = "minmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, scaling, **kwargs)
        self.key = key
        self.labels_from = labels
        self.axes = layout
        self.item_shape = shape
        if shape is not None and (not shape or min(shape) < 1 or len(shape) > 3):
            raise ValueError(f"data.shape must be one to three positive sizes, got {shape}")

    @cached_property
    def _files(self) -> list[str]:
        """Relative paths of the files in a folder."""
        files = array_files.find_files(self.root, self._left_out)
        if not files:
            raise UserError(
                f"{self.root.absolute()} has no .npy or .npz files: pass a file or a folder of "
                "arrays as --data.root, or images with --data ImageFolder"
            )
        return files

    @cached_property
    def _left_out(self) -> list[tuple[str, str]]:
        return []

    @property
    def left_out(self) -> Sequence[tuple[str, str]]:  # type: ignore[override]
        """See `ImageSource.left_out`."""
        _ = self._found
        return self._left_out

    @cached_property
    def _found(self) -> list[Found]:
        """The arrays."""
        inside = None if self._has_label_file else self.labels_from
        most = self.memory_limit * 1e9
        needed = self._trained_on is None
        if self.root.is_dir():
            found = []
            for name in self._files:
                split = array_files.split_of(Path(Path(name).parts[0]).stem)
                for one in array_files.read_file(self.root / name, self.key, inside, most, needed):
                    found.append(replace(one, split=split or one.split, name=name))
            return self._of_splits(found)
        if not self.root.is_file():
            raise UserError(
                f"{self.root.absolute()} does not exist: pass a .npy or .npz file, or a folder of "
                "them, as --data.root"
            )
        if self.root.suffix.lower() not in (".npy", ".npz"):
            raise UserError(
                f"{self.root} is not a .npy or .npz file: use --data ImageFolder for images, TIFF "
                "stacks among them, or --data Table for .csv and .parquet"
            )
        return array_files.read_file(self.root, self.key, inside, most, needed)

    def _of_splits(self, found: list[Found]) -> list[Found]:
        """Leave out files beside those of splits, and forget splits without training items."""
        splits = {one.split for one in found}
        if "train" not in splits or len(splits - {None}) < 2:
            return [replace(one, split=None) for one in found]
        self._left_out += [(one.name, "not in a split") for one in found if one.split is None]
        return [one for one in found if one.split is not None]

    @cached_property
    def _axes(self) -> str:
        shapes = {one.name: one.x.shape for one in self._found}
        splits = any(one.split for one in self._found)
        given = shapes, self.axes, self.item_shape, splits, self._trained_on
        return array_files.axes_of(*given)

    @cached_property
    def items(self) -> ArrayItems:
        """See `ScaledData.items`."""
        arrays, names = [one.x for one in self._found], [one.name for one in self._found]
        return ArrayItems(arrays, names, self._axes, self.item_shape)

    @property
    def settings(self) -> dict[str, Any]:
        """See `ImageData.settings`; a file of labels is made absolute, too."""
        settings = super().settings
        if self._has_label_file:
            settings["labels"] = str(expand(str(self.labels_from)).absolute())
        return settings

    @property
    def _has_label_file(self) -> bool:
        return self.labels_from is not None and self.labels_from.endswith(".npy")

    @property
    def item_axes(self) -> str:
        """See `ScaledData.item_axes`."""
        return self._axes.removeprefix("N")

    @cached_property
    def given_splits(self) -> dict[Split, npt.NDArray[np.int64]]:
        """See `ScaledData.given_splits`."""
        splits = [one.split for one in self._found]
        if "train" not in splits or len(set(splits)) < 2:
            return {}
        sizes = np.diff(self.items.starts)
        by_item = np.repeat([str(split) for split in splits], sizes)
        named: list[Split] = ["train", "val", "test"]
        return {s: np.flatnonzero(by_item == s) for s in named if s in splits}

    @cached_property
    def labels(self) -> Labels | None:
        """See `ScaledData.labels`."""
        n = len(self.items)
        if self._has_label_file:
            path = expand(str(self.labels_from))
            found = array_files.read_labels(path)
            if self._trained_on is not None and len(found) != n:
                return None  # those of the training data
            return _labels(found, n, str(path))
        given = [one.y for one in self._found]
        if any(y is not None for y in given):
            if any(y is None for y in given):
                raise UserError(f"some of the files in {self.root} have labels, and some have none")
            where = self._found[0].label_name
            parts = [np.asarray(y) for y in given]
            if len({part.shape[1:] for part in parts}) > 1:
                raise UserError(
                    f"{where} and others have labels of different shapes: give one integer or name "
                    "for each item"
                )
            return _labels(np.concatenate(parts), n, where)
        return self._folder_labels()

    def _folder_labels(self) -> Labels | None:
        """Return subfolders as classes, where each file is an item."""
        if not self.root.is_dir() or not self.items.single:
            return None
        skip = 1 if self.given_splits else 0
        folders = [Path(one.name).parts[skip:-1] for one in self._found]
        if not all(folders):
            return None
        return _labels(np.array([folder[0] for folder in folders]), len(folders), str(self.root))

    @property
    def remarks(self) -> Sequence[str]:  # type: ignore[override]
        """See `ImageSource.remarks`."""
        n = len(self._found)
        each = "one item each; if they hold more: --data.layout N..."
        each = each if self.items.single else "each with several items"
        remarks = [f"{n:,} files, {each}"] if n > 1 else []
        channels, height, width = self.image_shape
        side = round(width**0.5)
        if (channels, height) == (1, 1) and side >= _SQUARE and side * side == width:
            remarks.append(
                f"signals of {width} values (if they are images: --data.shape [{side},{side}])"
            )
        return remarks


def _labels(values: Array, n: int, where: str) -> Labels:
    """Check that there are as many labels as items."""
    if len(values) != n:
        raise UserError(f"{where} has {len(values):,} labels for {n:,} items: give one for each")
    return Labels.of(values, where)
