"""Runs: their folders, what is printed at their end, and what a continued one keeps."""

import gzip
import os
import shutil
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import Namespace
from PIL import Image

from vae_lightning import MNIST, StaticMNIST, checkpoint
from vae_lightning.__main__ import main
from vae_lightning.cli import run_folders
from vae_lightning.cli.run_folders import RunFolder
from vae_lightning.cli.trainer_setup import place_loggers
from vae_lightning.errors import UserError
from vae_lightning.files import read_data_file

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run, to be copied."""
    before, path = os.getcwd(), tmp_path_factory.mktemp("trained")
    os.chdir(path)
    main(["fit", *TINY])
    os.chdir(before)
    return path


@pytest.fixture
def run(trained, folder, capsys):
    """The folder of a VAE that was trained for one epoch."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    return folder / "runs" / "vae" / "version_0"


def refusal(args, capsys):
    """Exit code and sentence of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "please report" not in line
    return stop.value.code, line.removeprefix("vae: error: ")


# A checkpoint knows its run


def test_reports_go_to_the_run_wherever_its_checkpoints_are(folder):
    where = ["--checkpoint.dirpath=best", "--checkpoint.filename={epoch}-{val/loss:.2f}"]
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=own/deep"]
    main(["fit", *TINY, *where, *own])
    run = folder / "runs" / "vae" / "version_0"
    (best,) = folder.rglob("epoch=0-val/loss=*.ckpt")
    (theirs,) = (folder / "own" / "deep").iterdir()
    for path in best, theirs, run_folders.last_checkpoint(run):
        held = checkpoint.read(path)
        assert run_folders.folder_of(held) == run
        assert run_folders.is_newest(held)
    main(["test", "--ckpt_path", str(best), *QUICK])
    assert (run / "test" / "metrics.json").is_file()
    main(["fit", "--ckpt_path", str(theirs), "--trainer.max_epochs=2"])
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert not run_folders.is_newest(checkpoint.read(theirs))


def test_a_checkpoint_belongs_to_the_folder_that_it_was_moved_with(run, folder):
    shutil.copytree(run, folder / "copy")
    for place in run, folder / "copy":
        held = checkpoint.read(run_folders.last_checkpoint(place))
        assert run_folders.folder_of(held) == place
    shutil.copy(run_folders.last_checkpoint(run), folder / "a.ckpt")
    held = checkpoint.read(folder / "a.ckpt")
    assert run_folders.folder_of(held) == Path(held.record.run["folder"])


def test_another_run_in_the_place_of_a_removed_one_gets_no_reports(folder):
    main(["fit", *TINY, "--checkpoint.dirpath=best"])
    shutil.rmtree("runs")
    main(["fit", *TINY, "--trainer.enable_checkpointing=false"])
    held = checkpoint.read(folder / "best" / "best.ckpt")
    assert held.record.run["folder"] == str(folder / "runs" / "vae" / "version_0")
    assert run_folders.folder_of(held) == folder / "best"
    assert not run_folders.is_newest(held)


def test_the_best_is_remembered_if_its_name_has_a_metric(folder):
    options = ["--checkpoint.filename={epoch}-{val/loss:.2f}", "--checkpoint.save_top_k=2"]
    main(["fit", *TINY, *options, "--trainer.max_epochs=2", "--optimizer.lr=0"])
    shutil.move("runs", "moved")
    last = run_folders.last_checkpoint(folder / "moved" / "vae" / "version_0")
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=3"])
    saved = checkpoint.read(last).content["callbacks"]
    (state,) = (value for key, value in saved.items() if key.startswith("BestCheckpoint"))
    assert len(state["best_k_models"]) == 2
    assert all(path.startswith(str(folder / "moved")) for path in state["best_k_models"])


# What is called damaged


class Fails(pl.Callback):
    """Fails where it is told to: before the training, or when it is restored."""

    def __init__(self, when: str = "") -> None:
        self.when = when

    def on_fit_start(self, trainer, pl_module) -> None:
        if self.when == "fit":
            raise RuntimeError("the tracker has no network")

    def state_dict(self):
        return {"when": self.when}

    def load_state_dict(self, state_dict) -> None:
        if self.when == "restore":
            raise KeyError("a field of the old version")


@pytest.mark.parametrize(
    ("when", "sentence"),
    [("fit", "RuntimeError: the tracker has no network"), ("restore", "last.ckpt cannot be res")],
)
def test_only_what_a_checkpoint_holds_is_blamed_on_it(when, sentence, folder, capsys):
    callback = ["--trainer.callbacks+=test_runs.Fails", "--trainer.callbacks.when"]
    main(["fit", *TINY, *callback, "never"])
    last = str(run_folders.last_checkpoint(folder / "runs" / "vae" / "version_0"))
    with pytest.raises(SystemExit, match="1"):
        main(["fit", "--ckpt_path", last, "--trainer.max_epochs=2", *callback, when])
    message = capsys.readouterr().err.splitlines()[-1]
    assert sentence in message
    assert "damaged" not in message
    assert ("resumed" in message) == (when == "restore")


def test_what_is_whole_is_not_called_damaged(run, folder, capsys, monkeypatch):
    last = run_folders.last_checkpoint(run)
    content = torch.load(last, weights_only=True)
    torch.save({**content, "callbacks": {"Mine": Path("object")}}, folder / "objects.ckpt")
    del content["loops"]
    torch.save(content, folder / "no_loops.ckpt")
    for name, part in {
        "objects": "holds Python objects other than weights",
        "no_loops": "does not say how far its training got",
    }.items():
        args = ["fit", "--ckpt_path", f"{name}.ckpt", "--trainer.max_epochs=2"]
        code, message = refusal(args, capsys)
        assert (code, part in message, "damaged" in message) == (1, True, False), message

    def deny(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", deny)
    code, message = refusal(["test", "--ckpt_path", str(last)], capsys)
    assert (code, "cannot be read (Permission denied)" in message) == (1, True), message


def test_data_that_may_not_be_read_are_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(b"x")[:-4])
    with pytest.raises(UserError, match=r"images.gz is damaged \(Compressed file ended"):
        read_data_file(path)

    def deny(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", deny)
    with pytest.raises(UserError, match=r"images.gz cannot be read \(Permission denied\): get"):
        read_data_file(path)


def test_a_tracker_with_a_folder_of_its_own_is_continued_too(run):
    run_folders.add_notes(run, wandb_id="1234abcd")
    arguments = Namespace(save_dir="elsewhere", id=None, version=None, name=None)
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=arguments)
    place_loggers([logger], RunFolder(run, continues=True), 8, "fit")
    assert (arguments.id, arguments.save_dir) == ("1234abcd", "elsewhere")


# What is printed, and what is written


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


# Data


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
