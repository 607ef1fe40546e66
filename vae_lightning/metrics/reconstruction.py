"""Reconstruction error."""

from vae_lightning.batch import Batch
from vae_lightning.metrics.base import Metric
from vae_lightning.results import Mean, Result
from vae_lightning.training.module import LitVAE


class Reconstruction(Metric):
    """Mean squared error per pixel between images and their noise-free reconstructions."""

    name = "reconstruction"

    def start(self, module: LitVAE) -> None:
        """See `Metric.start`."""
        self.mean = Mean()

    def update(self, module: LitVAE, batch: Batch) -> None:
        """See `Metric.update`."""
        reconstruction = module.vae.reconstruct(batch.x, module.vae.used_labels(batch.y))
        self.mean.update((reconstruction - batch.x).square().flatten(1).mean(1))

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        kind = "in [0, 1]" if module.model.bounded else "as the model sees it"
        return {"mse": self.mean.result(f"per pixel, {kind}")}
