"""Vector quantization: the nearest code of a learned codebook.

References:
    van den Oord et al. (2017), Neural discrete representation learning,
    https://arxiv.org/abs/1711.00937 (the loss: equation 3; the moving average: appendix A.1)
    Vali et al. (2025), DiVeQ: differentiable vector quantization using the reparameterization
    trick, https://arxiv.org/abs/2509.26469 (``codebook_update`` reparameterized)
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_lightning import randomness
from vae_lightning.distributed import gather_rows, own_rows, several_processes, total
from vae_lightning.nets.quantizers.base import (
    Gradient,
    Quantized,
    Quantizer,
    check_choices,
    pass_gradient,
    squared_distance,
)

CodebookUpdate = Literal["gradient", "ema", "reparameterized"]
CodebookInit = Literal["kmeans", "data", "uniform"]
Similarity = Literal["euclidean", "cosine"]


class VectorQuantizer(Quantizer):
    """Replace each vector by the nearest entry of a learned codebook.

    All state is stored in parameters, with ``requires_grad=False`` for statistics: unlike buffers,
    parameters are not broadcast at every step of data-parallel training. With several processes the
    statistics are those of the vectors of all processes, so all have the same codebook.

    Args:
        embedding_dim: Size D of a code.
        codebook_size: Number K of codes.
        codebook_update: ``gradient`` (by the codebook loss), ``ema`` (each code is the moving
            average of the vectors assigned to it, and the codebook loss has no gradient) or
            ``reparameterized`` (by the gradient of the reconstruction, see `reparameterize`; there
            is neither a codebook loss nor a commitment loss).
        codebook_init: ``kmeans`` (on the first batch), ``data`` (random vectors of the first batch)
            or ``uniform`` (in [-1/K, 1/K], independent of the data).
        decay: Decay of the moving averages per batch.
        dead_code_threshold: A code whose moving average of assignments falls below this fraction of
            an equal share is replaced by a random vector of the batch. 0 disables this.
        seed: Seed of the initialization and of the random vectors.
        similarity: ``euclidean``, or ``cosine``: vectors and codes are scaled to length 1 first.
        gradient: How gradients pass to the encoder, see `pass_gradient`.
        orthogonality: Weight of the sum of the squared cosines between different codes, divided by
            K^2 (Shin et al., 2021, https://arxiv.org/abs/2112.00384), which keeps codes apart. The
            loss is in nats per image, so useful weights are larger than for a mean loss. Only for
            codes that are learned by gradient.
        noise_variance: Variance of the noise in the direction of a reparameterized code, in
            training only.

    Raises:
        ValueError: If a number is out of range, or an option could have no effect.
    """

    step: nn.Parameter

    def __init__(
        self,
        embedding_dim: int,
        codebook_size: int = 512,
        codebook_update: CodebookUpdate = "ema",
        codebook_init: CodebookInit = "kmeans",
        decay: float = 0.99,
        dead_code_threshold: float = 0.1,
        seed: int = 0,
        similarity: Similarity = "euclidean",
        gradient: Gradient = "straight_through",
        orthogonality: float = 0.0,
        noise_variance: float = 1e-3,
    ) -> None:
        super().__init__(embedding_dim)
        if codebook_size < 2:
            raise ValueError(
                f"VectorQuantizer: codebook_size must be at least 2, got {codebook_size}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"VectorQuantizer: decay must be in [0, 1), got {decay}")
        if not 0 <= dead_code_threshold < 1:
            raise ValueError(
                f"VectorQuantizer: dead_code_threshold must be in [0, 1), got {dead_code_threshold}"
            )
        if not orthogonality >= 0:
            raise ValueError(
                f"VectorQuantizer: orthogonality must not be negative, got {orthogonality}"
            )
        if orthogonality and codebook_update == "ema":
            raise ValueError(
                "VectorQuantizer: orthogonality has no effect on moving averages: use it with "
                "codebook_update gradient"
            )
        if not noise_variance >= 0:
            raise ValueError(
                f"VectorQuantizer: noise_variance must not be negative, got {noise_variance}"
            )
        if gradient != "straight_through" and codebook_update == "reparameterized":
            raise ValueError(
                "VectorQuantizer: reparameterized codes have a gradient of their own: leave out "
                "gradient"
            )
        self.codebook_size = codebook_size
        self.codebook_update = codebook_update
        self.codebook_init = codebook_init
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold
        self.seed = seed
        self.similarity = similarity
        self.gradient = gradient
        self.orthogonality = orthogonality
        self.noise_variance = noise_variance
        check_choices(
            self,
            {
                "codebook_update": CodebookUpdate,
                "codebook_init": CodebookInit,
                "similarity": Similarity,
                "gradient": Gradient,
            },
        )
        codebook = torch.empty(codebook_size, embedding_dim).uniform_(-1, 1) / codebook_size
        self.codebook = nn.Parameter(codebook, requires_grad=codebook_update != "ema")
        # Moving averages of the assignments per code in units of an equal share (1 = used as often
        # as the average code), and of the sums of the assigned vectors in the same unit.
        self.usage = nn.Parameter(torch.ones(codebook_size), requires_grad=False)
        self.sums = nn.Parameter(codebook.clone(), requires_grad=False)
        # Number of training batches; saved, because the codebook is initialized only once.
        self.step = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)

    def quantize(self, vectors: Tensor) -> Quantized:
        """See `Quantizer.quantize`."""
        if self.similarity == "cosine":
            vectors = nn.functional.normalize(vectors, dim=-1)
        if self.training:
            self._start(vectors.detach())
        indices = self.nearest(vectors)
        # Before the update, because the losses are those of the chosen codes.
        e = nn.functional.embedding(indices, self.codes)
        regularizer = self._regularizer() if self.orthogonality else None
        if self.codebook_update == "reparameterized":
            z_q, commitment, codebook = self._reparameterized(vectors, e), None, None
        else:
            z_q = pass_gradient(vectors, e.detach(), self.gradient)
            commitment = squared_distance(vectors, e.detach())
            learned = self.codebook_update == "gradient"
            codebook = squared_distance(vectors.detach(), e) if learned else None
        if self.training:
            self._learn(vectors.detach(), indices)
        return Quantized(z_q, indices, codebook, commitment, regularizer)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the nearest code of each vector, (..., D) -> (...), int64."""
        flat = vectors.detach().float().flatten(0, -2)
        return nearest_code(flat, self.codes.detach()).view(vectors.shape[:-1])

    def codes_at(self, indices: Tensor) -> Tensor:
        """See `Quantizer.codes_at`; with gradients."""
        return nn.functional.embedding(indices, self.codes)

    @property
    def codes(self) -> Tensor:
        """The codes, (K, D), with gradients: those of length 1 for cosine similarity."""
        if self.similarity == "cosine":
            # Of a copy, because dead codes are moved before the backward pass.
            return nn.functional.normalize(self.codebook.clone(), dim=-1)
        return self.codebook

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `Quantizer.codebooks`."""
        return {"": self.codes.detach()}

    def _reparameterized(self, vectors: Tensor, e: Tensor) -> Tensor:
        """Return the chosen codes: with a gradient in training, exact in evaluation."""
        if not self.training:
            return e
        # By the position of the image in the joined batch of all processes.
        size = vectors[0].numel()
        keys = self.seed, "reparameterized", int(self.step), size
        noise = randomness.Noise(own_rows(vectors), *keys).normal(size).view_as(vectors)
        return reparameterize(vectors, e, self.noise_variance**0.5 * noise)

    def _regularizer(self) -> Tensor:
        """Return the weighted mean squared cosine between different codes, ()."""
        unit = nn.functional.normalize(self.codebook.clone(), dim=-1)
        cosines = (unit @ unit.t()).square().sum() / self.codebook_size**2
        return self.orthogonality * (cosines - 1 / self.codebook_size)

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        if self.codebook_init == "uniform" or self.has_started(self.step):
            return
        codes = codes_of(vectors, self.codebook_size, self.codebook_init == "kmeans", self.seed)
        if codes is not None:
            self.codebook.copy_(codes)
            self.sums.copy_(codes)

    @torch.no_grad()
    def _learn(self, vectors: Tensor, indices: Tensor) -> None:
        flat = vectors.flatten(0, -2)
        counts, sums = _assigned(flat, indices.flatten(), self.codebook_size)
        counts, sums = total(counts), total(sums)
        equal_share = counts.sum() / self.codebook_size
        usage = self.usage.lerp(counts / equal_share, 1 - self.decay)
        # With a decay near 1, no code is dead in the first batches: the averages start at 1.
        dead = usage < self.dead_code_threshold
        # Nothing can be learned from a batch without vectors, or with NaN.
        can_learn = counts.any() & sums.isfinite().all()
        # A GPU has to be waited for once.
        learns, some_dead = torch.stack([can_learn, dead.any()]).tolist()
        if not learns:
            return
        self.usage.copy_(usage)
        if self.codebook_update == "ema":
            self.sums.lerp_(sums / equal_share, 1 - self.decay)
            # Codes that were not used stay where they are: both averages fade to 0.
            average = self.sums / self.usage[:, None]
            self.codebook.copy_(torch.where(counts[:, None] > 0, average, self.codebook))
        self.step.add_(1)
        if some_dead:
            flat = gather_rows(vectors).flatten(0, -2)
            self.codebook[dead] = choose_vectors(flat, int(dead.sum()), self.seed, int(self.step))
            self.usage[dead] = 1.0
            self.sums[dead] = self.codebook[dead]


def reparameterize(vectors: Tensor, codes: Tensor, noise: Tensor) -> Tensor:
    r"""Return codes with a gradient both to them and to the vectors that they replace.

    The code is reached from the vector along a direction that has no gradient:

    .. math:: z_q = v + \|e - v\| \, \mathrm{sg}\left[\frac{e - v + \epsilon}
        {\|e - v + \epsilon\|}\right]

    Args:
        vectors: Output v of the encoder, (..., D).
        codes: The chosen codes e, (..., D).
        noise: Noise in the direction, (..., D); without it, the result is e.

    References:
        Vali et al. (2025), https://arxiv.org/abs/2509.26469

    Example:
        >>> v, e = torch.zeros(1, 2, requires_grad=True), torch.tensor([[3.0, 4.0]])
        >>> reparameterize(v, e, torch.zeros(1, 2)).tolist()
        [[3.0, 4.0]]
    """
    error = codes - vectors
    # The length has no gradient at 0, where a code equals its vector.
    length = error.square().sum(-1, keepdim=True).clamp(min=1e-24).sqrt()
    return vectors + length * nn.functional.normalize(error + noise, dim=-1).detach()


def codes_of(vectors: Tensor, n: int, by_kmeans: bool, seed: int) -> Tensor | None:
    """Choose codes from the vectors of a batch of all processes.

    Args:
        vectors: Vectors of this process, (B, ..., D).
        n: Number of codes.
        by_kmeans: Whether to move them to the centers of clusters.
        seed: Seed of the choice.

    Returns:
        The same in all processes, (n, D); None if there are no vectors, or they are not finite.
    """
    vectors = gather_rows(vectors).flatten(0, -2)
    if not len(vectors) or not vectors.isfinite().all():
        return None
    codes = choose_vectors(vectors, n, seed, 0)
    if by_kmeans:
        codes = kmeans(vectors, codes)
    if several_processes():
        dist.broadcast(codes, src=0)  # sums on GPUs are not deterministic in the last digits
    return codes


def choose_vectors(vectors: Tensor, n: int, seed: int, step: int) -> Tensor:
    """Return ``n`` random vectors of (N, D), each at most once if there are enough."""
    chosen = randomness.choose(len(vectors), n, seed, "codes", step)
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
        counts, sums = _assigned(vectors, nearest_code(vectors, centers), len(centers))
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centers)
    return centers


def nearest_code(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the index of the nearest code (K, D) of each vector (N, D), int64, (N,)."""
    # ||v - e||^2 without ||v||^2, which is the same for all codes. Centering avoids cancellation
    # for codes far from the origin.
    center = codes.mean(0)
    codes = codes - center
    distances = torch.addmm(codes.square().sum(1), vectors - center, codes.t(), alpha=-2)
    return distances.argmin(1)


def _assigned(vectors: Tensor, indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Return the number (K,) and the sum (K, D) of the vectors assigned to each code."""
    counts = torch.bincount(indices, minlength=codes).to(vectors.dtype)
    sums = vectors.new_zeros(codes, vectors.shape[1]).index_add_(0, indices, vectors)
    return counts, sums
