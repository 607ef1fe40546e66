"""The images that a command is given: files, folders, arrays, or a split of the run's data."""

import argparse
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vae_lightning.cli.explore.options import Parser, Trained
from vae_lightning.cli.terminal import list_left_out
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.images.arrays import read_values
from vae_lightning.images.decoding import background_color, read_frames
from vae_lightning.images.folder_listing import Listing
from vae_lightning.models.loading import find_imported
from vae_lightning.randomness import Noise
from vae_lightning.randomness import choose as choose_randomly

SPLITS = ("train", "val", "test", "all")
_ARRAYS = (".npy", ".npz")
_ARRAY_NAMES = ("x", "images", "original", "arr_0")


class Part(NamedTuple):
    """Some of the items.

    Attributes:
        x: Images as the model takes them, (B, C, H, W).
        y: Their classes, (B,), -1 where unknown; None without classes.
        positions: Their positions among all items, (B,).
    """

    x: Tensor
    y: Tensor | None
    positions: Tensor


def joined(parts: Sequence[Part]) -> Part:
    """Return parts as one; it has classes if all of them have."""
    ys = [part.y for part in parts if part.y is not None]
    return Part(
        torch.cat([part.x for part in parts]),
        torch.cat(ys) if len(ys) == len(parts) else None,
        torch.cat([part.positions for part in parts]),
    )


class Items(ABC):
    """Images with names, read as they are needed.

    Attributes:
        what: What they are, for titles and messages.
        failed: Items that could not be read, with the reasons.
    """

    what: str

    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, position: int) -> str:
        """Return the name of an item: its file, or the split and its number."""

    @abstractmethod
    def read(self, positions: Sequence[int]) -> Part:
        """Read items; those that cannot be read are left out and noted in `failed`."""

    def some(self, n: int) -> list[int]:
        """Return positions of ``n`` items, or of all if there are fewer.

        They are chosen at random, always the same: data are often sorted by class.
        """
        n = min(n, len(self))
        chosen: list[int] = choose_randomly(len(self), n, "items").sort().values.tolist()
        return chosen

    def parts(
        self, size: int, what: str = "", positions: Sequence[int] | None = None
    ) -> Iterator[Part]:
        """Yield items in parts, with a progress bar if that takes long.

        Args:
            size: Largest number of items of a part.
            what: What is done, for the bar.
            positions: Positions of the items; by default all.

        Raises:
            UserError: If none can be read.
        """
        found = False
        chosen = range(len(self)) if positions is None else positions
        starts = range(0, len(chosen), size)
        hidden = True if len(starts) < 2 else None  # None: if the output is not a terminal
        for first in tqdm(starts, desc=what, delay=3, leave=False, disable=hidden):
            part = self.read(chosen[first : first + size])
            if len(part.positions):
                found = True
                yield part
        if not found:
            name, reason = self.failed[0]
            raise UserError(
                f"none of the {len(chosen)} images can be read, such as {name}: {reason}"
            )

    def one(self, position: int) -> Part:
        """Read an item.

        Raises:
            UserError: If there is no such item, or it cannot be read.
        """
        if not 0 <= position < len(self):
            raise UserError(f"there is no item {position} in {self.what}: give 0..{len(self) - 1}")
        part = self.read([position])
        if not len(part.positions):
            name, reason = self.failed[-1]
            raise UserError(f"{name} cannot be read: {reason}")
        return part


