"""Data of a user, in any units: random splits, scaling, and streaming where they are large."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.data.base import ImageData
from vae_lightning.data.datasets import Images, InMemory
from vae_lightning.data.scaling import (
    Groups,
    RawItems,
    Scaling,
    Statistics,
    chunks,
    coefficients,
    fingerprint,
    percentiles,
    read_finite,
    statistics,
)
from vae_lightning.data.source import PredictSplit
from vae_lightning.data_record import DataRecord
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.images.folder_listing import Split
from vae_lightning.nets import ImageShape

Indices = npt.NDArray[np.int64]

_MOST_CLASSES = 100
"""Number of different labels up to which they are always classes."""

_CHECKED = 1000
"""Number of items of other data whose range is compared with that of the training."""


class Labels(NamedTuple):
    """Classes of items.

    Attributes:
        names: Names of the classes.
        y: Class of each item, int64, (N,), -1 for an item without.
    """

    names: tuple[str, ...]
    y: Tensor

    @classmethod
    def of(cls, values: npt.NDArray[Any], where: str) -> Self:
        """Return the classes that labels name, in sorted order.

        Args:
            values: Integers, Booleans or strings, (N,), or one-hot rows, (N, K).
            where: Where the labels are from, for messages.

        Raises:
            UserError: If they are not classes.
        """
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        elif values.ndim == 2 and ((values != 0).sum(1) == 1).all():  # one-hot
            values = values.argmax(1)
        if values.ndim != 1:
            raise UserError(f"{where} has the shape {values.shape}: give one label for each item")
        is_whole = values.dtype.kind == "f" and np.isfinite(values).all()
        if is_whole and (values == np.floor(values)).all():
            values = values.astype(np.int64)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        if values.dtype.kind not in "biuUT":
            raise UserError(
                f"{where} has values of type {values.dtype}, which are not classes: give integers "
                "or names, or leave the labels out"
            )
        found, numbers = np.unique(values, return_inverse=True)
        if len(found) > max(_MOST_CLASSES, len(values) // 2):
            raise UserError(
                f"{where} has {len(found):,} different values for {len(values):,} items, which are "
                "not classes: leave the labels out"
            )
        return cls(tuple(map(str, found.tolist())), torch.from_numpy(numbers.astype(np.int64)))


class ScaledItems(Dataset[Batch]):
    """Data set of items that are read and scaled on demand.

    Args:
        items: All items, in the units of the data.
        indices: Those of this data set, int64, (N,).
        y: Their classes, int64, (N,), or None.
        record: How values are scaled.
    """

    def __init__(
        self, items: RawItems, indices: Indices, y: Tensor | None, record: DataRecord
    ) -> None:
        self.items = items
        self.indices = indices
        self.y = y
        self.record = record

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        x = torch.from_numpy(self._read(self.indices[index.numpy()]))
        return Batch(x, None if self.y is None else self.y[index], index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def _read(self, indices: Indices) -> npt.NDArray[Any]:
        values = read_finite(self.items, indices)
        if self.is_8_bit:
            return np.ascontiguousarray(values)
        return self.record.to_model(values)

    @property
    def is_8_bit(self) -> bool:
        """Whether values are divided by 255 where the model is, as for images of 8 bits."""
        if self.items.dtype != np.uint8:
            return False
        record = self.record
        return record.is_8_bit or (set(record.scale) == {255.0} and not any(record.offset))

    def read_all(self) -> Images:
        """Read all items into memory."""
        dtype = torch.uint8 if self.is_8_bit else torch.float32
        x = torch.empty(len(self), *self.items.shape, dtype=dtype)
        start = 0
        for part in chunks(self.items, self.indices):
            x[start : start + len(part)] = torch.from_numpy(self._read(part))
            start += len(part)
        return Images(x, self.y)


class ScaledData(ImageData):
    """Base class of data in a user's files, whose values are scaled for the model.

    A model sees ``(value - offset) / scale``, fitted to the training items. Checkpoints keep this
    scaling: other data for a trained model are scaled in the same way, and what is written is
    mapped back to the units of the data.

    Args:
        root: The file or folder.
        scaling: ``minmax`` (to [0, 1]), ``percentile`` (to [0, 1] between two percentiles, clipped
            outside: for images with a few very bright pixels), ``standardize`` (mean 0, standard
            deviation 1) or ``none``. Values of 8 bits count as 0 to 255 for ``minmax``.
        percentiles: The percentiles that become 0 and 1.
        val_share: Fraction of the items used for validation.
        test_share: Fraction of the items used for the test.
        memory_limit: Largest size in memory in GB; larger arrays and folders are read on demand.
        batch_size: See `ImageData`.
        **kwargs: See `ImageData`.

    Raises:
        ValueError: If a fraction or a percentile is out of range.
    """

    is_users = True
    default_config: ClassVar[str] = "own_data"
    groups: Groups = "channel"
    """Values that share an offset and a scale."""

    def __init__(
        self,
        root: str,
        scaling: Scaling = "minmax",
        percentiles: tuple[float, float] = (0.1, 99.9),
        val_share: float = 0.1,
        test_share: float = 0.1,
        memory_limit: float = 2.0,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size, **kwargs)
        self.root: Path = expand(root)
        self.scaling = scaling
        self.percentiles = percentiles
        self.shares: dict[Split, float] = {"val": val_share, "test": test_share}
        self.memory_limit = memory_limit
        self._trained_on: DataRecord | None = None
        check_shares(val_share, test_share)
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(
                f"data.percentiles must be two increasing numbers from 0 to 100, got {percentiles}"
            )

    # What a subclass knows of its files

    @property
    @abstractmethod
    def items(self) -> RawItems:
        """All items."""

    @property
    @abstractmethod
    def labels(self) -> Labels | None:
        """The classes of all items, None without labels."""

    @property
    def given_splits(self) -> dict[Split, Indices]:
        """Indices of the items of the splits that the files prescribe."""
        return {}

    @property
    def item_axes(self) -> str:
        """Axes of an item in the files, see `DataRecord`."""
        return "CHW"

    @property
    def channels(self) -> Sequence[str]:
        """Names of the channels or columns, where they are known."""
        return ()

    # What follows

    @property
    def image_shape(self) -> ImageShape:
        """Shape of an item, (C, H, W)."""
        return self.items.shape

    @cached_property
    def _known_labels(self) -> Labels | None:
        """The classes, with the numbers that they had in training where all are known."""
        found = self.labels
        known = () if self._trained_on is None else self._trained_on.class_names
        if found is None or not set(found.names) <= set(known):
            return found
        numbers = torch.tensor([*map(known.index, found.names), -1], dtype=torch.int64)
        return Labels(known, numbers[found.y])

    @property
    def class_names(self) -> Sequence[str] | None:  # type: ignore[override]
        """Names of the classes, None without labels."""
        return None if self._known_labels is None else list(self._known_labels.names)

    @property
    def y(self) -> Tensor | None:
        """Class of each item, int64, (N,), -1 for an item without; None without labels."""
        return None if self._known_labels is None else self._known_labels.y

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.class_names or ())

    @property
    def bounded(self) -> bool:
        """Whether the model sees values in [0, 1] only."""
        if self._trained_on is not None:
            return self._trained_on.bounded
        if self.scaling == "none":
            return bool(self.statistics.low.min() >= 0 and self.statistics.high.max() <= 1)
        return self.scaling in ("minmax", "percentile")

    @property
    def is_binary(self) -> bool:
        """Whether all values that the model sees are 0 or 1."""
        return self.record.binary

    @cached_property
    def positions(self) -> dict[Split, Indices]:
        """Indices of the items of each split."""
        found = dict(self.given_splits)
        missing: list[Split] = [name for name in ("val", "test") if name not in found]
        rest = found.get("train", np.arange(len(self.items)))
        for name, chosen in self.split_at_random(len(rest), missing).items():
            found[name] = rest[chosen]
        return found

    def split_at_random(self, n: int, missing: Sequence[Split]) -> dict[Split, Indices]:
        """Take splits from ``n`` items at random.

        Args:
            n: Number of items.
            missing: The splits to take; the rest is for training.

        Returns:
            Sorted positions among the items.

        Raises:
            UserError: If there are too few.
        """
        if self._trained_on is not None and n <= len(missing):
            # Too few to train on, but enough for a trained model.
            return dict.fromkeys([*missing, "train"], np.arange(n))
        if missing and n <= len(missing):
            raise UserError(
                f"{self.root.absolute()} has {n} {self.noun}s to train on, of which some are "
                f"needed for {' and '.join(missing)}: add {self.noun}s"
            )
        sizes = [max(1, round(n * self.shares[name])) for name in missing]
        while sizes and sum(sizes) >= n:  # one is left to train on
            sizes[sizes.index(max(sizes))] -= 1
        order = torch.randperm(n, generator=randomness.generator(self.split_seed, "split"))
        parts = order.split([*sizes, n - sum(sizes)])
        return {
            name: part.sort().values.numpy()
            for name, part in zip([*missing, "train"], parts, strict=True)
        }

    def split_size(self, split: Split) -> int:
        """See `ImageSource.split_size`."""
        return len(self.positions[split])

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training items."""
        return statistics(self.items, self.positions["train"], self._groups)

    @property
    def _groups(self) -> Groups:
        # Gray values of colors belong together.
        return "all" if self.groups == "channel" and self.image_shape[0] == 3 else self.groups

    @property
    def record(self) -> DataRecord:
        """See `ImageSource.record`."""
        if self._trained_on is not None:
            return self._trained_on
        return self._own_record

    @cached_property
    def _own_record(self) -> DataRecord:
        found, train = self.statistics, self.positions["train"]
        if self.binarization != "none" and not self.bounded:
            raise UserError(
                f"--data.binarization {self.binarization} needs values in [0, 1]: leave it out, or "
                "use --data.scaling minmax"
            )
        limits = None
        if self.scaling == "percentile":
            limits = percentiles(self.items, train, self._groups, self.percentiles)
        offset, scale = coefficients(self.scaling, found, self.items.dtype, limits)
        return DataRecord(
            shape=self.image_shape,
            dtype=str(self.items.dtype),
            scaling=self.scaling,
            offset=tuple(offset.tolist()),
            scale=tuple(scale.tolist()),
            low=tuple(found.low.tolist()),
            high=tuple(found.high.tolist()),
            mean=tuple(found.mean.tolist()),
            std=tuple(found.std.tolist()),
            bounded=self.bounded,
            binary=self.binarization != "none" or self._sees_two_values(scale),
            layout=self.item_axes,
            channels=tuple(self.channels),
            class_names=tuple(map(str, self.class_names or ())),
            class_counts=self.class_counts(),
        )

    def _sees_two_values(self, scale: npt.NDArray[np.float64]) -> bool:
        """Return whether training values are binary, and the model sees 0 and 1."""
        found = self.statistics
        varies = found.high.max() > found.low.min()
        return self.bounded and found.binary > 0 and varies and bool(np.all(scale == found.binary))

    def class_counts(self) -> tuple[int, ...]:
        """See `ImageSource.class_counts`."""
        if self.y is None:
            return ()
        y = self.y[torch.from_numpy(self.positions["train"])]
        return tuple(y[y >= 0].bincount(minlength=self.num_classes).tolist())

    def use_record(self, record: DataRecord) -> None:
        """See `ImageSource.use_record`; classes get the numbers that they had in training."""
        self._trained_on = record

    def load(self, split: Split) -> Dataset[Batch]:
        """See `ImageSource.load`.

        Raises:
            UserError: If values are NaN, infinite, or of another range than those of the training.
        """
        return self._load(self.positions[split])

    def load_all(self) -> Dataset[Batch]:
        """Return all items, in the order of the files."""
        return self._load(np.arange(len(self.items)))

    def item_name(self, split: PredictSplit, position: int) -> str:
        """Return the name of an item in the files."""
        if split == "all":
            return self.items.name(position)
        places = self.positions[split]
        if split == "train" and self.train_on_val:
            places = np.concatenate([places, self.positions["val"]])
        return self.items.name(int(places[position]))

    def labels_of(self, indices: Indices) -> Tensor | None:
        """Return the classes of items, int64, (n,); None if one of them has none."""
        y = None if self.y is None else self.y[torch.from_numpy(indices)]
        return None if y is None or y.lt(0).any() else y

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the data, by which a training that continues knows them."""
        y = b"" if self.y is None else self.y.numpy().tobytes()
        return fingerprint(self.items, y, repr(tuple(self.channels)).encode())

    def state_dict(self) -> dict[str, Any]:
        """See `ImageData.state_dict`; adds what identifies the data."""
        return {**super().state_dict(), "files": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `ImageData.load_state_dict`.

        Raises:
            UserError: If a training would continue on other data, which are split differently.
        """
        super().load_state_dict(state_dict)
        is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
        if is_fit and state_dict.get("files", self.fingerprint) != self.fingerprint:
            raise UserError(
                f"the {self.noun}s in {self.root} are not those that this training began with: "
                "restore them, or start a new training"
            )

    def _load(self, indices: Indices) -> Dataset[Batch]:
        if self._trained_on is not None:
            check_units(self, self._trained_on, indices)
        dataset = ScaledItems(self.items, indices, self.labels_of(indices), self.record)
        size = (1 if dataset.is_8_bit else 4) * len(indices) * int(np.prod(self.image_shape))
        return dataset if size > self.memory_limit * 1e9 else InMemory(dataset.read_all())


