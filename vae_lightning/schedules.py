"""Schedules of weights and temperatures: functions of the training step and of nothing else.

A schedule keeps no counter. It cannot advance during validation, and it survives a resume.
"""

import math
from abc import ABC, abstractmethod

from torch import Tensor


class Scheduled:
    """Base of modules that use a schedule.

    Attributes:
        step: Number of batches trained on so far. Training sets it before every batch.
    """

    step: int = 0


class SeesBatches(Scheduled):
    """Base of modules that have to know on which images they are trained.

    Attributes:
        batch_indices: Places in the training split of the images that are trained on, int64, (B,).
            Training sets it for the time in which the terms of a batch are computed; else None.
    """

    batch_indices: Tensor | None = None


class Schedule(ABC):
    """Map the number of batches trained on to a factor."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the factor at batch ``step``, counted from 0 over the whole training."""


class Constant(Schedule):
    """Return 1 at every step.

    Example:
        >>> Constant()(1000)
        1.0
    """

    def __call__(self, step: int) -> float:
        """Return 1."""
        return 1.0


class LinearWarmup(Schedule):
    """Increase linearly from 0 to 1, then stay at 1.

    Args:
        steps: Number of batches until the factor is 1.

    Raises:
        ValueError: If ``steps`` is not positive.

    References:
        Sonderby et al. (2016), Ladder variational autoencoders, https://arxiv.org/abs/1602.02282

    Example:
        >>> LinearWarmup(10)(5)
        0.5
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"LinearWarmup: steps must be at least 1, got {steps}")
        self.steps = steps

    def __call__(self, step: int) -> float:
        """Return min(step / steps, 1)."""
        return min(step / self.steps, 1.0)


class Cyclic(Schedule):
    """Repeat cycles that increase linearly from 0 to 1 and then stay at 1.

    Args:
        period: Number of batches in a cycle.
        rise: Fraction of the cycle in which the factor increases.

    Raises:
        ValueError: If ``period`` is not positive or ``rise`` is outside (0, 1].

    References:
        Fu et al. (2019), Cyclical annealing schedule, https://arxiv.org/abs/1903.10145

    Example:
        >>> schedule = Cyclic(period=8, rise=0.5)
        >>> [schedule(step) for step in range(10)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.0, 0.25]
    """

    def __init__(self, period: int, rise: float = 0.5) -> None:
        if period < 1:
            raise ValueError(f"Cyclic: period must be at least 1, got {period}")
        if not 0 < rise <= 1:
            raise ValueError(f"Cyclic: rise must be in (0, 1], got {rise}")
        self.period = period
        self.rise = rise

    def __call__(self, step: int) -> float:
        """Return the factor at the position of ``step`` in its cycle."""
        return min((step % self.period) / (self.rise * self.period), 1.0)


class ExponentialDecay(Schedule):
    """Decrease exponentially from 1 to a minimum: max(minimum, exp(-rate * step)).

    Args:
        rate: Decay per batch.
        minimum: Smallest factor.

    Raises:
        ValueError: If ``rate`` is negative or ``minimum`` is outside [0, 1].

    References:
        Jang et al. (2017), Categorical reparameterization with Gumbel-softmax,
        https://arxiv.org/abs/1611.01144 (rate between 1e-5 and 1e-4, minimum 0.5)

    Example:
        >>> schedule = ExponentialDecay(rate=math.log(2), minimum=0.1)
        >>> [round(schedule(step), 3) for step in range(5)]
        [1.0, 0.5, 0.25, 0.125, 0.1]
    """

    def __init__(self, rate: float = 3e-5, minimum: float = 0.5) -> None:
        if not rate >= 0:
            raise ValueError(f"ExponentialDecay: rate must not be negative, got {rate}")
        if not 0 <= minimum <= 1:
            raise ValueError(f"ExponentialDecay: minimum must be in [0, 1], got {minimum}")
        self.rate = rate
        self.minimum = minimum

    def __call__(self, step: int) -> float:
        """Return max(minimum, exp(-rate * step))."""
        return max(self.minimum, math.exp(-self.rate * step))
