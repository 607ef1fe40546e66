"""Errors of reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vae_lightning.data.batch import Batch
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
        reconstruction = model.reconstruct(batch.x, model.label_of(batch))
        self.mean.update((reconstruction - batch.x).square().flatten(1).mean(1))

    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """See `Measure.compute`."""
        return {"mse": self.mean.result("per pixel, in [0, 1]")}
