"""Classification by likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vae_lightning.data.batch import Batch
from vae_lightning.metrics.measure import Mean, Measure
from vae_lightning.metrics.result import Result

if TYPE_CHECKING:
    from vae_lightning.models import BaseVAE


class Classification(Measure):
    """Share of images whose own class has the highest bound of log p(x|class).

    The model was not trained to classify: Bayes' rule with equal class probabilities is all there
    is to it. All classes are tried with the same noise.
    """

    name = "classification"

    def applies_to(self, model: BaseVAE, data: Any) -> bool:
        """Conditional models with a bound."""
        return model.conditional and model.latent_dim is not None

    def start(self, model: BaseVAE) -> None:
        """See `Measure.start`."""
        self.right = Mean()

    def update(self, model: BaseVAE, batch: Batch) -> None:
        """See `Measure.update`."""
        bounds = []
        for label in range(model.num_classes):
            condition = model.condition(label, len(batch.x))
            terms = model.terms(batch.x, condition, model.evaluation_noise(batch, "classify"))
            bounds.append(terms.named()["negative_elbo"])
        best = torch.stack(bounds).argmin(0)
        self.right.update(best.eq(model.labels(batch)).float())

    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """See `Measure.compute`."""
        return {"accuracy": self.right.result("of the images")}
