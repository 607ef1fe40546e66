"""Commands of all runs of a sweep: ``vae udr``, ``vae rate_distortion``, and its picture."""

import csv
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vae_lightning
from vae_lightning.__main__ import main
from vae_lightning.cli import sweep
from vae_lightning.cli.explore.finished_runs import find
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.cli.sweep_file import Sweep
from vae_lightning.models.loading import load

COMMAND = ["vae", "fit", "--model=BetaVAE", "--trainer.logger+=X", "${args}"]
FILE = {
    "name": "betas",
    "method": "grid",
    "command": COMMAND,
    "metric": {"name": "val/negative_elbo"},
    "parameters": {"model.beta": {"values": [1, 4]}, "seed_everything": {"values": [0, 1]}},
}
EXTRA = [
    *("--data=Digits", "--data.train_size=64", "--data.val_size=16", "--data.test_size=40"),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
    *("--trainer.enable_progress_bar=false", "--model.latent_dim=3"),
    *("--model.encoder=MLPEncoder", "--model.encoder.hidden=[8]"),
    *("--model.decoder=MLPDecoder", "--model.decoder.hidden=[8]"),
    *(f"--figures.{name}=null" for name in ("samples", "reconstructions", "latents", "traversals")),
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Folder with a finished sweep of two betas and two seeds, and its file."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "betas.yaml").write_text(yaml.safe_dump(FILE))
        content = Sweep.read(folder / "betas.yaml")
        parent = folder / "runs" / "betas"
        for combination in sweep.plan(content, content.combinations(None, 0), parent, EXTRA):
            main(["fit", *combination.options])  # as the sweep does, but in this process
            run = combination.folder / "version_0"
            result = {
                "options": combination.options,
                "parameters": combination.parameters,
                "val/negative_elbo": 200.0,
                "run": str(run),
                "seconds": 1,
            }
            (combination.folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def folder(swept, tmp_path, monkeypatch):
    """A copy of the sweep: it may have been moved."""
    shutil.copytree(swept, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    return tmp_path / "moved"


def rows(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def failure(args, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(args)
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("vae: error: ")


def checkpoint(folder, beta, seed):
    return str(
        folder / f"runs/betas/beta={beta},seed_everything={seed}/version_0/checkpoints/best.ckpt"
    )


def images():
    data = vae_lightning.Digits(train_size=64, val_size=16, test_size=40)
    data.setup("test")
    raw = data.datasets["test"].__getitems__(range(40))
    return raw.x / 255


@pytest.mark.slow
def test_a_sweep_draws_its_picture_at_the_end(swept, monkeypatch, capsys):
    monkeypatch.chdir(swept)
    main(["sweep", "betas.yaml", f"--output_dir={swept / 'runs'}", *EXTRA])
    out = capsys.readouterr().out
    assert "4 combinations, 0 to train, 4 done" in out
    parent = swept / "runs" / "betas"
    assert f"Picture:     {parent / 'rate_distortion.png'}" in out
    with Image.open(parent / "rate_distortion.png") as picture:
        assert min(picture.size) > 500
    found = {
        (row["model.beta"], row["seed_everything"]): row
        for row in rows(parent / "rate_distortion.csv")
    }
    assert len(found) == 4
    log = rows(parent / "beta=4,seed_everything=1" / "version_0" / "metrics.csv")
    last = [row for row in log if row["val/kl"]][-1]
    row = found["4", "1"]
    assert float(row["rate"]) == pytest.approx(float(last["val/kl"]), abs=1e-3)
    assert float(row["distortion"]) == float(last["val/reconstruction"])
    assert float(row["negative_elbo"]) == pytest.approx(float(last["val/negative_elbo"]))


def test_rate_and_distortion_are_measured(folder, capsys):
    main(["rate_distortion", "runs/betas", "--device=cpu"])
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("Wrote rate_distortion.csv, rate_distortion.png to ")
    found = rows(folder / "runs/betas/rate_distortion/rate_distortion.csv")
    assert [row["model"] for row in found] == [
        f"beta={beta},seed_everything={seed}" for beta in (1, 4) for seed in (0, 1)
    ]
    model = load(checkpoint(folder, 4, 0))
    x = images()
    kl = model.latent_kl(x).double().sum(1)
    row = found[2]
    assert row["images"] == "40"
    assert float(row["rate"]) == pytest.approx(kl.mean().item(), rel=1e-4)
    assert float(row["rate_error"]) == pytest.approx(kl.std().item() / math.sqrt(40), rel=1e-3)
    with torch.no_grad():
        q = model.posterior(x)
        z = q.mu[:, None] + (q.log_var / 2).exp()[:, None] * torch.randn(40, 300, 3)
        expected = -model.log_likelihood(x, z).mean(1).mean()
    assert float(row["distortion"]) == pytest.approx(expected.item(), rel=0.02)
    assert float(row["negative_elbo"]) == pytest.approx(
        float(row["rate"]) + float(row["distortion"])
    )


def test_checkpoints_are_told_apart_by_their_settings(folder, capsys):
    paths = [checkpoint(folder, beta, 0) for beta in (4, 1)]
    main(["rate_distortion", *paths, "--out=r", "--n=10"])
    found = rows(folder / "r" / "rate_distortion.csv")
    assert [float(row["model.beta"]) for row in found] == [4, 1]
    assert [row["model"] for row in found] == [
        "beta=4,seed_everything=0",
        "beta=1,seed_everything=0",
    ]
    message = failure(["rate_distortion", *paths, "--out=s", "--along=model.lr"], capsys)
    assert "--along model.lr: the runs differ in model.beta" in message
    assert "at least two checkpoints" in failure(["rate_distortion", paths[0]], capsys)


def test_a_curve_follows_numbers(folder, capsys):
    paths = []
    for width in (8, 6):
        hidden = f"--model.encoder.hidden=[{width}]"
        main(["fit", "--model=BetaVAE", *EXTRA, hidden, f"--name={width}"])
        paths.append(f"runs/{width}/version_0/checkpoints/best.ckpt")
    message = failure(["rate_distortion", *paths, "--along=model.encoder.hidden"], capsys)
    assert message.startswith("--along model.encoder.hidden: [8] is not a number")
    main(["rate_distortion", *paths, "--out=r"])
    found = rows(folder / "r" / "rate_distortion.csv")
    assert [row["model.encoder.hidden"] for row in found] == ["[8]", "[6]"]


def test_udr_compares_seeds_of_one_setting(folder, capsys):
    main(["udr", "runs/betas", "--similarity=lasso"])
    out = capsys.readouterr().out
    assert "model.beta 1" in out
    assert out.splitlines()[-1].startswith("Wrote udr.csv, pairs.csv to ")
    found = rows(folder / "runs/betas/udr/udr.csv")
    assert len(found) == 4
    scores = [float(row["udr"]) for row in found]
    assert scores == sorted(scores, reverse=True)
    pairs = {(row["model"], row["other"]) for row in rows(folder / "runs/betas/udr/pairs.csv")}
    names = [f"beta={beta},seed_everything={seed}" for beta in (1, 4) for seed in (0, 1)]
    assert pairs == {
        (names[0], names[1]),
        (names[1], names[0]),
        (names[2], names[3]),
        (names[3], names[2]),
    }


def test_udr_compares_checkpoints_of_the_same_model(folder, capsys):
    paths = [checkpoint(folder, beta, seed) for beta in (1, 4) for seed in (0, 1)]
    main(["udr", *paths, "--out=all.csv"])
    found = {row["model"]: row for row in rows(folder / "all.csv")}
    assert {float(row["model.beta"]) for row in found.values()} == {1, 4}
    main(["udr", *paths[2:], "--out=two.csv"])
    for row in rows(folder / "two.csv"):
        assert row["udr"] == found[row["model"]]["udr"]
    message = failure(["udr", paths[0], paths[2]], capsys)
    assert "at least two trainings with the same settings" in message


def test_udr_of_a_model_and_its_copy(folder, capsys):
    """Latents permuted, flipped and rescaled in the weights of the encoder's last layer."""
    path = checkpoint(folder, 1, 0)
    held = torch.load(path, weights_only=True)
    name = [
        key for key in held["state_dict"] if key.startswith("model.encoder") and "weight" in key
    ][-1]
    order = torch.tensor([2, 0, 1])
    scale = torch.tensor([-1.0, 3.0, 0.5])
    for key in (name, name.replace("weight", "bias")):
        weight = held["state_dict"][key]
        mu, log_var = weight.chunk(2)
        scaled = mu[order] * scale.view(-1, *[1] * (mu.ndim - 1))
        held["state_dict"][key] = torch.cat([scaled, log_var[order]])
    torch.save(held, folder / "copy.ckpt")
    main(["udr", path, "copy.ckpt", "--similarity=lasso", "--out=u"])
    latents = load(path).embed(images())
    copied = load("copy.ckpt").embed(images())
    torch.testing.assert_close(copied, latents[:, order] * scale)
    found = rows(folder / "u" / "udr.csv")
    assert all(float(row["udr"]) > 0.6 for row in found)  # its latents are correlated
    rank = np.corrcoef(latents.argsort(0).argsort(0).T)
    off = np.abs(rank)
    expected = np.mean(1 / off.sum(0))  # with itself: each is perfectly like one latent
    main(["udr", path, "copy.ckpt", "--out=s.csv"])
    informative = {row["informative"] for row in found}
    if informative == {"3"}:
        for row in rows(folder / "s.csv"):
            assert float(row["udr"]) == pytest.approx(expected, rel=1e-4)


def test_what_can_be_given(folder, capsys):
    run = "runs/betas/beta=4,seed_everything=1/version_0"
    one = checkpoint(folder, 1, 0)
    found = find(["runs/betas", one, run])
    assert len(found) == 6
    assert all(run.checkpoint.is_relative_to("runs") for run in found[:4])  # where it is now
    assert [run.folder is None for run in found] == [False] * 4 + [True] * 2
    assert "neither checkpoints nor results" in failure(["udr", "runs"], capsys)
    assert "does not exist" in failure(["udr", "absent"], capsys)
    assert "with the same settings and other seeds" in failure(["udr", one], capsys)
    for path in folder.glob("runs/betas/*/result.json"):
        path.write_text(json.dumps({"options": []}))
    message = failure(["udr", "runs/betas"], capsys)
    assert "no training of the sweep runs/betas is complete" in message


def test_a_table_has_the_columns_of_all_rows(tmp_path):
    """Sweeps of different parameters are compared, too."""
    outputs = SimpleNamespace(wants=lambda suffix: True, path=lambda name: tmp_path / name)
    Outputs.table(outputs, "found", [{"run": "a", "model.beta": 4}, {"run": "b", "lr": 0.1}])
    assert rows(tmp_path / "found.csv") == [
        {"run": "a", "model.beta": "4", "lr": ""},
        {"run": "b", "model.beta": "", "lr": "0.1"},
    ]
