"""Arrays and tables of a user through the command line, and back to their units."""

import csv
from pathlib import Path

import numpy as np
import pytest

import vae_lightning
from vae_lightning import checkpoint
from vae_lightning.__main__ import main

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
SMALL = [
    *("--model.encoder=MLPEncoder", "--model.encoder.hidden=[16]", "--model.latent_dim=2"),
    *("--model.decoder=MLPDecoder", "--model.decoder.hidden=[16]", *QUICK),
]
CKPT = "--ckpt_path=runs/own/version_0/checkpoints/best.ckpt"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(*options):
    main(["fit", *options, *SMALL, "--name=own"])


@pytest.fixture
def stack(folder):
    """12-bit images of a microscope, brighter to the right."""
    x = np.random.default_rng(0).integers(100, 200, (100, 8, 8)) + 400 * np.arange(8)
    np.save("stack.npy", x.astype(np.uint16))
    return x


@pytest.mark.slow
def test_everything_comes_back_in_the_units_of_the_data(stack, folder, capsys):
    fit("--data=Arrays", "--data.root=stack.npy", "--trainer.max_epochs=30")
    out = capsys.readouterr().out
    assert "uint16 values from 100 to 2999, scaled to [0, 1] (minmax)" in out
    record = checkpoint.read(CKPT.partition("=")[2]).record.known_data
    assert (record.low, record.high, record.layout) == ((100.0,), (2999.0,), "HW")
    main(["test", CKPT, *QUICK])
    main(["predict", CKPT, "--data.predict_split=all", *QUICK])
    predictions = folder / "runs/own/version_0/predictions"
    original = np.load(predictions / "original.npy")
    made = np.load(predictions / "reconstruction.npy")
    assert np.abs(original - stack).max() < 1  # a test value may be below the smallest of training
    assert made.shape == stack.shape
    assert np.abs(made - stack).mean() < 100
    main(["sample", CKPT, "--n=6", "--out=samples.npz"])
    samples = np.load("samples.npz")["x"]
    assert samples.shape == (6, 8, 8)
    assert 300 < samples.mean() < 3000
    main(["reconstruct", CKPT, "stack.npy", "--out=again.npz"])
    assert np.allclose(np.load("again.npz")["reconstruction"], made, atol=0.1)
    model = vae_lightning.load(CKPT.partition("=")[2])
    assert np.allclose(
        model.to_items(model.reconstruct(model.record.from_items(stack))), made, atol=0.1
    )


