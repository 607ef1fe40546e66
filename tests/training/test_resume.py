"""Trainings that end early: what is left of them, and that they end as if they had not."""

import contextlib
import csv
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
import wandb
import yaml

from vae_lightning import VAE, LitVAE
from vae_lightning.__main__ import main
from vae_lightning.cli import run_folders
from vae_lightning.training.last_checkpoint import Interrupted, LastCheckpoint

TINY = [
    *("--data.train_size=140", "--data.val_size=32", "--data.test_size=8", "--data.batch_size=16"),
    *("--data.binarization=dynamic", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=2"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--figures.traversals=null", "--figures.latents=null", "--figures.classes=null"),
]
"""Seven batches an epoch, the last one of 12 images."""
SMALL = {"VQVAE": ["--model.encoder.hidden=8", "--model.decoder.hidden=8"]}
CONV = ["--model.encoder.channels=[4,8]", "--model.decoder.channels=[8,4]"]
VARIANTS = ["BetaVAE", "CVAE", "IWAE", "VAE", "VQVAE"]


class SendSignal(pl.Callback):
    """Sends this process a signal in the middle of a batch.

    Args:
        number: The signal.
        step: Batches before this one.
    """

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if pl_module.step == self.step:
            os.kill(os.getpid(), self.number)


def at(step, number=signal.SIGTERM):
    """Options for a signal at a step."""
    return [
        "--trainer.callbacks+=test_resume.SendSignal",
        f"--trainer.callbacks.number={int(number)}",
        f"--trainer.callbacks.step={step}",
    ]


def fit(*args):
    main(["fit", *TINY, *args])


