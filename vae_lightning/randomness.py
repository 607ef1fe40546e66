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
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# The constants of SplitMix64, as signed 64-bit integers because torch has no arithmetic on uint64.
_GOLDEN = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15


def _mix(x: Tensor) -> Tensor:
    """The mixing function of SplitMix64, in place: a bijection whose output looks random."""
    shifted = torch.empty_like(x)
    for bits, factor in (30, _MIX_1), (27, _MIX_2), (31, 1):
        # torch's shift copies the sign bit; the mask makes it a logical one.
        torch.bitwise_right_shift(x, bits, out=shifted).bitwise_and_((1 << (64 - bits)) - 1)
        x.bitwise_xor_(shifted)
        if factor != 1:
            x.mul_(factor)
    return x


def derive_seed(*keys: int | str) -> int:
    """One 63-bit seed out of several keys, such as ``(seed, "shuffle", epoch)``."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(index: Tensor, size: int, seed: int | Tensor, first: int = 0) -> Tensor:
    """Uniform numbers in the open interval (0, 1), a function of each image's index.

    Args:
        index: One integer per image, (B,).
        size: Numbers per image.
        seed: A seed, see `derive_seed`, or one for each image, (B,).
        first: Numbers to skip: those from ``first`` on of a longer row.

    Returns:
        (B, size), float32, on the device of ``index``.
    """
    image = _mix(index.long() * _GOLDEN + seed)
    counter = torch.arange(first + 1, first + size + 1, device=index.device) * _GOLDEN
    bits = _mix(image[:, None] + counter)
    # 23 bits and a half: every value is exact in float32, and neither 0 nor 1 can occur.
    bits = bits.bitwise_right_shift_(41).bitwise_and_((1 << 23) - 1)
    return bits.float().add_(0.5).mul_(2.0**-23)


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

    def uniform(self, size: int, first: int = 0) -> Tensor:
        """Uniform numbers in (0, 1), (B, size), of which ``first`` are skipped before."""
        return self._next(size, first, normal=False)

    def normal(self, size: int, first: int = 0) -> Tensor:
        """Standard normal numbers, (B, size), of which ``first`` are skipped before."""
        return self._next(size, first, normal=True)

    def _next(self, size: int, first: int, normal: bool) -> Tensor:
        self.draws += 1
        return _draw(self.index, derive_seed(*self.keys, self.draws), size, first, normal)


def _draw(index: Tensor, seed: int | Tensor, size: int, first: int, normal: bool) -> Tensor:
    numbers = uniform(index, size, seed, first)
    # The inverse of the normal distribution function, at half the cost of special.ndtri.
    return numbers.mul_(2).sub_(1).erfinv_().mul_(math.sqrt(2)) if normal else numbers


class NoiseAhead:
    """Streams of several batches; what one of them draws is computed for all of them at once.

    The numbers are those of a `Noise` for each batch. It takes some thirty operations to draw
    them, on few numbers, which costs a small network a tenth of its time.

    Args:
        index: One integer per image of all batches, (N,).
        size: Images of a batch; the last one may have fewer.
        keys: What else the noise of each batch depends on.
    """

    def __init__(self, index: Tensor, size: int, keys: Sequence[tuple[int | str, ...]]) -> None:
        self.index, self.size, self.keys = index, size, keys
        self._drawn: dict[tuple[Any, ...], Tensor] = {}

    def part(self, i: int) -> Noise:
        """The stream of batch ``i``, to be drawn from once."""
        return _Part(self, i)

    def draw(self, i: int, draw: int, size: int, first: int, normal: bool) -> Tensor:
        """The numbers of one draw of batch ``i``, (B, size)."""
        what = draw, size, first, normal
        if what not in self._drawn:
            seeds = torch.tensor([derive_seed(*keys, draw) for keys in self.keys])
            of_image = seeds.repeat_interleave(self.size)[: len(self.index)].to(self.index.device)
            self._drawn[what] = _draw(self.index, of_image, size, first, normal)
        # Detached: autograd would carry what somebody does to them in place to the other batches.
        return self._drawn[what][i * self.size : (i + 1) * self.size].detach()


class _Part(Noise):
    """One of the streams of a `NoiseAhead`."""

    def __init__(self, ahead: NoiseAhead, i: int) -> None:
        first = i * ahead.size
        super().__init__(ahead.index[first : first + ahead.size], *ahead.keys[i])
        self.ahead, self.i = ahead, i

    def _next(self, size: int, first: int, normal: bool) -> Tensor:
        self.draws += 1
        return self.ahead.draw(self.i, self.draws, size, first, normal)


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator whose seed is derived from ``keys``; it leaves torch's global one alone."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def state(device: torch.device) -> list[Tensor]:
    """The state of torch's own generators: of the CPU and, if it is used, of a GPU."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore(states: list[Tensor], device: torch.device) -> None:
    """Put torch's own generators back into a `state`."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)