def check_units(data: ScaledData, record: DataRecord, indices: Indices) -> None:
    """Check that items can have the units of those that a model was trained on.

    Args:
        data: The data.
        record: What the checkpoint of the model keeps of its data.
        indices: The items; of many, some are read.

    Raises:
        UserError: If they have other units.
    """
    items = data.items
    if record.is_8_bit and items.dtype == np.uint8:
        return
    some = randomness.choose(len(indices), min(len(indices), _CHECKED), 0, "checked")
    groups: Groups = "all" if len(record.mean) == 1 else data.groups
    found = statistics(items, indices[some.sort().values.numpy()], groups)
    count = len(some) * int(np.prod(items.shape)) // len(record.mean)
    far = record.check_values(found.mean, found.std, count, str(data.root))
    if far:
        _say(
            f"Note: most values of {', '.join(far)} are far from those of the training: are they "
            "in the same units?"
        )
    if clipped := record.describe_clipped(found.low, found.high):
        _say(f"Note: {clipped}")


def check_shares(val_share: float, test_share: float) -> None:
    """Check the fractions of a random split.

    Raises:
        ValueError: If one is not positive, or none is left for training.
    """
    if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
        raise ValueError(
            "data.val_share and data.test_share must be positive and leave items for training, "
            f"got {val_share} and {test_share}"
        )


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