def ends(args, capsys):
    """Exit code and last line of a command that fails."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return stop.value.code, captured.err.strip().splitlines()[-1].removeprefix(
        "vae: "
    ).removeprefix("error: ")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """A VAE that was trained for one epoch, whose checkpoint has a log of five rows."""
    fit(*CONV, "--name=vae", "--trainer.max_epochs=1")
    capsys.readouterr()
    return folder / "runs" / "vae" / "version_0"


def last(run):
    return str(run_folders.last_checkpoint(run))


def step_of(path):
    """Batches that the training of a checkpoint had seen."""
    return torch.load(path, weights_only=True)["vae_lightning"]["step"]


def files(folder):
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same(one, other, pictures=True):
    """That two runs ended in the same state, with the same log and, by default, pictures."""
    first, second = (torch.load(last(run), weights_only=True) for run in (one, other))
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    for part in ("lr_schedulers", "global_step"):
        assert first[part] == second[part], part
    assert first["vae_lightning"]["step"] == second["vae_lightning"]["step"]
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    drawn = [{str(p.relative_to(run)) for p in run.glob("figures/*/*")} for run in (one, other)]
    assert drawn[0] == drawn[1] or not pictures


@pytest.mark.slow_except("VAE")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", [9, 13])
def test_a_stopped_training_ends_as_if_it_had_not_been(variant, step, folder, capsys):
    """Inside the second epoch, and in its last batch."""
    options = [f"--model={variant}", *SMALL.get(variant, CONV)]
    if variant == "IWAE":
        options += ["--data.num_workers=1"]
    if variant == "VQVAE":
        options += ["--lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau"]
        options += ["--lr_scheduler.monitor=val/loss", "--lr_scheduler.patience=0"]
        options += ["--lr_scheduler.threshold=0.5"]
    fit(*options, "--name=whole")
    code, message = ends(["fit", *TINY, *options, "--name=stopped", *at(step)], capsys)
    assert code == 128 + signal.SIGTERM
    why, _, command = message.partition("; to continue: ")
    assert why == f"stopped by SIGTERM in epoch {2 if step == 9 else 3}"
    stopped = folder / "runs" / "stopped" / "version_0"
    assert step_of(last(stopped)) == step + 1
    main(shlex.split(command)[1:])
    assert not (stopped.parent / "version_1").exists()
    assert_same(folder / "runs" / "whole" / "version_0", stopped)


def test_ctrl_c_saves_too(folder, capsys):
    code, message = ends(["fit", *TINY, *CONV, *at(3, signal.SIGINT)], capsys)
    assert code == 130
    assert message == (
        "stopped by SIGINT in epoch 1; to continue: "
        "vae fit --import test_resume "  # for the class that sends the signal
        "--ckpt_path runs/vae/version_0/checkpoints/last.ckpt"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_killed_at_random_and_continued():
    script = Path(__file__).parents[1] / "benchmarks" / "soak.py"
    command = [sys.executable, script, "--kills", "4", "--variants", "BetaVAE"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills, 0 trainings that ended differently" in done.stdout


class Saved(pl.Callback):
    """Notes when a checkpoint is saved."""

    steps: ClassVar[list[int]] = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        self.steps.append(pl_module.step)


@pytest.mark.slow
def test_checkpoints_by_steps_and_by_time(folder):
    common = [*CONV, "--trainer.callbacks+=test_resume.Saved", "--training.steps_per_call=1"]
    common += ["--trainer.max_epochs=2", "--checkpoint.save_top_k=0"]
    fit(*common, "--last.every_n_steps=3")
    # Every third step, but for those that end an epoch, after whose validation it is saved.
    assert Saved.steps == [3, 6, 7, 10, 13, 14]
    Saved.steps.clear()
    fit(*common, "--last.every_n_minutes=0.0000001", "--last.every_n_epochs=9")
    assert Saved.steps == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


@pytest.mark.slow
def test_a_training_that_cannot_save_leaves_the_checkpoint_before(folder, capsys):
    options = ["fit", *TINY, *CONV, "--trainer.callbacks+=test_resume.FullDisk"]
    try:
        code, message = ends(options, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert code == 1
    path = folder / "runs" / "vae" / "version_0" / "checkpoints" / "best.ckpt"
    assert "runs/vae/version_0/checkpoints" in message
    assert "could not be written" in message
    assert "the earlier one is still there" in message
    assert not list(path.parent.glob("*.partial"))
    for checkpoint in path.parent.iterdir():
        assert step_of(checkpoint) == 7
    fit("--ckpt_path", last(path.parents[1]), "--trainer.callbacks=null")


@pytest.mark.parametrize(("size", "name"), [(100, "metrics.csv"), (1000, "epoch=001.png")])
def test_other_files_that_cannot_be_written_are_named(size, name, folder, capsys):
    blocked = [f"--trainer.callbacks.size={size}", "--figures.samples.every_n_epochs=1"]
    options = ["fit", *TINY, *CONV, "--trainer.callbacks+=test_resume.FullDisk", *blocked]
    try:
        code, message = ends(options, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert code == 1
    assert f"{name} could not be written (File too large)" in message


class FullDisk(pl.Callback):
    """Lets no file grow beyond a size after the first epoch."""

    def __init__(self, size: int = 100_000) -> None:
        self.size = size

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == 1:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


def test_no_room_for_checkpoints(folder, capsys, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    code, message = ends(["fit", *TINY, *CONV], capsys)
    assert code == 1
    assert "0 MB are free where runs/vae/version_0 is" in message
    assert not list(folder.rglob("*.ckpt"))


def test_a_folder_that_cannot_be_written(folder, capsys):
    (folder / "blocked").write_text("a file where the folder would be")
    code, message = ends(["fit", *TINY, *CONV, "--output_dir=blocked"], capsys)
    assert code == 1
    assert "blocked" in message


def test_what_was_best_is_remembered(run, folder):
    """Also when the folder has moved; weights that are no better do not replace it."""
    moved = folder / "elsewhere" / "vae" / "version_0"
    shutil.move(folder / "runs", folder / "elsewhere")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    options = ["--trainer.max_epochs=2", "--optimizer.lr=0"]
    main(["fit", "--ckpt_path", last(moved), *options])
    assert step_of(last(moved)) == 14
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_training_from_an_older_checkpoint_is_another_run(run, folder):
    shutil.copy(last(run), run / "checkpoints" / "first.ckpt")
    main(["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2"])
    before = files(run)
    first = str(run / "checkpoints" / "first.ckpt")
    main(["fit", "--ckpt_path", first, "--trainer.max_epochs=2"])
    assert files(run) == before
    other = run.parent / "version_1"
    assert step_of(last(other)) == 14
    main(["fit", "--ckpt_path", last(run), "--trainer.max_epochs=3", "--name=branch"])
    assert files(run) == before
    assert (folder / "runs" / "branch" / "version_0" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--model.latent_dim=3"], "keeps its model: leave out --model.latent_dim"),
        (["--model.likelihood=Gaussian"], "keeps its model: leave out --model.likelihood"),
        (["--model.encoder.channels=[4,16]"], "keeps its model: leave out --model.encoder"),
        (["--data.val_size=30"], "keeps its images: leave out --data.val_size 30"),
        (["--data.split_seed=4"], "leave out --data.split_seed 4"),
        (["--data.binarization=none"], "leave out --data.binarization none"),
        (["--data=MNIST"], "keeps its images"),
        (["--optimizer=SGD"], "keeps its optimizer"),
        (["--trainer.max_epochs=0"], "trainer.max_epochs is 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_change(run, options, part, capsys):
    before = files(run.parents[1])
    args = ["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2", *options]
    code, message = ends(args, capsys)
    assert (code, part in message) == (1, True), message
    assert files(run.parents[1]) == before


def test_what_is_complete(run, capsys):
    before = files(run.parents[1])
    args = ["fit", "--ckpt_path", last(run), "--trainer.max_epochs=1"]
    code, message = ends(args, capsys)
    assert (code, "--trainer.max_epochs larger than 1" in message) == (3, True), message
    assert files(run.parents[1]) == before


@pytest.mark.slow
def test_batches_of_another_size_only_between_epochs(run, folder, capsys):
    options = ["--trainer.max_epochs=2", "--data.batch_size=8"]
    main(["fit", "--ckpt_path", last(run), *options])
    assert step_of(last(run)) == 7 + 14
    code, _ = ends(["fit", *TINY, *CONV, "--name=inside", *at(3)], capsys)
    assert code == 143
    inside = folder / "runs" / "inside" / "version_0"
    code, message = ends(["fit", "--ckpt_path", last(inside), *options], capsys)
    assert (code, "leave out --data.batch_size 8" in message) == (1, True)


@pytest.mark.slow
def test_a_run_is_not_continued_twice_at_the_same_time(run, capsys, monkeypatch):
    monkeypatch.setattr(run_folders, "LOCK_TIMEOUT", 0.2)
    with run_folders.lock(run):
        args = ["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2"]
        code, message = ends(args, capsys)
    assert (code, "is being trained by another process" in message) == (1, True)
    main(args)


def test_rows_that_were_logged_after_the_checkpoint_are_logged_again(run):
    """A run that was killed after its checkpoint, in the middle of a line."""
    kept = (run / "metrics.csv").read_text()
    with (run / "metrics.csv").open("a") as file:
        file.write(kept.splitlines()[-1] + "\n0,99,1.0,")
    main(["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2"])
    lines = (run / "metrics.csv").read_text()
    assert lines.startswith(kept)
    with (run / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert max(steps) == 13


@pytest.mark.slow
def test_the_same_run_of_the_tracker_is_continued(folder, monkeypatch):
    """With changed settings, though the server sends those of the first part."""
    fit(*CONV, "--trainer.max_epochs=1", "--trainer.logger+=WandbLogger")
    run = folder / "runs" / "vae" / "version_0"
    wandb.finish()  # as at the end of a process
    init, sent = wandb.init, []

    def resume(**kwargs):
        tracked = init(**kwargs)
        # As in `wandb.Run.__init__` and in the answer of the server.
        tracked._config._update(
            {"config": {"trainer": {"max_epochs": 1}}}, allow_val_change=True, ignore_locked=True
        )
        sent.append(tracked)
        return tracked

    monkeypatch.setattr("wandb.init", resume)
    main(["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2"])
    assert sent[0].config["config"]["trainer"]["max_epochs"] == 2
    wandb.finish()
    names = [path.name for path in run.glob("wandb/offline-run-*")]
    known = json.loads((run / "run.json").read_text())["wandb_id"]
    assert len(known) == 8
    assert {name.rpartition("-")[2] for name in names} == {known}


@pytest.mark.slow
def test_killed_between_the_best_and_the_last_checkpoint(run, folder):
    """The best one is then newer than that from which the run is continued."""
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    main(["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2"])
    (run / "checkpoints" / "last.ckpt").write_bytes(before)
    main(["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2"])
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    fit(*CONV, "--name=whole", "--trainer.max_epochs=2")
    assert_same(folder / "runs" / "whole" / "version_0", run, pictures=False)


@pytest.mark.slow
def test_several_best_checkpoints_are_those_of_a_run_that_was_not_killed(folder):
    options = [*CONV, "--checkpoint.save_top_k=2", "--checkpoint.filename={epoch}"]
    fit(*options, "--name=whole", "--trainer.max_epochs=5")
    fit(*options, "--name=killed", "--trainer.max_epochs=3")
    whole, killed = (folder / "runs" / name / "version_0" for name in ("whole", "killed"))
    before = (killed / "checkpoints" / "last.ckpt").read_bytes()
    main(["fit", "--ckpt_path", last(killed), "--trainer.max_epochs=4"])
    (killed / "checkpoints" / "last.ckpt").write_bytes(before)
    main(["fit", "--ckpt_path", last(killed), "--trainer.max_epochs=5"])
    names = [{path.name for path in run.glob("checkpoints/*")} for run in (whole, killed)]
    assert names[0] == names[1]


def test_the_best_stays_the_best_when_saved_less_often(run):
    best = (run / "checkpoints" / "best.ckpt").read_bytes()
    options = ["--trainer.max_epochs=3", "--checkpoint.every_n_epochs=2", "--optimizer.lr=0"]
    main(["fit", "--ckpt_path", last(run), *options])
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == best


def test_weights_that_are_not_finite_replace_no_checkpoint(run, capsys):
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    blow = ["--trainer.callbacks+=test_resume.BlowAtTheEnd", "--trainer.max_epochs=3"]
    code, message = ends(["fit", "--ckpt_path", last(run), *blow], capsys)
    assert code == 1
    assert "the weights are not finite at step 13; the last good checkpoint is" in message
    for path in (run / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in weights)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


class BlowAtTheEnd(pl.Callback):
    """Makes weights infinite after the last batch of the second epoch, whose loss was finite."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1 and trainer.is_last_batch:
            next(pl_module.model.decoder.parameters()).data.fill_(torch.inf)


