"""Base class of the metrics of ``vae test``."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import lightning.pytorch as pl

from vae_lightning.batch import Batch
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.results import Result
from vae_lightning.training.module import LitVAE
from vae_lightning.training.strategies import full_weights


class Metric(pl.Callback, ABC):
    """Callback that adds results to the report of ``vae test`` and ``vae validate``.

    A metric receives every batch of an evaluation in the form that the model receives it. Its
    results do not depend on the batch size or the number of processes. Metrics are not computed
    during training.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Capability, ...]] = ()
    """Capabilities that a model must have."""

    def __init__(self) -> None:
        self.applies = False

    def applies_to(self, model: GenerativeModel, data: Any) -> bool:
        """Return whether the metric is defined for a model and its data."""
        return model.has(*self.requires)

    def start(self, module: LitVAE) -> None:
        """Reset the metric before an evaluation."""

    def update(self, module: LitVAE, batch: Batch) -> None:
        """Add a batch. Like `compute`, called in inference mode."""

    @abstractmethod
    def compute(self, module: LitVAE) -> dict[str, Result]:
        """Return the results by name.

        Every process has seen its own images and must return the results over all of them.
        """

    # Lightning

    def _start(self, trainer: pl.Trainer, module: Any) -> None:
        self.data: Any = getattr(trainer, "datamodule", None)
        self.applies = (
            trainer.state.fn != "fit"
            and isinstance(module.model, GenerativeModel)
            and self.applies_to(module.model, self.data)
        )
        if self.applies:
            self.start(module)

    def _update(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self.applies:
            with full_weights(trainer), module.model.inference():
                self.update(module, module.with_indices(batch, batch_idx))

    def _report(self, stage: str, trainer: pl.Trainer, module: Any) -> None:
        if self.applies:
            with full_weights(trainer), module.model.inference():
                results = self.compute(module)
            for name, result in results.items():
                module.report(stage, name, result)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metric, unless this is a validation during training."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metric."""
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._update(trainer, pl_module, batch, batch_idx)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._update(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the results under ``val/``."""
        self._report("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the results under ``test/``."""
        self._report("test", trainer, pl_module)


def check_positive(metric: Metric, **values: int | None) -> None:
    """Check that options of a metric are positive.

    Raises:
        ValueError: If an option is not positive.
    """
    for option, value in values.items():
        if not value or value < 1:
            raise ValueError(f"metrics.{metric.name}.{option} must be positive, got {value}")
