"""How the values of a user's data become what a model sees.

Scalings are fitted to the training items only and recorded in the checkpoint.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from vae_lightning import randomness
from vae_lightning.errors import UserError

Scaling = Literal["minmax", "percentile", "standardize", "none"]
Groups = Literal["all", "channel", "column"]
"""Values that share an offset and a scale."""

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.float64]

_HASHED = 256
"""Number of items whose values identify the data."""

_CHUNK_BYTES = 2**26
_MOST_FOR_PERCENTILES = 2**24
"""Largest number of values of which percentiles are computed; of more, a random part."""


class RawItems(Protocol):
    """Items in the units of the data, read as they are needed."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an item, (C, H, W)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    def __len__(self) -> int: ...

    def read(self, indices: npt.NDArray[np.int64]) -> Array:
        """Return items, (B, C, H, W)."""

    def name(self, index: int) -> str:
        """Return the name of an item, for messages."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of training items, one number for each group of values.

    Attributes:
        low: Smallest values, (G,).
        high: Largest values, (G,).
        mean: Means, (G,).
        std: Standard deviations, (G,).
        binary: The value that 1 of binary values has, 1 or 255; 0 if they are not binary.
    """

    low: Numbers
    high: Numbers
    mean: Numbers
    std: Numbers
    binary: int


def chunks(items: RawItems, indices: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield indices in parts whose items fit into little memory."""
    size = max(1, int(np.prod(items.shape)) * 8)
    count = max(1, _CHUNK_BYTES // size)
    for start in range(0, len(indices), count):
        yield indices[start : start + count]


def read_finite(items: RawItems, indices: npt.NDArray[np.int64]) -> Array:
    """Read items.

    Raises:
        UserError: If a value is NaN or infinite.
    """
    values = items.read(indices)
    if values.dtype.kind == "f":
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if wrong.any():
            name = items.name(int(indices[wrong.argmax()]))
            raise UserError(
                f"{name} has values that are NaN or infinite: replace them, or remove the item"
            )
    return values


def statistics(items: RawItems, indices: npt.NDArray[np.int64], groups: Groups) -> Statistics:
    """Compute the statistics of items in one pass, in float64.

    Means and variances of the parts are merged as in Chan et al. (1983), Algorithms for computing
    the sample variance, https://doi.org/10.2307/2683386.

    Args:
        items: The items.
        indices: Those to use, (N,), at least one.
        groups: Values that share a number.

    Raises:
        UserError: If a value is NaN or infinite.
    """
    count, tops = 0, [1, 255]
    low = high = mean = squares = np.zeros(0)
    for part in chunks(items, indices):
        rows = _by_group(read_finite(items, part), groups)
        tops = [top for top in tops if ((rows == 0) | (rows == top)).all()]
        rows = rows.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # said by `coefficients`
            n, part_mean = rows.shape[1], rows.mean(1)
            part_squares = np.square(rows - part_mean[:, None]).sum(1)
        if not count:
            low, high, mean, squares = rows.min(1), rows.max(1), part_mean, part_squares
        else:
            low, high = np.minimum(low, rows.min(1)), np.maximum(high, rows.max(1))
            delta = part_mean - mean
            mean = mean + delta * n / (count + n)
            squares = squares + part_squares + np.square(delta) * count * n / (count + n)
        count += n
    return Statistics(low, high, mean, np.sqrt(squares / count), next(iter(tops), 0))


def percentiles(
    items: RawItems,
    indices: npt.NDArray[np.int64],
    groups: Groups,
    levels: Sequence[float],
) -> Numbers:
    """Return percentiles of items, (levels, G); of very many values, those of a random part."""
    most = max(1, _MOST_FOR_PERCENTILES // int(np.prod(items.shape)))
    if len(indices) > most:
        chosen = randomness.choose(len(indices), most, 0, "percentiles").sort().values.numpy()
        indices = indices[chosen]
    rows = [_by_group(read_finite(items, part), groups) for part in chunks(items, indices)]
    return np.percentile(np.concatenate(rows, 1).astype(np.float64), levels, axis=1)


def fingerprint(items: RawItems, *more: bytes) -> str:
    """Return a hash of the shapes and of the values of some items, by which data are known again.

    Args:
        items: The items.
        *more: What else belongs to the data.
    """
    hashed = hashlib.sha256(repr((len(items), items.shape, items.dtype.str)).encode())
    some = np.unique(np.linspace(0, len(items) - 1, _HASHED).astype(np.int64))
    for part in chunks(items, some):
        hashed.update(np.ascontiguousarray(items.read(part)).tobytes())
    for content in more:
        hashed.update(content)
    return hashed.hexdigest()


def _by_group(values: Array, groups: Groups) -> Array:
    """Return values (B, C, H, W) with one row for each group, (G, n)."""
    if groups == "all":
        return values.reshape(1, -1)
    axis = 1 if groups == "channel" else 3
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def coefficients(
    scaling: Scaling,
    found: Statistics,
    dtype: np.dtype[Any],
    limits: Numbers | None = None,
) -> tuple[Numbers, Numbers]:
    """Return offset and scale, (G,) each, such that a model sees ``(value - offset) / scale``.

    Values of 8 bits and Booleans are scaled by the range of their type, as images usually are.
    Where all values are the same, up to rounding, the scale is 1.

    Args:
        scaling: Kind of scaling.
        found: Statistics of the training items.
        dtype: Type of the values.
        limits: The percentiles that become 0 and 1, (2, G), for ``percentile``.

    Raises:
        UserError: If the values are too large.
    """
    zero, one = np.zeros_like(found.low), np.ones_like(found.low)
    if scaling == "none":
        return zero, one
    if scaling == "standardize":
        return found.mean, _positive(found.std, found)
    if scaling == "percentile":
        assert limits is not None
        low, high = limits
    elif dtype == np.uint8 or dtype == np.bool_:
        return zero, one * (255 if dtype == np.uint8 and found.binary != 1 else 1)
    else:
        low, high = found.low, found.high
    with np.errstate(over="ignore"):
        return low, _positive(high - low, found)


def _positive(scale: Numbers, found: Statistics) -> Numbers:
    """Replace the scale of values that are the same up to rounding by 1."""
    if not np.isfinite(scale).all():
        raise UserError(
            f"the data have values from {found.low.min():.3g} to {found.high.max():.3g}, which are "
            "too large to be scaled: divide them by a constant"
        )
    noise = 10 * np.finfo(np.float64).eps * np.maximum(np.abs(found.low), np.abs(found.high))
    return np.where(scale > noise, scale, 1.0)