@pytest.mark.slow
def test_a_trained_model_refuses_other_data(stack, folder, capsys):
    fit("--data=Arrays", "--data.root=stack.npy", "--trainer.max_epochs=1")
    np.save("few.npy", stack[:1])
    np.save("unit.npy", stack / 3000)
    np.save("large.npy", np.zeros((9, 10, 10)))
    main(["predict", CKPT, "--data.root=few.npy", *QUICK])
    assert len(np.load("runs/own/version_0/predictions/original.npy")) == 1
    for name, message in (
        ("unit.npy", "convert them to the same units"),
        ("large.npy", "is of a model of (1, 8, 8) images, but the data have (1, 10, 10)"),
    ):
        for command in (["predict", CKPT, f"--data.root={name}", *QUICK],):
            with pytest.raises(SystemExit) as stop:
                main(command)
            assert stop.value.code == 1
            assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main(["reconstruct", CKPT, "unit.npy"])
    assert "convert them to the same units" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_model_scales_other_data_as_its_own(stack, folder):
    """Not by the range of the other data."""
    fit("--data=Arrays", "--data.root=stack.npy", "--trainer.max_epochs=1")
    np.save("darker.npy", stack // 2)
    main(["predict", CKPT, "--data.root=darker.npy", *QUICK])
    original = np.load("runs/own/version_0/predictions/original.npy")
    assert np.abs(original - stack // 2).max() <= 50  # below 100 is clipped
    model = vae_lightning.load(CKPT.partition("=")[2])
    assert model.record.from_items(stack // 2).max() < 0.52


@pytest.mark.slow
def test_a_training_continues_on_the_same_data_only(stack, folder, capsys):
    fit("--data=Arrays", "--data.root=stack.npy", "--trainer.max_epochs=1")
    last = "--ckpt_path=runs/own/version_0/checkpoints/last.ckpt"
    main(["fit", last, "--trainer.max_epochs=2", *QUICK])
    assert checkpoint.read(last.partition("=")[2]).record.epochs == 2
    changed = stack.astype(np.uint16)
    changed[3] += 1
    np.save("stack.npy", changed)
    with pytest.raises(SystemExit):
        main(["fit", last, "--trainer.max_epochs=3", *QUICK])
    assert "not those that this training began with" in capsys.readouterr().err


@pytest.mark.slow
def test_signals_that_are_standardized(folder, capsys):
    t = np.linspace(0, 6, 50)
    x = 5 + np.sin(t + np.random.default_rng(0).uniform(0, 6, (200, 1)))
    np.save("signals.npy", x)
    given = ["--data=Arrays", "--data.root=signals.npy", "--data.scaling=standardize"]
    with pytest.raises(SystemExit):
        fit(*given, "--model.likelihood=Bernoulli")
    assert "choose another likelihood, such as Gaussian" in capsys.readouterr().err
    fit(*given, "--trainer.max_epochs=20", "--model.likelihood=Gaussian")
    main(["predict", CKPT, *QUICK])
    made = np.load("runs/own/version_0/predictions/reconstruction.npy")
    assert made.shape == (20, 50)
    assert 4.5 < made.mean() < 5.5
    main(["traverse", CKPT, "--out=traversals.npz"])
    assert np.load("traversals.npz")["x"].shape == (2, 11, 50)
    main(["score", CKPT, "signals.npy", "--reference=0"])
    main(["interpolate", CKPT, "signals.npy", "--index", "0", "1", "--out=between.npz"])


@pytest.mark.slow
def test_a_table_has_its_own_default(folder, capsys):
    r = np.random.default_rng(0)
    with Path("sensors.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["load", "heat", "state"])
        for i in range(120):
            load = r.uniform(0, 100)
            heat = "" if i == 5 else 3 * load + r.normal()
            writer.writerow([load, heat, ["idle", "busy"][load > 50]])
    pytest.importorskip("pandas")
    given = ["--data=Table", "--data.root=sensors.csv", "--data.labels=state"]
    figures = [f"--figures.{name}=null" for name in ("samples", "latents", "traversals")]
    quick = [*figures, "--trainer.max_epochs=20", "--optimizer.lr=0.02", "--name=own", *QUICK]
    main(["fit", *given, *quick])
    out = capsys.readouterr().out
    assert (
        "119 rows (95 train, 12 val, 12 test), 2 columns (load, heat), in 2 classes (busy: " in out
    )
    assert "1 row left out (listed in runs/own/version_0/left_out.txt)" in out
    assert Path("runs/own/version_0/left_out.txt").read_text() == "row 6: no finite value in heat\n"
    config = Path("runs/own/version_0/config.yaml").read_text()
    assert "MLPEncoder" in config
    assert "learn_sigma: true" in config
    main(["predict", CKPT, "--data.root=sensors.csv", *QUICK])
    folder = Path("runs/own/version_0/predictions")
    made, original = (np.load(folder / f"{n}.npy") for n in ("reconstruction", "original"))
    assert original.shape == (119, 2)
    with (folder / "items.csv").open() as file:
        items = list(csv.DictReader(file))
    assert len(items) == 119
    assert (items[0]["name"], items[5]["name"]) == ("row 1", "row 7")
    assert {item["class"] for item in items} == {"idle", "busy"}
    main(["sample", CKPT, "--n=5", "--out=samples.csv"])
    with Path("samples.csv").open() as file:
        assert list(next(csv.DictReader(file))) == ["load", "heat"]
    assert np.abs(made[:, 1] - 3 * original[:, 0]).mean() < 30


@pytest.mark.slow
def test_the_number_of_epochs_follows_from_the_size(folder, capsys):
    np.save("x.npy", np.random.default_rng(0).normal(size=(2000, 4)))
    fit("--data=Arrays", "--data.root=x.npy", "--trainer.max_steps=2")
    config = Path("runs/own/version_0/config.yaml").read_text()
    assert "max_epochs: null" in config or "max_epochs: -1" in config
    capsys.readouterr()
    fit("--data=Arrays", "--data.root=x.npy", "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1", "--figures.latents=null")  # fmt: skip
    config = Path("runs/own/version_1/config.yaml").read_text()
    assert "max_epochs: 50" in config  # 1,600 items in batches of 32 make 50 updates


@pytest.mark.parametrize(
    ("values", "options", "note"),
    [
        (lambda r: r.integers(0, 256, (300, 5)).astype(np.uint8), ["--model.likelihood=Bernoulli"],
         "--model.likelihood DiscretizedLogistic"),
        (lambda r: r.normal(size=(300, 5)), ["--model.likelihood=Bernoulli"],
         "--model.likelihood Gaussian"),
        (lambda r: r.integers(0, 2, (300, 5)), [], "there is --model.likelihood Bernoulli"),
        (lambda r: r.normal(size=(300, 5)), ["--model.likelihood=DiscretizedLogistic"],
         "256 values of 8-bit images"),
        (lambda r: 1000 * r.normal(size=(300, 5)), ["--data.scaling=none"], "are not scaled"),
        (lambda r: r.normal(size=(4000, 5)), ["--data.batch_size=128"],
         "an epoch has only 25 updates: --data.batch_size 64 would make 50"),
        (lambda r: r.normal(size=(30, 5)), [], "only 3 validation items"),
    ],
    ids=["bytes", "floats", "binary", "logistic", "not scaled", "updates", "validation"],
)  # fmt: skip
def test_advice(folder, capsys, values, options, note):
    np.save("x.npy", values(np.random.default_rng(0)))
    fit("--data=Arrays", "--data.root=x.npy", "--trainer.fast_dev_run=1", *options)
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(
    ("period", "note"),
    [
        (1, "the learning rate rises again after epoch 1, and the training ends after epoch 2: "),
        (2, None),
        (3, "the learning rate would fall until epoch 3, and the training ends after epoch 2: "),
    ],
)
def test_advice_about_a_schedule_of_another_length(folder, capsys, period, note):
    np.save("x.npy", np.random.default_rng(0).normal(size=(300, 5)))
    schedule = ["--lr_scheduler=CosineAnnealingLR", f"--lr_scheduler.T_max={period}"]
    data = ["--data=Arrays", "--data.root=x.npy"]
    fit(*data, "--trainer.max_epochs=2", *schedule)
    out = capsys.readouterr().out
    if note is None:
        assert "learning rate" not in out
    else:
        assert f"{note}give --lr_scheduler.T_max 2" in out
        fit("--ckpt_path=runs/own/version_0/checkpoints/last.ckpt", "--trainer.max_epochs=3")
        assert "learning rate" not in capsys.readouterr().out


def test_no_advice_where_nothing_is_wrong(folder, capsys):
    np.save("x.npy", np.random.default_rng(0).normal(size=(7000, 5)))
    fit("--data=Arrays", "--data.root=x.npy", "--trainer.fast_dev_run=1")
    assert "Note" not in capsys.readouterr().out


def test_values_that_are_clipped_are_said(stack, folder, capsys):
    fit("--data=Arrays", "--data.root=stack.npy", "--trainer.max_epochs=1")
    brighter = stack.astype(float)
    brighter[0, 0, 0] = 9000
    np.save("brighter.npy", brighter)
    capsys.readouterr()
    main(["reconstruct", CKPT, "brighter.npy", "--out=b.npz"])
    assert "values from 100 to 9000 are clipped to those that the model knows, 100 to 2999" in (
        capsys.readouterr().out
    )


def test_a_column_in_other_units_is_said(folder, capsys):
    pytest.importorskip("pandas")
    values = np.random.default_rng(0).normal([20, 1000, 5], [3, 10, 1], (80, 3))
    for name, factor in (("a.csv", 1), ("b.csv", [1, 0.01, 1])):
        np.savetxt(name, values * factor, delimiter=",", header="t,p,v", comments="")
    main(["fit", "--data=Table", "--data.root=a.csv", "--trainer.max_epochs=1", *SMALL,
          "--name=own"])  # fmt: skip
    capsys.readouterr()
    main(["score", CKPT, "b.csv", "--reference=0"])
    assert "most values of p are far from those of the training" in capsys.readouterr().out


def test_a_file_as_data_is_pointed_to_its_option(folder, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--data", "sensors.csv"])
    assert "give --data Table --data.root sensors.csv" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_epoch_is_pointed_out(folder, capsys):
    """A few training items are learned by heart."""
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 20)))
    wide = ["--model.encoder.hidden=[64]", "--model.decoder.hidden=[64]", "--model.latent_dim=8"]
    main(["fit", "--data=Arrays", "--data.root=x.npy", "--name=own", "--trainer.max_epochs=60",
          "--optimizer.lr=0.02", *SMALL, *wide])  # fmt: skip
    out = capsys.readouterr().out
    assert "best.ckpt has a validation loss of" in out
    assert "nats of scaled values; in the units of the data, -log p(x) is" in out