@pytest.mark.slow
@pytest.mark.parametrize("first", [10, 14], ids=["inside an epoch", "after an epoch"])
def test_a_training_of_so_many_steps_can_be_made_longer(first, folder):
    steps = ["--trainer.max_epochs=-1", "--trainer.max_steps=17"]
    options = ["--model=VQVAE", *SMALL["VQVAE"]]
    fit(*options, "--name=whole", *steps)
    fit(*options, "--name=longer", *steps[:1], f"--trainer.max_steps={first}")
    whole, longer = (folder / "runs" / name / "version_0" for name in ("whole", "longer"))
    main(["fit", "--ckpt_path", last(longer), *steps[1:]])
    assert_same(whole, longer, pictures=False)


@pytest.mark.slow
def test_a_training_that_was_stopped_early_is_complete(run, capsys):
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    stop += ["--trainer.callbacks.patience=0", "--trainer.callbacks.min_delta=1e9"]
    fit(*CONV, "--name=early", *stop)
    early = run.parents[1] / "early" / "version_0"
    step = step_of(last(early))
    assert step < 21
    code, message = ends(["fit", "--ckpt_path", last(early)], capsys)
    assert (code, "early stopping, monitored metric val/loss did not improve" in message) == (
        3,
        True,
    )
    # Lightning would restore the patience with the rest of the state.
    patient = [*stop[:2], *stop[3:], "--trainer.callbacks.patience=9"]
    main(["fit", "--ckpt_path", last(early), *patient])
    assert step_of(last(early)) == 21


