"""Data and settings of one's own through the command line: what is found, said and kept."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vae_lightning
from vae_lightning import MNIST, StaticMNIST, checkpoint
from vae_lightning.__main__ import main
from vae_lightning.data.cache import cache_folder

TINY = [
    *("--data.train_size=128", "--data.val_size=16", "--data.test_size=24", "--data.batch_size=16"),
    *("--model.encoder=MLPEncoder", "--model.encoder.hidden=[4]", "--model.latent_dim=2"),
    *("--model.decoder=MLPDecoder", "--model.decoder.hidden=[4]", "--trainer.max_epochs=1"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--figures.samples=null", "--figures.reconstructions=null", "--figures.latents=null"),
    "--figures.traversals=null",
]
"""Eight batches an epoch."""
QUICK = ["--trainer.enable_progress_bar=false", "--metrics.disentanglement=null"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_configuration_that_is_written_can_be_read(folder, capsys):
    """Although an argument of the callback is an object."""
    averaging = [
        "--trainer.callbacks+=StochasticWeightAveraging",
        "--trainer.callbacks.swa_lrs=0.01",
        "--trainer.callbacks.swa_epoch_start=1",
    ]
    main(["fit", *TINY, *averaging])
    config = Path("runs/vae/version_0/config.yaml")
    assert "Unable to serialize" not in config.read_text()
    main(["fit", "--config", str(config)])
    assert Path("runs/vae/version_1/config.yaml").read_text() == config.read_text()
    main(
        ["fit", "--ckpt_path", "runs/vae/version_0/checkpoints/last.ckpt", "--trainer.max_epochs=2"]
    )
    assert checkpoint.read("runs/vae/version_0/checkpoints/last.ckpt").record.epochs == 2


@pytest.fixture
def photos(folder):
    for i in range(20):
        for where, color in (("photos", (200, 0, 0)), ("others", (0, 0, 200))):
            path = folder / where / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), color).save(path)
    options = [option for option in TINY if not option.startswith("--data")]
    main(["fit", *options, "--data=ImageFolder", "--data.root=photos", "--data.size=8"])
    return folder / "runs" / "vae" / "version_0"


def test_what_was_found_is_said(folder, photos, capsys):
    (folder / "photos" / "notes.txt").write_text("no image")
    options = [option for option in TINY if not option.startswith("--data")]
    capsys.readouterr()
    main(["fit", *options, "--data=ImageFolder", "--data.root=photos", "--data.size=8"])
    (line,) = (ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("Data:"))
    assert "20 images (16 train, 2 val, 2 test), 8x8 RGB; 1 file left out" in line
    assert line.endswith("(listed in runs/vae/version_1/left_out.txt)")
    listed = (folder / "runs" / "vae" / "version_1" / "left_out.txt").read_text()
    assert listed == "notes.txt: no image that Pillow can read\n"


@pytest.mark.slow
def test_home_is_found_in_configurations_and_variables(folder, photos, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder))
    Path("mine.yaml").write_text(
        "data: {class_path: ImageFolder, init_args: {root: ~/photos, size: 8}}\noutput_dir: ~/out\n"
    )
    options = [option for option in TINY if not option.startswith("--data")]
    main(["fit", "--config=~/mine.yaml", *options])
    main(["test", "--ckpt_path=~/out/mine/version_0/checkpoints/best.ckpt", *QUICK])
    assert not Path("~").exists()
    monkeypatch.setenv("VAE_DATA_ROOT", "~/sets")
    assert MNIST().folder == folder / "sets" / "MNIST" / "raw"
    assert StaticMNIST().root == folder / "sets"
    assert vae_lightning.load("~/out/mine/version_0/checkpoints/best.ckpt").image_shape == (3, 8, 8)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert cache_folder() == folder / "cache" / "vae_lightning"


@pytest.mark.slow
def test_every_image_of_a_folder_that_was_named_is_predicted(folder, photos, capsys):
    ckpt = ["--ckpt_path", str(photos / "checkpoints" / "best.ckpt"), QUICK[0]]
    main(["predict", *ckpt])
    own = np.load(photos / "predictions" / "original.npy")
    assert len(own) == 2
    main(["predict", *ckpt, "--data.root", "others"])
    assert "predictions_1" in capsys.readouterr().out
    new = np.load(photos / "predictions_1" / "original.npy")
    assert len(new) == 20
    assert new[:, 2].min() > 0.7
    assert np.array_equal(np.load(photos / "predictions" / "original.npy"), own)
    main(["predict", *ckpt, "--data.root", "others"])  # the same again replaces
    main(["predict", *ckpt, "--data.root", "others", "--data.predict_split=val"])
    assert len(np.load(photos / "predictions_2" / "original.npy")) == 2
    assert not (photos / "predictions_3").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "steps"), [("1", 1), ("1.0", 7), ("3", 3), ("0.5", 3)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("place", ["typed", "in a file"])
def test_one_batch_is_not_all_of_them(folder, option, steps, place):
    """Lightning takes the integer 1 for a batch and the float for everything."""
    Path("mine.yaml").write_text(f"trainer: {{limit_train_batches: {option}}}", encoding="utf-8")
    given = {"typed": f"--trainer.limit_train_batches={option}", "in a file": "--config=mine.yaml"}
    main(["fit", *TINY, given[place], "--name=mine"])
    held = checkpoint.read(folder / "runs/mine/version_0/checkpoints/last.ckpt")
    assert held.global_step == steps
