"""Arrays in NumPy files: what they hold, and which of their axes is what."""

import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from vae_lightning.data_record import DataRecord
from vae_lightning.errors import UserError
from vae_lightning.images.folder_listing import SPLIT_NAMES, Split

Array = npt.NDArray[Any]

Layout = Literal["ND", "NCD", "NHW", "NHWC", "NCHW", "D", "CD", "HW", "HWC", "CHW"]

_IMAGE_KEYS = ("x", "images", "image", "data", "imgs", "original", "arr_0", "")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target", "classes")

_LONG = 16
"""Ratio of the sizes from which on two axes are channels and a signal, not an image."""

_FEW = 4
"""Largest number of channels that is taken for one where the layout is not given."""


@dataclass(frozen=True)
class MappedArray:
    """An array in a ``.npy`` file, which is open only while it is read.

    Thousands of files can be held, and what a worker process gets is the path.

    Attributes:
        path: The file.
        shape: Shape of the array.
        dtype: Type of its values.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read the header of a file."""
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return cls(path, array.shape, array.dtype)

    def load(self) -> Array:
        """Map the array into memory."""
        array: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return array


@dataclass(frozen=True)
class LoadedArray:
    """An array in memory, with the interface of `MappedArray`.

    Attributes:
        array: The array.
    """

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its values."""
        return self.array.dtype

    def load(self) -> Array:
        """Return the array."""
        return self.array


StoredArray = MappedArray | LoadedArray


@dataclass(frozen=True)
class Found:
    """What was found in a file.

    Attributes:
        x: The items.
        y: Their labels, if there are any.
        split: The split that a name prescribes.
        name: Name of the array, for messages.
        label_name: Name of the labels, for messages.
    """

    x: StoredArray
    y: Array | None
    split: Split | None
    name: str
    label_name: str = ""


def read_file(
    path: Path,
    key: str | None = None,
    labels: str | None = None,
    most_bytes: float = np.inf,
    needs_labels: bool = True,
) -> list[Found]:
    """Read a ``.npy`` or ``.npz`` file; ``.npy`` is mapped into memory, not read.

    Args:
        path: The file.
        key: Name of the array in a ``.npz`` file.
        labels: Name of the labels in a ``.npz`` file.
        most_bytes: Largest size of an array in a ``.npz`` file.
        needs_labels: Whether ``labels`` have to be there.

    Returns:
        One entry, or one for each split that is in the file, as in ``x_train`` and ``x_test``.

    Raises:
        UserError: If it cannot be read, or it is not clear which array is meant.
    """
    try:
        if path.suffix.lower() == ".npy":
            found = _checked(MappedArray.of(path), path.name)
            return [Found(found, None, split_of(path.stem), path.name)]
        with np.load(path, allow_pickle=False) as archive:
            if not needs_labels and labels not in archive.files:
                labels = None
            return _read_archive(path, archive, key, labels, most_bytes)
    except UserError:
        raise
    except ValueError as error:
        if "pickle" in str(error).lower() and _is_numpy(path):
            raise UserError(
                f"{path} holds Python objects, which are not loaded because they could run code: "
                "save an array of numbers"
            ) from error
        reason = "no NumPy file" if "pickle" in str(error).lower() else _reason(error)
        raise UserError(f"{path} cannot be read as an array ({reason})") from error
    except (OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} cannot be read as an array ({_reason(error)})") from error


def read_labels(path: Path) -> Array:
    """Read a ``.npy`` file of labels.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        labels: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read as an array of labels ({_reason(error)})"
        ) from error
    return labels


