"""How often each code of a codebook is used."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CodeCounts(Metric):
    """Assignments per code over an epoch, summed over all processes.

    Perplexity and the share of codes in use have to be computed from these: their averages over
    batches are smaller than their values over the data set.

    Args:
        codes: Number K of codes.
    """

    counts: Tensor
    full_state_update = False

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Count code indices of any shape."""
        self.counts += torch.bincount(indices.flatten(), minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Counts, int64, (K,)."""
        return self.counts
