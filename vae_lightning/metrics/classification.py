"""Classification by likelihood."""

from typing import Any

import torch

from vae_lightning.batch import Batch
from vae_lightning.metrics.base import Metric, check_positive
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.results import Mean, Result
from vae_lightning.training.module import LitVAE


class Classification(Metric):
    """Accuracy of classification by the largest estimate of log p(x|y) over the classes y.

    This is Bayes' rule with equal class probabilities; the model was not trained to classify. The
    noise is the same for all classes.

    Args:
        num_samples: Number of importance samples per image and class.

    Raises:
        ValueError: If ``num_samples`` is not positive.
    """

    name = "classification"
    requires = (Capability.CONDITIONAL, Capability.DENSITY)

    def __init__(self, num_samples: int = 8) -> None:
        super().__init__()
        check_positive(self, num_samples=num_samples)
        self.num_samples = num_samples

    def applies_to(self, model: GenerativeModel, data: Any) -> bool:
        """Return whether log p(x|y) is known, and the model has no classifier of its own."""
        return super().applies_to(model, data) and not model.has(Capability.CLASSIFIER)

    def start(self, module: LitVAE) -> None:
        """See `Metric.start`."""
        self.correct = Mean()

    def update(self, module: LitVAE, batch: Batch) -> None:
        """See `Metric.update`."""
        assert batch.y is not None
        model, n = module.vae, len(batch.x)
        noise = module.evaluation_noise(batch, "classify")
        log_probs = [
            model.log_marginal(
                batch.x, model.encode_labels(label, n), noise, self.num_samples, 2 * n
            )
            for label in range(model.num_classes)
        ]
        best = torch.stack(log_probs).argmax(0)
        self.correct.update(best.eq(batch.y).float())

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        unit = "of the images"
        if module.vae.samples_likelihood:
            unit += f", {self.num_samples} importance samples per class"
        return {"accuracy": self.correct.result(unit)}
