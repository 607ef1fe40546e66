"""Vector quantisation: nearest code, straight-through gradient, and how the codebook learns.

References:
    van den Oord et al. (2017), Neural discrete representation learning,
    https://arxiv.org/abs/1711.00937 (the loss: equation 3; the moving average: appendix A.1)
"""

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_lightning import randomness
from vae_lightning.distributed import gather_rows, several_processes, total


class Quantized(NamedTuple):
    """What a quantiser returns for a map of vectors (B, D, h, w).

    Attributes:
        z_q: The nearest codes, (B, D, h, w); gradients pass straight through to the input.
        indices: Their places in the codebook, int64, (B, h, w).
        codebook: ||sg[z_e] - e||^2 summed over the map, (B,): pulls codes to the encoder.
        commitment: ||z_e - sg[e]||^2 summed over the map, (B,): pulls the encoder to its codes.
    """

    z_q: Tensor
    indices: Tensor
    codebook: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """A codebook of vectors, each input replaced by the nearest.

    Everything it keeps is a parameter, without gradient where it is a statistic: parameters are in
    the checkpoint, and data-parallel training does not broadcast them at every step as it would
    buffers. With several processes they see the vectors of all of them, so that every process
    holds the same codebook.

    Args:
        features: Size D of a code.
        codes: Number K of codes.
        learning: ``gradient`` (the codebook term of the loss) or ``ema`` (each code is the moving
            average of the vectors assigned to it; the codebook term is then zero).
        start: Where codes start: ``kmeans`` (on the first batch), ``data`` (random vectors of the
            first batch) or ``uniform`` (in [-1/K, 1/K], no look at the data).
        decay: Of the moving averages, per batch.
        revive_below: A code whose moving average of assignments falls below this share of an equal
            share is moved to a random vector of the batch; 0 never does.
        seed: Of the start and of the choice of vectors.

    Raises:
        ValueError: If a number is out of its range.
    """

    step: nn.Parameter

    def __init__(
        self,
        features: int,
        codes: int = 512,
        learning: Literal["gradient", "ema"] = "ema",
        start: Literal["kmeans", "data", "uniform"] = "kmeans",
        decay: float = 0.99,
        revive_below: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if features < 1 or codes < 2:
            raise ValueError(
                f"VectorQuantizer: features must be at least 1 and codes at least 2, "
                f"got {features} and {codes}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"VectorQuantizer: decay must be in [0, 1), got {decay}")
        if not 0 <= revive_below < 1:
            raise ValueError(f"VectorQuantizer: revive_below must be in [0, 1), got {revive_below}")
        self.features = features
        self.codes = codes
        self.learning = learning
        self.start = start
        self.decay = decay
        self.revive_below = revive_below
        self.seed = seed
        codebook = torch.empty(codes, features).uniform_(-1 / codes, 1 / codes)
        self.codebook = nn.Parameter(codebook, requires_grad=learning == "gradient")
        # Moving averages: assignments per code as a share of an equal share (1 = used as often as
        # the average code), and the sums of the vectors in the same unit.
        self.usage = nn.Parameter(torch.ones(codes), requires_grad=False)
        self.sums = nn.Parameter(codebook.clone(), requires_grad=False)
        # Batches trained on; part of the state because the start happens only once.
        self.step = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantise a map of vectors; in training mode the codebook also learns from it.

        Args:
            z_e: Output of the encoder, (B, D, h, w).

        Returns:
            See `Quantized`; distances are computed in float32 whatever the precision around them.
        """
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            vectors = z_e.movedim(1, -1)  # (B, h, w, D)
            if self.training:
                self._start(vectors.detach())
            indices = self.nearest(vectors)
            # Before the codebook moves: the loss is about the codes that were chosen.
            e = self.lookup(indices)
            commitment = (z_e - e.detach()).square().flatten(1).sum(1)
            codebook = (z_e.detach() - e).square().flatten(1).sum(1)
            if self.training:
                self._learn(vectors.detach(), indices)
        return Quantized(z_e + (e - z_e).detach(), indices, codebook, commitment)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code of each vector, (..., D) -> (...), int64."""
        flat = vectors.detach().float().flatten(0, -2)
        # ||v||^2 is the same for all codes: it is left out of ||v - e||^2.
        codes = self.codebook.detach().float()
        distances = torch.addmm(codes.square().sum(1), flat, codes.t(), alpha=-2)
        return distances.argmin(1).view(vectors.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes at ``indices``, (B, h, w) -> (B, D, h, w); gradients reach the codebook."""
        return nn.functional.embedding(indices, self.codebook.float()).movedim(-1, 1)

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        if self.start == "uniform" or self.step > 0:
            return
        vectors = gather_rows(vectors).flatten(0, -2)
        codes = self._choose(vectors, self.codes)
        if self.start == "kmeans":
            codes = kmeans(vectors, codes)
        if several_processes():
            dist.broadcast(codes, src=0)  # sums on a GPU differ in the last digits
        self.codebook.copy_(codes)
        self.sums.copy_(codes)

    @torch.no_grad()
    def _learn(self, vectors: Tensor, indices: Tensor) -> None:
        flat = vectors.flatten(0, -2)
        counts, sums = _assigned(flat, indices.flatten(), self.codes)
        counts, sums = total(counts), total(sums)
        equal_share = counts.sum() / self.codes
        self.usage.lerp_((counts / equal_share).to(self.usage.dtype), 1 - self.decay)
        if self.learning == "ema":
            self.sums.lerp_((sums / equal_share).to(self.sums.dtype), 1 - self.decay)
            # The floor only guards against 0 / 0 where revival is off.
            self.codebook.copy_(self.sums / self.usage.clamp(min=1e-6)[:, None])
        self.step.add_(1)
        # Averages that start at 1 need some batches before they mean anything.
        dead = self.usage < self.revive_below
        if self.revive_below and dead.any():
            flat = gather_rows(vectors).flatten(0, -2)
            self.codebook[dead] = self._choose(flat, int(dead.sum())).to(self.codebook.dtype)
            self.usage[dead] = 1.0
            self.sums[dead] = self.codebook[dead]

    def _choose(self, vectors: Tensor, n: int) -> Tensor:
        """``n`` of the vectors at random; each at most once if there are enough of them."""
        generator = randomness.generator(self.seed, "codes", int(self.step))
        if n <= len(vectors):
            chosen = torch.randperm(len(vectors), generator=generator)[:n]
        else:
            chosen = torch.randint(len(vectors), (n,), generator=generator)
        return vectors[chosen.to(vectors.device)]


def kmeans(vectors: Tensor, centres: Tensor, iterations: int = 10) -> Tensor:
    """Lloyd's algorithm; a centre without vectors stays where it is.

    Args:
        vectors: (N, D).
        centres: Where to begin, (K, D).
        iterations: Rounds of assigning and averaging.

    Returns:
        (K, D).
    """
    for _ in range(iterations):
        counts, sums = _assigned(vectors, torch.cdist(vectors, centres).argmin(1), len(centres))
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
    return centres


def _assigned(vectors: Tensor, indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Number (K,) and sum (K, D) of the vectors of each code."""
    counts = torch.bincount(indices, minlength=codes).to(vectors.dtype)
    sums = vectors.new_zeros(codes, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums
