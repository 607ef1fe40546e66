"""Where the commands that use a trained model write, and in which formats."""

import argparse
import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.checkpoint import Checkpoint
from vae_lightning.cli.run_folders import folder_of, short
from vae_lightning.errors import UserError
from vae_lightning.files import atomic_write_text, expand

_FILES = {
    *(".png", ".gif", ".npz", ".npy", ".csv", ".html", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
    *(".webp", ".pdf", ".svg", ".txt", ".json", ".pt", ".ckpt", ".zip", ".onnx", ".safetensors"),
}
"""Suffixes of files; a name that ends in another one, such as ``results.v2``, is a folder's."""

_GIF_SIZE = 192
"""Smallest side of a GIF in pixels; images are enlarged by whole factors."""


class Outputs:
    """Files that a command writes: one that ``--out`` names, or several in a folder.

    Args:
        options: The options of the command, with ``out`` and ``overwrite``.
        held: The checkpoint, whose run gets a new folder by default, or the folder that gets one.
        command: Name of the command.
        suffixes: Suffixes of the files that ``--out`` may name.

    Raises:
        UserError: If something is already there, or the suffix is none of these.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        held: Checkpoint | Path,
        command: str,
        suffixes: Sequence[str],
    ) -> None:
        self.file: Path | None = None
        self.overwrites = options.overwrite
        self.written: list[Path] = []
        if options.out is None:
            parent = held if isinstance(held, Path) else folder_of(held)
            names = itertools.chain([command], (f"{command}_{n}" for n in itertools.count(1)))
            self.folder = next(parent / name for name in names if not (parent / name).exists())
            return
        path = expand(options.out)
        if path.suffix.lower() in _FILES and not path.is_dir():
            if path.suffix.lower() not in suffixes:
                raise UserError(
                    f"--out {path}: vae {command} writes {', '.join(suffixes)}, or a folder"
                )
            self.file, self.folder = path, path.parent
            taken = path.exists()
        else:
            self.folder = path
            taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if taken and not self.overwrites:
            raise UserError(f"--out {path} is already there: give another, or --overwrite")

    def wants(self, suffix: str) -> bool:
        """Return whether a file with a suffix is to be written."""
        return self.file is None or self.file.suffix.lower() == suffix

    def path(self, name: str) -> Path:
        """Return the path of a file, and create its folder."""
        path = self.folder / name if self.file is None else self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.append(path)
        return path

    def figure(self, name: str, figure: matplotlib.figure.Figure) -> None:
        """Write a picture, ``NAME.png``."""
        if self.wants(".png"):
            pixels = plotting.to_array(figure)
            Image.fromarray(pixels).save(self.path(f"{name}.png"), optimize=True)

    def arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write arrays, ``NAME.npz``."""
        if self.wants(".npz"):
            plain: dict[str, Any] = {
                key: value.numpy() if isinstance(value, Tensor) else np.asarray(value)
                for key, value in arrays.items()
            }
            np.savez_compressed(self.path(f"{name}.npz"), **plain)

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a table, ``NAME.csv``, with the columns of all rows."""
        rows = list(rows)
        if self.wants(".csv") and rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            with self.path(f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)

    def text(self, name: str, text: str) -> None:
        """Write a text file into a folder; nothing where ``--out`` names a file."""
        if self.file is None:
            atomic_write_text(self.path(name), text)

    def animation(self, name: str, frames: Tensor, seconds: float = 0.1) -> None:
        """Write a GIF that goes forth and back, ``NAME.gif``.

        Args:
            name: Name without the suffix.
            frames: Images in [0, 1], (S, C, H, W), or rows of K images, (S, K, C, H, W).
            seconds: Time of a frame.
        """
        if not self.wants(".gif"):
            return
        zoom = max(1, -(-_GIF_SIZE // min(frames.shape[-2:])))
        rows = frames if frames.ndim == 5 else frames[:, None]
        pixels = _pixels(rows.flatten(0, 1), zoom)
        pixels = pixels.reshape(*rows.shape[:2], *pixels.shape[1:])
        there = [Image.fromarray(np.concatenate(row, 1)) for row in pixels]
        pictures = [*there, *there[-2:0:-1]]
        pictures[0].save(
            self.path(f"{name}.gif"),
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * seconds),
            loop=0,
        )

    def images(self, folder: str, images: Tensor, names: Sequence[str]) -> None:
        """Write each image to a PNG file in a sub-folder; nothing where ``--out`` is a file."""
        if self.file is None:
            for pixels, name in zip(_pixels(images), names, strict=True):
                Image.fromarray(pixels).save(self.path(f"{folder}/{name}.png"))

    def report(self) -> None:
        """Print where everything is."""
        if self.file is not None:
            if not self.written:
                raise UserError(f"--out {self.file} could not be made of this model and these data")
            print(f"Wrote {short(self.file)}")
            return
        names = dict.fromkeys(
            name if not folder else f"{folder}{'/'}*.png"
            for path in self.written
            for folder, _, name in [str(path.relative_to(self.folder)).rpartition("/")]
        )
        print(f"Wrote {', '.join(names)} to {short(self.folder)}")


def _pixels(images: Tensor, zoom: int = 1) -> npt.NDArray[np.uint8]:
    """Return images in [0, 1] as pixels: (N, h, w) for gray images, else (N, h, w, 3)."""
    pixels = plotting.pictures(images, zoom=zoom)
    is_gray = images.shape[1] == 1 and images.shape[2] > 1
    return np.ascontiguousarray(pixels[..., 0]) if is_gray else pixels
