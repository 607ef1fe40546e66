"""Errors of reconstructions, and what they cost where the latent is discrete."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae_lightning.data.batch import Batch
from vae_lightning.distributed import total
from vae_lightning.functional import perplexity
from vae_lightning.metrics.measure import Mean, Measure
from vae_lightning.metrics.result import Result

if TYPE_CHECKING:
    from vae_lightning.models import BaseVAE


class Reconstruction(Measure):
    """Squared error per pixel between images and their reconstructions without noise."""

    name = "reconstruction"

    def applies_to(self, model: BaseVAE, data: Any) -> bool:
        """All models."""
        return True

    def start(self, model: BaseVAE) -> None:
        """See `Measure.start`."""
        self.mean = Mean()

    def update(self, model: BaseVAE, batch: Batch) -> None:
        """See `Measure.update`."""
        reconstruction = model.reconstruct(batch.x, batch.y if model.conditional else None)
        self.mean.update((reconstruction - batch.x).square().flatten(1).mean(1))

    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """See `Measure.compute`."""
        return {"mse": self.mean.result("per pixel, in [0, 1]")}


class CodeLength(Measure):
    """Bits per image of the map of codes.

    ``code_bits`` counts log2 K for each place of the map, ``code_entropy_bits`` the entropy of the
    codes' frequencies instead: what a code without a model of the map needs on average.
    """

    name = "code_length"

    def applies_to(self, model: BaseVAE, data: Any) -> bool:
        """Models with a codebook."""
        return model.n_codes is not None

    def start(self, model: BaseVAE) -> None:
        """See `Measure.start`."""
        assert model.n_codes is not None
        self.counts: Tensor = torch.zeros(model.n_codes, dtype=torch.int64, device=model.device)
        self.places = 0

    def update(self, model: BaseVAE, batch: Batch) -> None:
        """See `Measure.update`."""
        codes = model.codes(batch.x, batch.y if model.conditional else None)
        self.places = codes[0].numel()
        self.counts += codes.flatten().bincount(minlength=len(self.counts))

    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """See `Measure.compute`."""
        counts = total(self.counts).cpu()
        bits = self.places * math.log2(len(counts))
        entropy_bits = self.places * math.log2(perplexity(counts).item())
        return {
            "code_bits": Result(bits, "bits per image"),
            "code_entropy_bits": Result(entropy_bits, "bits per image"),
        }