@pytest.mark.slow
def test_pictures_are_drawn_at_the_same_epochs(folder, capsys):
    often = ["--figures.samples.every_n_epochs=2", "--trainer.max_epochs=6"]
    fit(*CONV, "--name=whole", *often)
    ends(["fit", *TINY, *CONV, "--name=stopped", *often, *at(16)], capsys)
    stopped = folder / "runs" / "stopped" / "version_0"
    main(["fit", "--ckpt_path", last(stopped)])
    assert_same(folder / "runs" / "whole" / "version_0", stopped)


@pytest.mark.slow
def test_the_log_survives_a_part_without_one(run):
    kept = (run / "metrics.csv").read_text()
    main(["fit", "--ckpt_path", last(run), "--trainer.max_epochs=2", "--trainer.logger=false"])
    logger = ["--trainer.logger=TensorBoardLogger", "--trainer.max_epochs=3"]
    main(["fit", "--ckpt_path", last(run), *logger])
    assert (run / "metrics.csv").read_text().startswith(kept)
    assert len((run / "metrics.csv").read_text().splitlines()) > len(kept.splitlines())


def test_a_scheduler_with_other_arguments_is_refused(folder, capsys):
    schedule = ["--lr_scheduler=torch.optim.lr_scheduler.StepLR"]
    fit(*CONV, *schedule, "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.5")
    args = ["fit", "--ckpt_path", last(folder / "runs" / "vae" / "version_0")]
    args += ["--trainer.max_epochs=4", "--lr_scheduler.gamma=0.1"]
    code, message = ends(args, capsys)
    assert (code, "keeps its optimizer and learning-rate scheduler" in message) == (1, True)


