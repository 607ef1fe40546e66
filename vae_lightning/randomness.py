"""Random numbers that depend on their purpose and not on when they are drawn.

Noise is a function of (seed, purpose, step, index of the image), computed by a counter-based
generator. There is no state to save or to synchronize: a resumed run draws the same numbers as an
uninterrupted one, the noise of an image does not depend on the batch size or the number of
processes, and callbacks that draw numbers cannot change the training.

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

# Constants of SplitMix64 as signed 64-bit integers, because torch has no uint64 arithmetic.
_GOLDEN = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15


def _mix(x: Tensor) -> Tensor:
    """Apply the mixing function of SplitMix64, a bijection of 64-bit integers, in place."""
    shifted = torch.empty_like(x)
    for bits, factor in (30, _MIX_1), (27, _MIX_2), (31, 1):
        # torch's right shift copies the sign bit; the mask makes it a logical shift.
        torch.bitwise_right_shift(x, bits, out=shifted).bitwise_and_((1 << (64 - bits)) - 1)
        x.bitwise_xor_(shifted)
        if factor != 1:
            x.mul_(factor)
    return x


def derive_seed(*keys: int | str) -> int:
    """Derive a 63-bit seed from keys, such as ``(seed, "shuffle", epoch)``.

    Example:
        >>> derive_seed(0, "shuffle", 1) == derive_seed(0, "shuffle", 1)
        True
        >>> derive_seed(0, "shuffle", 1) == derive_seed(0, "shuffle", 2)
        False
    """
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(index: Tensor, size: int, seed: int | Tensor, first: int = 0) -> Tensor:
    """Return uniform numbers in the open interval (0, 1) that depend on the index of each image.

    Args:
        index: One integer per image, (B,).
        size: Number of values per image.
        seed: A seed (see `derive_seed`), or one per image, (B,).
        first: Number of values per image to skip.

    Returns:
        float32 on the device of ``index``, (B, size).

    Example:
        >>> whole = uniform(torch.tensor([3, 7]), size=5, seed=0)
        >>> part = uniform(torch.tensor([7]), size=2, seed=0, first=3)
        >>> part.equal(whole[1:, 3:])
        True
    """
    image = _mix(index.long() * _GOLDEN + seed)
    counter = torch.arange(first + 1, first + size + 1, device=index.device) * _GOLDEN
    bits = _mix(image[:, None] + counter)
    # 23 bits plus one half are exact in float32, and neither 0 nor 1 can occur.
    bits = bits.bitwise_right_shift_(41).bitwise_and_((1 << 23) - 1)
    return bits.float().add_(0.5).mul_(2.0**-23)


class Noise:
    """Stream of noise for one batch, in which every call draws new numbers.

    Args:
        index: Position of each image in the data set, int64, (B,).
        *keys: Further keys of the noise, for example ``seed, "train", step``.
        batch: Number of the batch, which only `generator` depends on: the noise of an image must
            not depend on the batch that the image happens to be in.

    Example:
        >>> noise = Noise(torch.arange(4), 0, "train", 10)
        >>> noise.normal(16).shape
        torch.Size([4, 16])
        >>> noise.normal(16).equal(noise.restart().normal(16))  # the second draw and the first
        False
    """

    def __init__(self, index: Tensor, *keys: int | str, batch: int = 0) -> None:
        self.index = index
        self.keys = keys
        self.batch = batch
        self.draws = 0

    def restart(self) -> "Noise":
        """Return a stream that draws the same numbers from the beginning."""
        return Noise(self.index, *self.keys, batch=self.batch)

    def generator(self, *keys: int | str) -> torch.Generator:
        """Return a CPU generator for numbers of the whole batch, the same in all processes."""
        return generator(*self.keys, self.batch, *keys)

    def uniform(self, size: int, first: int = 0) -> Tensor:
        """Draw uniform numbers in (0, 1), (B, size), after skipping ``first`` of them."""
        return self._next(size, first, normal=False)

    def normal(self, size: int, first: int = 0) -> Tensor:
        """Draw standard normal numbers, (B, size), after skipping ``first`` of them."""
        return self._next(size, first, normal=True)

    def _next(self, size: int, first: int, normal: bool) -> Tensor:
        self.draws += 1
        return _draw(self.index, derive_seed(*self.keys, self.draws), size, first, normal)


def _draw(index: Tensor, seed: int | Tensor, size: int, first: int, normal: bool) -> Tensor:
    numbers = uniform(index, size, seed, first)
    # The inverse of the normal distribution function in half the time of special.ndtri.
    return numbers.mul_(2).sub_(1).erfinv_().mul_(math.sqrt(2)) if normal else numbers


class BatchedNoise:
    """Streams of noise for several batches, whose draws are computed for all batches at once.

    The numbers are those of one `Noise` per batch. A draw takes about thirty small operations,
    which is a tenth of the time of a training step with a small network.

    Args:
        index: Position of each image of all batches in the data set, int64, (N,).
        size: Number of images per batch; the last one may have fewer.
        keys: Further keys of the noise of each batch.

    Example:
        >>> noise = BatchedNoise(torch.arange(6), 3, [("train", 0), ("train", 1)])
        >>> noise.part(1).normal(2).equal(Noise(torch.arange(3, 6), "train", 1).normal(2))
        True
    """

    def __init__(self, index: Tensor, size: int, keys: Sequence[tuple[int | str, ...]]) -> None:
        self.index, self.size, self.keys = index, size, keys
        self._drawn: dict[tuple[Any, ...], Tensor] = {}

    def part(self, i: int) -> Noise:
        """Return the stream of batch ``i``."""
        return _Part(self, i)

    def draw(self, i: int, draw: int, size: int, first: int, normal: bool) -> Tensor:
        """Return the numbers of one draw of batch ``i``, (B, size)."""
        what = draw, size, first, normal
        if what not in self._drawn:
            seeds = torch.tensor([derive_seed(*keys, draw) for keys in self.keys])
            of_image = seeds.repeat_interleave(self.size)[: len(self.index)].to(self.index.device)
            self._drawn[what] = _draw(self.index, of_image, size, first, normal)
        # Detached, so that autograd does not track in-place changes across batches.
        return self._drawn[what][i * self.size : (i + 1) * self.size].detach()


class _Part(Noise):
    """Stream of one batch of a `BatchedNoise`."""

    def __init__(self, ahead: BatchedNoise, i: int) -> None:
        first = i * ahead.size
        super().__init__(ahead.index[first : first + ahead.size], *ahead.keys[i])
        self.ahead, self.i = ahead, i

    def _next(self, size: int, first: int, normal: bool) -> Tensor:
        self.draws += 1
        return self.ahead.draw(self.i, self.draws, size, first, normal)


def generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator whose seed is derived from keys, see `derive_seed`.

    Example:
        >>> torch.randperm(3, generator=generator(0, "a")).sort().values.tolist()
        [0, 1, 2]
    """
    return torch.Generator().manual_seed(derive_seed(*keys))


