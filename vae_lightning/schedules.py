"""Schedules of a weight: functions of the training step and of nothing else.

Because a schedule keeps no counter, it cannot tick during validation and it survives a resume.
"""

from abc import ABC, abstractmethod


class Schedule(ABC):
    """Maps the number of batches trained on to a factor of a weight."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The factor at batch number ``step``, counted from 0 over the whole training."""


class Constant(Schedule):
    """Always 1."""

    def __call__(self, step: int) -> float:
        """1 at every step."""
        return 1.0


class LinearWarmup(Schedule):
    """From 0 to 1 in a straight line, then 1.

    Args:
        steps: Batches until the factor is 1.

    Raises:
        ValueError: If ``steps`` is not positive.

    References:
        Sonderby et al. (2016), Ladder variational autoencoders, https://arxiv.org/abs/1602.02282
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"LinearWarmup: steps must be at least 1, got {steps}")
        self.steps = steps

    def __call__(self, step: int) -> float:
        """min(step / steps, 1)."""
        return min(step / self.steps, 1.0)


class Cyclic(Schedule):
    """Repeats: from 0 to 1 in a straight line, then 1 until the cycle ends.

    Args:
        period: Batches in a cycle.
        rise: Share of the cycle in which the factor rises.

    Raises:
        ValueError: If ``period`` is not positive or ``rise`` is outside (0, 1].

    References:
        Fu et al. (2019), Cyclical annealing schedule, https://arxiv.org/abs/1903.10145
    """

    def __init__(self, period: int, rise: float = 0.5) -> None:
        if period < 1:
            raise ValueError(f"Cyclic: period must be at least 1, got {period}")
        if not 0 < rise <= 1:
            raise ValueError(f"Cyclic: rise must be in (0, 1], got {rise}")
        self.period = period
        self.rise = rise

    def __call__(self, step: int) -> float:
        """The factor at ``step``, by its place in the cycle."""
        return min((step % self.period) / (self.rise * self.period), 1.0)
