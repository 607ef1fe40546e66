"""Draw figures during training."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from vae_lightning import plotting
from vae_lightning.batch import Batch
from vae_lightning.errors import writing
from vae_lightning.figures.base import Figure
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.training.module import LitVAE
from vae_lightning.training.strategies import full_weights


class FigureCallback(pl.Callback):
    """Callback that draws a figure after validation, from the first validation images.

    The figure is saved as ``figures/NAME/epoch=NNN.png`` in the run's folder and logged to W&B and
    TensorBoard if they are used. Only the first process draws. Figures draw no random numbers from
    torch's global generator, so they never change the training.

    Args:
        figure: The figure.

    Example:
        >>> from vae_lightning.figures.samples import Samples
        >>> trainer = pl.Trainer(callbacks=[FigureCallback(Samples(n=64))], logger=False)
    """

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.folder: Path | None = None
        self.epoch = -1
        self.drawn_epoch = -1
        self.batches: list[Batch] = []

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint, one for each figure."""
        return f"FigureCallback[{self.figure.name}]"

    def state_dict(self) -> dict[str, int]:
        """Return the last drawn epoch, so that a resumed run draws at the same epochs."""
        return {"drawn_epoch": self.drawn_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore what `state_dict` returned."""
        self.drawn_epoch = state_dict["drawn_epoch"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the folder, in every process because Lightning broadcasts it."""
        run = Path(trainer.log_dir or trainer.default_root_dir)
        self.folder = run / "figures" / self.figure.name

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
            missing = self.figure.images - sum(len(kept.x) for kept in self.batches)
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
        if last or self.epoch - self.drawn_epoch >= self.figure.every_n_epochs:
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
            and isinstance(pl_module.model, GenerativeModel)
            and self.figure.applies_to(pl_module.model)
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
        data = getattr(trainer, "datamodule", None)
        class_names = getattr(data, "class_names", None)
        self.figure.images_of = f"validation {getattr(data, 'noun', 'image')}s"
        y = torch.cat(labels) if labels else None
        self.figure.epoch = self.epoch
        try:
            pixels = plotting.to_array(self.figure.draw(pl_module.vae, x, y, class_names))
        except Exception as error:
            # A picture is not worth a training.
            warnings.warn(
                f"figures.{self.figure.name} could not be drawn in epoch {self.epoch + 1} "
                f"({type(error).__name__}: {error}); the training goes on",
                stacklevel=2,
            )
            return
        path = self.folder / f"epoch={self.epoch:03d}.png"
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, optimize=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"figures/{self.figure.name}", [pixels], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    f"figures/{self.figure.name}", pixels, trainer.global_step, dataformats="HWC"
                )
