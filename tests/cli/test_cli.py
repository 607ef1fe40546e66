"""The command line as a person uses it: files that appear, what is printed, exit codes."""

import csv
import io
import json
import math
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

import vae_lightning
from vae_lightning.__main__ import main
from vae_lightning.cli.terminal import write_plainly

TINY = [
    "--data.train_size=160",
    "--data.val_size=32",
    "--data.test_size=40",
    "--data.batch_size=16",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
SMALL_NETS = ["--model.encoder.channels=[4,8]", "--model.decoder.channels=[8,4]"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """A trained VAE; what was printed is in ``run.printed``."""
    main(["fit", *TINY, *SMALL_NETS])
    path = folder / "runs" / "vae" / "version_0"
    printed = capsys.readouterr()
    return type("Run", (), {"path": path, "printed": printed.out, "errors": printed.err})


def failure(args, capsys) -> tuple[int, str]:
    """Exit code and the one line of an error."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert lines[-1].startswith("vae: error: ")
    assert "Traceback" not in captured.err
    return stop.value.code, lines[-1].removeprefix("vae: error: ")


def test_help_and_version_need_no_torch():
    for args in (["--help"], ["--version"]):
        code = (
            "import sys; from vae_lightning.__main__ import main; main(sys.argv[1:]); "
            "assert 'torch' not in sys.modules"
        )
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "vae" in done.stdout
        assert time.monotonic() - start < 2  # it is 0.05 s, on a machine that does nothing else


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["fit", "--config", "vq_ave"], 1, "did you mean 'vq_vae'?"),
        (["fit", "--modle.beta=4"], 2, "no option 'modle.beta'; did you mean 'model.beta'?"),
        (["test", "--ckpt_path=no.ckpt"], 1, "no.ckpt does not exist: give the path of a .ckpt"),
        (["fit", "--config", ' {"model": 1}', "--init_from", "no.ckpt"], 1, "no.ckpt does not exi"),
    ],
)
def test_typing_errors_are_answered_before_torch_is_loaded(args, code, said):
    program = (
        "import sys; from vae_lightning.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == "False\n"


def test_a_run_has_everything_in_one_folder(run):
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    figures = {"samples", "reconstructions", "latents", "traversals"}
    assert files == {
        "config.yaml",
        "metrics.csv",
        "run.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        *(f"figures/{name}/epoch=000.png" for name in figures),
    }
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val/loss"]) > 0
    assert not (run.path / "config.yaml").read_text().count("!!python")


def test_the_last_lines_say_where_it_is_and_what_to_type(run):
    lines = run.printed.splitlines()
    assert lines[-1].split() == [
        "Next:", "vae", "test", "--ckpt_path", "runs/vae/version_0/checkpoints/best.ckpt",
    ]  # fmt: skip
    assert lines[-2].split() == ["Run", "folder:", "runs/vae/version_0"]
    assert any(line.startswith("  cross-entropy + kl  ") for line in lines)
    # Gray pixels under a Bernoulli: what is printed must not pass for a log-likelihood.
    assert "not a log-likelihood" in run.printed


def test_nothing_is_warned_of(run):
    assert "Warning" not in run.errors
    assert "warn" not in run.errors.lower()


def test_config_of_a_run_repeats_it(run, folder, capsys):
    main(["fit", "--config", str(run.path / "config.yaml")])
    again = folder / "runs" / "vae" / "version_1"
    first, second = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for path in (run.path, again)
    )
    for name, value in first.items():
        assert value.equal(second[name]), name


# The bundled digits would be drawn by the thousand to measure disentanglement.
QUICK = ["--trainer.enable_progress_bar=false", "--metrics.disentanglement=null"]


def metrics_of(path, stage="test"):
    return json.loads((path / stage / "metrics.json").read_text())["metrics"]


def test_test_takes_model_and_data_from_the_checkpoint(run, capsys):
    ckpt = run.path / "checkpoints" / "best.ckpt"
    main(["test", "--ckpt_path", str(ckpt), *QUICK])
    metrics = metrics_of(run.path)
    printed = capsys.readouterr().out
    assert f"{metrics['negative_elbo']:.4f}" in printed
    assert "cross-entropy + kl" in printed
    assert "not a log-likelihood" in printed
    # An independent evaluation of the same weights.
    model = vae_lightning.load(ckpt)
    assert model.encoder.layers[0].out_channels == 4
    data = vae_lightning.Digits(train_size=160, val_size=32, test_size=40)
    data.setup("test")
    x = data.datasets["test"].images.x / 255
    with torch.no_grad():
        mu, log_var = model.encoder(x).chunk(2, dim=1)
        kl = 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum(1).mean()
        costs = []
        for seed in range(40):
            noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed))
            p = model.decoder(mu + (log_var / 2).exp() * noise).sigmoid().double()
            costs.append(-(x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3)).mean())
    costs = torch.stack(costs)
    assert metrics["kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert abs(metrics["reconstruction"] - costs.mean().item()) < 5 * costs.std().item()
    assert not (run.path.parent / "version_1").exists()


def test_the_command_line_wins_over_the_checkpoint(run, capsys):
    ckpt = run.path / "checkpoints" / "best.ckpt"
    args = [*QUICK, "--trainer.logger=false"]
    main(["test", "--ckpt_path", str(ckpt), *args, "--data.binarization=threshold"])
    assert "not a log-likelihood" not in capsys.readouterr().out
    first = metrics_of(run.path)
    main(["test", "--ckpt_path", str(ckpt), *args, "--model.likelihood", "Gaussian"])
    second = metrics_of(run.path)
    assert first["reconstruction"] != second["reconstruction"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--model=BetaVAE"], "holds a VAE, but the options ask for a BetaVAE"),
        (["--config=beta_vae"], "holds a VAE, but the options ask for a BetaVAE"),
        (["--model.latent_dim=5"], "do not fit the model that the options describe"),
    ],
)
def test_options_that_contradict_the_checkpoint(run, options, part, capsys):
    ckpt = ["--ckpt_path", str(run.path / "checkpoints" / "best.ckpt")]
    code, message = failure(["test", *ckpt, *options], capsys)
    assert (code, part in message) == (1, True)
    assert not (run.path / "test").exists()


def test_resuming_what_is_finished(run, capsys):
    last = run.path / "checkpoints" / "last.ckpt"
    code, message = failure(["fit", "--ckpt_path", str(last)], capsys)
    assert (code, "give a --trainer.max_epochs larger than 1" in message) == (3, True)
    assert not (run.path.parent / "version_1").exists()


def state_of(path):
    return torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_changed_learning_rate_counts_on_resume(run, folder, capsys):
    last = ["--ckpt_path", str(run.path / "checkpoints" / "last.ckpt"), "--trainer.max_epochs=2"]
    main(["fit", *last, "--optimizer.lr=0.125"])
    group = state_of(run.path)["optimizer_states"][0]["param_groups"]
    assert group[0]["lr"] == 0.125
    longer = ["--trainer.max_epochs=3", "--optimizer=SGD"]
    code, message = failure(["fit", *last, *longer], capsys)
    assert (code, "keeps its optimizer" in message) == (1, True)


MLP = ["--model.encoder=MLPEncoder", "--model.decoder=MLPDecoder"]


@pytest.mark.slow
def test_the_critic_has_an_optimizer_of_its_own(folder):
    """Like the model's, but for what is given; changes reach the one that they name."""
    rates = ["--optimizer=AdamW", "--optimizer.lr=0.002", "--critic_optimizer.lr=0.001"]
    main(["fit", *TINY, *MLP, "--model=FactorVAE", *rates])
    run = folder / "runs" / "factor_vae" / "version_0"

    def learning_rates():
        parts = state_of(run)["optimizer_states"][0]["parts"]
        return [group["lr"] for part in parts for group in part["param_groups"]]

    record = state_of(run)["vae_lightning"]
    names = [record[part]["class_path"] for part in ("optimizer", "critic_optimizer")]
    assert [name.rpartition(".")[2] for name in names] == ["AdamW", "AdamW"]
    assert record["critic_optimizer"]["init_args"]["weight_decay"] == 0.01
    assert learning_rates() == [0.002, 0.001]
    last = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    main(["fit", *last, "--trainer.max_epochs=2", "--critic_optimizer.lr=0.0005"])
    assert learning_rates() == [0.002, 0.0005]
    main(["fit", *last, "--trainer.max_epochs=3", "--optimizer.lr=0.004"])
    assert learning_rates() == [0.004, 0.0005]


def test_a_critic_optimizer_needs_a_critic(folder, capsys):
    code, message = failure(["fit", *TINY, "--critic_optimizer.lr=1e-4"], capsys)
    assert (code, "VAE, which has no critic" in message) == (1, True)
    assert not (folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss"],
        ["lightning.pytorch.cli.ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss"],
        ["torch.optim.lr_scheduler.ReduceLROnPlateau"],  # follows the validation loss
    ],
    ids=lambda options: options[0],
)
def test_schedulers_that_follow_a_metric(folder, options):
    plateau = ["--lr_scheduler", *options, "--lr_scheduler.patience=0"]
    plateau += ["--lr_scheduler.threshold=0.9", "--trainer.max_epochs=3"]
    main(["fit", *TINY, *MLP, *plateau])
    (group,) = state_of(folder / "runs" / "vae" / "version_0")["optimizer_states"][0][
        "param_groups"
    ]
    assert group["lr"] == pytest.approx(1e-5)  # reduced twice


def test_resume_with_a_configuration_that_names_no_checkpoint(run, folder):
    last = ["--ckpt_path", str(run.path / "checkpoints" / "last.ckpt")]
    config = folder / "old.yaml"
    config.write_text((run.path / "config.yaml").read_text() + "ckpt_path: null\n")
    main(["fit", *last, "--config", str(config), "--trainer.max_epochs=2", "--name=vae"])
    assert state_of(run.path)["global_step"] == 16
    epochs = (run.path / "metrics.csv").read_text().splitlines()[1:]
    assert {line.split(",")[0] for line in epochs} == {"0", "1"}
    assert not (run.path.parent / "version_1").exists()


@pytest.mark.slow
def test_weights_alone_cannot_be_resumed(folder, capsys):
    main(["fit", *TINY, *SMALL_NETS, "--checkpoint.save_weights_only=true"])
    capsys.readouterr()
    last = "runs/vae/version_0/checkpoints/best.ckpt"
    code, message = failure(["fit", "--ckpt_path", last, "--trainer.max_epochs=2"], capsys)
    assert (code, "holds only weights" in message) == (1, True)
    main(["test", "--ckpt_path", last, *QUICK])


@pytest.mark.slow
def test_repeating_a_run_leaves_its_tracker_files_alone(folder):
    main(["fit", *TINY, *SMALL_NETS, "--trainer.logger=TensorBoardLogger"])
    runs = folder / "runs" / "vae"
    main(["fit", "--config", str(runs / "version_0" / "config.yaml")])
    for version in ("version_0", "version_1"):
        assert len(list((runs / version / "tensorboard").glob("events*"))) == 1


def test_predictions_never_replace_other_files(run, folder, capsys):
    theirs = run.path / "predictions" / "precious.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    ckpt = ["--ckpt_path", str(run.path / "checkpoints" / "best.ckpt")]
    code, message = failure(["predict", *ckpt], capsys)
    assert (code, "holds something other than predictions" in message) == (1, True)
    assert theirs.read_text() == "mine"


@pytest.mark.slow
def test_interrupt(folder):
    """Ctrl-C ends with the exit code of an interrupted command, and says how to go on."""
    args = [*TINY, *SMALL_NETS, "--trainer.max_epochs=100000"]
    command = [sys.executable, "-m", "vae_lightning", "fit", *args]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    last = folder / "runs" / "vae" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    line = "vae fit --ckpt_path runs/vae/version_0/checkpoints/last.ckpt"
    assert errors.strip().splitlines()[-1].endswith(line)


@pytest.mark.slow
def test_report_says_how_it_was_made(run):
    ckpt = str(run.path / "checkpoints" / "best.ckpt")
    args = ["test", "--ckpt_path", ckpt, "--metrics.log_likelihood.num_samples=3", *QUICK]
    main([*args, "--data.binarization=threshold", "--evaluation_seed=5"])
    report = json.loads((run.path / "test" / "metrics.json").read_text())
    assert report["command"] == shlex.join(
        ["vae", *args, "--data.binarization=threshold", "--evaluation_seed=5"]
    )
    assert report["checkpoint"] == ckpt
    assert (report["images"], report["importance_samples"], report["evaluation_seed"]) == (40, 3, 5)
    assert report["versions"]["torch"] == torch.__version__
    assert report["is_normalized"]
    nats = report["metrics"]["negative_log_likelihood"]
    assert report["bits_per_dimension"]["negative_log_likelihood"] == pytest.approx(
        nats / 784 / math.log(2)
    )
    assert report["standard_errors"]["negative_log_likelihood"] > 0
    main([*args, "--data.binarization=threshold", "--evaluation_seed=6"])
    other = json.loads((run.path / "test" / "metrics.json").read_text())["metrics"]
    assert other["kl"] == report["metrics"]["kl"]
    assert other["reconstruction"] != report["metrics"]["reconstruction"]
    main([*args, "--metrics.latents=null"])  # gray pixels under a Bernoulli
    gray = json.loads((run.path / "test" / "metrics.json").read_text())
    assert "importance_weighted_cross_entropy" in gray["metrics"]
    assert not {"negative_log_likelihood", "active_units"} & set(gray["metrics"])
    assert gray["bits_per_dimension"] == {}


def test_numbers_are_printed_even_if_they_cannot_be_written(run, capsys, monkeypatch):
    ckpt = str(run.path / "checkpoints" / "best.ckpt")
    (run.path / "blocked").mkdir()
    (run.path / "blocked" / "test").write_text("a file where the folder would be")
    monkeypatch.setattr(
        "vae_lightning.cli.run_folders.folder_of", lambda path: run.path / "blocked"
    )
    with pytest.raises(SystemExit, match="1"):
        main(["test", "--ckpt_path", ckpt, *QUICK])
    captured = capsys.readouterr()
    assert "cross-entropy + kl" in captured.out
    assert "the numbers are those printed above" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.slow
def test_a_report_is_neither_lost_nor_replaced_by_a_trial(run):
    ckpt = str(run.path / "checkpoints" / "best.ckpt")
    main(["test", "--ckpt_path", ckpt, *QUICK])
    first = (run.path / "test" / "metrics.json").read_text()
    main(["test", "--ckpt_path", ckpt, *QUICK, "--trainer.fast_dev_run=true"])
    assert (run.path / "test" / "metrics.json").read_text() == first
    before = set((run.path / "test").iterdir())
    main(["test", "--ckpt_path", ckpt, *QUICK, "--metrics.latents=null"])
    (kept,) = set((run.path / "test").iterdir()) - before
    assert kept.read_text() == first


def test_validate(run):
    ckpt = run.path / "checkpoints" / "best.ckpt"
    main(["validate", "--ckpt_path", str(ckpt), *QUICK])
    metrics = metrics_of(run.path, "val")
    with (run.path / "metrics.csv").open() as file:
        logged = float(list(csv.DictReader(file))[-1]["val/loss"])
    assert metrics["loss"] == pytest.approx(logged, rel=1e-5)


def test_predict(run, capsys):
    ckpt = run.path / "checkpoints" / "best.ckpt"
    main(["predict", "--ckpt_path", str(ckpt), "--trainer.enable_progress_bar=false"])
    folder = run.path / "predictions"
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    assert set(arrays) == {"index", "label", "original", "reconstruction", "mu", "log_var"}
    assert arrays["index"].tolist() == list(range(40))
    data = vae_lightning.Digits(train_size=160, val_size=32, test_size=40)
    data.setup("test")
    images = data.datasets["test"].images
    assert arrays["label"].tolist() == images.y.tolist()
    np.testing.assert_allclose(arrays["original"], images.x.numpy() / 255, rtol=1e-6)
    model = vae_lightning.load(ckpt)
    x = torch.from_numpy(arrays["original"])
    np.testing.assert_allclose(arrays["mu"], model.embed(x).numpy(), atol=1e-5)
    np.testing.assert_allclose(arrays["reconstruction"], model.reconstruct(x).numpy(), atol=1e-5)
    assert (folder / "reconstructions.png").is_file()
    assert not (run.path / "predictions.partial").exists()
    assert "predictions" in capsys.readouterr().out


def test_part_of_the_predictions(run):
    ckpt = run.path / "checkpoints" / "best.ckpt"
    quiet = "--trainer.enable_progress_bar=false"
    main(["predict", "--ckpt_path", str(ckpt), quiet, "--trainer.limit_predict_batches=2",
          "--data.predict_split=val"])  # fmt: skip
    for path in (run.path / "predictions").glob("*.npy"):
        assert len(np.load(path)) == 32, path.name  # 2 batches of 16


@pytest.mark.slow
def test_resume_goes_on_with_the_settings_of_the_run(run, folder):
    last = run.path / "checkpoints" / "last.ckpt"
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=2"])
    state = state_of(run.path)
    assert state["global_step"] == 16
    settings = state["vae_lightning"]["model"]["init_args"]
    assert settings["encoder"]["init_args"]["channels"] == [4, 8]
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert "ckpt_path" not in config
    assert config["trainer"]["max_epochs"] == 2
    before = yaml.safe_load((run.path / "config_1.yaml").read_text())
    assert before["trainer"]["max_epochs"] == 1
    assert not (run.path.parent / "version_1").exists()
    assert config["data"]["init_args"]["train_size"] == 160


@pytest.mark.slow
def test_figures_can_be_tuned_and_switched_off(folder):
    main(["fit", *TINY, *SMALL_NETS, "--figures.samples.n=4", "--figures.latents=null",
          "--figures.traversals=null", "--figures.reconstructions.every_n_epochs=2",
          "--trainer.max_epochs=3"])  # fmt: skip
    figures = folder / "runs" / "vae" / "version_0" / "figures"
    folders = {path.name for path in figures.iterdir() if path.is_dir()}
    assert folders == {"samples", "reconstructions"}
    drawn = sorted(path.stem for path in (figures / "reconstructions").iterdir())
    assert drawn == ["epoch=001", "epoch=002"]  # every second one, and the last
    assert [path.stem for path in (figures / "samples").iterdir()] == ["epoch=002"]


@pytest.mark.slow
def test_trackers_get_metrics_config_and_the_same_pictures(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(["fit", *TINY, *SMALL_NETS, "--trainer.logger+=TensorBoardLogger",
          "--trainer.logger+=WandbLogger", "--trainer.logger.project=test"])  # fmt: skip
    run = folder / "runs" / "vae" / "version_0"
    assert (run / "metrics.csv").is_file()
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert "val/loss" in events.Tags()["scalars"]
    assert "figures/samples" in events.Tags()["images"]
    written = (run / "figures" / "samples" / "epoch=000.png").read_bytes()
    shown = events.Images("figures/samples")[0]
    assert pixels(written).tolist() == pixels(shown.encoded_image_string).tolist()
    offline = list((run / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    images = list(offline[0].glob("files/media/images/figures/samples_*.png"))
    assert len(images) == 1
    assert pixels(written).tolist() == pixels(images[0].read_bytes()).tolist()
    assert not (folder / "wandb").exists()


def pixels(png: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_mixed_precision(folder):
    main(["fit", *TINY, *SMALL_NETS, "--trainer.precision=bf16-mixed"])
    ckpt = folder / "runs" / "vae" / "version_0" / "checkpoints" / "best.ckpt"
    state = torch.load(ckpt, weights_only=True)["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_python_trained_checkpoints_work_too(folder, blobs):
    import lightning.pytorch as pl

    data = vae_lightning.Digits(train_size=64, val_size=16, test_size=16)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(vae_lightning.LitVAE(vae_lightning.VAE(latent_dim=3)), datamodule=data)
    trainer.save_checkpoint("mine.ckpt")
    main(["test", "--ckpt_path", "mine.ckpt", *QUICK])
    assert metrics_of(folder)["kl"] > 0


def test_no_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "usage: vae COMMAND" in capsys.readouterr().err


def test_help_of_a_metric_needs_no_checkpoint(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["test", "--metrics.log_likelihood.help"])
    assert "samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--trainer.max_steps=2", "--trainer.max_epochs=-1"], "val_check_interval 2 for one"),
        (["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"], "n_epoch 1"),
        (["--trainer.max_steps=3", "--trainer.max_epochs=-1"], None),
        (["--trainer.max_steps=1", "--trainer.val_check_interval=1"], None),
    ],
)
def test_a_training_without_validation_is_announced(folder, capsys, options, remedy):
    """An epoch has three batches of 32. The results of Lightning's sanity check are not printed."""
    sizes = ["--data.train_size=128", "--data.val_size=32", "--data.batch_size=32"]
    main(["fit", *TINY, *SMALL_NETS, *sizes, *options])
    printed = capsys.readouterr().out
    assert ("nothing will be validated" in printed) == (remedy is not None)
    assert ("On the validation images" in printed) == (remedy is None)
    assert remedy is None or remedy in printed


def test_results_of_a_test_go_to_the_loggers(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ckpt = str(run.path / "checkpoints" / "best.ckpt")
    main(["test", "--ckpt_path", ckpt, *QUICK, "--trainer.logger+=TensorBoardLogger"])
    metrics = metrics_of(run.path)
    logged = EventAccumulator(str(run.path / "tensorboard"))
    logged.Reload()
    for name in ("negative_elbo", "importance_weighted_cross_entropy", "active_units"):
        (event,) = logged.Scalars(f"test/{name}")
        assert event.value == pytest.approx(metrics[name], rel=1e-6)
    (event,) = logged.Scalars("test/kl_per_dimension/1")
    assert event.value == pytest.approx(metrics["kl_per_dimension"][1], rel=1e-6)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_terminal_of_any_encoding_costs_nothing(encoding, monkeypatch):
    """ASCII has no sign for plus-minus."""
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding))
    write_plainly()
    print(
        "loss 97.5 \N{PLUS-MINUS SIGN} 0.3 \N{EN DASH} chat noir: \u9ed2\u732b \udcff", flush=True
    )
    expected = {
        "ascii": r"loss 97.5 +- 0.3 - chat noir: \u9ed2\u732b \udcff",
        "latin-1": "loss 97.5 \N{PLUS-MINUS SIGN} 0.3 - chat noir: \\u9ed2\\u732b \\udcff",
        "cp437": "loss 97.5 \N{PLUS-MINUS SIGN} 0.3 - chat noir: \\u9ed2\\u732b \\udcff",
        "utf-8": "loss 97.5 \N{PLUS-MINUS SIGN} 0.3 \N{EN DASH} chat noir: \u9ed2\u732b \\udcff",
    }
    assert buffer.getvalue().decode(encoding).strip() == expected[encoding]