def _read_archive(
    path: Path, archive: Any, key: str | None, labels: str | None, most_bytes: float
) -> list[Found]:
    """Read the arrays of a ``.npz`` file that are meant."""
    names: list[str] = list(archive.files)
    for asked in filter(None, (key, labels)):
        if asked not in names:
            raise UserError(f"{path} has no array '{asked}', but {', '.join(names)}")
    chosen = [(key, labels, None)] if key else choose_keys(names, labels)
    if not chosen:
        raise UserError(
            f"{path} has the arrays {', '.join(names)}: say which one holds the items with "
            "--data.key"
        )
    with zipfile.ZipFile(path) as file:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in file.infolist()}
    found = []
    for name, label, split in chosen:
        if sizes[name] > most_bytes:
            raise UserError(
                f"{name} in {path} has {sizes[name] / 1e9:.1f} GB, more than data.memory_limit, "
                "and an .npz file cannot be read in parts: save the array as an .npy file"
            )
        x = _checked(LoadedArray(archive[name]), f"{name} in {path.name}")
        y = None if label is None else archive[label]
        found.append(Found(x, y, split, f"{path.name}/{name}", f"{label} in {path.name}"))
    return found


def choose_keys(
    names: Sequence[str], labels: str | None = None
) -> list[tuple[str, str | None, Split | None]]:
    """Choose the arrays of items and labels among the names of a ``.npz`` file.

    Returns:
        Name of the items, name of their labels if there are any, and split, once or for each
        split; empty if it is not clear.

    Example:
        >>> choose_keys(["x_train", "y_train", "x_test", "y_test"])
        [('x_train', 'y_train', 'train'), ('x_test', 'y_test', 'test')]
        >>> choose_keys(["spectra"])
        [('spectra', None, None)]
    """
    parts = {name: _without_split(name) for name in names}
    images = [name for name, (rest, _) in parts.items() if rest in _IMAGE_KEYS]
    if not images:
        others = [name for name, (rest, _) in parts.items() if rest not in _LABEL_KEYS]
        others = [name for name in others if name != labels]
        images = others if len(others) == 1 else []
    splits = [parts[name][1] for name in images]
    if len(images) > 1 and (None in splits or len(set(splits)) < len(splits)):
        first = min(images, key=lambda name: _IMAGE_KEYS.index(parts[name][0]))
        images, splits = [first], [parts[first][1]]
    found: list[tuple[str, str | None, Split | None]] = []
    for name, split in zip(images, splits, strict=True):
        label = labels or next(
            (n for n, (rest, s) in parts.items() if rest in _LABEL_KEYS and s == split), None
        )
        found.append((name, label, split if len(images) > 1 else None))
    return found


def _without_split(name: str) -> tuple[str, Split | None]:
    """Return a name in lower case without the name of a split in it, and that split."""
    tokens = [token for token in re.split(r"[\W_]+", name.lower()) if token]
    split = next((SPLIT_NAMES[token] for token in tokens if token in SPLIT_NAMES), None)
    return "_".join(token for token in tokens if token not in SPLIT_NAMES), split


def split_of(name: str) -> Split | None:
    """Return the split that a name of a file or folder names, None if it names none."""
    return SPLIT_NAMES.get(name.lower())


def _is_numpy(path: Path) -> bool:
    """Return whether a file begins as NumPy's files do."""
    with path.open("rb") as file:
        return file.read(6) in (b"\x93NUMPY", b"PK\x03\x04\x14\x00", b"PK\x03\x04\x2d\x00")


def _checked(array: StoredArray, name: str) -> StoredArray:
    if array.dtype.kind == "c":
        raise UserError(f"{name} is complex: save its real and imaginary parts as two channels")
    if array.dtype.kind not in "buif":
        raise UserError(f"{name} has values of type {array.dtype}: save an array of numbers")
    if not math.prod(array.shape):
        raise UserError(f"{name} is empty, its shape is {array.shape}")
    return array


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def find_files(root: Path, left_out: list[tuple[str, str]]) -> list[str]:
    """Return the relative paths of the NumPy files in a folder, sorted, and note other files."""
    found = []
    for folder, inside, files in os.walk(root, followlinks=False):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in sorted(files):
            path = os.path.relpath(os.path.join(folder, name), root)
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in (".npy", ".npz"):
                found.append(path)
            else:
                left_out.append((path, "no .npy or .npz file"))
    return sorted(found, key=lambda path: Path(path).parts)


