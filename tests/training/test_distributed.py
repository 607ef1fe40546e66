"""Several processes on the CPU do what one does, through the command line."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import BatchNormEncoder

from vae_lightning.__main__ import main
from vae_lightning.cli import folder_choice
from vae_lightning.nets.quantizers import FSQ, LFQ, ResidualQuantizer, SimVQ, VectorQuantizer

COMMON = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
]
# 64 images to train on; 33 to validate and 65 to test, so that two processes have 17 and 16, and
# 33 and 32: as batches of 16 they would be two and one, and three and two.
DATA = ["--data.train_size=97", "--data.val_size=33", "--data.test_size=65"]
CONV = [*DATA, "--model.encoder.channels=[4,8]", "--model.decoder.channels=[8,4]"]
RESIDUAL = [
    *DATA,
    "--model=VQVAE",
    "--model.encoder.hidden=8",
    "--model.decoder.hidden=8",
    "--model.quantizer.codebook_size=16",
    "--model.quantizer.decay=0.5",
    "--model.quantizer.dead_code_threshold=0.5",
    # Adam would blow up what a code chosen otherwise changes, see below.
    "--optimizer=SGD",
    "--optimizer.lr=1e-3",
]
MLP = [
    # Terms of the whole batch depend on its size: every batch has 32 images.
    *("--data.train_size=96", "--data.val_size=32", "--data.test_size=32"),
    "--model.encoder=MLPEncoder",
    "--model.encoder.hidden=[16]",
    "--model.decoder=MLPDecoder",
    "--model.decoder.hidden=[16]",
    # Adam shows the sign of gradients that are almost 0.
    "--optimizer=SGD",
    "--optimizer.lr=1e-4",
]
CRITIC = ["--model.critic_hidden=[16]", "--critic_optimizer=SGD", "--critic_optimizer.lr=0.1", *MLP]
VARIANTS = {
    "vae": ["--model=VAE", *CONV],  # several updates in a call
    "accumulated": ["--model=VAE", "--trainer.accumulate_grad_batches=2", *CONV],
    "beta": [
        "--model=BetaVAE",
        "--model.schedule=LinearWarmup",
        "--model.schedule.steps=3",
        "--data.binarization=dynamic",
        *CONV,
    ],
    "cvae": ["--model=CVAE", "--data.binarization=dynamic", *CONV],
    "sigma": [
        "--model=VAE",
        "--model.likelihood=Gaussian",
        "--model.likelihood.learn_sigma=true",
        "--optimizer=SGD",  # shows that gradients are averaged, where Adam shows their sign
        "--optimizer.lr=1e-6",
        *CONV,
    ],
    "vq_ema": RESIDUAL,
    "vq_gradient": [*RESIDUAL, "--model.quantizer.codebook_update=gradient"],
    "vamp": ["--model=VAE", "--model.prior=VampPrior", "--model.prior.components=8", *MLP],
    "iaf": ["--model=IWAE", "--model.posterior=IAFPosterior", "--model.prior=RealNVPPrior", *MLP],
    "tc": ["--model=BetaTCVAE", *MLP],
    "factor": ["--model=FactorVAE", *CRITIC],
    "wae": ["--model=WAE", *MLP],
    "adversarial": ["--model=AdversarialAutoencoder", *CRITIC],
    "prior": [
        *DATA,
        "--model=CodePrior",
        "--model.autoencoder=AUTOENCODER",  # that of vq_ema, trained by one process
        "--model.conditional=true",
        *("--model.network.dim=16", "--model.network.layers=1", "--model.network.heads=2"),
        *("--optimizer=SGD", "--optimizer.lr=1e-3", "--optimizer.momentum=0.9"),
    ],
    "classifier": ["--model=Classifier", "--model.features=8", *MLP[:5], *MLP[7:]],
}
DDP = "--trainer.strategy=ddp"
FSDP = '--trainer.strategy={"class_path": "two_processes.CPUFSDP"}'
SHARDED = ["vae", "sigma", "vq_ema", "vamp", "iaf", "prior"]
RESUMED = [("vae", "ddp"), ("vq_ema", "ddp"), ("prior", "fsdp")]
"""Those that are also trained for one epoch and then resumed.

Not Adam with FSDP: on a CPU, torch 2.14 gathers its two moments in one buffer and saves the last.
"""
FAST = """\
metrics:
  disentanglement: {votes: 8}
  log_likelihood: {num_samples: 10}
  frechet: {classifier: CLASSIFIER}