def standard_normal(
    n: int,
    size: int,
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw standard normal numbers on the CPU, (n, size), float32, and move them to a device.

    The numbers do not depend on the device, nor on torch's default type.

    Example:
        >>> standard_normal(2, 3, generator(0, "a")).shape
        torch.Size([2, 3])
    """
    return torch.randn(n, size, generator=generator, dtype=torch.float32).to(device)


def state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's global generators: of the CPU and, for a GPU, of the device.

    Example:
        >>> states = state(torch.device("cpu"))
        >>> first = torch.rand(3)
        >>> restore(states, torch.device("cpu"))
        >>> torch.rand(3).equal(first)
        True
    """
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore(states: list[Tensor], device: torch.device) -> None:
    """Restore a `state` of torch's global generators.

    Example:
        >>> restore(state(torch.device("cpu")), torch.device("cpu"))
    """
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


def choose(total: int, n: int, *keys: int | str) -> Tensor:
    """Choose ``n`` of ``total`` positions randomly, each at most once if there are enough.

    Args:
        total: Number of positions.
        n: Number of positions to choose.
        *keys: Keys of the seed, see `derive_seed`.

    Returns:
        Positions, int64, (n,).

    Example:
        >>> choose(3, 3, "images").sort().values.tolist()
        [0, 1, 2]
    """
    source = generator(*keys)
    if n <= total:
        return torch.randperm(total, generator=source)[:n]
    return torch.randint(total, (n,), generator=source)