def test_from_python_a_stop_is_over_when_it_is(blobs, tmp_path):
    module = LitVAE(VAE(image_shape=(1, 8, 8)))
    common = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    common["max_epochs"] = 1
    for stops in (True, False):
        callbacks = [LastCheckpoint(), *([SendSignal(signal.SIGINT, 1)] if stops else [])]
        trainer = pl.Trainer(
            **common,
            default_root_dir=tmp_path,
            callbacks=callbacks,
            log_every_n_steps=1,
        )
        with pytest.raises(Interrupted) if stops else contextlib.nullcontext():
            trainer.fit(module, datamodule=blobs())
    assert trainer.global_step == 4


@pytest.mark.slow
def test_the_command_that_goes_on_names_classes_of_ones_own(folder, capsys):
    _, message = ends(["fit", *TINY, *CONV, *at(3)], capsys)
    command = message.partition("; to continue: ")[2]
    assert command.startswith("vae fit --import test_resume --ckpt_path ")
    done = subprocess.run(
        [sys.executable, "-m", "vae_lightning", *shlex.split(command)[1:]],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "runs" / "vae").iterdir())) == 1


# In a job of a cluster


@pytest.fixture
def job(folder, monkeypatch):
    """As in a SLURM job with one task; what was asked of ``scontrol`` is in scontrol.txt."""
    tool = folder / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.txt\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    names = {"JOB_ID": 7, "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_NUM_NODES": 1}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_JOB_NAME", "train")

    def start(number, restarts):
        monkeypatch.setenv("SLURM_JOB_ID", str(number))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    yield start
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_goes_on(job, folder, capsys):
    fit(*CONV, "--name=whole", *at(99))
    # An older run of the same command, whose job had another number.
    preempted = ["fit", *TINY, *CONV, "--name=preempted", *at(9, signal.SIGUSR1)]
    job(6, 0)
    with pytest.raises(SystemExit, match="75"):
        main(preempted)
    job(7, 0)
    with pytest.raises(SystemExit, match="75"):
        main(preempted)
    assert (
        "Requeuing; job 7 continues from step 10 (runs/preempted/version_1/"
        in capsys.readouterr().out
    )
    assert (folder / "scontrol.txt").read_text() == "requeue 6\nrequeue 7\n"
    parent = folder / "runs" / "preempted"
    before = files(parent / "version_0")
    job(7, 1)
    main(preempted)
    # A signal that comes after the training must not end the process as if it had failed.
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    assert sorted(path.name for path in parent.iterdir()) == ["version_0", "version_1"]
    assert_same(folder / "runs" / "whole" / "version_0", parent / "version_1")
    assert files(parent / "version_0") == before
    # Started once more, as the line before it in a job that was requeued later.
    with pytest.raises(SystemExit, match=r"^0$"):
        main(preempted)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_requeued_job_has_each_callback_and_tracker_once(job, folder):
    """Options that add something have added it to the run's config.yaml already."""
    added = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    added += ["--trainer.logger+=TensorBoardLogger", *at(9, signal.SIGUSR1)]
    job(7, 0)
    with pytest.raises(SystemExit, match="75"):
        fit(*CONV, *added)
    job(7, 1)
    fit(*CONV, *added)
    config = yaml.safe_load((folder / "runs" / "vae" / "version_0" / "config.yaml").read_text())
    names = [item["class_path"].rpartition(".")[2] for item in config["trainer"]["callbacks"]]
    assert names == ["EarlyStopping", "SendSignal"]
    assert len(config["trainer"]["logger"]) == 1


