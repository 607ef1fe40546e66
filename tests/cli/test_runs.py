"""Runs: their folders, what is printed at their end, and what a continued one keeps."""

import gzip
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Timer
from PIL import Image

from vae_lightning import ImageFolder, checkpoint
from vae_lightning.__main__ import main
from vae_lightning.cli import paths, run_folders, run_notes
from vae_lightning.cli.run_folders import RunFolder
from vae_lightning.cli.sweep import _compare
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
"""Seven batches an epoch."""
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


@pytest.mark.slow
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
    run_notes.add(run, wandb_id="1234abcd")
    arguments = Namespace(save_dir="elsewhere", id=None, version=None, name=None)
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=arguments)
    place_loggers([logger], RunFolder(run, continues=True), 8, "fit")
    assert (arguments.id, arguments.save_dir) == ("1234abcd", "elsewhere")


# Why a training has ended, and its continuation


class Stops(pl.Callback):
    """Ends a training after a batch, or in the validation after it."""

    def __init__(self, step: int = 0, validation: bool = False) -> None:
        self.step, self.validation = step, validation

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.should_stop |= not self.validation and pl_module.step == self.step

    def on_validation_end(self, trainer, pl_module) -> None:
        trainer.should_stop |= self.validation and pl_module.step == self.step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (["--trainer.callbacks.step=11"], []),
        (["--trainer.callbacks.step=7"], []),
        (
            ["--trainer.callbacks.step=11", "--trainer.callbacks.validation=true"],
            ["--trainer.val_check_interval=4"],
        ),
        (["--trainer.callbacks.step=10"], ["--trainer.accumulate_grad_batches=2"]),
    ],
    ids=["inside an epoch", "after an epoch", "in a validation", "between updates"],
)
def test_a_training_that_a_callback_has_ended_can_be_continued(stop, options, folder, capsys):
    options = [*TINY, *options, "--trainer.max_epochs=2"]
    main(["fit", *options, "--name=whole"])
    assert "Trained to epoch 2 in 0:00:0" in (printed := capsys.readouterr().out)
    assert ": max_epochs=2 is reached.\n" in printed
    callback = ["--trainer.callbacks+=test_runs.Stops", *stop]
    main(["fit", *options, "--name=ended", *callback])
    assert ": a callback has stopped it.\n" in capsys.readouterr().out
    whole, ended = (folder / "runs" / name / "version_0" for name in ("whole", "ended"))
    last = str(run_folders.last_checkpoint(ended))
    code, message = refusal(["fit", "--ckpt_path", last, *callback], capsys)
    assert (code, "was ended before its --trainer.max_epochs (a callback" in message) == (3, True)
    main(["fit", "--ckpt_path", last, "--trainer.callbacks=null"])
    assert ": max_epochs=2 is reached.\n" in capsys.readouterr().out
    one, other = (checkpoint.read(run_folders.last_checkpoint(run)) for run in (whole, ended))
    assert one.global_step == other.global_step
    torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=0)
    assert (whole / "metrics.csv").read_text() == (ended / "metrics.csv").read_text()


def test_a_training_that_is_out_of_time_needs_more_time(run, capsys):
    last = run_folders.last_checkpoint(run)
    content = torch.load(last, weights_only=True)
    content["callbacks"]["Timer"] = {"time_elapsed": {"train": 5.0}}
    torch.save(content, last)
    args = ["fit", "--ckpt_path", str(last), "--trainer.max_epochs=2", "--trainer.max_time"]
    code, message = refusal([*args, "00:00:00:05"], capsys)
    assert (code, "trained for 0:00:05, and this is its time limit" in message) == (3, True)
    assert "larger --trainer.max_time, or null" in message
    assert list(run.parent.iterdir()) == [run]
    main([*args, "00:01:00:00"])
    assert checkpoint.read(last).global_step == 14
    timer = Timer("00:01:00:00")
    timer.load_state_dict(checkpoint.read(last).content["callbacks"]["Timer"])
    assert timer.time_elapsed() > 5


def test_the_end_of_the_time_is_the_reason(folder, capsys):
    main(["fit", *TINY, "--trainer.max_epochs=1000", "--trainer.max_time=00:00:00:01"])
    assert ": the time limit, max_time, is reached.\n" in capsys.readouterr().out
    last = run_folders.last_checkpoint(folder / "runs" / "vae" / "version_0")
    held = checkpoint.read(last)
    assert held.content["callbacks"]["Timer"]["time_elapsed"]["train"] >= 1
    assert held.record.ended_early is None
    main(["fit", "--ckpt_path", str(last), "--trainer.max_time=null", "--trainer.max_steps",
          str(held.global_step + 1)])  # fmt: skip
    assert f": max_steps={held.global_step + 1} is reached" in capsys.readouterr().out


def test_schedulers_follow_a_metric_in_a_training_of_so_many_steps(folder):
    plateau = ["--lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"]
    plateau += ["--lr_scheduler.patience=0", "--lr_scheduler.threshold=0.9"]
    main(["fit", *TINY, *plateau, "--trainer.max_epochs=-1", "--trainer.max_steps=14"])
    held = checkpoint.read(run_folders.last_checkpoint(folder / "runs" / "vae" / "version_0"))
    assert held.content["lr_schedulers"][0]["_last_lr"] == [pytest.approx(1e-4)]


# What is printed


