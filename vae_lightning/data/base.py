"""Base class of the data modules: splits, preprocessing, sharding and in-memory batches."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.data.datasets import Images, InMemory, Joined, to_float
from vae_lightning.data.features import Features, encode_images
from vae_lightning.data.few_labels import FewLabels, LabeledSampler, labels_in
from vae_lightning.data.sampling import (
    ShardSampler,
    TrainLoader,
    evaluation_batch_size,
    fitting_batch_size,
)
from vae_lightning.data.source import ImageSource, PredictSplit
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.images.folder_listing import Split

__all__ = [
    "ImageData",
    "Images",
    "InMemory",
    "Joined",
    "PredictSplit",
    "data_root",
    "split_indices",
]

Binarization = Literal["none", "threshold", "dynamic"]


def _as_is(batch: Any) -> Any:
    """Return the batch unchanged: the collate function of data sets that return whole batches."""
    return batch


class ImageData(ImageSource, pl.LightningDataModule):
    """Base class of image data modules with training, validation and test splits.

    Args:
        batch_size: Images per batch and process; None for 128, or for fewer where an epoch would
            have less than 50 updates. With several processes, evaluation batches may be slightly
            smaller; see `evaluation_batch_size`.
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
        num_labels: Number of training images whose labels are shown, equally many of each class,
            for semi-supervised models; None for all. ``split_seed`` chooses them. Validation and
            test images keep their labels, for measuring.
        num_workers: Number of processes that load images. 0 is fastest for images in memory.

    Raises:
        ValueError: If ``batch_size`` is not positive or ``num_workers`` is negative.
    """

    CHANGEABLE: ClassVar[frozenset[str]] = frozenset(
        {"root", "num_workers", "memory_limit", "predict_split"}
    )
    """Arguments that may differ in a resumed run, because the images and their order do not change.
    """

    def __init__(
        self,
        batch_size: int | None = 128,
        binarization: Binarization = "none",
        split_seed: int = 0,
        train_on_val: bool = False,
        predict_split: PredictSplit = "test",
        num_labels: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must not be negative, got {num_workers}")
        self._batch_size = batch_size
        self.binarization = binarization
        self.split_seed = split_seed
        self.train_on_val = train_on_val
        self.predict_split: PredictSplit = predict_split
        self.num_labels = num_labels
        self.num_workers = num_workers
        self.order_seed = torch.initial_seed()
        self.datasets: dict[PredictSplit, Dataset[Batch]] = {}
        self.features: Features | None = None
        self.joined_batches = 1
        """Number of batches that the training loader yields at once, for several steps per call."""
        self._warnings: warnings.catch_warnings[None] | None = None

    @property
    def batch_size(self) -> int:
        """Images per batch and process."""
        if self._batch_size is None:
            self._batch_size = fitting_batch_size(self.num_train)
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._batch_size = size

    @property
    def is_binary(self) -> bool:
        """Whether all pixels are 0 or 1."""
        return self.binarization != "none"

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
                # Only in training: what is measured on these images may see all labels.
                if split == "train" and stage == "fit" and self.num_labels is not None:
                    dataset = self._with_few_labels(dataset, self.num_labels)
                if not len(dataset):  # type: ignore[arg-type]
                    raise UserError(f"the {split} split of {type(self).__name__} has no images")
                self.datasets[split] = dataset
        if self.trainer is not None:
            # Processes with different seeds would shuffle differently.
            self.order_seed = self.trainer.strategy.broadcast(self.order_seed)

    def _with_few_labels(self, dataset: Dataset[Batch], num_labels: int) -> FewLabels:
        """Hide all but a few labels of the training images."""
        y = labels_in(dataset)
        if y is None:
            raise UserError(
                f"data.num_labels shows labels of {type(self).__name__}, which has none: leave it "
                "out, or use data with labels"
            )
        return FewLabels(dataset, y, num_labels, self.split_seed)

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
            float32, (n, C, H, W).
        """
        dataset: Any = self.datasets["train"]
        batch: Batch = dataset.__getitems__(self.random_indices(n, seed).tolist())
        return self.preprocess(batch.x, batch.indices, self.order_seed, "random images", seed)

    def random_indices(self, n: int, seed: int) -> Tensor:
        """Return the places in the training split of what `random_images` returns, int64, (n,)."""
        dataset: Any = self.datasets["train"]
        return randomness.choose(len(dataset), n, seed, "random images")

    def mean_image(self) -> Tensor:
        """Return the mean of the preprocessed training images, float32, (C, H, W)."""
        dataset = self.datasets["train"]
        total, n = torch.zeros(self.image_shape, dtype=torch.float64), len(dataset)  # type: ignore[arg-type]
        for start in range(0, n, 1000):
            batch: Batch = dataset.__getitems__(range(start, min(start + 1000, n)))  # type: ignore[attr-defined]
            x = to_float(batch.x)
            # The mean of a dynamically binarized pixel is its gray value.
            total += (x > 0.5 if self.binarization == "threshold" else x).double().sum(0)
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
        few = self.datasets[split]
        if shuffle and isinstance(few, FewLabels):
            sampler = LabeledSampler(dataset, few.y >= 0, self.batch_size, size, rank, seed)
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
        if self.trainer is not None and self.trainer.training:
            if self.features is not None:
                return batch
            epoch = self.trainer.current_epoch
            return batch._replace(x=self.preprocess(x, index, self.order_seed, "train", epoch))
        return batch._replace(x=self.evaluation_view(x, index))

    def evaluation_view(self, x: Tensor, index: Tensor) -> Tensor:
        """Preprocess images as for validation and test, with the same result every time."""
        return self.preprocess(x, index, self.split_seed, "evaluation", 0)

    def preprocess(self, x: Tensor, index: Tensor, *keys: int | str) -> Tensor:
        """Scale images of 8 bits to [0, 1], and binarize images as ``binarization`` says.

        Args:
            x: Images, uint8 in [0, 255] or as `load` returns them, (B, C, H, W).
            index: Position of each image in its split, (B,).
            *keys: Further keys of the noise of a dynamic binarization.

        Returns:
            Images, float32, in {0, 1} if binarized, (B, C, H, W).
        """
        x = to_float(x)
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


def size_of_split(split: Split, n: int, val_size: int, test_size: int) -> int:
    """Return the number of images of a split, where validation images are taken from the others.

    Args:
        split: The split.
        n: Number of images for training and validation.
        val_size: Number of validation images among them.
        test_size: Number of test images.

    Raises:
        UserError: If no training images are left.

    Example:
        >>> size_of_split("train", 10, val_size=3, test_size=5)
        7
    """
    if split == "test":
        return test_size
    if split == "val":
        return val_size
    _check_val_size(n, val_size)
    return n - val_size


def _check_val_size(n: int, val_size: int) -> None:
    if not 0 < val_size < n:
        raise UserError(f"data.val_size must be between 1 and {n - 1}, got {val_size}")


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
    _check_val_size(n, val_size)
    order = torch.randperm(n, generator=randomness.generator(seed, "split"))
    return order[val_size:].sort().values, order[:val_size].sort().values
