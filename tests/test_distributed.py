"""Two processes on the CPU, through the command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vae_lightning.__main__ import main
from vae_lightning.quantizers import VectorQuantizer

SMALL = [
    "--data.train_size=133",
    "--data.val_size=33",
    "--data.test_size=65",
    "--data.batch_size=16",
    "--model.encoder.channels=[4,8]",
    "--model.decoder.channels=[8,4]",
]
TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
ONE = ["--trainer.devices=1", "--trainer.accelerator=cpu"]


def vae(folder, *args):
    command = [sys.executable, "-m", "vae_lightning", *args, "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(*args):
    """The same in this process, which has torch imported already."""
    main([*args, "--trainer.enable_progress_bar=false"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same VAE trained by two processes with batches of 16, and by one with batches of 32."""
    folder = tmp_path_factory.mktemp("ddp")
    common = [
        "fit",
        "--model=VAE",
        *SMALL,
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=1",
    ]
    vae(folder, *common, *TWO, "--name=two", "--trainer.logger+=TensorBoardLogger")
    vae(folder, *common, *ONE, "--name=one", "--data.batch_size=32")
    return folder / "runs" / "two" / "version_0", folder / "runs" / "one" / "version_0"


def state_of(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_two_processes_train_as_one_on_the_joined_batch(runs):
    two, one = (state_of(run) for run in runs)
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-5, msg=name)


def test_files_are_written_once(runs):
    two, _ = runs
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]
    assert len(list((two / "figures" / "samples").iterdir())) == 1
    assert len(list((two / "tensorboard").glob("events*"))) == 1


def test_test_counts_every_image_once(runs):
    two, _ = runs
    ckpt = ["--ckpt_path", str(two / "checkpoints" / "best.ckpt")]
    compare_tests(two, *ckpt)


def compare_tests(folder, *ckpt):
    """65 images: processes have 33 and 32, in three batches and two."""
    fast = ["--metrics.disentanglement.votes=8", "--metrics.log_likelihood.samples=10"]
    vae(folder, "test", *ckpt, *fast, *TWO)
    by_two = json.loads((folder / "test" / "metrics.json").read_text())
    here("test", *ckpt, *fast, *ONE)
    by_one = json.loads((folder / "test" / "metrics.json").read_text())
    assert (folder / "test" / "metrics_1.json").is_file()  # the first report is kept
    assert by_two["images"] == by_one["images"] == 65
    assert set(by_two["metrics"]) == set(by_one["metrics"])
    for part in ("metrics", "standard_errors"):
        for name, value in by_one[part].items():
            if isinstance(value, dict) or name == "collapsed":
                assert by_two[part][name] == value, name
            else:
                assert by_two[part][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("variant", ["CVAE", "VQVAE"])
def test_other_variants_count_every_image_once(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--model.encoder.hidden=8", "--model.decoder.hidden=8"]
    if variant == "CVAE":
        small = SMALL[-2:]
    here(
        "fit", f"--model={variant}", *small, *SMALL[:4], *ONE, "--trainer.max_epochs=1", "--name=a"
    )
    run = tmp_path / "runs" / "a" / "version_0"
    compare_tests(run, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))


def test_predictions_are_complete_and_in_order(runs):
    two, _ = runs
    ckpt = ["--ckpt_path", str(two / "checkpoints" / "best.ckpt")]
    by = {}
    for name, command in (("two", lambda *args: vae(two, *args, *TWO)), ("one", here)):
        command("predict", *ckpt)
        by[name] = {p.stem: np.load(p) for p in (two / "predictions").glob("*.npy")}
    assert by["two"]["index"].tolist() == list(range(65))
    assert set(by["one"]) == set(by["two"])
    for name, array in by["one"].items():
        np.testing.assert_allclose(by["two"][name], array, atol=1e-5, err_msg=name)


def _learn(rank, size, address, folder):
    """Train a quantiser for some steps on this process's share of each batch."""
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{address}", rank=rank, world_size=size
        )
    torch.manual_seed(0)
    quantizer = VectorQuantizer(features=3, codes=8, decay=0.5, revive_below=0.75)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        # Two clusters, so that codes die; an uneven split, as at the end of an epoch.
        z_e = torch.randn(5, 3, 4, 4, generator=generator) + 9 * torch.randint(
            2, (5, 1, 4, 4), generator=generator
        )
        quantizer(z_e if size == 1 else z_e[:3] if rank == 0 else z_e[3:])
    torch.save(quantizer.state_dict(), f"{folder}/{size}-{rank}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


def test_codebooks_are_the_same_in_all_processes_and_as_in_one(tmp_path):
    """The start by k-means, moving averages and revived codes see the vectors of both."""
    _learn(0, 1, None, tmp_path)
    torch.multiprocessing.spawn(_learn, (2, tmp_path / "rendezvous", tmp_path), nprocs=2)
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    for name, value in one.items():
        assert first[name].equal(second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert one["usage"].eq(1).any()  # some code was revived in the last step


def test_vq_vae_trains_on_two_processes(tmp_path):
    small = ["--model.encoder.hidden=8", "--model.decoder.hidden=8", *SMALL[:4]]
    vae(tmp_path, "fit", "--model=VQVAE", *small, *TWO, "--trainer.max_epochs=1")
    figures = tmp_path / "runs" / "vqvae" / "version_0" / "figures"
    assert (figures / "code_maps" / "epoch=000.png").is_file()
