"""Sweep files, as W&B's agent would run them and as ``vae sweep`` does."""

import csv
import json
import shlex
import subprocess
import sys

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps import utils as agent

from vae_lightning.__main__ import main
from vae_lightning.cli import sweep
from vae_lightning.cli.bundled_configs import config_folder
from vae_lightning.cli.sweep_file import Sweep

FILES = sorted((config_folder() / "sweep").glob("*.yaml"))
TINY = [
    "--data=Digits",
    "--data.train_size=64",
    "--data.val_size=16",
    "--data.test_size=16",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.encoder=MLPEncoder",
    "--model.decoder=MLPDecoder",
]
GRID = {
    "name": "betas",
    "method": "grid",
    "command": ["${env}", "vae", "fit", "--model=BetaVAE", "--trainer.logger+=X", "${args}"],
    "metric": {"name": "val/negative_elbo", "goal": "minimize"},
    "parameters": {"model.beta": {"values": [-1, 4]}, "seed_everything": {"value": 3}},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, **changes):
    (folder / "betas.yaml").write_text(yaml.safe_dump({**GRID, **changes}))
    return "betas.yaml"


def failure(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *args])
    assert stop.value.code
    return capsys.readouterr().err.removeprefix("vae: error: ").strip()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bundled_files_begin_with_their_command(path):
    command = path.read_text().splitlines()[0].removeprefix("# vae sweep ")
    assert shlex.split(command)[0] == path.stem
    main(["sweep", *shlex.split(command), "--list"])


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bundled_files_run_under_wandbs_agent(path, folder):
    """The agent's own functions make the command; a tiny training follows it to the end."""
    content = yaml.safe_load(path.read_text())
    drawn = Sweep.read(path)
    values = drawn.combinations(None if drawn.method == "grid" else 1, seed=0)[-1]
    flags = agent.create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    command = [
        word
        for part in agent.create_sweep_command(content["command"])
        for word in (flags["args"] if part == "${args}" else [part])
    ]
    assert command[:2] == ["${env}", "vae"]  # becomes /usr/bin/env vae
    wandb.finish()  # of a test before; an agent starts a process for each
    main([*command[2:], *TINY, "--name=run"])
    wandb.finish()
    run = folder / "runs" / "run" / "version_0"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in values.items():
        at = settings
        for part in name.split("."):
            at = at.get("init_args", at)[part] if part != "lr" else at["init_args"]["lr"]
        assert at == value, name
    with (run / "metrics.csv").open() as lines:
        assert content["metric"]["name"] in next(csv.reader(lines))
    assert list((run / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_trains_what_is_not_finished_and_goes_past_failures(folder, capsys):
    name = write(folder)
    error = failure(capsys, name, *TINY, "--jobs=2")
    assert error.startswith("1 of 2 combinations failed")
    parent = folder / "runs" / "betas"
    assert {path.name for path in parent.iterdir()} == {"beta=-1", "beta=4", "sweep.csv"}
    assert "beta must not be negative, got -1" in (parent / "beta=-1" / "log.txt").read_text()
    with (parent / "sweep.csv").open() as lines:
        (row,) = csv.DictReader(lines)
    assert float(row["val/negative_elbo"]) > 0
    assert row["model.beta"] == "4"
    assert folder / row["run"] == parent / "beta=4" / "version_0"
    config = yaml.safe_load((folder / row["run"] / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["model"]["init_args"]["beta"] == 4
    # Again: what is finished is not trained again, unless it was trained with other options.
    main(["sweep", name, *TINY, "--only=1"])
    printed = capsys.readouterr().out
    assert "2 combinations, 0 to train, 1 done" in printed
    assert f"Best:        vae test --ckpt_path {row['run']}/checkpoints/best.ckpt" in printed
    # Interrupted: what it has trained is not trained again either.
    result = parent / "beta=4" / "result.json"
    result.write_text(json.dumps({"options": json.loads(result.read_text())["options"]}))
    main(["sweep", name, *TINY, "--only=1"])
    assert "2 combinations, 1 to train, 0 done" in capsys.readouterr().out
    assert json.loads(result.read_text())["run"] == row["run"]
    assert not (parent / "beta=4" / "version_1").exists()
    main(["sweep", name, *TINY, "--list"])
    assert "   0  beta=-1\n   1  beta=4, done\n2 combinations" in capsys.readouterr().out
    main(["sweep", name, "--list"])
    assert "done" not in capsys.readouterr().out


def test_random_values_are_those_of_the_seed(folder, capsys):
    parameters = {
        "a": {"min": 0.0, "max": 1.0},
        "b": {"min": 1, "max": 5},
        "c": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "d": {"values": ["x", "y"], "probabilities": [0, 1]},
    }
    path = folder / write(folder, method="random", parameters=parameters)
    drawn = Sweep.read(path).combinations(200, seed=1)
    assert drawn[:10] == Sweep.read(path).combinations(10, seed=1)
    assert drawn[:10] != Sweep.read(path).combinations(10, seed=2)
    assert {values["b"] for values in drawn} == {1, 2, 3, 4, 5}
    assert {values["d"] for values in drawn} == {"y"}
    assert sum(values["c"] < 1e-3 for values in drawn) == pytest.approx(100, abs=25)
    assert len({round(values["a"], 9) for values in drawn}) == 200
    assert "give --trials N" in failure(capsys, str(path))


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", ".1e-3", "+1e-4", "1.0e-4"])
def test_numbers_are_those_of_yaml_1_2(folder, text):
    path = folder / write(folder, method="random", parameters={"lr": {"min": 0, "max": 1}})
    path.write_text(path.read_text().replace("min: 0", f"min: {text}"))
    assert Sweep.read(path).parameters["lr"]["min"] == 1e-4
    values = Sweep.read(path).combinations(20, seed=0)
    assert all(1e-4 <= value["lr"] <= 1 for value in values)


def test_folders_are_told_apart(tmp_path):
    content = Sweep("s", "grid", [], "m", False, {"a.size": {}, "b.size": {}, "c": {}})
    values = [
        {"a.size": [1, 2], "b.size": 0.12345, "c": 0},
        {"a.size": [1, 2], "b.size": 0.123451, "c": 0},
        {"a.size": [2, 1], "b.size": None, "c": 0},
    ]
    planned = sweep.plan(content, values, tmp_path, ["--more"])
    assert [combination.folder.name for combination in planned] == [
        "a.size=_1,_2_,b.size=0.1235",
        "a.size=_1,_2_,b.size=0.1235,2",
        "a.size=_2,_1_,b.size=None",
    ]
    assert planned[2].options == [
        "--more",
        f"--output_dir={tmp_path}",
        "--name=a.size=_2,_1_,b.size=None",
        "--a.size=[2, 1]",
        "--b.size=null",
        "--c=0",
    ]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"method": "gird"}, [], "method is 'gird'; use grid or random"),
        ({"method": "bayes"}, ["--trials=2"], "or the method random"),
        ({"command": None}, [], "it has no 'command'"),
        ({"command": ["vae", "fit"]}, [], "must be a list with vae, fit and ${args}"),
        ({"parameters": {"x": {"min": 0, "max": 1}}}, [], "use the method random with --trials"),
        ({"parameters": {"x": {"parameters": {}}}}, [], "must have a value, values or a"),
        (
            {"method": "random", "parameters": {"x": {"distribution": "beta"}}},
            ["--trials=2"],
            "distribution 'beta' is none of uniform, int_uniform",
        ),
        (
            {"method": "random", "parameters": {"x": {"distribution": "uniform", "min": 1}}},
            ["--trials=2"],
            "uniform needs numbers as min and max, got 1 and None",
        ),
        ({}, ["--trials=2"], "this one is a grid"),
        ({}, ["--only=2"], "there are combinations 0 to 1"),
        ({}, ["--jobs=0"], "--jobs must be at least 1"),
    ],
)
def test_errors_are_a_sentence(changes, options, message, folder, capsys):
    error = failure(capsys, write(folder, **changes), *options)
    assert message in error
    assert "\n" not in error
    assert not (folder / "runs").exists()


