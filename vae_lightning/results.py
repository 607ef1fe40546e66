"""Numbers that an evaluation reports, and means over images with their standard errors."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_lightning.distributed import total

NATS = "nats per image"
LOSS = "loss per image"


class Result(NamedTuple):
    """A number that ``vae test`` reports.

    Attributes:
        value: The number, or a list of numbers.
        unit: Unit of the number.
        error: Standard error over images, if it is a mean over images.
        images: Number of images, if it is a mean over images.
        normalized: Whether it is a mean log-probability, so that bits per dimension make sense.
    """

    value: Any
    unit: str = NATS
    error: float | None = None
    images: int | None = None
    normalized: bool = False


class Mean:
    """Mean over images of all processes, with its standard error.

    Example:
        >>> mean = Mean()
        >>> mean.update(torch.tensor([1.0, 2.0]))
        >>> mean.update(torch.tensor([3.0]))
        >>> mean.result().value
        2.0
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.per_image = True

    def update(self, values: Tensor, images: int | None = None, independent: bool = True) -> None:
        """Add a batch.

        Args:
            values: One value per image, (B,) or (B, D), or a term of the whole batch, ().
            images: Number of images, for a term of the whole batch.
            independent: Whether the values of a batch are independent, as a standard error needs.
        """
        self.per_image &= independent
        # float64, because sums over 10,000 images lose digits; Apple's GPUs do not have it.
        values = (values.cpu() if values.is_mps else values).double()
        if values.ndim == 0:
            assert images is not None
            self.per_image = False
            values = values.expand(images)
        n = torch.full_like(values[0], len(values))
        sums = torch.stack([n, values.sum(0), values.square().sum(0)])
        self.sums = sums if self.sums is None else self.sums + sums

    def compute(self) -> tuple[Tensor, Tensor, int]:
        """Return the mean and the variance, each () or (D,), and the number of images."""
        assert self.sums is not None
        count, first, second = total(self.sums)
        n = int(count.flatten()[0])
        mean = first / n
        return mean, (second / n - mean.square()).clamp(min=0) * n / max(n - 1, 1), n

    def result(self, unit: str = NATS, normalized: bool = False) -> Result:
        """Return the mean of single values with its standard error."""
        mean, variance, n = self.compute()
        error = (variance / n).sqrt().item() if n > 1 and self.per_image else None
        return Result(mean.item(), unit, error, n, normalized)
