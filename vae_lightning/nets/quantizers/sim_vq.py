"""SimVQ (Zhu et al., 2024), https://arxiv.org/abs/2411.02038."""

from typing import Literal

import torch
from torch import Tensor, nn

from vae_lightning.nets.quantizers.base import (
    Gradient,
    Quantized,
    Quantizer,
    check_choices,
    pass_gradient,
    squared_distance,
)
from vae_lightning.nets.quantizers.codebook import codes_of, nearest_code

CodebookInit = Literal["kmeans", "data", "random"]


class SimVQ(Quantizer):
    """Replace each vector by the nearest of linearly transformed codes.

    Only the transformation is learned. A gradient that reaches one code moves all of them.

    Args:
        embedding_dim: Size D of a code.
        codebook_size: Number K of codes.
        codebook_init: ``kmeans`` (on the first batch), ``data`` (random vectors of the first
            batch), both with the identity as the first transformation, or ``random``, as in the
            paper. With random codes, few of them are near the encoder's output at the start, and
            most stay unused.
        gradient: How gradients pass to the encoder, see `pass_gradient`.
        seed: Seed of the initialization from data.

    Raises:
        ValueError: If ``codebook_size`` is below 2, or an option is unknown.
    """

    def __init__(
        self,
        embedding_dim: int,
        codebook_size: int = 512,
        codebook_init: CodebookInit = "kmeans",
        gradient: Gradient = "rotation",
        seed: int = 0,
    ) -> None:
        super().__init__(embedding_dim)
        if codebook_size < 2:
            raise ValueError(f"SimVQ: codebook_size must be at least 2, got {codebook_size}")
        self.codebook_size = codebook_size
        self.codebook_init = codebook_init
        self.gradient = gradient
        self.seed = seed
        check_choices(self, {"codebook_init": CodebookInit, "gradient": Gradient})
        random = torch.randn(codebook_size, embedding_dim) / embedding_dim**0.5
        self.codebook = nn.Parameter(random, requires_grad=False)
        self.transform = nn.Linear(embedding_dim, embedding_dim, bias=False)
        # Saved, because the codebook is initialized only once.
        self.started = nn.Parameter(torch.zeros((), dtype=torch.int64), requires_grad=False)

    @property
    def codes(self) -> Tensor:
        """The transformed codes, (K, D), with gradients."""
        codes: Tensor = self.transform(self.codebook)
        return codes

    def quantize(self, vectors: Tensor) -> Quantized:
        """See `Quantizer.quantize`."""
        if self.training and not self.has_started(self.started):
            self._start(vectors.detach())
        codes = self.codes
        indices = nearest_code(vectors.detach().flatten(0, -2), codes.detach())
        indices = indices.view(vectors.shape[:-1])
        e = nn.functional.embedding(indices, codes)
        return Quantized(
            pass_gradient(vectors, e.detach(), self.gradient),
            indices,
            squared_distance(vectors.detach(), e),
            squared_distance(vectors, e.detach()),
        )

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        if self.codebook_init != "random":
            by_kmeans = self.codebook_init == "kmeans"
            codes = codes_of(vectors, self.codebook_size, by_kmeans, self.seed)
            if codes is None:
                return
            self.codebook.copy_(codes)
            nn.init.eye_(self.transform.weight)
        self.started.fill_(1)

    def codes_at(self, indices: Tensor) -> Tensor:
        """See `Quantizer.codes_at`; with gradients."""
        return nn.functional.embedding(indices, self.codes)

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `Quantizer.codebooks`."""
        return {"": self.codes.detach()}
