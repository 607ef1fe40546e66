"""Predictions as NumPy arrays on disk."""

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor

from vae_lightning import plotting, randomness
from vae_lightning.batch import Batch
from vae_lightning.data_record import DataRecord
from vae_lightning.errors import UserError
from vae_lightning.files import atomic_write_text

_IMAGES = ("original", "reconstruction")
"""Outputs that are images."""


class PredictionWriter(pl.Callback):
    """Callback that writes the outputs of ``predict_step``, one ``.npy`` file per name.

    Files have one row per image in the order of the split. Images are in the units of the data and
    have the axes of their files. With several processes, each writes its rows into the shared
    files. ``original``, ``index`` and, with labels, ``label`` are added, a picture of some images
    above their reconstructions, and for files of the user ``items.csv`` with their names.
    Everything is written to ``FOLDER.partial``, which is renamed to ``FOLDER`` when it is complete.

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
        self.model: Any = None
        self.seen = 0

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
        self.arrays, self.seen = {}, 0
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
            batch = self._numbered(Batch.of(batch), trainer)
        found = {"index": batch.indices, "original": batch.x, **outputs}
        if batch.y is not None:
            found["label"] = batch.y
        if not self.arrays:
            self.model = getattr(pl_module, "model", None)
        rows = {name: self._array(name, value) for name, value in found.items()}
        if not self.arrays:
            self._open(trainer, rows, _size(trainer.predict_dataloaders))
        where = batch.indices.cpu().numpy()
        for name, value in rows.items():
            self.arrays[name][where] = value

    def _numbered(self, batch: Batch, trainer: pl.Trainer) -> Batch:
        """Number the items of a loader from elsewhere, in its order."""
        places = torch.arange(self.seen, self.seen + len(batch.x))
        self.seen += len(batch.x)
        # Lightning gives every process every n-th item.
        return batch._replace(indices=places * trainer.world_size + trainer.global_rank)

    def _array(self, name: str, value: Tensor) -> npt.NDArray[Any]:
        """Return values as they are written: images in the units and the axes of the data."""
        if self.record is not None and name in _IMAGES:
            return self.record.to_items(value)
        array: npt.NDArray[Any] = (
            (value.float() if value.is_floating_point() else value).cpu().numpy()
        )
        return array

    @property
    def record(self) -> DataRecord | None:
        """What is known of the data that the model was trained on."""
        return getattr(self.model, "record", None)

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
            self._name_items(trainer)
            atomic_write_text(self.partial / "source.json", self.source)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.partial.rename(self.folder)
        trainer.strategy.barrier()

    def _name_items(self, trainer: pl.Trainer) -> None:
        """Write the names and classes of items of a user's files, in the order of the arrays."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not getattr(data, "is_users", False):
            return
        index = np.load(self.partial / "index.npy", allow_pickle=False).tolist()
        rows = [{"name": data.item_name(data.predict_split, i)} for i in index]
        path = self.partial / "label.npy"
        if path.is_file():
            for row, label in zip(rows, np.load(path, allow_pickle=False).tolist(), strict=True):
                row["class"] = str(data.class_names[label])
        with (self.partial / "items.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _draw(self) -> None:
        """Draw some images above their reconstructions."""
        arrays = {
            name: np.load(self.partial / f"{name}.npy", "r", allow_pickle=False)
            for name in ("original", "reconstruction")
        }
        n = len(arrays["original"])
        shown = randomness.choose(n, min(n, self.images), 0, "pictures").sort().values.numpy()
        pictures = [self._picture(array[shown]) for array in arrays.values()]
        figure = plotting.reconstructions(*pictures, title="Originals and reconstructions")
        Image.fromarray(plotting.to_array(figure)).save(self.partial / "reconstructions.png")

    def _picture(self, values: npt.NDArray[Any]) -> Tensor:
        """Return written images as a picture shows them, (N, C, H, W), in [0, 1]."""
        if self.record is None:
            return torch.from_numpy(values)
        return self.record.to_picture(self.record.from_items(values))

    def _open(self, trainer: pl.Trainer, rows: dict[str, npt.NDArray[Any]], n: int) -> None:
        """Open the files in all processes, after the first process has created them."""
        if trainer.is_global_zero:
            for name, value in rows.items():
                made = open_memmap(
                    self.partial / f"{name}.npy", "w+", value.dtype, (n, *value.shape[1:])
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


def _size(loader: Any) -> int:
    """Return the number of items of the loader that is predicted.

    Raises:
        UserError: If it is not known.
    """
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError) as error:
        raise UserError(
            "predictions are written for one DataLoader of a data set with a length: pass one to "
            "Trainer.predict"
        ) from error