"""
"""Options of a file, which may hold those that a model does not need."""
OWN_ENCODER = f"--model.encoder=two_processes.{BatchNormEncoder.__name__}"

SHARES = ("perplexity", "codes_used", "code_entropy_bits")
"""What changes where a vector chooses another code."""
FIGURES = ("samples", "reconstructions", "latents", "traversals")
NO_FIGURES = [
    f"--figures.{name}=null" for name in (*FIGURES, "code_usage", "code_maps", "code_gallery")
]

TESTS = Path(__file__).parents[1]


def start(folder, *command):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    try:
        out, error = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, error


def by_two_processes(folder, commands):
    """Run commands one after the other in the same two processes, started by torchrun."""
    (folder / "commands.json").write_text(json.dumps(commands))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(TESTS / "two_processes.py"), "commands.json"]
    code, _, error = end(start(folder, *torchrun, *script))
    assert code == 0, error
    assert "Grad strides" not in error


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of runs: each variant trained by two processes with batches of 16, one with 32."""
    folder = tmp_path_factory.mktemp("processes")
    fit = ["fit", *COMMON, f"--output_dir={folder}"]
    classifier = checkpoint(folder, "classifier-one")[1]
    text = FAST.replace("CLASSIFIER", classifier)
    (folder / "fast.yaml").write_text(text, encoding="utf-8")
    commands = []
    autoencoder = checkpoint(folder, "vq_ema-one")[1]
    for name, options in VARIANTS.items():
        options = [option.replace("AUTOENCODER", autoencoder) for option in options]
        extra = ["--trainer.logger+=TensorBoardLogger"] if name == "vae" else NO_FIGURES
        two = [*fit, *options, *extra, "--data.batch_size=16"]
        commands.append([*two, f"--name={name}-ddp"])  # the strategy that Lightning chooses
        if name in SHARDED:
            commands.append([*two, FSDP, f"--name={name}-fsdp"])
        for strategy in (by for resumed, by in RESUMED if resumed == name):
            half = f"{name}-{strategy}-half"
            chosen = FSDP if strategy == "fsdp" else DDP
            commands.append([*two, chosen, "--trainer.max_epochs=1", f"--name={half}"])
            commands.append(["fit", *checkpoint(folder, half), "--trainer.max_epochs=2"])
        main([*fit, *options, *NO_FIGURES, "--data.batch_size=32", f"--name={name}-one"])
    # 69 images to train on: one is left out of each epoch, and last batches have two.
    odd = ["--model=VAE", OWN_ENCODER, *DATA, "--data.train_size=102", "--data.batch_size=16"]
    commands.append(
        [*fit, *odd, *NO_FIGURES, "--model.decoder.channels=[8,4]", DDP, "--name=batch_norm-ddp"]
    )
    for name in ("vae", "vq_ema", "cvae"):
        commands.append(measure(folder, f"{name}-ddp"))
    commands.append([*measure(folder, "vae-fsdp"), FSDP])
    commands.append([*measure(folder, "batch_norm-ddp"), OWN_ENCODER])
    commands.append(["predict", *COMMON[:2], *checkpoint(folder, "vae-ddp")])
    by_two_processes(folder, commands)
    return folder


def checkpoint(folder, name):
    return ["--ckpt_path", str(folder / name / "version_0" / "checkpoints" / "last.ckpt")]


def measure(folder, name):
    return ["test", *COMMON[:2], "--config", str(folder / "fast.yaml"), *checkpoint(folder, name)]


def weights(folder, name):
    return torch.load(checkpoint(folder, name)[1], weights_only=True)["state_dict"]


def rows(folder, name):
    with (folder / name / "version_0" / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "strategy"),
    [(v, "ddp") for v in VARIANTS] + [(v, "fsdp") for v in SHARDED],
)
def test_trains_as_one_process_on_the_joined_batch(runs, variant, strategy):
    """Rounding apart, of sums over 16 + 16 images or 32.

    With codes, a vector that is as near to one as to another may choose either. Shares of codes
    have a tolerance of a few vectors in a batch; everything else follows closely all the same.
    """
    several, one = (weights(runs, f"{variant}-{by}") for by in (strategy, "one"))
    assert list(several) == list(one)
    codes = variant.startswith("vq")
    for name, value in several.items():
        if name.endswith(("usage", "sums")):
            torch.testing.assert_close(value, one[name], rtol=0, atol=0.05, msg=name)
        else:
            atol = 2e-4 if "codebook" in name else 1e-5
            torch.testing.assert_close(value, one[name], rtol=1e-4, atol=atol, msg=name)
    several, one = (rows(runs, f"{variant}-{by}") for by in (strategy, "one"))
    assert {key.partition("/")[0] for key in one[0]} == {"epoch", "step", "train", "val"}
    assert len(several) == len(one)
    for mine, theirs in zip(several, one, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if value:
                rel = 0.01 if key.endswith(SHARES) else 1e-3 if codes else 1e-5
                assert float(mine[key]) == pytest.approx(float(value), rel=rel, abs=1e-9), key
            else:
                assert not mine[key]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "strategy"), RESUMED)
