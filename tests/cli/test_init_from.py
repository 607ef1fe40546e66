"""``vae fit --init_from``: a new training that starts from the weights of another one."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vae_lightning
from vae_lightning import checkpoint
from vae_lightning.__main__ import main

FAST = [
    *("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"),
    *(f"--figures.{name}=null" for name in ("samples", "reconstructions", "latents", "traversals")),
    "--figures.classes=null",
]
NETS = [
    *("--model.encoder=MLPEncoder", "--model.encoder.hidden=[8]"),
    *("--model.decoder=MLPDecoder", "--model.decoder.hidden=[8]"),
]
STILL = ["--optimizer.lr=1e-30"]
FOLDER = ["--data=ImageFolder", "--data.size=8", "--data.color=gray"]


def images(folder, classes, n=8):
    rng = np.random.default_rng(len(classes))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Folder with trained models on two classes of images."""
    folder = tmp_path_factory.mktemp("before")
    images(folder / "old", ["cat", "dog"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = [*FOLDER, "--data.root=old"]
        for name in ("VAE", "CVAE", "Classifier"):
            nets = NETS[:2] if name == "Classifier" else NETS
            main(["fit", f"--model={name}", *nets, *data, *FAST, f"--name={name}"])
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def best(before, name):
    return before / f"runs/{name}/version_0/checkpoints/best.ckpt"


def run_of(folder, name):
    return folder / f"runs/{name}/version_0"


def weights(path):
    return checkpoint.read(path).weights


@pytest.mark.slow
def test_the_training_starts_where_the_other_one_ended(before, folder, capsys):
    main(["fit", "--init_from", str(best(before, "VAE")), *FAST, *STILL, "--name=new"])
    out = capsys.readouterr().out
    assert f"Weights: those of {best(before, 'VAE')}\n" in out
    old, new = best(before, "VAE"), run_of(folder, "new") / "checkpoints/best.ckpt"
    for name, value in weights(old).items():
        assert value.equal(weights(new)[name]), name
    # The losses are the same, too: of the same data, model and noise.
    loss = next(line for line in out.splitlines() if line.startswith("  loss"))
    main(["validate", "--ckpt_path", str(old)])
    assert loss in capsys.readouterr().out
    config = yaml.safe_load((run_of(folder, "new") / "config.yaml").read_text())
    assert Path(config["init_from"]) == best(before, "VAE")
    assert config["model"]["init_args"]["encoder"]["init_args"]["hidden"] == [8]


def test_optimizer_and_steps_begin_anew(before, folder):
    main(["fit", "--init_from", str(best(before, "VAE")), *FAST, "--name=new"])
    held = checkpoint.read(run_of(folder, "new") / "checkpoints/last.ckpt")
    assert held.record.step == checkpoint.read(best(before, "VAE")).record.step
    assert held.record.epochs == 1
    assert not all(v.equal(weights(best(before, "VAE"))[k]) for k, v in held.weights.items())


@pytest.mark.parametrize("name", ["CVAE", "Classifier"])
def test_classes_are_matched_by_their_names(name, before, folder, capsys):
    images(folder / "new", ["ant", "dog", "elk"])
    data = [*FOLDER, "--data.root=new"]
    args = ["--init_from", str(best(before, name)), *data, *FAST, *STILL, "--name=new"]
    main(["fit", *args])
    assert "except of the new classes ant, elk" in capsys.readouterr().out
    old, new = weights(best(before, name)), weights(run_of(folder, "new") / "checkpoints/best.ckpt")
    if name == "Classifier":
        assert new["head.weight"][1].equal(old["head.weight"][1])  # the dog
        assert new["head.bias"][1].equal(old["head.bias"][1])
        assert not new["head.weight"][0].equal(old["head.weight"][0])
        return
    changed = [key for key, value in old.items() if value.shape != new[key].shape]
    assert len(changed) == 2  # the first layers of encoder and decoder
    for key in changed:
        assert new[key].shape[1] == old[key].shape[1] + 1
        assert new[key][:, -2].equal(old[key][:, -1])  # the dog
        assert new[key][:, :-3].equal(old[key][:, :-2])  # what is not a class
    x = torch.rand(3, 1, 8, 8)
    models = [vae_lightning.load(path) for path in (
        best(before, name), run_of(folder, "new") / "checkpoints/best.ckpt"
    )]  # fmt: skip
    assert models[0].reconstruct(x, 1).allclose(models[1].reconstruct(x, 1), atol=1e-6)


def test_a_new_order_of_the_same_number_of_classes(before, folder, capsys):
    images(folder / "new", ["dog", "wolf"])
    data = [*FOLDER, "--data.root=new"]
    args = ["--init_from", str(best(before, "CVAE")), *data, *FAST, *STILL, "--name=new"]
    main(["fit", *args])
    assert "except of the new class wolf" in capsys.readouterr().out
    x = torch.rand(3, 1, 8, 8)
    old = vae_lightning.load(best(before, "CVAE"))
    new = vae_lightning.load(run_of(folder, "new") / "checkpoints/best.ckpt")
    assert old.reconstruct(x, 1).allclose(new.reconstruct(x, 0), atol=1e-6)


def test_the_run_is_resumed_from_its_own_checkpoint(before, folder):
    source = folder / "source.ckpt"
    source.write_bytes(best(before, "VAE").read_bytes())
    main(["fit", "--init_from", str(source), *FAST, "--name=new"])
    source.unlink()  # not needed any more
    last = str(run_of(folder, "new") / "checkpoints/last.ckpt")
    main(["fit", "--ckpt_path", last, "--trainer.max_epochs=2"])
    assert checkpoint.read(last).record.epochs == 2
    assert not (folder / "runs/new/version_1").exists()


def test_data_do_not_initialize_what_was_loaded(before, folder):
    args = ["--init_from", str(best(before, "VAE")), "--model.init_bias_from_data=true"]
    main(["fit", *args, *FAST, *STILL, "--name=new"])
    new = weights(run_of(folder, "new") / "checkpoints/best.ckpt")
    for name, value in weights(best(before, "VAE")).items():
        assert value.equal(new[name]), name


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--ckpt_path={old}"], 1, "starts a new training and --ckpt_path continues one"),
        (["--model.latent_dim=3"], 1, "leave out options that change its size"),
        (["--model=BetaVAE"], 1, "holds a VAE, but the options ask for a BetaVAE"),
        (["--data=Digits"], 1, "is of a model of (1, 8, 8) images, but the data have (1, 28, 28)"),
    ],
)
def test_wrong_options(options, code, message, before, folder, capsys):
    old = best(before, "VAE")
    options = [option.format(old=old) for option in options]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--init_from", str(old), *options, *FAST])
    assert stop.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_only_fit_takes_it_and_others_ignore_it_in_a_configuration(before, folder, capsys):
    main(["fit", "--init_from", str(best(before, "VAE")), *FAST, "--name=new"])
    run = run_of(folder, "new")
    ckpt = f"--ckpt_path={run / 'checkpoints/best.ckpt'}"
    main(["validate", ckpt, f"--config={run / 'config.yaml'}"])
    with pytest.raises(SystemExit, match="1"):
        main(["validate", ckpt, f"--init_from={best(before, 'VAE')}"])
    assert "--init_from is an option of vae fit" in capsys.readouterr().err


def test_files_that_are_no_checkpoints(folder, capsys):
    (folder / "a.ckpt").write_text("text")
    for path, message in (("none.ckpt", "none.ckpt does not exist"), ("a.ckpt", "a.ckpt is not")):
        with pytest.raises(SystemExit, match="1"):
            main(["fit", "--init_from", path])
        assert message in capsys.readouterr().err