def guess_layout(shape: tuple[int, ...], name: str) -> Layout:
    """Guess the axes of an array of several items.

    Raises:
        UserError: If it has no items, or too many axes.

    Example:
        >>> guess_layout((100, 64, 64, 3), "x.npy")
        'NHWC'
        >>> guess_layout((100, 2, 500), "x.npy")
        'NCD'
    """
    if len(shape) == 2:
        return "ND"
    if len(shape) == 3:
        few = shape[1] <= _FEW and shape[2] > 4 * shape[1]
        return "NCD" if few or shape[2] >= _LONG * shape[1] else "NHW"
    if len(shape) == 4:
        if shape[3] <= _FEW or (shape[1] > _FEW and shape[3] < shape[1]):
            return "NHWC"
        return "NCHW"
    raise UserError(
        f"{name} has the shape {shape}: give an array of items, such as (N, D), (N, H, W) or "
        "(N, C, H, W)"
    )


def are_items(shapes: Iterable[tuple[int, ...]]) -> bool:
    """Return whether files with these shapes hold one item each, rather than many."""
    known = list(shapes)
    (first, *others) = known
    if not others or any(shape != first for shape in others):
        return False
    if len(first) == 3:
        return first[0] <= _FEW or first[2] <= _FEW
    return len(first) < 3


def guess_item_layout(shape: tuple[int, ...]) -> Layout:
    """Guess the axes of an item that has a file of its own."""
    if len(shape) == 1:
        return "D"
    if len(shape) == 2:
        return "CD" if shape[0] <= _FEW and shape[1] > 4 * shape[0] else "HW"
    return "HWC" if shape[2] <= _FEW else "CHW"


def channels_first(array: Array, layout: str, shape: Sequence[int] | None, name: str) -> Array:
    """Return items as (N, C, H, W), a view where that is possible.

    Args:
        array: The array, with the axes of ``layout``.
        layout: The axes; without N, the array is one item.
        shape: Shape to give to flat items, (D,), (C, D), (H, W), (H, W, C) or (C, H, W).
        name: Name of the array, for messages.

    Raises:
        UserError: If the array does not have these axes.
    """
    if not layout.startswith("N"):
        array, layout = array[None], f"N{layout}"
    if shape is not None:
        if int(np.prod(array.shape[1:])) != int(np.prod(shape)):
            raise UserError(
                f"{name} has {int(np.prod(array.shape[1:]))} values for each item, which do not "
                f"make the shape {tuple(shape)} of --data.shape"
            )
        array = array.reshape(len(array), *shape)
    if array.ndim != len(layout):
        raise UserError(
            f"{name} has the shape {array.shape}, which does not fit the layout {layout}: give "
            "another --data.layout"
        )
    if layout == "ND":
        return array[:, None, None]
    if layout == "NCD":
        return array[:, :, None]
    if layout == "NHW":
        return array[:, None]
    return np.moveaxis(array, 3, 1) if layout == "NHWC" else array


def shape_layout(shape: Sequence[int], layout: str | None) -> str:
    """Return the axes of items that get a shape.

    Example:
        >>> shape_layout([28, 28], None), shape_layout([3, 32, 32], None)
        ('HW', 'CHW')
    """
    if layout is not None:
        return layout.removeprefix("N")
    return guess_item_layout(tuple(shape))


def axes_of(
    parts: Mapping[str, tuple[int, ...]],
    layout: Layout | None,
    shape: Any,
    splits: bool = False,
    record: DataRecord | None = None,
) -> str:
    """Return the axes of the arrays of several files.

    Args:
        parts: Shape of each array, by its name.
        layout: The axes, None to guess them.
        shape: Shape to give to flat items, if any.
        splits: Whether the files are splits, which hold several items each.
        record: What a trained model knows of its data.
    """
    (name, first), *_ = parts.items()
    if shape is not None:
        many = layout is None or layout.startswith("N")
        return ("N" if many else "") + shape_layout(shape, layout)
    if layout is not None:
        return layout
    if record is not None and first == record.item_shape:
        return record.layout
    if record is not None and first[1:] == record.item_shape:
        return f"N{record.layout}"
    if not splits and are_items(parts.values()):
        return guess_item_layout(first)
    return guess_layout(first, name)
