"""A batch size or a learning rate that is searched for before a training."""

import pytest
import torch
import yaml

from vae_lightning.__main__ import main

FIT = [
    "fit",
    "--model=VAE",
    *("--data.train_size=160", "--data.val_size=32", "--data.test_size=32"),
    *("--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--figures.samples=null"),
]
SHORT = ["--trainer.callbacks.num_training_steps=30"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(folder, name):
    run = folder / "runs" / name / "version_0"
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    held = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return run, config, held["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["VAE", "FactorVAE"])
def test_the_training_is_the_one_with_the_rate_that_was_found(model, folder, capsys):
    given = [*FIT, f"--model={model}"]
    main([*given, "--name=found", "--trainer.callbacks+=LearningRateFinder", *SHORT])
    run, config, weights = run_of(folder, "found")
    rate = config["optimizer"]["init_args"]["lr"]
    assert f"LearningRateFinder: --optimizer.lr {rate}\n" in capsys.readouterr().out
    assert 1e-7 < rate < 1
    assert not config["trainer"]["callbacks"]
    main([*given, "--name=typed", f"--optimizer.lr={rate}"])
    typed = run_of(folder, "typed")[2]
    for name, value in weights.items():
        assert torch.equal(value, typed[name]), name
    main(["fit", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_epochs=3"])
    rows = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [row.partition(",")[0] for row in rows] == ["epoch", "0", "1", "2"]


@pytest.mark.slow
def test_a_batch_size_is_found(folder, capsys):
    callback = ["--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.max_trials=3"]
    main([*FIT, "--name=found", *callback])
    batch_size = run_of(folder, "found")[1]["data"]["init_args"]["batch_size"]
    assert batch_size == 8
    out = capsys.readouterr().out
    assert "BatchSizeFinder: --data.batch_size 8\n" in out
    assert "Note: with this batch size an epoch has 16 updates, fewer than 50" in out


@pytest.mark.slow
def test_both_are_found_and_a_batch_is_not_larger_than_the_data(folder):
    callbacks = ["--trainer.callbacks+=LearningRateFinder", *SHORT]
    main([*FIT, "--name=found", *callbacks, "--trainer.callbacks+=BatchSizeFinder"])
    _, config, _ = run_of(folder, "found")
    assert config["data"]["init_args"]["batch_size"] == 128
    assert config["optimizer"]["init_args"]["lr"] != 1e-3
    assert not config["trainer"]["callbacks"]
