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
from vae_lightning.cli import rate_distortion, sweep
from vae_lightning.cli.explore.finished_runs import find
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.cli.rate_distortion import of_log
from vae_lightning.cli.sweep_file import Sweep
from vae_lightning.explore import udr
from vae_lightning.models.loading import load
from vae_lightning.randomness import choose

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
        of_draws = -model.log_likelihood(x, z)
    assert float(row["distortion"]) == pytest.approx(of_draws.mean().item(), rel=0.02)
    error = of_draws.std().item() / math.sqrt(40)  # of one draw for each image
    assert float(row["distortion_error"]) == pytest.approx(error, rel=0.5)
    assert float(row["negative_elbo"]) == pytest.approx(
        float(row["rate"]) + float(row["distortion"])
    )


def test_checkpoints_are_told_apart_by_their_settings(folder, capsys):
    paths = [checkpoint(folder, beta, 0) for beta in (4, 1)]
    main(["rate_distortion", *paths, "--out=r", "--n=10"])
    found = rows(folder / "r" / "rate_distortion.csv")
    assert [float(row["model.beta"]) for row in found] == [4, 1]
    assert [row["images"] for row in found] == ["10", "10"]
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


def changed(path, copy, change) -> str:
    """Save a copy of a checkpoint with other content."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, copy)
    return str(copy)


def set_latent(content, latent, mu):
    """Give a latent the same posterior N(mu, 1) for all images, or the same value."""
    weights = content["state_dict"]
    names = [key for key in weights if key.startswith("model.encoder")][-2:]
    for name in names:
        parts = weights[name].chunk(len(weights[name]) // 3)
        for part, value in zip(parts, (mu, 0.0), strict=False):
            part[latent] = value if name.endswith("bias") else 0.0


def other_data(content):
    content["vae_lightning"]["data"]["init_args"]["test_size"] = 30


def a_density(content):
    content["vae_lightning"]["model"]["init_args"]["likelihood"] = {
        "class_path": "vae_lightning.distributions.likelihoods.Gaussian",
        "init_args": {},
    }


def autoencoder(folder) -> str:
    main(["fit", "--model=Autoencoder", *EXTRA])
    (path,) = folder.glob("runs/*/version_*/checkpoints/best.ckpt")
    return str(path)


@pytest.mark.parametrize("command", ["rate_distortion", "udr"])
def test_runs_on_other_data_are_refused(command, folder, capsys):
    path = checkpoint(folder, 1, 0)
    other = changed(path, folder / "other.ckpt", other_data)
    message = failure([command, path, other, "--out=r"], capsys)
    assert "were trained on different data: test_size is 40 and 30" in message


def test_rates_of_another_kind_are_refused(folder, capsys):
    path = checkpoint(folder, 1, 0)
    other = changed(path, folder / "other.ckpt", a_density)
    message = failure(["rate_distortion", path, other, "--out=r"], capsys)
    assert "other.ckpt a density of images: compare models of the same kind" in message


def test_title_and_parameter_of_the_curve_can_be_chosen(folder, monkeypatch):
    drawn = []
    original = rate_distortion.figure

    def figure(measured, along, *args, **text):
        drawn.append((along, text))
        return original(measured, along, *args, **text)

    monkeypatch.setattr(rate_distortion, "figure", figure)
    main(["rate_distortion", "runs/betas", "--n=4"])
    main(["rate_distortion", "runs/betas", "--out=r", "--along=seed_everything", "--title=x"])
    assert drawn == [
        (None, {"title": "betas", "note": "4 test images"}),
        ("seed_everything", {"title": "x", "note": "40 test images"}),
    ]


def test_the_last_validation_of_a_log_is_drawn(tmp_path):
    head = "step,train/loss,val/negative_elbo,val/reconstruction"
    lines = [head, "1,9,,", "1,,120,100", "2,8,,", "2,,90,65", "3,7,,"]
    log = tmp_path / "metrics.csv"
    assert of_log(tmp_path, "a", {}) is None
    log.write_text("\n".join(lines))
    found = of_log(tmp_path, "a", {"model.beta": 4})
    assert (found.name, found.parameters, found.rate, found.distortion) == (
        "a",
        {"model.beta": 4},
        25,
        65,
    )
    for last in ("4,,nan,65", "4,,90,"):  # diverged, or a model without a rate
        log.write_text("\n".join([*lines, last]))
        assert of_log(tmp_path, "a", {}) is None


def test_latents_without_a_kl_are_informative_by_their_variance(folder, capsys):
    """An autoencoder has neither a KL nor a rate."""
    path = autoencoder(folder)
    other = changed(path, folder / "other.ckpt", lambda content: set_latent(content, 1, 5.0))
    main(["udr", path, other, "--out=u.csv"])
    means = [load(one).embed(images()) for one in (path, other)]
    in_use = [z.double().var(0) > 0.01 for z in means]
    assert not in_use[1][1]
    found = rows(folder / "u.csv")
    assert sorted(int(row["informative"]) for row in found) == sorted(
        int(mask.sum()) for mask in in_use
    )
    message = failure(["rate_distortion", checkpoint(folder, 1, 0), path, "--out=r"], capsys)
    assert "this Autoencoder has no ELBO, so it has no rate" in message


@pytest.mark.parametrize("similarity", ["spearman", "lasso"])
@pytest.mark.parametrize("n", [40, 25])
def test_udr_is_that_of_means_and_informative_latents(similarity, n, folder):
    """Images are read in parts, and the KL is a mean over all of them."""

    def weak(content):
        set_latent(content, 0, 0.1)  # a KL of 0.005 nats
        set_latent(content, 1, 0.2)  # 0.02 nats

    paths = [
        changed(checkpoint(folder, 1, 0), folder / "weak.ckpt", weak),
        checkpoint(folder, 1, 1),
        checkpoint(folder, 1, 0),
    ]
    models = [load(path) for path in paths]
    x = images()[choose(40, n, "items").sort().values]
    means = [model.embed(x) for model in models]
    in_use = [model.latent_kl(x).double().mean(0) > 0.01 for model in models]
    assert in_use[0][:2].tolist() == [False, True]
    main(["udr", *paths, f"--similarity={similarity}", f"--n={n}", "--batch_size=7", "--out=u"])
    scores, pairs = udr(means, in_use, similarity)
    order = scores.argsort(descending=True)
    found = rows(folder / "u" / "udr.csv")
    assert [float(row["udr"]) for row in found] == pytest.approx(scores[order].tolist(), rel=1e-3)
    informative = [int(mask.sum()) for mask in in_use]
    assert [int(row["informative"]) for row in found] == [informative[i] for i in order]
    # Of each model with each other one, from which its latents are predicted.
    expected = [pairs[i, j].item() for j in range(3) for i in range(3) if i != j]
    found = [float(row["udr"]) for row in rows(folder / "u" / "pairs.csv")]
    assert found == pytest.approx(expected, rel=1e-3)


def test_udr_compares_no_runs_of_two_sweeps(folder, capsys):
    shutil.copytree(folder / "runs" / "betas", folder / "runs" / "again")
    main(["udr", "runs/betas", "runs/again", "--out=u"])
    assert len(rows(folder / "u" / "pairs.csv")) == 8
    lines = capsys.readouterr().out.splitlines()
    means = [line.split() for line in lines if line.split()[0] == "mean"]
    assert [words[2:] for words in means] == [["2", "models"]] * 4
    found = [float(row["udr"]) for row in rows(folder / "u" / "udr.csv")]
    assert sum(float(words[1]) for words in means) / 4 == pytest.approx(sum(found) / 8, abs=1e-3)


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

    def as_integer(content):
        arguments = content["vae_lightning"]["model"]["init_args"]
        arguments["beta"] = int(arguments["beta"])

    same = changed(paths[2], folder / "same.ckpt", as_integer)
    main(["udr", *paths[2:], same, "--out=same.csv"])
    assert len(rows(folder / "same.csv")) == 3


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
