"""Vector quantization: nearest code, straight-through gradient, and codebook updates.

References:
    van den Oord et al. (2017), Neural discrete representation learning,
    https://arxiv.org/abs/1711.00937 (the loss: equation 3; the moving average: appendix A.1)
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_lightning import randomness
from vae_lightning.distributed import gather_rows, several_processes, total


class Quantized(NamedTuple):
    """Result of quantizing a map of vectors (B, D, h, w).

    Attributes:
        z_q: Nearest codes, (B, D, h, w). Gradients pass straight through to the input.
        indices: Indices of the nearest codes, int64, (B, h, w).
        codebook: Codebook loss ||sg[z_e] - e||^2 summed over the map, (B,), which moves the codes
            toward the encoder's output.
        commitment: Commitment loss ||z_e - sg[e]||^2 summed over the map, (B,), which moves the
            encoder's output toward the codes.
    """

    z_q: Tensor
    indices: Tensor
    codebook: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """Replace each vector by the nearest entry of a learned codebook.

    The codebook and its statistics stay in float32 when a model is converted to another type. All
    state is stored in parameters, with ``requires_grad=False`` for statistics: unlike buffers,
    parameters are not broadcast at every step of data-parallel training. With several processes the
    statistics are those of the vectors of all processes, so all have the same codebook.

    Args:
        embedding_dim: Size D of a code.
        codebook_size: Number K of codes.
        codebook_update: ``gradient`` (by the codebook loss) or ``ema`` (each code is the moving
            average of the vectors assigned to it, and the codebook loss has no gradient).
        codebook_init: ``kmeans`` (on the first batch), ``data`` (random vectors of the first batch)
            or ``uniform`` (in [-1/K, 1/K], independent of the data).
        decay: Decay of the moving averages per batch.
        dead_code_threshold: A code whose moving average of assignments falls below this fraction of
            an equal share is replaced by a random vector of the batch. 0 disables this.
        seed: Seed of the initialization and of the random vectors.

    Raises:
        ValueError: If a number is out of range.
    """

    step: nn.Parameter

    def __init__(
        self,
        embedding_dim: int,
        codebook_size: int = 512,
        codebook_update: Literal["gradient", "ema"] = "ema",
        codebook_init: Literal["kmeans", "data", "uniform"] = "kmeans",
        decay: float = 0.99,
        dead_code_threshold: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if embedding_dim < 1 or codebook_size < 2:
            raise ValueError(
                "VectorQuantizer: embedding_dim must be at least 1 and codebook_size at least 2, "
                f"got {embedding_dim} and {codebook_size}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"VectorQuantizer: decay must be in [0, 1), got {decay}")
        if not 0 <= dead_code_threshold < 1:
            raise ValueError(
                f"VectorQuantizer: dead_code_threshold must be in [0, 1), got {dead_code_threshold}"
            )
        self.embedding_dim = embedding_dim
        self.codebook_size = codebook_size
        self.codebook_update = codebook_update
        self.codebook_init = codebook_init
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold
        self.seed = seed
        codebook = torch.empty(codebook_size, embedding_dim).uniform_(-1, 1) / codebook_size
        self.codebook = nn.Parameter(codebook, requires_grad=codebook_update == "gradient")
        # Moving averages of the assignments per code in units of an equal share (1 = used as often
        # as the average code), and of the sums of the assigned vectors in the same unit.
        self.usage = nn.Parameter(torch.ones(codebook_size), requires_grad=False)
        self.sums = nn.Parameter(codebook.clone(), requires_grad=False)
        # Number of training batches; saved, because the codebook is initialized only once.
        self.step = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the codebook in float32: moving averages would drift in half precision."""

        def keep_dtype(x: Tensor) -> Tensor:
            changed = fn(x)
            return changed if changed.dtype == x.dtype else x.to(changed.device)

        return super()._apply(keep_dtype, recurse)

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize a map of vectors and, in training mode, update the codebook.

        Args:
            z_e: Output of the encoder, (B, D, h, w).

        Returns:
            See `Quantized`. Distances are computed in float32, also under mixed precision.
        """
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            vectors = z_e.movedim(1, -1)  # (B, h, w, D)
            if self.training:
                self._start(vectors.detach())
            indices = self.nearest(vectors)
            # Before the update, because the losses are those of the chosen codes.
            e = self.lookup(indices)
            commitment = (z_e - e.detach()).square().flatten(1).sum(1)
            codebook = (z_e.detach() - e).square().flatten(1).sum(1)
            if self.training:
                self._learn(vectors.detach(), indices)
        return Quantized(z_e + (e - z_e).detach(), indices, codebook, commitment)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the nearest code of each vector, (..., D) -> (...), int64."""
        flat = vectors.detach().float().flatten(0, -2)
        return _nearest(flat, self.codebook.detach()).view(vectors.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes at ``indices``, (B, h, w) -> (B, D, h, w), with gradients."""
        return nn.functional.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        if self.codebook_init == "uniform" or self.step > 0:
            return
        vectors = gather_rows(vectors).flatten(0, -2)
        codes = self._choose(vectors, self.codebook_size)
        if self.codebook_init == "kmeans":
            codes = kmeans(vectors, codes)
        if several_processes():
            dist.broadcast(codes, src=0)  # sums on GPUs are not deterministic in the last digits
        self.codebook.copy_(codes)
        self.sums.copy_(codes)

    @torch.no_grad()
    def _learn(self, vectors: Tensor, indices: Tensor) -> None:
        flat = vectors.flatten(0, -2)
        counts, sums = _assigned(flat, indices.flatten(), self.codebook_size)
        counts, sums = total(counts), total(sums)
        equal_share = counts.sum() / self.codebook_size
        self.usage.lerp_(counts / equal_share, 1 - self.decay)
        if self.codebook_update == "ema":
            self.sums.lerp_(sums / equal_share, 1 - self.decay)
            # Codes that were not used stay where they are: both averages fade to 0.
            average = self.sums / self.usage[:, None]
            self.codebook.copy_(torch.where(counts[:, None] > 0, average, self.codebook))
        self.step.add_(1)
        # The averages start at 1, so no code is dead in the first batches.
        dead = self.usage < self.dead_code_threshold
        if self.dead_code_threshold and dead.any():
            flat = gather_rows(vectors).flatten(0, -2)
            self.codebook[dead] = self._choose(flat, int(dead.sum()))
            self.usage[dead] = 1.0
            self.sums[dead] = self.codebook[dead]

    def _choose(self, vectors: Tensor, n: int) -> Tensor:
        """Return ``n`` random vectors, each at most once if there are enough."""
        chosen = randomness.choose(len(vectors), n, self.seed, "codes", int(self.step))
        return vectors[chosen.to(vectors.device)]


def kmeans(vectors: Tensor, centers: Tensor, iterations: int = 10) -> Tensor:
    """Run Lloyd's k-means algorithm. Centers without vectors are not moved.

    Args:
        vectors: Vectors, (N, D).
        centers: Initial centers, (K, D).
        iterations: Number of iterations.

    Returns:
        The centers, (K, D).

    Example:
        >>> kmeans(torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([[0.0], [9.0]])).tolist()
        [[1.0], [9.0]]
    """
    for _ in range(iterations):
        counts, sums = _assigned(vectors, _nearest(vectors, centers), len(centers))
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centers)
    return centers


def _nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the index of the nearest code (K, D) of each vector (N, D), int64, (N,)."""
    # ||v - e||^2 without ||v||^2, which is the same for all codes. The products would cancel what
    # distinguishes codes that are far from the origin.
    center = codes.mean(0)
    codes = codes - center
    distances = torch.addmm(codes.square().sum(1), vectors - center, codes.t(), alpha=-2)
    return distances.argmin(1)


def _assigned(vectors: Tensor, indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Return the number (K,) and the sum (K, D) of the vectors assigned to each code."""
    counts = torch.bincount(indices, minlength=codes).to(vectors.dtype)
    sums = vectors.new_zeros(codes, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums
