"""What is in a folder of images: files, frames, classes and splits, and what is left out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from vae_lightning.errors import UserError
from vae_lightning.images.headers import EIGHT_BITS, ValueType, is_image, look
from vae_lightning.images.reading import printable

Split = Literal["train", "val", "test"]
Frames = Literal["all", "first"]

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Usual names of the folders of splits, in any case."""

_OF_THE_SYSTEM = {
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
"""Files and folders that systems and archives add, in lower case; ignored like hidden ones."""


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


@dataclass(frozen=True)
class Listing:
    """The images in a folder.

    Attributes:
        files: File of each image, sorted by the parts of their paths. A file with several frames
            is there once for each.
        frames: Number of the frame of each image, (N,).
        class_names: Names of the folders that are classes, None without classes.
        y: Class of each image, int64, (N,), -1 for an image without; None without classes.
        splits: Positions of the images in each folder that is a split; empty without such folders.
        value_types: Types of values that there are.
        value_type: Position of the type of each image among them, (N,), -1 if unknown.
        left_out: Files that are not used, with the reasons.
        remarks: What else a user may not expect.
    """

    files: Paths
    frames: Tensor
    class_names: list[str] | None
    y: Tensor | None
    value_types: list[ValueType]
    value_type: Tensor
    splits: dict[Split, Tensor] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path, frames: Frames = "all") -> "Listing":
        """List a folder; only files whose suffix says too little are opened.

        Args:
            root: The folder, or a single file.
            frames: Whether every frame of a file is an image, or only the first.

        Raises:
            UserError: If a folder cannot be read, or two folders are the same split.
        """
        left_out: list[tuple[str, str]] = []
        if root.is_file():
            root, names = root.parent, [root.name]
        else:
            names = list(_image_names(root, left_out))
        depth, folders, above, ignored = _split_folders(names)
        if folders:
            names = _select(
                names,
                lambda name: _folder(name, depth) in folders,
                left_out,
                "not in a folder of a split",
            )
        decisive = [name for name in names if folders.get(_folder(name, depth), "train") == "train"]
        names, class_names, remarks = _find_classes(names, above, decisive, left_out)
        remarks = [*ignored, *remarks]
        seen = [look(os.path.join(root, name)) for name in names]
        counts = [count for count, _ in seen]
        repeats = torch.tensor(counts if frames == "all" else [1] * len(names), dtype=torch.int64)
        several = sum(count > 1 for count in counts)
        if several:
            what = (
                f"{sum(counts)} frames of {len(names)} files"
                if frames == "all"
                else f"only the first frame of {several} files that have several"
            )
            remarks.append(what)
        file = torch.repeat_interleave(repeats)
        starts = repeats.cumsum(0) - repeats
        found = list(dict.fromkeys(kind for _, kind in seen if kind is not None))
        kinds = torch.tensor([-1 if k is None else found.index(k) for _, k in seen]).short()
        y = None
        if class_names is not None:
            known = {name: i for i, name in enumerate(class_names)}
            classes = [known.get(_folder(name, above) or "", -1) for name in names]
            y = torch.tensor(classes, dtype=torch.int64)[file]
        splits: dict[Split, Tensor] = {}
        for split in dict.fromkeys(folders.values()):
            inside = [folders[_folder(name, depth)] == split for name in names]
            splits[split] = torch.tensor(inside)[file].nonzero()[:, 0]
        return cls(
            Paths(root, names).take(file),
            torch.arange(len(file)) - starts[file],
            class_names,
            y,
            found,
            kinds[file],
            splits,
            left_out,
            remarks,
        )

    def without(self, reasons: Mapping[str, str]) -> "Listing":
        """Leave out all images of some files; classes and splits remain, even if they are empty.

        Args:
            reasons: Why, by the names of the files relative to the folder.
        """
        starts = (self.frames == 0).nonzero()[:, 0]
        names = [os.fspath(self.files[i].relative_to(self.files.root)) for i in starts.tolist()]
        keep_file = torch.tensor([name not in reasons for name in names])
        keep = keep_file[self.file]
        now = keep.cumsum(0) - 1
        return replace(
            self,
            files=Paths(self.files.root, [name for name in names if name not in reasons]).take(
                (self.frames[keep] == 0).cumsum(0) - 1
            ),
            frames=self.frames[keep],
            y=None if self.y is None else self.y[keep],
            value_type=self.value_type[keep],
            splits={split: now[p[keep[p]]] for split, p in self.splits.items()},
            left_out=[*self.left_out, *((n, reasons[n]) for n in names if n in reasons)],
        )

    def common_type(self) -> ValueType:
        """Return the type of the values of all images, by their headers.

        8-bit images and 16-bit colors together are read as 8 bits.

        Raises:
            UserError: If images have different types.
        """
        present = [i for i in range(len(self.value_types)) if self.value_type.eq(i).any()]
        if len(present) == 1:
            return self.value_types[present[0]]
        if all(self.value_types[i].reducible for i in present):
            return EIGHT_BITS
        examples = [f"{self.example(i)} has {self.value_types[i]}" for i in present[:5]]
        raise UserError(
            f"the images in {self.files.root.absolute()} have values of different types "
            f"({', '.join(examples)}): convert them to one type, or use folders of one type"
        )

    def example(self, i: int) -> str:
        """Return the name of the first file whose values have the type at position ``i``."""
        position = int(self.value_type.eq(i).nonzero()[0, 0])
        return printable(self.files[position].relative_to(self.files.root))

    @property
    def file(self) -> Tensor:
        """Position of the file of each image among the files, (N,)."""
        return (self.frames == 0).cumsum(0) - 1


