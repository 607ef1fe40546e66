"""What every measure of ``vae test`` has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning.data.batch import Batch
from vae_lightning.distributed import total, whole_weights
from vae_lightning.metrics.result import NATS, Result

if TYPE_CHECKING:
    from vae_lightning.models import BaseVAE


class Measure(pl.Callback, ABC):
    """Something that ``vae test`` and ``vae validate`` report beyond the means of the terms.

    A measure sees every batch of an evaluation, as the model gets it, and reports numbers that do
    not depend on the batch size or the number of processes. It is no part of a training.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.applies = False

    @abstractmethod
    def applies_to(self, model: BaseVAE, data: Any) -> bool:
        """Whether this model and these data have what is measured."""

    def start(self, model: BaseVAE) -> None:
        """Forget an evaluation before."""

    def update(self, model: BaseVAE, batch: Batch) -> None:
        """Take in a batch; called in inference mode, as is `compute`."""

    @abstractmethod
    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """The results by name, the same in every process; each process has seen its share."""

    # Lightning

    def _start(self, trainer: pl.Trainer, model: Any) -> None:
        self.data: Any = getattr(trainer, "datamodule", None)
        self.applies = trainer.state.fn != "fit" and self.applies_to(model, self.data)
        if self.applies:
            self.start(model)

    def _update(self, trainer: pl.Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        if self.applies:
            with whole_weights(trainer), model.inference():
                self.update(model, model.indexed(batch, batch_idx))

    def _report(self, stage: str, trainer: pl.Trainer, model: Any) -> None:
        if self.applies:
            with whole_weights(trainer), model.inference():
                results = self.compute(model)
            for name, result in results.items():
                model.report(stage, name, result)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start, unless this is the validation of a training."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
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
        """Take in a batch."""
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
        """Take in a batch."""
        self._update(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report under ``val/``."""
        self._report("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report under ``test/``."""
        self._report("test", trainer, pl_module)


class Mean:
    """Mean over images with its standard error, over all processes."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def update(self, values: Tensor) -> None:
        """Add one value per image, (B,) or (B, D)."""
        # float64, because sums over 10,000 images lose digits; Apple's GPUs have none.
        values = (values.cpu() if values.is_mps else values).double()
        n = torch.full_like(values[0], len(values))
        sums = torch.stack([n, values.sum(0), values.square().sum(0)])
        self.sums = sums if self.sums is None else self.sums + sums

    def compute(self) -> tuple[Tensor, Tensor, int]:
        """Mean and variance, each () or (D,), and number of the images of all processes."""
        assert self.sums is not None
        count, first, second = total(self.sums)
        n = int(count.flatten()[0])
        mean = first / n
        return mean, (second / n - mean.square()).clamp(min=0) * n / max(n - 1, 1), n

    def result(self, unit: str = NATS, normalised: bool = False) -> Result:
        """The mean of single values and its standard error."""
        mean, variance, n = self.compute()
        error = (variance / n).sqrt().item() if n > 1 else None
        return Result(mean.item(), unit, error, n, normalised)
