"""Which images each process sees, in which order, and where a resumed epoch continues."""

import itertools
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.training import compat


class ShardSampler(DistributedSampler[Any]):
    """Sampler that gives every ``num_replicas``-th image to each process, without padding.

    For training, the order is a function of the seed and the epoch, and images that do not divide
    evenly are left out of the epoch, because all processes must take the same number of steps. For
    evaluation, it is a function of the seed, and every image is seen exactly once (the base class
    repeats images instead).

    Args:
        dataset: A sized data set.
        num_replicas: Number of processes.
        rank: Index of this process.
        shuffle: Whether this is for training.
        seed: Seed of the order.

    Attributes:
        done: Interrupted epoch and the number of its images that this process has seen. They are
            skipped when the epoch is resumed.
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
            # Data are often sorted by class: the first images, which figures show, must not be.
            generator = randomness.generator(self.seed, "evaluation order")
            order = torch.randperm(self.images, generator=generator)
        epoch, seen = self.done
        own = order[self.rank : self.images : self.num_replicas]
        left = own[seen if epoch == self.epoch else 0 :]
        # In parts, because a list of all indices would be many objects in a process that forks.
        return (i for part in left.split(4096) for i in part.tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self.images, self.num_replicas))


def fitting_batch_size(images: int, updates: int = 50, most: int = 128) -> int:
    """Return a batch size with which an epoch has enough updates.

    Args:
        images: Number of training images.
        updates: Wanted number of updates.
        most: Largest batch size.

    Returns:
        A power of two from 8 to ``most``.

    Example:
        >>> fitting_batch_size(2000)
        32
    """
    fitting = max(1, images // updates)
    return min(most, max(8, 2 ** (fitting.bit_length() - 1)))


def evaluation_batch_size(images: int, processes: int, most: int) -> int:
    """Return a batch size with which all processes get the same number of batches.

    With sharded weights, processes communicate in every forward pass: a process with one more batch
    would wait forever. Results do not depend on the batch size.

    Args:
        images: Total number of images, at least one per process. Some processes get one more than
            others.
        processes: Number of processes.
        most: The requested batch size. It is exceeded only if no smaller one works.

    Returns:
        The largest suitable batch size up to ``most``, else the smallest above it.

    Example:
        >>> evaluation_batch_size(images=21, processes=2, most=5)  # 3 batches of 11 and 10 images
        4
    """
    share, more = divmod(images, processes)
    if not more:
        return most
    # share and share + 1 images make equally many batches unless share is a multiple of the size.
    sizes = itertools.chain(range(most, 1, -1), itertools.count(most + 1))
    return next(size for size in sizes if share % size)


class TrainLoader(DataLoader[Batch]):
    """Training data loader that can resume in the middle of an epoch.

    Args:
        trainer: The trainer whose progress is saved, or None without one.
        **kwargs: See `torch.utils.data.DataLoader`. The sampler is a `ShardSampler`.
    """

    def __init__(self, trainer: pl.Trainer | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trainer = trainer

    def state_dict(self) -> dict[str, int]:
        """Return the epoch of the next batch and how many of its images each process has seen."""
        assert self.trainer is not None
        assert self.batch_size is not None
        epoch, batches = compat.next_batch(self.trainer)
        return {"epoch": epoch, "images": batches * self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position that `state_dict` returned. Lightning calls this on resume."""
        if not isinstance(self.sampler, ShardSampler):  # replaced by Lightning for overfit_batches
            return
        self.sampler.set_epoch(state["epoch"])
        self.sampler.done = (state["epoch"], state["images"])
