"""Random numbers that are a function of what they are for, not of when they are drawn.

Noise is computed from (seed, purpose, step, index of the image) by a counter-based generator. No
state has to be saved or kept in step: a resumed run draws what the uninterrupted one would have
drawn, an image meets the same noise whatever the batch size and the number of processes, and
nothing that a callback draws can change a training run.

References:
    Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3,
    https://doi.org/10.1145/2063384.2063405
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators (the mixing
    function), https://doi.org/10.1145/2714064.2660195
"""

import hashlib

import torch
from torch import Tensor

# The constants of SplitMix64, as signed 64-bit integers because torch has no arithmetic on uint64.
_GOLDEN = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's ``>>`` copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def derive_seed(*keys: int | str) -> int:
    """One 63-bit seed out of several keys, such as ``(seed, "shuffle", epoch)``."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(index: Tensor, size: int, seed: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), a function of each image's index.

    Args:
        index: One integer per image, (B,).
        size: Numbers per image.
        seed: A seed, see `derive_seed`.

    Returns:
        (B, size), float32, on the device of ``index``.
    """
    image = _mix(index.long() * _GOLDEN + seed)
    counter = torch.arange(1, size + 1, device=index.device) * _GOLDEN
    bits = _mix(image[:, None] + counter)
    # 23 bits and a half: every value is exact in float32, and neither 0 nor 1 can occur.
    return (_shift_right(bits, 41).float() + 0.5) * 2.0**-23


class Noise:
    """A stream of noise for one batch; every call draws fresh numbers.

    Args:
        index: One integer per image, (B,): its place in the data set.
        keys: What else the noise depends on, for example ``(seed, "train", step)``.
    """

    def __init__(self, index: Tensor, *keys: int | str) -> None:
        self.index = index
        self.keys = keys
        self.draws = 0

    def uniform(self, size: int) -> Tensor:
        """Uniform numbers in (0, 1), (B, size)."""
        self.draws += 1
        return uniform(self.index, size, derive_seed(*self.keys, self.draws))

    def normal(self, size: int) -> Tensor:
        """Standard normal numbers, (B, size)."""
        return torch.special.ndtri(self.uniform(size))


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator whose seed is derived from ``keys``; it leaves torch's global one alone."""
    return torch.Generator().manual_seed(derive_seed(*keys))