def test_resumes_as_if_uninterrupted(runs, variant, strategy):
    resumed, whole = (weights(runs, f"{variant}-{strategy}{part}") for part in ("-half", ""))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.mark.slow
def test_files_are_written_once(runs):
    for name in ("vae-ddp", "vae-fsdp"):
        assert [path.name for path in (runs / name).iterdir()] == ["version_0"]
        run = runs / name / "version_0"
        for figure in FIGURES:
            assert [path.name for path in (run / "figures" / figure).iterdir()] == ["epoch=001.png"]
        assert len(list((run / "tensorboard").glob("events*"))) == 1
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        config = (run / "config.yaml").read_text()
        assert "devices: auto" in config  # what torchrun started is not part of the settings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae-ddp", "vq_ema-ddp", "cvae-ddp", "vae-fsdp"])
def test_test_counts_every_image_once(runs, name):
    """Disentanglement, too, which is measured by the first process on the images of all."""
    main(measure(runs, name))
    folder = runs / name / "version_0" / "test"
    by_one, by_two = (
        json.loads((folder / f"{file}.json").read_text()) for file in ("metrics", "metrics_1")
    )
    assert by_two["images"] == by_one["images"] == 65
    assert set(by_two["metrics"]) == set(by_one["metrics"])
    assert ("frechet_distance" in by_one["metrics"]) == (not name.startswith("vq"))
    for part in ("metrics", "standard_errors"):
        for key, value in by_one[part].items():
            if isinstance(value, dict) or key == "collapsed":
                assert by_two[part][key] == value, key
            else:
                rel = 0.01 if key in SHARES else 1e-5
                assert by_two[part][key] == pytest.approx(value, rel=rel), key


@pytest.mark.slow
def test_buffers_that_are_measured_with_are_those_that_are_saved(runs):
    """The statistics of BatchNorm differ between processes while these train."""
    name = "batch_norm-ddp"
    logged = [float(row["val/loss"]) for row in rows(runs, name) if row["val/loss"]]
    _, *given = [*measure(runs, name), OWN_ENCODER]
    main(["validate", *given])
    main(["test", *given])
    run = runs / name / "version_0"
    loss = {
        file: json.loads((run / f"{file}.json").read_text())["metrics"]["loss"]
        for file in ("val/metrics", "test/metrics", "test/metrics_1")
    }
    assert logged[-1] == pytest.approx(loss["val/metrics"], rel=1e-6)
    assert loss["test/metrics_1"] == pytest.approx(loss["test/metrics"], rel=1e-6)


@pytest.mark.slow
def test_predictions_are_complete_and_in_order(runs):
    folder = runs / "vae-ddp" / "version_0" / "predictions"
    by_two = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    killed = folder.with_name("predictions.partial")
    killed.mkdir()
    (killed / "left_over.npy").touch()
    main(["predict", *COMMON[:2], *checkpoint(runs, "vae-ddp")])
    by_one = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    assert by_two["index"].tolist() == list(range(65))
    assert not killed.exists()
    assert set(by_one) == set(by_two)
    for name, array in by_one.items():
        np.testing.assert_allclose(by_two[name], array, atol=1e-5, err_msg=name)


# Ways to start


@pytest.mark.slow
def test_started_by_lightning(tmp_path):
    options = ["--model=VAE", *CONV, *COMMON, "--trainer.max_epochs=1", "--name=run"]
    command = ["vae_lightning", "fit", *options, "--trainer.devices=2", DDP]
    code, out, error = end(start(tmp_path, *command))
    assert code == 0, error
    assert [path.name for path in (tmp_path / "runs" / "run").iterdir()] == ["version_0"]
    assert out.count("Trained to epoch 1") == 1


