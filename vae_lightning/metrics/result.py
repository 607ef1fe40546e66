"""One number of a report."""

from typing import Any, NamedTuple

NATS = "nats per image"


class Result(NamedTuple):
    """A number that ``vae test`` reports.

    Attributes:
        value: The number, or a list of them.
        unit: What it counts.
        error: Standard error over images, where it is a mean over them.
        images: Number of images, where it is a mean over them.
        normalised: Whether it is a mean log-probability, of which bits per dimension make sense.
    """

    value: Any
    unit: str = NATS
    error: float | None = None
    images: int | None = None
    normalised: bool = False
