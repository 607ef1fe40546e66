"""Pictures of a whole training, made from what its run folder holds."""

import csv
import math
from pathlib import Path

import matplotlib.figure
from PIL import Image

from vae_lightning import plotting

_LOSSES = ("train/loss", "val/loss")
_SECONDS = 0.4
"""Time of a frame of the animation."""


def draw_losses(folder: Path) -> Path | None:
    """Draw the losses in ``metrics.csv`` to ``figures/losses.png``.

    Args:
        folder: Folder of the run.

    Returns:
        The picture, None if fewer than two values were logged.
    """
    figure = losses(folder)
    if figure is None:
        return None
    path = folder / "figures" / "losses.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(plotting.to_array(figure)).save(path, optimize=True)
    return path


def losses(folder: Path) -> matplotlib.figure.Figure | None:
    """Return a figure of the losses in ``metrics.csv``, None if fewer than two were logged."""
    series = read_losses(folder)
    if max((len(steps) for steps, _ in series.values()), default=0) < 2:
        return None
    return plotting.curves(
        series, x_label="step", y_label="loss, as trained on", title="Losses of the training"
    )


def read_losses(folder: Path) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return the steps and the finite values of each loss in ``metrics.csv``, by its name."""
    log = folder / "metrics.csv"
    if not log.is_file():
        return {}
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    series = {}
    for name in _LOSSES:
        found = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        found = [pair for pair in found if all(map(math.isfinite, pair))]
        if found:
            steps, values = zip(*sorted(found), strict=True)
            series[name] = (steps, values)
    return series


def animate_samples(folder: Path) -> Path | None:
    """Make ``figures/samples.gif`` of the samples of each epoch, which share their noise.

    Args:
        folder: Folder of the run.

    Returns:
        The animation, None if there are fewer than two pictures of samples.
    """
    frames = []
    for path in sorted((folder / "figures" / "samples").glob("epoch=*.png")):
        with Image.open(path) as image:
            frames.append(image.convert("RGB"))
    frames = [frame for frame in frames if frame.size == frames[-1].size]
    if len(frames) < 2:
        return None
    path = folder / "figures" / "samples.gif"
    durations = [round(1000 * _SECONDS)] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path
