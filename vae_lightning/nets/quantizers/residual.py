"""Residual vector quantization (Zeghidour et al., 2021), https://arxiv.org/abs/2107.03312."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae_lightning.nets.quantizers.base import (
    Gradient,
    Quantized,
    Quantizer,
    check_choices,
    pass_gradient,
    total_of,
)
from vae_lightning.nets.quantizers.codebook import VectorQuantizer
from vae_lightning.nets.quantizers.sim_vq import SimVQ
from vae_lightning.randomness import derive_seed


class ResidualQuantizer(Quantizer):
    """Quantize vectors in steps, each of which quantizes the residual of the step before.

    The output is the sum of the codes of all steps. With ``groups``, the channels are split into
    groups that are quantized independently (Yang et al., 2023, https://arxiv.org/abs/2305.02765).

    Args:
        embedding_dim: Size D of a vector.
        num_quantizers: Number of codes that are added up.
        groups: Number of groups, which has to divide ``embedding_dim``.
        quantizer: Quantizer of each step, one that has a codebook.
        gradient: How gradients pass to the encoder, see `pass_gradient`; the ``gradient`` of the
            quantizers of the steps is ignored.

    Raises:
        ValueError: If a number is out of range, there is only one code per position, or the codes
            of the quantizer cannot be added up.

    Example:
        >>> quantizer = ResidualQuantizer(embedding_dim=8, num_quantizers=3)
        >>> quantizer(torch.randn(2, 8, 4, 4)).indices.shape
        torch.Size([2, 4, 4, 3])
    """

    def __init__(
        self,
        embedding_dim: int,
        num_quantizers: int = 4,
        groups: int = 1,
        quantizer: Callable[[int], Quantizer] = VectorQuantizer,
        gradient: Gradient = "straight_through",
    ) -> None:
        super().__init__(embedding_dim)
        if num_quantizers < 1:
            raise ValueError(
                f"ResidualQuantizer: num_quantizers must be at least 1, got {num_quantizers}"
            )
        if groups < 1 or embedding_dim % groups:
            raise ValueError(
                f"ResidualQuantizer: groups must divide embedding_dim {embedding_dim}, got {groups}"
            )
        if groups * num_quantizers == 1:
            raise ValueError(
                "ResidualQuantizer: num_quantizers times groups must be at least 2, got 1: for one "
                "code per position, use its quantizer itself"
            )
        self.num_quantizers = num_quantizers
        self.groups = groups
        self.depth = groups * num_quantizers
        self.gradient = gradient
        check_choices(self, {"gradient": Gradient})
        parts = [quantizer(embedding_dim // groups) for _ in range(self.depth)]
        if any(getattr(part, "similarity", "") == "cosine" for part in parts):
            raise ValueError("ResidualQuantizer: codes of length 1 do not add up: use euclidean")
        if not all(isinstance(part, VectorQuantizer | SimVQ) for part in parts):
            raise ValueError(
                f"ResidualQuantizer: {type(parts[0]).__name__} has no codebook to add codes from: "
                "choose VectorQuantizer or SimVQ"
            )
        if any(getattr(part, "codebook_update", "") == "reparameterized" for part in parts):
            raise ValueError(
                "ResidualQuantizer: reparameterized codes learn from a gradient that a sum does "
                "not pass on: use codebook_update gradient or ema"
            )
        for i, part in enumerate(parts):
            assert isinstance(part, VectorQuantizer | SimVQ)
            # Other positions of the first batch for each step: the residuals of vectors that
            # became codes of the step before are 0.
            part.seed = derive_seed(part.seed, i)
        self.quantizers = nn.ModuleList(parts)
        self.codebook_size = parts[0].codebook_size

    def quantize(self, vectors: Tensor) -> Quantized:
        """See `Quantizer.quantize`. Losses are summed over the steps."""
        sums, found = [], []
        for group, part in enumerate(vectors.chunk(self.groups, -1)):
            rest, added = part, torch.zeros_like(part)
            for step in range(self.num_quantizers):
                one: Quantized = self._part(group, step).quantize(rest)
                found.append(one)
                # Losses of a step move its own codes and the encoder, not the codes before.
                rest = rest - one.z_q.detach()
                added = added + one.z_q.detach()
            sums.append(added)
        z_q = torch.cat(sums, -1)
        return Quantized(
            # Once for the sum: the gradients of the steps would add up.
            pass_gradient(vectors, z_q, self.gradient),
            torch.stack([one.indices for one in found], -1),
            total_of([one.codebook_loss for one in found]),
            total_of([one.commitment_loss for one in found]),
            total_of([one.regularizer for one in found]),
        )

    def codes_at(self, indices: Tensor) -> Tensor:
        """See `Quantizer.codes_at`."""
        sums = []
        for group in range(self.groups):
            first = group * self.num_quantizers
            codes = [
                self._part(group, step).codes_at(indices[..., first + step])
                for step in range(self.num_quantizers)
            ]
            sums.append(torch.stack(codes).sum(0))
        return torch.cat(sums, -1)

    def _part(self, group: int, step: int) -> Quantizer:
        part = self.quantizers[group * self.num_quantizers + step]
        assert isinstance(part, Quantizer)
        return part

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `Quantizer.codebooks`; the names are the numbers of the codes."""
        return {str(i): part.codebooks[""] for i, part in enumerate(self._parts)}

    @property
    def _parts(self) -> list[Quantizer]:
        return [part for part in self.quantizers if isinstance(part, Quantizer)]