def _image_names(root: Path, left_out: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the relative paths of the images in a folder, and note other files.

    Links are followed. Hidden files and folders, and those of the system, are no part of the data.
    """
    status = os.stat(root)
    return _names_inside(str(root), "", {(status.st_dev, status.st_ino)}, left_out)


def _names_inside(
    root: str, inside: str, above: set[tuple[int, int]], left_out: list[tuple[str, str]]
) -> Iterator[str]:
    """Yield the relative paths of the images in a part of a folder.

    Args:
        root: The folder.
        inside: The part: empty, or a relative path that ends with a separator.
        above: Devices and inodes of the folders that this one is in, to which no link may lead.
        left_out: List to which other files are added.
    """
    path = os.path.join(root, inside)
    try:
        with os.scandir(path) as entries:
            # By the parts of the path, as `Path` sorts: everything in "a" comes before "a.png".
            visible = sorted(
                (entry.name, os.path.isdir(entry), entry.is_symlink())
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _OF_THE_SYSTEM
            )
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): get access to it, or move it away"
        ) from error
    for name, is_folder, is_link in visible:
        if is_folder:
            status = os.stat(os.path.join(path, name))
            identity = status.st_dev, status.st_ino
            if identity in above:
                left_out.append((inside + name, "a link to a folder that it is in"))
            else:
                yield from _names_inside(
                    root, f"{inside}{name}{os.sep}", above | {identity}, left_out
                )
        elif is_link and not os.path.exists(os.path.join(path, name)):
            left_out.append((inside + name, "a link to nothing"))
        elif is_image(os.path.join(path, name)):
            yield inside + name
        else:
            left_out.append((inside + name, "no image that Pillow can read"))


def _split_folders(
    names: Sequence[str],
) -> tuple[int, dict[str | None, Split], int, list[str]]:
    """Find the folders of splits: at the top, in a single folder, or in the folder of each class.

    There has to be one for training and another; ``train`` alone may be a class.

    Returns:
        The number of folders above those of splits, the splits by the names of their folders, the
        number of folders above those of classes, and remarks.

    Raises:
        UserError: If two folders are the same split.
    """
    tops = {_folder(name, 0) for name in names} - {None}
    for depth in (0, 1):
        inside = [name for name in names if _folder(name, depth) is not None]
        names_of_folders = dict.fromkeys(_folder(name, depth) for name in inside)
        found = {f: split for f in names_of_folders if (split := _split_of(f)) is not None}
        if "train" not in found.values() or len(set(found.values())) == 1:
            continue
        in_classes = depth == 1 and len(tops) > 1
        if in_classes:
            with_splits = {_folder(name, 0) for name in inside if _folder(name, 1) in found}
            if with_splits != tops:
                lacking = min(name for name in tops - with_splits if name is not None)
                remark = (
                    f"folders {' and '.join(map(str, found))} are no splits: {lacking} has none"
                )
                return 0, {}, 0, [remark]
        twice = [f for f, split in found.items() if [*found.values()].count(split) > 1]
        if twice and not in_classes:  # folders of classes may differ
            raise UserError(
                f"the folders {' and '.join(map(str, twice))} are the same split: merge them, or "
                "rename one of them"
            )
        return depth, found, 0 if in_classes else depth + 1, []
    return 0, {}, 0, []


def _split_of(folder: str | None) -> Split | None:
    return None if folder is None else SPLIT_NAMES.get(folder.lower())


def _find_classes(
    names: list[str], above: int, decisive: list[str], left_out: list[tuple[str, str]]
) -> tuple[list[str], list[str] | None, list[str]]:
    """Decide whether folders are classes.

    Args:
        names: Paths of the images.
        above: Number of folders above those of the classes.
        decisive: Those by which this is decided: the images to train on.
        left_out: List to which images beside the classes are added.

    Returns:
        The images that are used, the names of the classes if there are any, and remarks.
    """
    beside = [name for name in decisive if _folder(name, above) is None]
    if not names or len(beside) == len(decisive):
        return names, None, []
    if 2 * len(beside) >= len(decisive):
        shown = f"{beside[0]}, ..." if len(beside) > 1 else beside[0]
        return names, None, [f"no classes, because images lie beside the subfolders ({shown})"]
    strays = set(beside)
    kept = _select(names, lambda name: name not in strays, left_out, "beside the class folders")
    found = {_folder(name, above) for name in kept} - {None}
    return kept, sorted(name for name in found if name is not None), []


def _folder(name: str, above: int) -> str | None:
    """Return the folder of a path below a number of others, None if it is a file there."""
    parts = name.split(os.sep)
    return parts[above] if len(parts) > above + 1 else None


def _select(
    names: Iterable[str],
    keep: Callable[[str], bool],
    left_out: list[tuple[str, str]],
    reason: str,
) -> list[str]:
    """Return the paths to keep, and note the others with a reason."""
    kept = []
    for name in names:
        if keep(name):
            kept.append(name)
        else:
            left_out.append((name, reason))
    return kept