def test_a_file_that_is_not_there(folder, capsys):
    assert "did you mean 'beta_vae'?" in failure(capsys, "beta_va")
    (folder / "no.yaml").write_text("a: [")
    assert "is not a YAML file" in failure(capsys, "no.yaml")


def test_needs_no_torch():
    code = (
        "import sys; from vae_lightning.__main__ import main; "
        "main(['sweep', 'beta_vae', '--list']); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_diverged_training_is_the_worst(folder, capsys):
    """Its NaN is neither the best nor an error."""
    betas = {"model.beta": {"values": [1, 2, 4]}, "seed_everything": {"value": 3}}
    path = folder / write(folder, parameters=betas)
    content = Sweep.read(path)
    planned = sweep.plan(content, content.combinations(None, 0), folder / "runs" / "betas", [])
    for combination, value in zip(planned, (None, 2.0, 1.0), strict=True):
        combination.folder.mkdir(parents=True)
        result = {
            "options": combination.options,
            "parameters": combination.parameters,
            "val/negative_elbo": value,
            "run": combination.folder.name,
        }
        (combination.folder / "result.json").write_text(json.dumps(result))
    main(["sweep", str(path), "--output_dir", str(folder / "runs")])
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()[2:6]]
    assert table == [
        ["beta", "seed_everything", "val/negative_elbo"],
        ["4", "3", "1.0000"],
        ["2", "3", "2.0000"],
        ["1", "3", "nan"],
    ]