class Files(Items):
    """Image files, scaled to cover the model's image size and center-cropped.

    Args:
        paths: The files.
        names: Their names in tables.
        trained: The model, with the color and the binarization of its data.
        y: Their classes, (N,), -1 where unknown.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        trained: Trained,
        frames: Sequence[int] | None = None,
        y: Tensor | None = None,
    ) -> None:
        super().__init__()
        shape, self.record = trained.model.image_shape, trained.model.record
        self.is_scaled = trained.is_scaled
        if shape[1] == 1 or (shape[0] not in (1, 3) and not self.is_scaled):
            raise UserError(
                f"the model takes items of shape {shape}, which image files are not: give an array"
            )
        self.paths, self.names, self.frames, self.y = paths, names, frames, y
        self.trained = trained
        self.background = background_color(trained.data_settings.get("background", "white"))
        self.what = "1 file" if len(paths) == 1 else f"{len(paths)} files"

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, position: int) -> str:
        """See `Items.name`."""
        return self.names[position]

    def read(self, positions: Sequence[int]) -> Part:
        """See `Items.read`."""
        shape = self.trained.model.image_shape
        images, kept = [], []
        for position in positions:
            frame = 0 if self.frames is None else self.frames[position]
            try:
                (image,) = self._read(self.paths[position], frame)
            except UserError as error:
                self.failed.append((self.name(position), str(error)))
                continue
            images.append(image)
            kept.append(position)
        index = torch.tensor(kept, dtype=torch.int64)
        x = torch.stack(images) if images else torch.empty(0, *shape)
        x = binarized(x, index, self.trained)
        return Part(x, None if self.y is None else self.y[index], index)

    def _read(self, path: Path, frame: int) -> Iterator[Tensor]:
        """Read an image as the model sees it, (C, H, W)."""
        shape = self.trained.model.image_shape
        if not self.is_scaled:
            for image in read_frames(path, [frame], shape, self.background):
                yield image.float() / 255
            return
        assert self.record is not None
        is_8_bit = self.record.dtype == "uint8"
        found = (
            read_frames(path, [frame], shape, self.background)
            if is_8_bit
            else read_values(path, [frame], shape)
        )
        for image in found:
            yield torch.from_numpy(self.record.to_model(image[None].numpy()))[0]


class Arrays(Items):
    """Images in an array.

    Args:
        path: A ``.npy`` file, or ``.npz`` with one array or one called ``x`` or ``images``.
        trained: The model.
    """

    def __init__(self, path: Path, trained: Trained) -> None:
        super().__init__()
        self.path, self.trained = path, trained
        self.array = self._shaped(_load_array(path))
        if not len(self.array):
            raise UserError(f"{path} has no images")
        self.what = path.name

    def _shaped(self, array: Any) -> Any:
        """Return the array as (N, C, H, W)."""
        channels, height, width = shape = self.trained.model.image_shape
        if array.dtype.kind == "f":
            low, high = array.min(initial=0), array.max(initial=1)
            if self.trained.model.bounded and not (low >= -1e-3 and high <= 1.001):
                raise UserError(
                    f"{self.path} has values from {low:.4g} to {high:.4g}: give floats in [0, 1], "
                    "or unsigned 8-bit integers"
                )
        elif array.dtype.kind != "b" and array.dtype != np.uint8:
            raise UserError(
                f"{self.path} has values of type {array.dtype}: give floats in [0, 1], or unsigned "
                "8-bit integers"
            )
        for given, axes in (
            ((channels, height, width), None),
            ((height, width, channels), (0, 3, 1, 2)),
            ((height, width), "gray"),
        ):
            if array.shape == given:
                array = array[None]
            if array.ndim == len(given) + 1 and array.shape[1:] == given:
                if axes == "gray":
                    if channels != 1:
                        break
                    return array[:, None]
                return array if axes is None else array.transpose(axes)
        raise UserError(
            f"{self.path} has the shape {array.shape}, but the model takes images of {shape}: give "
            f"an array (N, {', '.join(map(str, shape))})"
        )

    def __len__(self) -> int:
        return len(self.array)

    def name(self, position: int) -> str:
        """See `Items.name`."""
        return f"{self.path.name}[{position}]"

    def read(self, positions: Sequence[int]) -> Part:
        """See `Items.read`."""
        index = torch.as_tensor(positions)
        x = torch.tensor(np.ascontiguousarray(self.array[index.numpy()]))
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return Part(binarized(x, index, self.trained), None, index)


class RunData(Items):
    """A split of the data that the model was trained on.

    Args:
        split: ``train``, ``val``, ``test`` or ``all``.
        trained: The model.
        root: Another folder for the data.

    Raises:
        UserError: If the checkpoint does not say which data these are, or they are missing.
    """

    def __init__(self, split: Any, trained: Trained, root: str | None = None) -> None:
        super().__init__()
        from vae_lightning.data import ImageData  # imports Lightning

        described = trained.held.record.data
        if described is None:
            raise UserError(
                f"{trained.held.path} does not say which data it was trained on: give files, a "
                "folder or an array"
            )
        cls = find_imported(described["class_path"])
        if not (isinstance(cls, type) and issubclass(cls, ImageData)):
            raise UserError(
                f"{trained.held.path} was trained on a {described['class_path']}, which is not "
                "known here: give files, a folder or an array"
            )
        arguments = {**described.get("init_args", {}), "predict_split": split, "num_workers": 0}
        if root is not None:
            arguments["root"] = root
        try:
            self.data = cls(**arguments)
        except TypeError as error:
            what = "--root" if root is not None else trained.held.path
            raise UserError(f"{what}: {cls.__name__} cannot be built ({error})") from error
        if record := trained.model.record:
            self.data.use_record(record)
        self.data.prepare_data()
        self.data.setup("predict")
        self.data.teardown("predict")
        self.dataset: Any = self.data.datasets[split]
        self.split = split
        if self.data.is_users:
            self.failed = list(self.data.left_out)
        splits = "all splits" if split == "all" else f"the {split} split"
        self.what = f"{splits} of {cls.__name__}"

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, position: int) -> str:
        """See `Items.name`."""
        return self.data.item_name(self.split, position)

    def read(self, positions: Sequence[int]) -> Part:
        """See `Items.read`."""
        batch = self.dataset.__getitems__(list(positions))
        x = self.data.evaluation_view(batch.x, batch.indices)
        return Part(x, batch.y, torch.as_tensor(positions))


def add_options(parser: Parser, several: bool = True) -> None:
    """Add the options that name items."""
    what = "files, a folder, or an array" if several else "an image file, or an array"
    parser.add_argument(
        "items",
        nargs="*",
        metavar="PATH",
        help=f"{what} (.npy, .npz); files are scaled to cover the model's size and center-cropped; "
        "default: --split test",
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the run's data (test)")
    parser.add_argument("--root", metavar="FOLDER", help="where the run's data are now")
    parser.add_argument("--label", metavar="CLASS", help="class of the items, for CVAE and its kin")


def choose(options: argparse.Namespace, trained: Trained) -> Items:
    """Return the items that the options name.

    Raises:
        UserError: If there are none.
    """
    paths = [expand(path) for path in options.items]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist: give files, a folder or an array")
    if not paths:
        return RunData(options.split, trained, options.root)
    if len(paths) == 1 and trained.is_scaled:
        return RunData("all", trained, str(paths[0]))  # read as those of the training were
    if len(paths) == 1 and paths[0].is_dir():
        return _folder(paths[0], trained)
    if len(paths) == 1 and paths[0].suffix.lower() in _ARRAYS:
        return Arrays(paths[0], trained)
    for path in paths:
        if path.is_dir() or path.suffix.lower() in _ARRAYS:
            raise UserError(f"{path}: give files, or one folder, or one array")
    return Files(paths, [str(path) for path in options.items], trained)


def _folder(path: Path, trained: Trained) -> Files:
    listing = Listing.of(path, trained.data_settings.get("frames", "all"))
    files = listing.files
    if not len(files):
        raise UserError(f"{path} has no images")
    paths = [files[i] for i in range(len(files))]
    frames = listing.frames.tolist()
    suffix = [f"[{frame}]" if frame else "" for frame in frames]
    names = [f"{file.relative_to(path)}{end}" for file, end in zip(paths, suffix, strict=True)]
    y = None
    known = trained.class_names
    if listing.class_names and listing.y is not None and set(listing.class_names) & set(known):
        places = [known.index(name) if name in known else -1 for name in listing.class_names]
        y = torch.tensor([*places, -1])[listing.y]
    found = Files(paths, names, trained, frames, y)
    found.what = str(path)
    found.failed = list(listing.left_out)
    for remark in listing.remarks:
        print(f"Note: {remark}")
    return found


def labels_of(
    part: Part, label: int | None, trained: Trained, decodes: bool = False
) -> Tensor | int | None:
    """Return the classes with which to condition the model on items, None for other models.

    Args:
        part: The items.
        label: The class of all of them, if it was given.
        trained: The model.
        decodes: Whether latents of the items are decoded, for which classes must be inferred by a
            model that can.

    Raises:
        UserError: If a class is needed and not known.
    """
    if not trained.model.conditional:
        return None
    if label is not None:
        return label
    if not trained.model.needs_labels:
        return trained.model.labels_for(part.x, part.y) if decodes else None
    if part.y is None or part.y.lt(0).any():
        raise UserError(
            f"this {type(trained.model).__name__} is conditional, and the class of these images is "
            "not known: give --label, or a folder whose subfolders are the classes of the model "
            f"({', '.join(trained.class_names[:10])})"
        )
    return part.y


def binarized(x: Tensor, index: Tensor, trained: Trained) -> Tensor:
    """Binarize images as those were that the model was trained on."""
    how = trained.data_settings.get("binarization", "none")
    if how == "threshold" or (trained.is_binary and how != "dynamic"):
        return (x > 0.5).float()
    if how == "dynamic":
        seed = trained.data_settings.get("split_seed", 0)
        noise = Noise(index, "binarize", seed, "evaluation", 0)
        return (noise.uniform(x[0].numel()).view_as(x) < x).float() if len(x) else x
    return x


def _load_array(path: Path) -> Any:
    try:
        return _array_in(path)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as an array ({reason})") from error


def _array_in(path: Path) -> Any:
    with path.open("rb") as file:  # numpy leaves a damaged one open
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        names = [name for name in _ARRAY_NAMES if name in loaded.files]
        if len(loaded.files) == 1:
            names = loaded.files
        if not names:
            raise UserError(
                f"{path} has the arrays {', '.join(loaded.files)}: call that of the images x"
            )
        return loaded[names[0]]


def report_failed(given: Items) -> None:
    """Print which items could not be read."""
    list_left_out(given.failed)
