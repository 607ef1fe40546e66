"""Pictures of a whole training."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lightning import plotting
from vae_lightning.__main__ import main
from vae_lightning.figures.history import animate_samples, draw_losses


@pytest.mark.slow
def test_a_run_has_its_losses_and_an_animation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--data.train_size=64", "--data.val_size=16", "--data.test_size=16"]
    nets = ["--model=VAE", "--model.encoder=MLPEncoder", "--model.decoder=MLPDecoder"]
    more = ["--trainer.max_epochs=3", "--figures.samples.every_n_epochs=1"]
    main(["fit", *small, *nets, *more, "--trainer.enable_progress_bar=false"])
    figures = tmp_path / "runs/vae/version_0/figures"
    with Image.open(figures / "samples.gif") as animation:
        assert animation.n_frames == 3
    assert (figures / "losses.png").stat().st_size < 100_000


def write(folder, rows):
    with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/loss"])
        writer.writeheader()
        writer.writerows(rows)


def test_losses_are_those_of_the_log(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        plotting,
        "curves",
        lambda series, **_: drawn.update(series) or plotting.image_grid(torch.zeros(1, 1, 4, 4)),
    )
    write(
        tmp_path,
        [
            {"step": 9, "train/loss": 3.0},
            {"step": 4, "train/loss": 5.0},
            {"step": 9, "val/loss": 4.0},
            {"step": 14, "train/loss": "nan"},
        ],
    )
    assert draw_losses(tmp_path) == tmp_path / "figures/losses.png"
    assert drawn == {"train/loss": ((4, 9), (5, 3)), "val/loss": ((9,), (4,))}


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert draw_losses(tmp_path) is None
    write(tmp_path, [{"step": 1, "train/loss": 2.0}])
    assert draw_losses(tmp_path) is None
    assert animate_samples(tmp_path) is None
    samples = tmp_path / "figures/samples"
    samples.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(samples / "epoch=000.png")
    assert animate_samples(tmp_path) is None
    assert not (tmp_path / "figures/samples.gif").exists()


def test_curves_show_the_end_and_cut_the_start():
    values = [10_000.0, *np.linspace(200, 100, 99)]
    series = {"train/loss": (list(range(100)), values), "val/loss": ([50, 99], [160.0, 110.0])}
    figure = plotting.curves(series, x_label="step", y_label="nats")
    low, high = figure.axes[0].get_ylim()
    assert low < 100
    assert 200 < high < 300
    left, right = figure.axes[0].get_xlim()
    assert -2 < left < 0 < 99 < right < 101  # with room for the markers
    with pytest.raises(ValueError, match="no finite values"):
        plotting.curves({"a": ([0.0], [float("nan")])}, x_label="", y_label="")
