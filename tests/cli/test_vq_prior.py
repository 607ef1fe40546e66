"""A prior over codes through the command line: trained, measured, sampled, continued, refused."""

import json

import numpy as np
import pytest
import torch
import yaml

from vae_lightning import checkpoint
from vae_lightning.__main__ import main
from vae_lightning.figures import FIGURES

FAST = [
    *("--data=Digits", "--data.train_size=96", "--data.val_size=32", "--data.test_size=40"),
    *("--data.batch_size=32", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"),
    "--trainer.accelerator=cpu",
    *(f"--figures.{name}=null" for name in FIGURES),
]
NETS = ["--model.encoder.hidden=8", "--model.decoder.hidden=8"]
SMALL = ["--model.network.dim=16", "--model.network.layers=1", "--model.network.heads=2"]
VQ = ["--model=VQVAE", *NETS, "--model.quantizer.codebook_size=16"]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Folder with two autoencoders of equal sizes, and a prior given the class over the first."""
    folder = tmp_path_factory.mktemp("codes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed in (0, 1):
            main(["fit", *VQ, *FAST, f"--seed_everything={seed}", f"--name=vq_{seed}"])
        main([*prior_of("runs/vq_0/version_0/checkpoints/best.ckpt"), "--name=prior"])
    return folder


def prior_of(path, conditional=True):
    flag = f"--model.conditional={str(conditional).lower()}"
    return ["fit", "--model=CodePrior", f"--model.autoencoder={path}", flag, *SMALL, *FAST]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def best(before, name):
    return before / f"runs/{name}/version_0/checkpoints/best.ckpt"


def failure(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(part) for part in command])
    assert error.value.code not in (0, None)
    message = capsys.readouterr().err.strip()
    assert message.startswith("vae: error: ")
    assert "\n" not in message
    return message


@pytest.mark.slow
def test_the_checkpoint_needs_no_other_file(before, folder, capsys):
    path = folder / "prior.ckpt"
    path.write_bytes(best(before, "prior").read_bytes())
    main(["sample", "--ckpt_path", str(path), "--n=20", "--out=some"])
    out = capsys.readouterr().out
    assert "Codes of the samples: " in out
    assert " nats per image" in out
    arrays = np.load("some/samples.npz")
    assert arrays["codes"].shape == (20, 7, 7)
    assert arrays["label"].tolist() == [i % 10 for i in range(20)]
    for option in ("--temperature=0.5", "--top_k=2", "--top_p=0.3"):
        main(["sample", "--ckpt_path", str(path), "--n=20", option, f"--out={option}"])
        other = np.load(f"{option}/samples.npz")
        assert other["code_nll"].mean() < arrays["code_nll"].mean(), option
    weights = checkpoint.read(path).weights
    held = checkpoint.read(best(before, "vq_0")).weights
    for name, value in held.items():
        assert value.equal(weights[f"autoencoder.{name}"]), name


def test_what_vae_test_reports(before, folder):
    main(["test", "--ckpt_path", str(best(before, "prior"))])
    (path,) = (before / "runs/prior/version_0/test").glob("metrics*.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["uniform_code_nll"] == pytest.approx(49 * np.log(16))
    assert metrics["independent_code_nll"] < metrics["uniform_code_nll"]
    assert metrics["code_nll_per_code"] * 49 == pytest.approx(metrics["code_nll"])
    total = metrics["code_nll"] + metrics["reconstruction"]
    assert metrics["negative_elbo"] == pytest.approx(total)
    # The reconstruction is that of the autoencoder by itself.
    main(["test", "--ckpt_path", str(best(before, "vq_0"))])
    (path,) = (before / "runs/vq_0/version_0/test").glob("metrics*.json")
    alone = json.loads(path.read_text())["metrics"]
    assert alone["reconstruction"] == pytest.approx(metrics["reconstruction"], rel=1e-5)
    assert alone["perplexity"] == pytest.approx(metrics["perplexity"])


def test_a_continued_training_is_the_uninterrupted_one(before, folder, capsys):
    autoencoder = best(before, "vq_0")
    command = prior_of(autoencoder)
    main([*command, "--trainer.max_epochs=1", "--name=half"])
    assert "Note: the autoencoder" not in capsys.readouterr().out
    half = folder / "runs/half/version_0/checkpoints/last.ckpt"
    # The description in the checkpoint is enough: the file is not asked for again.
    record = checkpoint.read(half).record
    assert str(autoencoder) not in json.dumps(record.model)
    main(["fit", "--ckpt_path", str(half), "--trainer.max_epochs=2"])
    whole = checkpoint.read(best(before, "prior").with_name("last.ckpt")).weights
    for name, value in checkpoint.read(half).weights.items():
        assert value.equal(whole[name]), name


def test_the_configuration_names_the_file(before, folder):
    text = (before / "runs/prior/version_0/config.yaml").read_text()
    arguments = yaml.safe_load(text)["model"]["init_args"]
    assert arguments["autoencoder"] == "runs/vq_0/version_0/checkpoints/best.ckpt"


def test_images_and_codes_computed_in_advance_train_alike(before, folder, monkeypatch):
    """Where images change between epochs, codes are computed for each batch."""
    from vae_lightning.data.base import ImageData

    command = [*prior_of(best(before, "vq_0")), "--trainer.max_epochs=1"]
    main([*command, "--name=codes"])
    called = []
    monkeypatch.setattr(ImageData, "await_features", lambda *_: called.append(1))
    main([*command, "--name=images"])
    assert called
    first, second = (
        checkpoint.read(folder / f"runs/{name}/version_0/checkpoints/last.ckpt").weights
        for name in ("codes", "images")
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)


def test_changing_images_are_encoded_in_each_epoch(before, folder, capsys):
    main([*prior_of(best(before, "vq_0")), "--data.binarization=dynamic", "--name=dynamic"])
    out = capsys.readouterr().out
    assert "Trained to epoch 2" in out
    digits = "Digits (0, 1, 2, 3, 4, ...), binarization"
    assert f"Note: the autoencoder was trained on {digits} none, not on {digits} dynamic" in out


def test_another_autoencoder_is_refused(before, folder, capsys):
    prior, other = best(before, "prior"), best(before, "vq_1")
    for command in (
        ["test", "--ckpt_path", prior, "--model.autoencoder", other],
        [*prior_of(other), "--init_from", prior],
    ):
        message = failure(command, capsys)
        assert "trained on the codes of another autoencoder" in message
    command = ["fit", "--ckpt_path", prior, "--model.autoencoder", other]
    command.append("--trainer.max_epochs=3")
    assert "a resumed training keeps its model" in failure(command, capsys)
    # The right one is accepted.
    main(["test", "--ckpt_path", str(prior), "--model.autoencoder", str(best(before, "vq_0"))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model.autoencoder=nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--model.network.heads=3"], "heads must divide dim"),
        (["--data.size=8"], "no option 'size'"),
    ],
)
def test_options_that_cannot_be(change, message, before, folder, capsys):
    assert message in failure([*prior_of(best(before, "vq_0")), *change], capsys)


def test_a_new_training_starts_from_the_weights_of_another_prior(before, folder, capsys):
    prior = best(before, "prior")
    command = ["fit", "--init_from", str(prior), *FAST, "--optimizer.lr=1e-30", "--name=again"]
    main(command)
    assert "Weights: those of" in capsys.readouterr().out
    again = checkpoint.read(folder / "runs/again/version_0/checkpoints/last.ckpt").weights
    for name, value in checkpoint.read(prior).weights.items():
        assert value.equal(again[name]), name


def test_an_autoencoder_is_needed(before, folder, capsys):
    command = [part for part in prior_of("x") if "autoencoder" not in part]
    assert "give --model.autoencoder" in failure(command, capsys)
    command = prior_of(best(before, "prior"))
    assert "a CodePrior cannot be the autoencoder of another prior" in failure(command, capsys)


@pytest.mark.slow
def test_commands_that_use_it(before, folder, capsys):
    path = str(best(before, "prior"))
    for command in ("reconstruct", "encode", "score", "explore", "export"):
        main([command, "--ckpt_path", path, f"--out={command}"])
    main(["figure", "code_gallery", "--ckpt_path", path, "--out=gallery.png"])
    assert (folder / "gallery.png").is_file()
    assert "no latent vector" in failure(["interpolate", "--ckpt_path", path], capsys)
    # The exported folder samples the same images.
    for source, out in ((path, "first"), ("export", "second")):
        main(["sample", "--ckpt_path", source, "--n=10", f"--out={out}"])
    first, second = (np.load(f"{out}/samples.npz")["x"] for out in ("first", "second"))
    assert (first == second).all()
