"""Base class of the figures: when they are drawn, from which images, and where they are saved."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import matplotlib.figure
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.batch import Batch
from vae_lightning.errors import writing
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability
from vae_lightning.training.fsdp import full_weights
from vae_lightning.training.module import LitVAE


class Figure(pl.Callback, ABC):
    """Callback that draws a figure after validation, from the first validation images.

    The figure is saved as ``figures/NAME/epoch=NNN.png`` in the run's folder and logged to W&B and
    TensorBoard if they are used. Only the first process draws. Figures draw no random numbers from
    torch's global generator, so they never change the training.

    A figure works with any model that has the capabilities in `requires`, through its inference
    API.

    Args:
        every_n_epochs: Number of epochs between two figures. The last epoch is always drawn.
        **sizes: Further options that must be positive, such as numbers of images, by name.

    Raises:
        ValueError: If an option is not positive.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Capability, ...]] = ()
    """Capabilities that a model must have."""
    images: int = 0
    """Number of validation images that the figure needs."""

    def __init__(self, every_n_epochs: int = 5, **sizes: int) -> None:
        for option, size in {"every_n_epochs": every_n_epochs, **sizes}.items():
            if size < 1:
                raise ValueError(
                    f"figures.{self.name}.{option} must be at least 1, got {size}; "
                    f"--figures.{self.name} null disables the figure"
                )
        self.every_n_epochs = every_n_epochs
        self.folder: Path | None = None
        self.epoch = -1
        self.drawn_epoch = -1
        self.batches: list[Batch] = []

    def applies_to(self, model: BaseVAE) -> bool:
        """Return whether the figure can be drawn for a model."""
        return model.has(*self.requires)

    @abstractmethod
    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """Draw the figure.

        Args:
            model: A model that the figure applies to.
            x: The first validation images, at most ``images``, on the CPU, (N, C, H, W).
            label: Their classes, (N,), or None without labels.
            class_names: Names of the classes, or None if the data have none.

        Returns:
            The figure.
        """

    @property
    def title_end(self) -> str:
        """End of the title: the number of the epoch, counted from 1."""
        return f" \N{EN DASH} epoch {self.epoch + 1}"

    # Lightning

    def state_dict(self) -> dict[str, int]:
        """Return the last drawn epoch, so that a resumed run draws at the same epochs."""
        return {"drawn_epoch": self.drawn_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore what `state_dict` returned."""
        self.drawn_epoch = state_dict["drawn_epoch"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the folder, in every process because Lightning broadcasts it."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "figures" / self.name

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the images of the previous validation."""
        self.batches = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect images until there are as many as the figure needs."""
        if trainer.is_global_zero and self._draws(trainer, pl_module):
            missing = self.images - sum(len(kept.x) for kept in self.batches)
            if missing > 0:
                x, y, indices = Batch.of(batch)
                y = None if y is None else y[:missing].cpu()
                self.batches.append(Batch(x[:missing].cpu(), y, indices[:missing].cpu()))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the figure if it is due."""
        if not self._draws(trainer, pl_module):
            return
        self.epoch = trainer.current_epoch
        last = trainer.max_epochs is not None and self.epoch + 1 == trainer.max_epochs
        if last or self.epoch - self.drawn_epoch >= self.every_n_epochs:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the figure at the end of a training that stopped early."""
        if self._draws(trainer, pl_module) and self.drawn_epoch < self.epoch:
            self._draw(trainer, pl_module)

    def _draws(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        return (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and not trainer.fast_dev_run  # type: ignore[attr-defined]
            and isinstance(pl_module, LitVAE)
            and self.applies_to(pl_module.model)
        )

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with full_weights(trainer):
            if trainer.is_global_zero:
                self._write(trainer, pl_module)
        self.drawn_epoch = self.epoch

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        assert self.folder is not None
        x = torch.cat([batch.x for batch in self.batches]) if self.batches else torch.empty(0)
        labels = [batch.y for batch in self.batches if batch.y is not None]
        class_names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        figure = self.draw(pl_module.model, x, torch.cat(labels) if labels else None, class_names)
        pixels = plotting.to_array(figure)
        path = self.folder / f"epoch={self.epoch:03d}.png"
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, optimize=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"figures/{self.name}", [pixels], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    f"figures/{self.name}", pixels, trainer.global_step, dataformats="HWC"
                )
