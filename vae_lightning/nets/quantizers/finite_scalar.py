"""Finite scalar quantization (Mentzer et al., 2023), https://arxiv.org/abs/2309.15505."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lightning.nets.quantizers.base import Quantized, Quantizer

_MARGIN = 1e-3
_MOST_CODES = 2**20


class FSQ(Quantizer):
    """Round each of a few bounded numbers to one of a few fixed levels.

    The codes are all combinations of levels. Only the linear layers are learned, so there are no
    losses and there is no codebook that could collapse, but codes may stay unused.

    Args:
        embedding_dim: Size D of a vector. Linear layers map it to one number per entry of
            ``levels`` and back, unless it is equal to their count.
        levels: Number of levels of each dimension; their product is the number of codes.

    Raises:
        ValueError: If there are no levels, one is below 3, or their product is above 2^20.

    Example:
        >>> quantizer = FSQ(embedding_dim=2, levels=(3, 5))
        >>> z_q, indices, *_ = quantizer(torch.tensor([[0.1, -9.0]]).view(1, 2, 1, 1))
        >>> z_q.flatten().tolist(), indices.item()
        ([0.0, -1.0], 1)
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, embedding_dim: int, levels: Sequence[int] = (8, 8, 8)) -> None:
        super().__init__(embedding_dim)
        if not levels or any(level < 3 or level % 1 for level in levels):
            raise ValueError(f"FSQ: levels must be integers of at least 3, got {list(levels)}")
        self.codebook_size = math.prod(levels)
        if self.codebook_size > _MOST_CODES:
            raise ValueError(
                f"FSQ: levels have {self.codebook_size:,} combinations, more than {_MOST_CODES:,}: "
                "choose fewer or smaller ones"
            )
        sizes = torch.tensor(list(levels))
        self.register_buffer("levels", sizes, persistent=False)
        self.register_buffer("basis", sizes.cumprod(0) // sizes, persistent=False)
        same = embedding_dim == len(levels)
        self.project_in = nn.Identity() if same else nn.Linear(embedding_dim, len(levels))
        self.project_out = nn.Identity() if same else nn.Linear(len(levels), embedding_dim)

    def quantize(self, vectors: Tensor) -> Quantized:
        """See `Quantizer.quantize`."""
        bounded = self._bound(self.project_in(vectors))
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = (rounded.detach() + self.levels // 2).long()
        indices = (digits * self.basis).sum(-1)
        return Quantized(self.project_out(rounded / (self.levels // 2)), indices)

    def _bound(self, z: Tensor) -> Tensor:
        """Map numbers to an interval in which as many integers lie as there are levels."""
        half = (self.levels - 1).to(z.dtype) / 2
        half = half + (_MARGIN * half).clamp(max=0.4)  # never as far as the next integer
        offset = (self.levels % 2 == 0).to(z.dtype) / 2
        shift = (offset / half).atanh()  # so that 0 stays near 0 where the interval is not centered
        return (z + shift).tanh() * half - offset

    def codes_at(self, indices: Tensor) -> Tensor:
        """See `Quantizer.codes_at`; with gradients."""
        digits = indices[..., None] // self.basis % self.levels
        half = self.levels // 2
        codes: Tensor = self.project_out((digits - half).float() / half)
        return codes

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `Quantizer.codebooks`."""
        return {
            "": self.codes_at(torch.arange(self.codebook_size, device=self.basis.device)).detach()
        }