@pytest.mark.slow
def test_the_next_command_is_quoted_and_names_the_best_of_the_run(folder, capsys):
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=own"]
    main(["fit", *TINY, *own, "--name=two words", "--checkpoint.filename=the best"])
    line = capsys.readouterr().out.splitlines()[-1]
    run = Path("runs", "two words", "version_0")
    best = run / "checkpoints" / "the best.ckpt"
    assert line == f"Next:        vae test --ckpt_path '{best}'"
    assert run_notes.read(run)["best"] == "checkpoints/the best.ckpt"
    main([*shlex.split(line)[2:], *QUICK])
    assert (run / "test" / "metrics.json").is_file()
    capsys.readouterr()
    main(["fit", *TINY, "--checkpoint.save_top_k=0"])
    assert capsys.readouterr().out.endswith(
        "test --ckpt_path runs/vae/version_0/checkpoints/last.ckpt\n"
    )


def test_commands_for_runs_with_classes_of_ones_own_name_them(folder, capsys):
    main(["fit", *TINY, "--trainer.callbacks+=test_runs.Stops"])
    line = capsys.readouterr().out.splitlines()[-1]
    best = "runs/vae/version_0/checkpoints/best.ckpt"
    assert line.endswith(f"vae test --import test_runs --ckpt_path {best}")
    main([*shlex.split(line)[2:], *QUICK])


def test_the_best_of_a_sweep_is_quoted(tmp_path, capsys):
    folder = tmp_path / "two words" / "version_0"
    folder.mkdir(parents=True)
    run_notes.add(folder, best="checkpoints/epoch=1.ckpt")
    sweep = SimpleNamespace(metric="val/loss", maximize=False, parameters={"lr": [1]})
    result = {"parameters": {"lr": 1}, "val/loss": 1.0, "run": str(folder)}
    combination = SimpleNamespace(result=lambda: result, folder=folder.parent, parameters={"lr": 1})
    _compare([combination], sweep, tmp_path)
    command = f"Best:        vae test --ckpt_path '{folder / 'checkpoints' / 'epoch=1.ckpt'}'\n"
    assert capsys.readouterr().out.endswith(command)


# Paths


def test_relative_paths_become_absolute(folder):
    config = Namespace(
        data=Namespace(class_path="photos.path", init_args=Namespace(root="photos", color="gray")),
        model=Namespace(class_path="Mine", init_args=Namespace(codes_path="~/codes", hidden=[8])),
        checkpoint=Namespace(dirpath="best", filename="best"),
        trainer=Namespace(
            logger=[
                Namespace(class_path="TensorBoardLogger", init_args=Namespace(save_dir=".")),
                Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="~/logs")),
                Namespace(class_path="MLFlowLogger", init_args=Namespace(save_dir="s3://logs")),
            ],
            profiler=Namespace(class_path="Simple", init_args=Namespace(dirpath=Path("a", ".."))),
        ),
    )
    paths.make_absolute(config)
    loggers = [logger.init_args.save_dir for logger in config.trainer.logger]
    assert loggers == [".", str(Path.home() / "logs"), "s3://logs"]
    assert config.data.init_args == Namespace(root=str(folder / "photos"), color="gray")
    assert config.data.class_path == "photos.path"
    assert config.model.init_args.codes_path == str(Path.home() / "codes")
    assert config.checkpoint == Namespace(dirpath=str(folder / "best"), filename="best")
    assert config.trainer.profiler.init_args.dirpath == str(folder)


@pytest.mark.slow
def test_a_relative_folder_of_images_is_found_from_another_folder(folder, monkeypatch):
    for i in range(10):
        path = folder / "photos" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    assert ImageFolder("photos").describe()["init_args"]["root"] == str(folder / "photos")
    data = ["--data=ImageFolder", "--data.root=photos", "--data.size=8", "--data.color=gray"]
    main(["fit", *data, *(option for option in TINY if not option.startswith("--data"))])
    run = folder / "runs" / "vae" / "version_0"
    assert f"root: {folder / 'photos'}\n" in (run / "config.yaml").read_text()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *QUICK])
    assert (run / "test" / "metrics.json").is_file()


# Options without an effect


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["fit", "--trainer.default_root_dir=x"], "so give --output_dir instead"),
        (["test", "--trainer.default_root_dir=x"], "so give --output_dir instead"),
        (["test", "--output_dir=x"], "--output_dir has no effect on vae test, only on vae fit"),
        (["predict", "--name=x"], "--name has no effect on vae predict, only on vae fit"),
        (["validate", "--optimizer.lr=1"], "--optimizer.lr has no effect on vae validate"),
        (["test", "--training.skip_non_finite=true"], "has no effect on vae test, only on vae fit"),
        (["test", "--figures.samples.n=4"], "--figures.samples.n has no effect on vae test"),
        (["test", "--trainer.max_epochs=4"], "--trainer.max_epochs has no effect on vae test"),
        (["test", "--trainer.limit_val_batches=2"], "only on vae fit and vae validate"),
        (["fit", "--trainer.limit_test_batches=2"], "only on vae test"),
        (["fit", "--figures.manifold.n=4", "--model.latent_dim=5"], "figures.manifold has no"),
        (
            ["test", "--metrics.classification.num_samples=4"],
            "metrics.classification has no effect",
        ),
        (["fit", "--last.every_n_steps=4", "--checkpoint.save_last=false"], "save_last false"),
        (
            ["fit", "--checkpoint.save_top_k=2", "--trainer.enable_checkpointing=false"],
            "enable_checkpointing false",
        ),
        (["fit", "--seed_everything=5", "--trainer.max_epochs=2"], "keeps its seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_without_an_effect_are_refused(args, sentence, run, capsys):
    command, *options = args
    if command != "fit" or "--seed_everything=5" in options:
        options += ["--ckpt_path", str(run_folders.last_checkpoint(run))]
    before = sorted(run.parent.rglob("*"))
    code, message = refusal([command, *options], capsys)
    assert (code, sentence in message) == (1, True), message
    assert sorted(run.parent.rglob("*")) == before
