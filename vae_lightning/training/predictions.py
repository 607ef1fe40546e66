"""Predictions as NumPy arrays on disk."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor

from vae_lightning import plotting, randomness
from vae_lightning.batch import Batch
from vae_lightning.errors import UserError
from vae_lightning.files import atomic_write_text


class PredictionWriter(pl.Callback):
    """Callback that writes the outputs of ``predict_step``, one ``.npy`` file per name.

    Files have one row per image in the order of the split. With several processes, each writes its
    rows into the shared files. ``original``, ``index`` and, with labels, ``label`` are added, and a
    picture of some images above their reconstructions. Everything is written to
    ``FOLDER.partial``, which is renamed to ``FOLDER`` when it is complete.

    Args:
        folder: Output folder. Earlier predictions there are replaced if they are of the same
            images, else the folder gets a number.
        source: What the images are, as plain data; written to ``source.json``.
        images: Number of images in the picture.

    Raises:
        UserError: If the folder exists and does not hold predictions.
    """

    def __init__(
        self, folder: str | Path, source: dict[str, Any] | None = None, images: int = 32
    ) -> None:
        self.source = json.dumps(source or {}, indent=2, default=str) + "\n"
        self.folder = self._choose(Path(folder))
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.images = images
        self.arrays: dict[str, np.memmap[Any, Any]] = {}

    def _choose(self, folder: Path) -> Path:
        """Return the folder, or one with a number if it has predictions of other images."""
        names = (folder.with_name(f"{folder.name}_{n}") for n in itertools.count(1))
        for path in (folder, *itertools.islice(names, 10_000)):
            source = path / "source.json"
            if not source.is_file() or source.read_text(encoding="utf-8") == self.source:
                return path
        raise UserError(f"{folder} and its successors are full: move some of them away")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Create an empty folder."""
        self.arrays = {}
        if trainer.is_global_zero:
            ours = not self.folder.exists() or (self.folder / "index.npy").is_file()
            if not ours:
                raise UserError(
                    f"{self.folder} holds something other than predictions: move it away first"
                )
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of a batch."""
        if not isinstance(batch, Batch):
            raise UserError(
                "predictions need batches with the index of each image: use a data module of "
                "vae_lightning or yield vae_lightning.data.Batch"
            )
        rows = {"index": batch.indices, "original": batch.x, **outputs}
        if batch.y is not None:
            rows["label"] = batch.y
        rows = {
            name: value.float() if value.is_floating_point() else value
            for name, value in rows.items()
        }
        if not self.arrays:
            loader: Any = trainer.predict_dataloaders
            self._open(trainer, rows, len(loader.dataset))
        where = batch.indices.cpu().numpy()
        for name, value in rows.items():
            self.arrays[name][where] = value.cpu().numpy()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove missing rows, draw the picture and rename the folder."""
        for array in self.arrays.values():
            array.flush()
        self.arrays = {}
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._drop_missing_rows()
            if (self.partial / "reconstruction.npy").is_file():
                self._draw()
            atomic_write_text(self.partial / "source.json", self.source)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.partial.rename(self.folder)
        trainer.strategy.barrier()

    def _draw(self) -> None:
        """Draw some images above their reconstructions."""
        arrays = {
            name: np.load(self.partial / f"{name}.npy", "r", allow_pickle=False)
            for name in ("original", "reconstruction")
        }
        n = len(arrays["original"])
        shown = randomness.choose(n, min(n, self.images), 0, "pictures").sort().values.numpy()
        figure = plotting.reconstructions(
            torch.tensor(arrays["original"][shown]),
            torch.tensor(arrays["reconstruction"][shown]),
            title="Originals and reconstructions",
        )
        Image.fromarray(plotting.to_array(figure)).save(self.partial / "reconstructions.png")

    def _open(self, trainer: pl.Trainer, rows: dict[str, Tensor], n: int) -> None:
        """Open the files in all processes, after the first process has created them."""
        if trainer.is_global_zero:
            for name, value in rows.items():
                array = value[:1].cpu().numpy()
                made = open_memmap(
                    self.partial / f"{name}.npy", "w+", array.dtype, (n, *array.shape[1:])
                )
                if name == "index":
                    made[:] = -1
                made.flush()
        trainer.strategy.barrier()
        self.arrays = {name: open_memmap(self.partial / f"{name}.npy", "r+") for name in rows}

    def _drop_missing_rows(self) -> None:
        """Remove rows of images that ``limit_predict_batches`` excluded."""
        present = np.load(self.partial / "index.npy", allow_pickle=False) >= 0
        if present.all():
            return
        for path in self.partial.glob("*.npy"):
            np.save(path, np.load(path, allow_pickle=False)[present])
