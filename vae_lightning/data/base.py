"""What every data module has in common: splits, pixel treatment, sharding, in-memory batches."""

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vae_lightning import randomness
from vae_lightning.checkpoint import remember_arguments
from vae_lightning.data.batch import Batch
from vae_lightning.errors import UserError
from vae_lightning.nets import ImageShape

Split = Literal["train", "val", "test"]
Pixels = Literal["grey", "threshold", "dynamic"]


class Images(NamedTuple):
    """Images held in memory.

    Attributes:
        x: uint8 in [0, 255], (N, C, H, W).
        y: Classes, int64, (N,); None without labels.
    """

    x: Tensor
    y: Tensor | None

    def take(self, indices: Tensor) -> "Images":
        """The images at ``indices``, (n,)."""
        return Images(self.x[indices], None if self.y is None else self.y[indices])


class InMemory(Dataset[Batch]):
    """A data set whose batches are cut out of one tensor at once, with no work per image.

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
    """Two data sets of whole batches, one after the other; the second one's indices follow on.

    Args:
        first: Its images come first.
        second: These follow.
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
    """The collate function of data sets that return whole batches."""
    return batch


class ShardSampler(DistributedSampler[Any]):
    """Every ``num_replicas``-th image for each process, without padding.

    In training, the order is a function of (seed, epoch), and the few images that do not divide
    evenly are left out of the epoch, because all processes must take as many steps. In evaluation
    every image is seen exactly once. (torch's own sampler repeats images to fill up.)

    Args:
        dataset: A sized data set.
        num_replicas: Number of processes.
        rank: Number of this process.
        shuffle: Whether this is for training.
        seed: Of the order.

    Attributes:
        done: Epoch that was interrupted, and how many of its images this process has seen: they
            are left out when that epoch is begun again.
    """

    def __init__(
        self, dataset: Dataset[Any], num_replicas: int, rank: int, shuffle: bool, seed: int = 0
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=shuffle, seed=seed)
        self.done = (0, 0)
        self.images = len(dataset)  # type: ignore[arg-type]
        if shuffle:
            self.images -= self.images % num_replicas

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            generator = randomness.generator(self.seed, "shuffle", self.epoch)
            order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        else:
            order = torch.arange(self.images)
        epoch, seen = self.done
        own = order[self.rank : self.images : self.num_replicas]
        left = own[seen if epoch == self.epoch else 0 :]
        # A list of all of them would be many objects, in a process that forks.
        return (i for part in left.split(4096) for i in part.tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self.images, self.num_replicas))


def evaluation_batch_size(images: int, processes: int, most: int) -> int:
    """The batch size with which all processes get the same number of batches.

    Where weights are sharded, processes meet in every forward pass: one with a batch more would
    wait for the others for ever. What is measured does not depend on the batch size.

    Args:
        images: Images of all processes, of which some get one more than others; at least one each.
        processes: Number of processes.
        most: The size that was asked for; it is exceeded only where it is tiny and no smaller
            one will do.
    """
    share, more = divmod(images, processes)
    if not more:
        return most
    # share and share + 1 images make as many batches unless the first make whole ones.
    sizes = itertools.chain(range(most, 1, -1), itertools.count(most + 1))
    return next(size for size in sizes if share % size)


