"""What is in a folder of images: files, frames, classes and splits, and what is left out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from vae_lightning.data.base import Split
from vae_lightning.data.decoding import count_frames, is_image
from vae_lightning.errors import UserError

Frames = Literal["all", "first"]

_SPLIT_NAMES: dict[str, Split] = {
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
        left_out: Files that are not used, with the reasons.
        remarks: What else a user may not expect.
    """

    files: Paths
    frames: Tensor
    class_names: list[str] | None
    y: Tensor | None
    splits: dict[Split, Tensor] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path, frames: Frames = "all") -> "Listing":
        """List a folder; only files whose name says too little are opened.

        Args:
            root: The folder.
            frames: Whether every frame of a file is an image, or only the first.

        Raises:
            UserError: If a folder cannot be read, or two folders are the same split.
        """
        left_out: list[tuple[str, str]] = []
        names = list(_image_names(root, left_out))
        depth, folders = _split_folders(names)
        if folders:
            names = _select(
                names,
                lambda name: name.split(os.sep)[depth] in folders and name.count(os.sep) > depth,
                left_out,
                "not in a folder of a split",
            )
        above = depth + 1 if folders else 0
        names, class_names, remarks = _find_classes(names, above, folders, left_out)
        counts = [count_frames(os.path.join(root, name)) for name in names]
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
        y = None
        if class_names is not None:
            known = {name: i for i, name in enumerate(class_names)}
            classes = [known.get(_folder(name, above) or "", -1) for name in names]
            y = torch.tensor(classes, dtype=torch.int64)[file]
        splits: dict[Split, Tensor] = {}
        for folder, split in folders.items():
            inside = torch.tensor([name.split(os.sep)[depth] == folder for name in names])
            splits[split] = inside[file].nonzero()[:, 0]
        return cls(
            Paths(root, names).take(file),
            torch.arange(len(file)) - starts[file],
            class_names,
            y,
            splits,
            left_out,
            remarks,
        )


def _image_names(root: Path, left_out: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the relative paths of the images in a folder, and note other files.

    Links are followed. Hidden files and folders are no part of the data.
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
                if not entry.name.startswith(".")
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


def _split_folders(names: Sequence[str]) -> tuple[int, dict[str, Split]]:
    """Return the folders that are splits, and how many folders they are in: 0 or 1.

    There has to be one for training and another; ``train`` alone may be a class.

    Raises:
        UserError: If two folders are the same split.
    """
    for depth in (0, 1):
        parts = [name.split(os.sep) for name in names if name.count(os.sep) > depth]
        if depth and len({part[0] for part in parts}) != 1:
            break
        found: dict[str, Split] = {}
        for folder in dict.fromkeys(part[depth] for part in parts):
            if folder.lower() in _SPLIT_NAMES:
                found[folder] = _SPLIT_NAMES[folder.lower()]
        if "train" in found.values() and len(set(found.values())) > 1:
            twice = [f for f, split in found.items() if [*found.values()].count(split) > 1]
            if twice:
                raise UserError(
                    f"the folders {' and '.join(twice)} are the same split: merge them, or rename "
                    "one of them"
                )
            return depth, found
    return 0, {}


def _find_classes(
    names: list[str],
    above: int,
    folders: dict[str, Split],
    left_out: list[tuple[str, str]],
) -> tuple[list[str], list[str] | None, list[str]]:
    """Decide whether folders are classes, by the images to train on.

    Args:
        names: Paths of the images.
        above: Number of folders above those of the classes.
        folders: Folders that are splits.
        left_out: List to which images beside the classes are added.

    Returns:
        The images that are used, the names of the classes if there are any, and remarks.
    """
    decisive = [
        name for name in names if not folders or folders[name.split(os.sep)[above - 1]] == "train"
    ]
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
