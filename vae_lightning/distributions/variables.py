"""Variables of a latent vector: which of its dimensions belong together, and what they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What the values of a latent variable are."""

    NUMBER = "number"
    CATEGORY = "category"
    POINT = "point"


@dataclass(frozen=True)
class Variable:
    """A latent variable.

    Attributes:
        kind: A number, a one-hot vector of a category, or a point of another space, such as a
            sphere.
        dimensions: Its dimensions in the latent vector.
    """

    kind: Kind
    dimensions: range

    @property
    def is_movable(self) -> bool:
        """Whether it has values to go through, one after the other."""
        return self.kind is not Kind.POINT


def variables(kind: Kind, latent_dim: int, size: int = 1) -> tuple[Variable, ...]:
    """Return variables of equal sizes that fill a latent vector.

    Args:
        kind: What all of them are.
        latent_dim: Size of the latent vector.
        size: Number of dimensions of each.

    Example:
        >>> [variable.dimensions for variable in variables(Kind.CATEGORY, latent_dim=6, size=3)]
        [range(0, 3), range(3, 6)]
    """
    starts = range(0, latent_dim, size)
    return tuple(Variable(kind, range(first, first + size)) for first in starts)


def joined(parts: Iterable[tuple[Variable, ...]]) -> tuple[Variable, ...]:
    """Return the variables of a latent vector that consists of others, one after the other.

    Example:
        >>> parts = variables(Kind.NUMBER, 2), variables(Kind.CATEGORY, 3, size=3)
        >>> [variable.dimensions for variable in joined(parts)]
        [range(0, 1), range(1, 2), range(2, 5)]
    """
    found: list[Variable] = []
    offset = 0
    for part in parts:
        for variable in part:
            here = variable.dimensions
            shifted = range(here.start + offset, here.stop + offset)
            found.append(Variable(variable.kind, shifted))
        offset = found[-1].dimensions.stop
    return tuple(found)