class TrainLoader(DataLoader[Batch]):
    """Batches for training, which go on in the middle of an epoch where a checkpoint was written.

    Args:
        trainer: Knows how far the training is; None: there is nothing to go on with.
        **kwargs: See `torch.utils.data.DataLoader`; the sampler is a `ShardSampler`.
    """

    def __init__(self, trainer: pl.Trainer | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trainer = trainer

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is: epoch, and images of it that each process has seen."""
        assert self.trainer is not None
        assert self.batch_size is not None
        loop = self.trainer.fit_loop
        begun, batches = loop.epoch_progress.current.ready, loop.epoch_loop.batch_progress
        if batches.is_last_batch:
            return {"epoch": begun, "images": 0}
        return {"epoch": begun - 1, "images": batches.current.ready * self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin there; called by Lightning."""
        if not isinstance(self.sampler, ShardSampler):  # Lightning's, for overfit_batches
            return
        self.sampler.set_epoch(state["epoch"])
        self.sampler.done = (state["epoch"], state["images"])


class ImageData(pl.LightningDataModule, ABC):
    """Images for training, validation and test. Families implement the abstract methods.

    Args:
        batch_size: Images per batch and process. Several processes may get slightly smaller ones in
            evaluation, see `evaluation_batch_size`.
        pixels: ``grey`` (values in [0, 1]), ``threshold`` (1 above one half, else 0), or
            ``dynamic``: 1 with the probability that the grey value says, drawn anew each epoch in
            training and once and for all in validation and test.
        split_seed: Of the split between training and validation, and of what ``dynamic`` draws
            in validation and test. Does not follow ``seed_everything``: runs stay comparable.
        train_on_val: Train on the validation images too, as papers do that fix the length of the
            training beforehand. Validation then measures no generalisation: keep the last weights
            (``checkpoint.monitor: null``), not those that are best on it.
        predict_split: What ``vae predict`` runs on.
        num_workers: Processes that load images; 0 is fastest for images held in memory.

    Raises:
        ValueError: If ``batch_size`` is not positive or ``num_workers`` is negative.
    """

    class_names: Sequence[str] | None = None

    CHANGEABLE: ClassVar[frozenset[str]] = frozenset(
        {"root", "num_workers", "memory_limit", "predict_split"}
    )
    """Arguments that change neither the images nor their order: a resumed training may have others.
    """

    def __init__(
        self,
        batch_size: int = 128,
        pixels: Pixels = "grey",
        split_seed: int = 0,
        train_on_val: bool = False,
        predict_split: Split = "test",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must not be negative, got {num_workers}")
        remember_arguments(self)
        self.batch_size = batch_size
        self.pixels = pixels
        self.split_seed = split_seed
        self.train_on_val = train_on_val
        self.predict_split = predict_split
        self.num_workers = num_workers
        self.order_seed = torch.initial_seed()
        self.datasets: dict[Split, Dataset[Batch]] = {}
        if not num_workers:
            # Lightning recommends worker processes, which only slow in-memory data down.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")

    @property
    @abstractmethod
    def image_shape(self) -> ImageShape:
        """(C, H, W)."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""

    @property
    def is_binary(self) -> bool:
        """Whether pixels are 0 or 1."""
        return self.pixels != "grey"

    @property
    def updates(self) -> int:
        """Batches that the model takes as one and trains on one after the other."""
        model = None if self.trainer is None else self.trainer.lightning_module
        return getattr(model, "updates", 1)

    @abstractmethod
    def load(self, split: Split) -> Dataset[Batch]:
        """The images of a split; its ``__getitems__`` returns a `Batch` of uint8 images."""

    def splits_of(self, stage: str) -> tuple[Split, ...]:
        """The splits that a stage needs."""
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": (self.predict_split,),
        }
        return needed[stage]

    # Lightning

    def setup(self, stage: str) -> None:
        """Load the splits that a stage needs."""
        for split in self.splits_of(stage):
            if split not in self.datasets:
                dataset = self.load(split)
                if split == "train" and self.train_on_val:
                    dataset = Joined(dataset, self.load("val"))
                if not len(dataset):  # type: ignore[arg-type]
                    raise UserError(f"the {split} split of {type(self).__name__} has no images")
                self.datasets[split] = dataset
        if self.trainer is not None:
            # Processes that were seeded differently would shuffle differently.
            self.order_seed = self.trainer.strategy.broadcast(self.order_seed)

    def mean_image(self) -> Tensor:
        """Mean of the training images, after what ``pixels`` says, (C, H, W)."""
        dataset = self.datasets["train"]
        total, n = torch.zeros(self.image_shape, dtype=torch.float64), len(dataset)  # type: ignore[arg-type]
        for start in range(0, n, 1000):
            batch: Batch = dataset.__getitems__(range(start, min(start + 1000, n)))  # type: ignore[attr-defined]
            # A grey value is the mean of its own binarisation.
            x = batch.x > 127 if self.pixels == "threshold" else batch.x / 255
            total += x.double().sum(0)
        return (total / n).float()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, shuffled."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation split, in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches of the split named ``predict_split``, in order."""
        return self._loader(self.predict_split)

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        dataset = self.datasets[split]
        size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = ShardSampler(dataset, size, rank, shuffle, self.order_seed)
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
            # A loader takes a seed for its workers: from this generator, not from torch's own.
            "generator": randomness.generator(self.order_seed, "workers"),
        }
        if split == "train" and shuffle:
            if self.trainer:
                # Workers of a resumed training begin before Lightning says which epoch it is.
                progress: Any = self.trainer.fit_loop.epoch_progress.current
                sampler.set_epoch(progress.processed)
            batch_size = self.batch_size * self.updates
            return TrainLoader(self.trainer, batch_size=batch_size, **kwargs)
        batch_size = evaluation_batch_size(len(dataset), size, self.batch_size)  # type: ignore[arg-type]
        return DataLoader(batch_size=batch_size, **kwargs)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Grey values in [0, 255] to what ``pixels`` says, on the device."""
        x, index = batch.x, batch.indices
        if self.trainer is not None and self.trainer.training:
            epoch = self.trainer.current_epoch
            return batch._replace(x=self.treat(x, index, self.order_seed, "train", epoch))
        return batch._replace(x=self.evaluation_view(x, index))

    def evaluation_view(self, x: Tensor, index: Tensor) -> Tensor:
        """Images as validation and test see them, always the same: see `treat`."""
        return self.treat(x, index, self.split_seed, "evaluation", 0)

    def treat(self, x: Tensor, index: Tensor, *keys: int | str) -> Tensor:
        """Grey values in [0, 255] to what ``pixels`` says.

        Args:
            x: uint8 images, (B, C, H, W).
            index: Place of each image in its split, (B,).
            keys: What else a random binarisation depends on.

        Returns:
            float32 in [0, 1], or {0, 1} if binarised, (B, C, H, W).
        """
        x = x.float() / 255
        if self.pixels == "threshold":
            return (x > 0.5).float()
        if self.pixels == "dynamic":
            noise = randomness.Noise(index, "binarise", *keys)
            return (noise.uniform(x[0].numel()).view_as(x) < x).float()
        return x

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order of the images, so that a resumed run goes on with it."""
        return {"order_seed": self.order_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the seed of the order from a checkpoint.

        Raises:
            UserError: If there is none.
        """
        seed = state_dict.get("order_seed") if isinstance(state_dict, dict) else None
        if not isinstance(seed, int):
            raise UserError(
                f"the checkpoint is damaged: what it holds of {type(self).__name__} has no "
                "'order_seed'; use another one"
            )
        self.order_seed = seed


def split_indices(n: int, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``n`` images by chance: indices for training and for validation, each in order.

    Raises:
        UserError: If ``val_size`` leaves nothing for one of the two.
    """
    if not 0 < val_size < n:
        raise UserError(f"data.val_size must be between 1 and {n - 1}, got {val_size}")
    order = torch.randperm(n, generator=randomness.generator(seed, "split"))
    return order[val_size:].sort().values, order[:val_size].sort().values
