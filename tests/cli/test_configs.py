"""Every shipped configuration trains, tests and predicts through the command line."""

import json
from pathlib import Path

import pytest
import yaml

from vae_lightning.__main__ import main
from vae_lightning.cli.bundled_configs import config_folder

CONFIGS = sorted(config_folder().glob("*.yaml"))
# The bundled digits stand in for data that may not be at hand.
SMALL = [
    "--data=Digits",
    "--data.train_size=96",
    "--data.val_size=32",
    "--data.test_size=24",
    "--data.batch_size=32",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def test_there_are_configurations():
    assert {"digits", "vae", "vae_2d", "beta_vae", "cvae", "vq_vae"} <= {p.stem for p in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_begins_with_its_command(path):
    first = path.read_text().splitlines()[0]
    command = "vae fit" if path.stem == "digits" else f"vae fit --config {path.stem}"
    assert first.startswith(f"# {command}")


@pytest.mark.slow_except("digits", "vae", "vq_vae", "hierarchical_vae")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains_tests_and_predicts(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = []
    if path.stem == "vq_prior":
        main(["fit", "--config", "vq_vae", *SMALL])
        needed = ["--model.autoencoder", "runs/vq_vae/version_0/checkpoints/best.ckpt"]
    if path.stem == "m2":
        needed = ["--data.num_labels", "40"]  # fewer than the images here
    main(["fit", "--config", path.stem, *needed, *SMALL])
    run = tmp_path / "runs" / path.stem / "version_0"
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"]
    assert model.rpartition(".")[2] in path.read_text()
    ckpt = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    quiet = "--trainer.enable_progress_bar=false"
    # From a file, which may hold options that a model does not need.
    Path("fast.yaml").write_text("metrics: {disentanglement: {votes: 8}}", encoding="utf-8")
    main(["test", *ckpt, quiet, "--config=fast.yaml"])
    metrics = json.loads((run / "test" / "metrics.json").read_text())["metrics"]
    assert metrics["loss"] > 0
    assert None not in metrics.values()
    main(["predict", *ckpt, quiet])
    if model.endswith(".Classifier"):
        assert (run / "predictions" / "predicted.npy").is_file()
        assert metrics["accuracy"] > 0
        return
    assert (run / "predictions" / "reconstruction.npy").is_file()
    figures = {folder.name for folder in (run / "figures").iterdir()}
    assert {"reconstructions", "latents"} <= figures
    codes = {"code_usage", "code_maps", "code_gallery"}
    special = {
        "vae_2d": {"manifold"},
        "cvae": {"classes"},
        "vq_vae": codes,
        "vq_vae_2": codes,
        "d_vae": codes,
        "vq_prior": codes | {"samples"},
    }
    assert special.get(path.stem, set()) <= figures
