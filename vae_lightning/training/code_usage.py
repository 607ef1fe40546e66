"""Codebook usage over an epoch."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vae_lightning.distributed import total
from vae_lightning.functional import perplexity
from vae_lightning.results import Result


class CodeUsage:
    """Count how often each code is chosen over an epoch, in all processes.

    Perplexity and the fraction of codes in use are not the averages of their values in batches, so
    they have to be computed from these counts.

    Attributes:
        counts: Assignments of this process by codebook, int64, (K,).
    """

    def __init__(self) -> None:
        self.counts: dict[str, Tensor] = {}

    def update(self, indices: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        """Count the codes of a batch.

        Args:
            indices: Code indices by codebook, int64, any shape.
            sizes: Number of codes of each codebook.
        """
        for name, chosen in indices.items():
            counts = torch.bincount(chosen.flatten(), minlength=sizes[name])
            self.counts[name] = self.counts[name] + counts if name in self.counts else counts

    def total(self) -> dict[str, Tensor]:
        """Return the counts of all processes."""
        return {name: total(counts) for name, counts in self.counts.items()}

    def results(self, images: int | None = None) -> dict[str, Result]:
        """Return perplexity, fraction of codes used and, for ``images`` images, bits per image."""
        found = {}
        for name, counts in self.total().items():
            counts, prefix = counts.cpu(), f"{name}_" if name else ""
            effective = perplexity(counts).item()
            used = counts.gt(0).double().mean().item()
            found[f"{prefix}perplexity"] = Result(effective, f"of {len(counts)} codes")
            found[f"{prefix}codes_used"] = Result(used, "of the codes")
            if images:
                positions = int(counts.sum()) / images
                bits = positions * math.log2(len(counts))
                entropy = positions * math.log2(max(effective, 1))
                found[f"{prefix}code_bits"] = Result(bits, "bits per image")
                found[f"{prefix}code_entropy_bits"] = Result(entropy, "bits per image")
        return found
