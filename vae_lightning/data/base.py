"""Base class of the data modules: splits, preprocessing, sharding and in-memory batches."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.data.features import Features, encode_images
from vae_lightning.data.sampling import ShardSampler, TrainLoader, evaluation_batch_size
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.images.folder_listing import Split
from vae_lightning.nets import ImageShape
from vae_lightning.settings import Configurable

PredictSplit = Literal["train", "val", "test", "all"]
Binarization = Literal["none", "threshold", "dynamic"]

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Images(NamedTuple):
    """Images held in memory.

    Attributes:
        x: uint8 in [0, 255], (N, C, H, W).
        y: Classes, int64, (N,); None without labels.
    """

    x: Tensor
    y: Tensor | None

    def take(self, indices: Tensor) -> "Images":
        """Return the images at ``indices``, (n,)."""
        return Images(self.x[indices], None if self.y is None else self.y[indices])


class InMemory(Dataset[Batch]):
    """Data set that indexes whole batches of one tensor, without work per image.

    Args:
        images: The images.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.x)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        return Batch(*self.images.take(index), index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


class Joined(Dataset[Batch]):
    """Concatenation of two data sets that return whole batches.

    Args:
        first: The first images.
        second: The images after them. Their indices continue those of ``first``.
    """

    def __init__(self, first: Dataset[Batch], second: Dataset[Batch]) -> None:
        self.parts: tuple[Any, Any] = (first, second)

    def __len__(self) -> int:
        return len(self.parts[0]) + len(self.parts[1])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        start = len(self.parts[0])
        places = [(index < start).nonzero()[:, 0], (index >= start).nonzero()[:, 0]]
        batches = [
            part.__getitems__(index[place] - offset)
            for part, place, offset in zip(self.parts, places, (0, start), strict=True)
            if len(place)
        ]
        order = torch.cat(places).argsort()
        labels = [batch.y for batch in batches if batch.y is not None]
        x = torch.cat([batch.x for batch in batches])[order]
        return Batch(x, torch.cat(labels)[order] if labels else None, index)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


def _as_is(batch: Any) -> Any:
    """Return the batch unchanged: the collate function of data sets that return whole batches."""
    return batch


class ImageData(Configurable, pl.LightningDataModule, ABC):
    """Base class of image data modules with training, validation and test splits.

    Args:
        batch_size: Images per batch and process. With several processes, evaluation batches may be
            slightly smaller; see `evaluation_batch_size`.
        binarization: ``none`` (values in [0, 1]), ``threshold`` (1 above one half, else 0), or
            ``dynamic`` (1 with a probability equal to the gray value, drawn in every epoch for
            training and once for validation and test).
        split_seed: Seed of the split into training and validation images, and of ``dynamic``
            binarization in validation and test. It does not follow ``seed_everything``, so that
            runs with different seeds are comparable.
        train_on_val: Whether to train on the validation images too, as in papers that fix the
            length of training in advance. The validation loss then does not measure generalization:
            keep the last weights (``checkpoint.monitor: null``) instead of the best.
        predict_split: Split that ``vae predict`` uses; ``all`` for the images of all splits.
        num_workers: Number of processes that load images. 0 is fastest for images in memory.

    Raises:
        ValueError: If ``batch_size`` is not positive or ``num_workers`` is negative.
    """

    class_names: Sequence[str] | None = None
    left_out: Sequence[tuple[str, str]] = ()
    """Files that are not used, with the reasons."""
    remarks: Sequence[str] = ()
    """What else a user may not expect of the data."""

    CHANGEABLE: ClassVar[frozenset[str]] = frozenset(
        {"root", "num_workers", "memory_limit", "predict_split"}
    )
    """Arguments that may differ in a resumed run, because the images and their order do not change.
    """

    def __init__(
        self,
        batch_size: int = 128,
        binarization: Binarization = "none",
        split_seed: int = 0,
        train_on_val: bool = False,
        predict_split: PredictSplit = "test",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must not be negative, got {num_workers}")
        self.batch_size = batch_size
        self.binarization = binarization
        self.split_seed = split_seed
        self.train_on_val = train_on_val
        self.predict_split: PredictSplit = predict_split
        self.num_workers = num_workers
        self.order_seed = torch.initial_seed()
        self.datasets: dict[PredictSplit, Dataset[Batch]] = {}
        self.features: Features | None = None
        self.joined_batches = 1
        """Number of batches that the training loader yields at once, for several steps per call."""
        self._warnings: warnings.catch_warnings[None] | None = None

    @property
    @abstractmethod
    def image_shape(self) -> ImageShape:
        """Shape of an image, (C, H, W)."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""

    @property
    def is_binary(self) -> bool:
        """Whether all pixels are 0 or 1."""
        return self.binarization != "none"

    @abstractmethod
    def split_size(self, split: Split) -> int:
        """Return the number of images of a split, without loading them."""

    @property
    def num_train(self) -> int:
        """Number of images that a model is trained on."""
        return self.split_size("train") + (self.split_size("val") if self.train_on_val else 0)

    def summary(self) -> str:
        """Return a sentence about what was found, such as ``40 images, 32x32 RGB``."""
        sizes = {split: self.split_size(split) for split in _SPLITS}
        channels, height, width = self.image_shape
        color = {1: "gray", 3: "RGB"}.get(channels, f"with {channels} channels")
        shares = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
        text = f"{sum(sizes.values()):,} images ({shares}), {height}x{width} {color}"
        if self.num_classes:
            names = [str(name) for name in self.class_names or range(self.num_classes)]
            shown = [*names[:5], "..."] if len(names) > 6 else names
            classes = "class" if len(names) == 1 else "classes"
            text += f", in {len(names)} {classes} ({', '.join(shown)})"
        return "; ".join([text, *self.remarks])

    def item_name(self, split: PredictSplit, position: int) -> str:
        """Return the name of an image: its split and its position there, or its file."""
        return f"{split}/{position}"

    @abstractmethod
    def load(self, split: Split) -> Dataset[Batch]:
        """Return the images of a split, a data set whose ``__getitems__`` returns uint8 batches."""

    def load_all(self) -> Dataset[Batch]:
        """Return the images of all splits, by default those to train on first."""
        return Joined(Joined(self.load("train"), self.load("val")), self.load("test"))

    def splits_of(self, stage: str) -> tuple[PredictSplit, ...]:
        """Return the splits that a stage needs."""
        needed: dict[str, tuple[PredictSplit, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": (self.predict_split,),
        }
        return needed[stage]

    @property
    def settings(self) -> dict[str, Any]:
        """See `Configurable.settings`; a relative ``root`` is made absolute for other folders."""
        settings = super().settings
        if settings.get("root"):
            settings["root"] = os.path.abspath(Path(settings["root"]).expanduser())
        return settings

    # Lightning

    def setup(self, stage: str) -> None:
        """Load the splits that a stage needs."""
        if self._warnings is None and not self.num_workers:
            self._warnings = warnings.catch_warnings()
            self._warnings.__enter__()
            # Lightning recommends worker processes, which only slow down data in memory.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
        for split in self.splits_of(stage):
            if split not in self.datasets:
                dataset = self.load_all() if split == "all" else self.load(split)
                if split == "train" and self.train_on_val:
                    dataset = Joined(dataset, self.load("val"))
                if not len(dataset):  # type: ignore[arg-type]
                    raise UserError(f"the {split} split of {type(self).__name__} has no images")
                self.datasets[split] = dataset
        if self.trainer is not None:
            # Processes with different seeds would shuffle differently.
            self.order_seed = self.trainer.strategy.broadcast(self.order_seed)

    def teardown(self, stage: str) -> None:
        """Restore the warning filters."""
        if self._warnings is not None:
            self._warnings.__exit__(None, None, None)
            self._warnings = None

    def await_features(self) -> bool:
        """Let the training loader yield features, unless the images change between epochs.

        `fill_features` has to compute them before the first batch.
        """
        if self.binarization == "dynamic" or type(self).preprocess is not ImageData.preprocess:
            return False
        self.features = Features(len(self.datasets["train"]))  # type: ignore[arg-type]
        return True

    def fill_features(self, encode: Callable[[Batch], Tensor]) -> None:
        """Compute what ``encode`` makes of batches of preprocessed images: (B, ...), not uint8."""
        assert self.features is not None

        def preprocessed(batch: Batch) -> Tensor:
            x = self.preprocess(batch.x, batch.indices, self.order_seed, "train", 0)
            return encode(batch._replace(x=x))

        processes, rank = self._processes
        self.features.fill(*encode_images(self.datasets["train"], preprocessed, rank, processes))

    @property
    def _processes(self) -> tuple[int, int]:
        """The number of processes, and the index of this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def random_images(self, n: int, seed: int) -> Tensor:
        """Return ``n`` preprocessed training images, each at most once if there are enough.

        Returns:
            float32 in [0, 1], (n, C, H, W).
        """
        dataset: Any = self.datasets["train"]
        index = randomness.choose(len(dataset), n, seed, "random images")
        batch: Batch = dataset.__getitems__(index.tolist())
        return self.preprocess(batch.x, batch.indices, self.order_seed, "random images", seed)

    def mean_image(self) -> Tensor:
        """Return the mean of the preprocessed training images, float32, (C, H, W)."""
        dataset = self.datasets["train"]
        total, n = torch.zeros(self.image_shape, dtype=torch.float64), len(dataset)  # type: ignore[arg-type]
        for start in range(0, n, 1000):
            batch: Batch = dataset.__getitems__(range(start, min(start + 1000, n)))  # type: ignore[attr-defined]
            # The mean of a dynamically binarized pixel is its gray value.
            x = batch.x > 127 if self.binarization == "threshold" else batch.x / 255
            total += x.double().sum(0)
        return (total / n).float()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the training split, shuffled."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the validation split, in a fixed random order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test split, in a fixed random order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of ``predict_split``, in a fixed random order."""
        return self._loader(self.predict_split)

    def _loader(self, split: PredictSplit, shuffle: bool = False) -> DataLoader[Batch]:
        dataset = self.datasets[split]
        if split == "train" and shuffle and self.features is not None:
            dataset = self.features
        size, rank = self._processes
        seed = self.order_seed if shuffle else self.split_seed
        sampler = ShardSampler(dataset, size, rank, shuffle, seed)
        if len(dataset) < size:  # type: ignore[arg-type]
            raise UserError(
                f"the {split} split has fewer images than there are processes ({size}): "
                "use fewer devices or more images"
            )
        kwargs: dict[str, Any] = {
            "dataset": dataset,
            "sampler": sampler,
            "num_workers": self.num_workers,
            "collate_fn": _as_is,
            "persistent_workers": self.num_workers > 0,
            # A loader draws a seed for its workers; not from torch's global generator.
            "generator": randomness.generator(self.order_seed, "workers"),
        }
        if split == "train" and shuffle:
            if self.trainer:
                # Workers of a resumed run start before Lightning sets the epoch.
                sampler.set_epoch(self.trainer.current_epoch)
            batch_size = self.batch_size * self.joined_batches
            return TrainLoader(self.trainer, batch_size=batch_size, **kwargs)
        batch_size = evaluation_batch_size(len(dataset), size, self.batch_size)  # type: ignore[arg-type]
        return DataLoader(batch_size=batch_size, **kwargs)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Preprocess a batch on its device; see `preprocess`."""
        x, index = batch.x, batch.indices
        if x.dtype != torch.uint8:  # features
            return batch
        if self.trainer is not None and self.trainer.training:
            epoch = self.trainer.current_epoch
            return batch._replace(x=self.preprocess(x, index, self.order_seed, "train", epoch))
        return batch._replace(x=self.evaluation_view(x, index))

    def evaluation_view(self, x: Tensor, index: Tensor) -> Tensor:
        """Preprocess images as for validation and test, with the same result every time."""
        return self.preprocess(x, index, self.split_seed, "evaluation", 0)

    def preprocess(self, x: Tensor, index: Tensor, *keys: int | str) -> Tensor:
        """Scale images to [0, 1] and binarize them as ``binarization`` says.

        Args:
            x: Images, uint8 in [0, 255], (B, C, H, W).
            index: Position of each image in its split, (B,).
            *keys: Further keys of the noise of a dynamic binarization.

        Returns:
            Images, float32 in [0, 1], or in {0, 1} if binarized, (B, C, H, W).
        """
        x = x.float() / 255
        if self.binarization == "threshold":
            return (x > 0.5).float()
        if self.binarization == "dynamic":
            noise = randomness.Noise(index, "binarize", *keys)
            return (noise.uniform(x[0].numel()).view_as(x) < x).float()
        return x

    def state_dict(self) -> dict[str, Any]:
        """Return the seed of the order of the images, which a resumed run has to continue."""
        return {"order_seed": self.order_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seed of the order of the images from a checkpoint.

        Raises:
            UserError: If the state has no valid seed.
        """
        seed = state_dict.get("order_seed") if isinstance(state_dict, dict) else None
        if not isinstance(seed, int):
            raise UserError(
                f"the checkpoint's state of {type(self).__name__} has no 'order_seed': use another "
                "one, or let state_dict() of your own data module extend that of ImageData"
            )
        self.order_seed = seed


def data_root(root: str | None) -> Path:
    """Return the folder of data sets: as given, else as ``VAE_DATA_ROOT`` says, else ``data``."""
    return expand(root or os.environ.get("VAE_DATA_ROOT") or "data")


def split_indices(n: int, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``n`` images randomly into training and validation images.

    Args:
        n: Number of images.
        val_size: Number of validation images.
        seed: Seed of the split.

    Returns:
        Sorted indices of the training images, (n - val_size,), and of the validation images,
        (val_size,).

    Raises:
        UserError: If one of the two would be empty.

    Example:
        >>> train, val = split_indices(10, val_size=3, seed=0)
        >>> sorted([*train.tolist(), *val.tolist()]) == list(range(10))
        True
    """
    if not 0 < val_size < n:
        raise UserError(f"data.val_size must be between 1 and {n - 1}, got {val_size}")
    order = torch.randperm(n, generator=randomness.generator(seed, "split"))
    return order[val_size:].sort().values, order[:val_size].sort().values