@pytest.mark.slow
def test_a_job_that_began_with_a_checkpoint_goes_on_from_its_own(job, run, folder):
    branch = ["--ckpt_path", last(run), "--name=branch", "--trainer.max_epochs=4"]
    job(7, 0)
    for restarts in range(2):
        job(7, restarts)
        with pytest.raises(SystemExit, match="75"):
            main(["fit", *branch, *at(9, signal.SIGUSR1), *at(16, signal.SIGUSR1)])
    (only,) = (folder / "runs" / "branch").iterdir()
    assert step_of(last(only)) == 17


def test_one_task_of_an_array_is_requeued_not_all(job, folder, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    job(5, 0)
    with pytest.raises(SystemExit, match="75"):
        fit(*CONV, *at(3, signal.SIGUSR1))
    assert (folder / "scontrol.txt").read_text() == "requeue 5_3\n"


@pytest.mark.slow
def test_another_job_starts_anew(job, folder):
    """Though it was restarted too, and though a run with its number is there."""
    job(7, 0)
    fit(*CONV, "--trainer.max_epochs=1")
    job(7, 0)  # the number comes again
    fit(*CONV, "--trainer.max_epochs=1")
    job(8, 1)  # killed before it made its folder
    fit(*CONV, "--trainer.max_epochs=1")
    job(7, 1)  # another command of the same job
    fit(*CONV, "--trainer.max_epochs=1", "--seed_everything=3")
    assert len(list((folder / "runs" / "vae").iterdir())) == 4


def test_a_job_that_cannot_be_requeued_says_so(job, folder, capsys):
    (folder / "bin" / "scontrol").write_text("#!/bin/sh\necho Requeue disabled >&2; exit 1\n")
    code, message = ends(["fit", *TINY, *CONV, *at(3, signal.SIGUSR1)], capsys)
    assert code == 1
    assert "Requeue disabled" in message
    assert run_folders.last_checkpoint(folder / "runs" / "vae" / "version_0").is_file()


# Two processes


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(folder):
    """SIGTERM comes to the first process only, as from a person's ``kill``."""
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "vae_lightning", "fit", *TINY, *CONV, *two, "--name=stopped"]
    # Not the port of trainings in this process, which may still hold it.
    port = str(30_000 + os.getpid() % 2_000)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
    options = ["--trainer.max_epochs=100", "--last.every_n_steps=1"]
    process = subprocess.Popen(
        [*command, *options], env=environment, stderr=subprocess.PIPE, text=True
    )
    stopped = folder / "runs" / "stopped" / "version_0"
    while not Path(last(stopped)).is_file():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped by SIGTERM" in errors
    assert torch.load(last(stopped), weights_only=True)["optimizer_states"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slurm", "one_gpu"])
def test_the_template_of_a_job(job, folder, name):
    """As `sbatch` runs it, with one task."""
    for program, text in {
        "srun": 'shift; exec "$@"',
        "vae": f'exec {sys.executable} -m vae_lightning "$@"',
    }.items():
        tool = folder / "bin" / program
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
    template = Path(__file__).parents[2] / "configs" / "cluster" / f"{name}.sbatch"
    names = {"SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_RESTART_COUNT": "0"}
    command = ["bash", str(template), *TINY, *CONV, "--trainer.max_epochs=1"]
    done = subprocess.run(command, env={**os.environ, **names}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "vae" / "version_0"
    assert json.loads((run / "run.json").read_text())["job"] == "7"
    assert "Traceback" not in done.stderr
