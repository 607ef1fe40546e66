"""Training data of which few labels are shown, and batches that hold enough of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.data.datasets import Joined
from vae_lightning.data.sampling import ShardSampler
from vae_lightning.errors import UserError

_LEAST_SHARE = 0.25
"""Share of a batch that labeled images have at least."""


class FewLabels(Dataset[Batch]):
    """Data set that shows the labels of some of its images; others have the label -1.

    Args:
        dataset: The images, a data set whose ``__getitems__`` returns batches.
        y: Their labels, int64, (N,), -1 where there is none.
        num_labels: Number of labels to show, as many of each class as possible.
        seed: Seed of the choice.

    Raises:
        UserError: If there are not as many labels, or fewer than classes are asked for.
    """

    def __init__(self, dataset: Any, y: Tensor, num_labels: int, seed: int) -> None:
        self.dataset = dataset
        labeled = choose_labeled(y, num_labels, seed)
        self.y = torch.full_like(y, -1)
        self.y[labeled] = y[labeled]

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch: Batch = self.dataset.__getitems__(indices)
        return batch._replace(y=self.y[batch.indices])

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


def labels_in(dataset: Any) -> Tensor | None:
    """Return the labels of a data set, int64, (N,), None if it has none."""
    if isinstance(dataset, Joined):
        parts = [labels_in(part) for part in dataset.parts]
        found = [part for part in parts if part is not None]
        return torch.cat(found) if len(found) == len(parts) else None
    y: Tensor | None = getattr(getattr(dataset, "images", dataset), "y", None)
    return y


def choose_labeled(y: Tensor, num_labels: int, seed: int) -> Tensor:
    """Choose images whose labels are shown: equally many of each class, where there are enough.

    Args:
        y: Labels, int64, (N,), -1 where there is none.
        num_labels: Number of images to choose.
        seed: Seed of the choice.

    Returns:
        Sorted positions, int64, (num_labels,).

    Raises:
        UserError: If there are not as many labels, or fewer than classes are asked for.

    Example:
        >>> y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
        >>> y[choose_labeled(y, num_labels=5, seed=0)].tolist()
        [0, 0, 1, 1, 2]
    """
    classes = int(y[y >= 0].unique().numel())
    most = int((y >= 0).sum())
    if not classes <= num_labels <= most:
        raise UserError(
            f"data.num_labels must be between {classes}, one for each class, and {most:,}, the "
            f"number of training images with a label, got {num_labels:,}"
        )
    generator = randomness.generator(seed, "labeled")
    order = torch.randperm(len(y), generator=generator)
    order = order[y[order] >= 0]
    # How many images of its class come before each image: the first of each class are chosen,
    # then the second, and so on. Which class the last ones are of is left to chance.
    one_hot = torch.nn.functional.one_hot(y[order])
    rank = one_hot.cumsum(0).gather(1, y[order, None])[:, 0]
    turn = torch.randperm(one_hot.shape[1], generator=generator)[y[order]]
    first = (rank * one_hot.shape[1] + turn).argsort()
    return order[first[:num_labels]].sort().values


class LabeledSampler(ShardSampler):
    """Sampler of training batches with a fixed number of labeled images.

    An epoch shows every image without a label at most once. Labeled images make up their share of
    the data in each batch, but at least a quarter: where they are few, an epoch shows them several
    times, all of them equally often up to one.

    Args:
        dataset: The images.
        labeled: Whether each of them has a label, bool, (N,).
        batch_size: Images per batch and process.
        num_replicas: See `ShardSampler`.
        rank: See `ShardSampler`.
        seed: See `ShardSampler`.

    Raises:
        UserError: If a batch cannot hold both kinds, or an epoch would have no batch.
    """

    def __init__(
        self,
        dataset: Any,
        labeled: Tensor,
        batch_size: int,
        num_replicas: int,
        rank: int,
        seed: int,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)
        self.known, self.others = labeled.nonzero()[:, 0], (~labeled).nonzero()[:, 0]
        share = max(_LEAST_SHARE, len(self.known) / len(labeled))
        self.labeled_per_batch = min(max(1, round(share * batch_size)), batch_size - 1)
        self.others_per_batch = batch_size - self.labeled_per_batch
        if not self.others_per_batch or not self.labeled_per_batch:
            raise UserError(
                "data.batch_size must be at least 2 with data.num_labels: a batch has images with "
                "and without a label"
            )
        self.batches = len(self.others) // (self.others_per_batch * num_replicas)
        if not self.batches:
            raise UserError(
                f"{len(self.others)} training images without a label do not fill one batch of each "
                "process: use a smaller data.batch_size or data.num_labels"
            )

    def __iter__(self) -> Iterator[int]:
        generator = randomness.generator(self.seed, "shuffle", self.epoch)
        processes = self.num_replicas
        others = self.others[torch.randperm(len(self.others), generator=generator)]
        needed = self.batches * self.labeled_per_batch * processes
        passes = -(-needed // len(self.known))
        known = torch.cat(
            [
                self.known[torch.randperm(len(self.known), generator=generator)]
                for _ in range(passes)
            ]
        )
        parts = []
        for images, size in (known, self.labeled_per_batch), (others, self.others_per_batch):
            own = images[: self.batches * size * processes][self.rank :: processes]
            parts.append(own.view(self.batches, size))
        order = torch.cat(parts, 1).flatten()
        epoch, seen = self.done
        left = order[seen if epoch == self.epoch else 0 :]
        return (i for part in left.split(4096) for i in part.tolist())

    def __len__(self) -> int:
        return self.batches * (self.labeled_per_batch + self.others_per_batch)