@pytest.mark.slow
def test_two_nodes_share_a_folder(tmp_path):
    """Two torchruns with addresses of their own, as on two machines with one file system."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for node in range(2):
        torchrun = [
            "torch.distributed.run",
            "--nnodes=2",
            f"--node-rank={node}",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
            f"--local-addr=127.0.0.{node + 1}",
        ]
        options = ["--model=VAE", *CONV, *COMMON, "--trainer.max_epochs=1", "--name=run"]
        nodes.append(start(tmp_path, *torchrun, "-m", "vae_lightning", "fit", *options))
    (code, out, error), (other_code, other_out, other_error) = map(end, nodes)
    assert code == 0, error
    assert other_code == 0, other_error
    assert "Trained to epoch 1" in out
    assert other_out == ""
    assert [path.name for path in (tmp_path / "runs" / "run").iterdir()] == ["version_0"]
    run = tmp_path / "runs" / "run" / "version_0"
    assert {"config.yaml", "metrics.csv", "checkpoints", "figures"} <= {
        path.name for path in run.iterdir()
    }


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path):
    encoder = "--model.encoder=two_processes.FailingEncoder"
    options = ["--model=VAE", encoder, *DATA, *COMMON, "--trainer.devices=2", DDP]
    code, _, error = end(start(tmp_path, "vae_lightning", "fit", *options))
    assert code != 0
    assert "vae: error: the second process cannot go on" in error
    assert "Traceback" not in error


@pytest.fixture
def torchrun_environment(monkeypatch):
    """The environment of the first of two processes that torchrun starts."""
    started = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**started, "TORCHELASTIC_RUN_ID": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun_environment")
def test_options_must_agree_with_torchrun(tmp_path, monkeypatch, capsys):
    """Otherwise each process would train alone and all would write the same files."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", *CONV, *COMMON, "--trainer.devices=1"])
    assert "torchrun started 2 processes, but" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("fsdp", "requires a GPU accelerator"),
        (
            '{"class_path": "ModelParallelStrategy"}',
            "is not supported: use --trainer.strategy fsdp",
        ),
    ],
)
def test_strategies_that_are_refused(strategy, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", *CONV, *COMMON, "--trainer.devices=1", f"--trainer.strategy={strategy}"])
    assert message in capsys.readouterr().err


def test_only_the_first_process_of_all_nodes_makes_a_folder(monkeypatch):
    assert folder_choice.is_first_process()
    monkeypatch.setenv("NODE_RANK", "1")  # how Lightning's own launcher is told
    assert not folder_choice.is_first_process()


# Without a training


def _learn(rank, size, address, folder):
    """Train a quantizer for some steps on this process's share of each batch."""
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{address}", rank=rank, world_size=size
        )
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        embedding_dim=3, codebook_size=8, decay=0.5, dead_code_threshold=0.75
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        # Two clusters, so that codes die; an uneven split, as at the end of an epoch.
        z_e = torch.randn(5, 3, 4, 4, generator=generator) + 9 * torch.randint(
            2, (5, 1, 4, 4), generator=generator
        )
        quantizer(z_e[rank::size])
    torch.save(quantizer.state_dict(), f"{folder}/{size}-{rank}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
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


EMPTY = {
    "vq": lambda: VectorQuantizer(6, codebook_size=32, dead_code_threshold=0.9, decay=0.5),
    "data": lambda: VectorQuantizer(6, codebook_size=32, codebook_init="data"),
    "gradient": lambda: VectorQuantizer(6, codebook_size=32, codebook_update="gradient"),
    "residual": lambda: ResidualQuantizer(6, num_quantizers=2),
    "sim": lambda: SimVQ(6, codebook_size=32),
    "fsq": lambda: FSQ(6, levels=(5, 5)),
    "lfq": lambda: LFQ(6, bits=4),
}
"""Quantizers with more codes than there are vectors."""


def _learn_from_few(rank, size, address, folder):
    """Train on a single image, of which only the first process has any, and then on none."""
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{address}", rank=rank, world_size=size
        )
    found = {}
    for name, make in EMPTY.items():
        torch.manual_seed(0)
        quantizer = make()
        z_e = torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(1))
        for images in (z_e, z_e, z_e[:0]):
            out = quantizer(images[rank::size].requires_grad_())
            terms = [out.z_q, out.codebook_loss, out.commitment_loss, out.regularizer]
            loss = sum(term.sum() for term in terms if term is not None)
            if loss.requires_grad:
                loss.backward()
        found[name] = quantizer.state_dict()
    torch.save(found, f"{folder}/{size}-{rank}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_fewer_vectors_than_codes_and_none_at_all(tmp_path):
    """No process waits for another, and the codebooks stay the same and finite."""
    _learn_from_few(0, 1, None, tmp_path)
    torch.multiprocessing.spawn(_learn_from_few, (2, tmp_path / "rendezvous", tmp_path), nprocs=2)
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    for kind, state in one.items():
        for name, value in state.items():
            assert value.isfinite().all(), (kind, name)
            assert first[kind][name].equal(second[kind][name]), (kind, name)
            torch.testing.assert_close(first[kind][name], value, msg=f"{kind} {name}")
