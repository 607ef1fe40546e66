"""The commands that use a trained model, as a person uses them."""

import csv
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vae_lightning
from vae_lightning import plotting
from vae_lightning.__main__ import EXPLORE, main

SMALL = [
    *("--data.train_size=96", "--data.val_size=24", "--data.test_size=30"),
    *("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"),
    *(f"--figures.{name}=null" for name in ("samples", "reconstructions", "latents")),
]
NETS = [
    *("--model.encoder=MLPEncoder", "--model.encoder.hidden=[8]"),
    *("--model.decoder=MLPDecoder", "--model.decoder.hidden=[8]"),
]
MODELS = {
    "vae": ["--model=VAE", "--model.latent_dim=4", *NETS],
    "cvae": ["--model=CVAE", "--model.latent_dim=2", *NETS],
    "wae": ["--model=WAE", "--model.latent_dim=3", *NETS],
    "hierarchical": ["--model=HierarchicalVAE", *NETS],
    "categorical": ["--model=CategoricalVAE", *NETS],
    "vq": ["--model=VQVAE", "--model.encoder.hidden=4", "--model.decoder.hidden=4"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a run of each model on the bundled digits, and one on a folder of photos."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, options in MODELS.items():
            main(["fit", *SMALL, *options, f"--name={name}"])
        photos(folder / "photos", 24)
        data = ["--data=ImageFolder", "--data.root=photos", "--data.size=8"]
        options = [option for option in SMALL if not option.startswith("--data")]
        options += ["--model.likelihood=Bernoulli", "--data.batch_size=32"]
        main(["fit", "--model=VAE", *NETS, *data, *options, "--name=photos"])
        main(["fit", "--model=CVAE", *NETS, *data, *options, "--name=classes"])
    return folder


def photos(folder, n, size=(20, 16)):
    """Red and green images, in folders of classes."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name = ("red", "green")[i % 2]
        pixels = rng.integers(0, 80, (*size, 3), dtype=np.uint8)
        pixels[..., i % 2] = 250
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ckpt(trained, name):
    return ["--ckpt_path", str(trained / f"runs/{name}/version_0/checkpoints/best.ckpt")]


def failure(args, capsys, code=1):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("vae: error: ")
    assert stop.value.code == code
    return lines[0].removeprefix("vae: error: ")


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Every command with every model

FIRST = {"density": ["fit"], "figure": ["reconstructions"]}
"""Arguments that a command needs beside the checkpoint."""

SEVERAL = {"compare", "rate_distortion", "udr"}
"""Commands of several checkpoints."""

WITHOUT = {
    ("sample", "vq"): (
        "this VQVAE has no prior to draw samples from; train a prior over its codes with "
        "vae fit --config vq_prior"
    ),
    ("traverse", "hierarchical"): "has no latent variables that could be moved one at a time",
    ("traverse", "vq"): "has no latent variables that could be moved one at a time",
    ("interpolate", "vq"): "has no latent vector",
}


@pytest.mark.slow_except("vae")
@pytest.mark.parametrize(
    "command", sorted(EXPLORE.keys() - {*SEVERAL, "explore", "export", *FIRST})
)
@pytest.mark.parametrize("name", MODELS)
def test_every_command_with_every_model(command, name, trained, folder, capsys):
    args = [command, *ckpt(trained, name), "--out=results"]
    if (command, name) in WITHOUT:
        assert WITHOUT[command, name] in failure(args, capsys)
        assert not (folder / "results").exists()
        return
    main(args)
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("Wrote ")
    files = {path.suffix for path in (folder / "results").rglob("*") if path.is_file()}
    assert {".png", ".npz"} <= files
    for path in (folder / "results").glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            for array in arrays.values():
                assert array.dtype.kind == "U" or np.isfinite(array).all()


@pytest.mark.parametrize("command", EXPLORE)
def test_help_is_short_and_has_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 50
    checkpoints = "runs/" if command in SEVERAL else "--ckpt_path"
    words = " ".join([command, *FIRST.get(command, [])])
    assert f"vae {words} {checkpoints}" in "\n".join(lines)
    assert max(map(len, lines)) <= 110


@pytest.mark.slow
def test_no_lightning_is_imported(trained, folder):
    photo = str(trained / "photos/red/00.png")
    commands = [
        ["sample", *ckpt(trained, "vae")],
        ["reconstruct", photo, *ckpt(trained, "photos")],
        ["traverse", photo, *ckpt(trained, "photos"), "--dimensions", "0"],
        ["interpolate", photo, photo, *ckpt(trained, "photos")],
        ["encode", photo, photo, *ckpt(trained, "photos")],
        ["score", photo, "--reference=0", *ckpt(trained, "photos")],
        ["figure", "samples", *ckpt(trained, "vae")],
    ]
    code = (
        "import json, sys; from vae_lightning.__main__ import main\n"
        "for i, args in enumerate(json.loads(sys.argv[1])): main([*args, f'--out=o{i}'])\n"
        "assert not any(name.startswith('lightning') for name in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# Where results go


def test_results_get_a_new_folder_in_the_run(trained, folder, capsys):
    for place in ("sample", "sample_1"):
        main(["sample", *ckpt(trained, "wae"), "--n=3"])
        assert (trained / "runs/wae/version_0" / place / "samples.png").is_file()
        assert f"version_0/{place}" in capsys.readouterr().out


def test_nothing_is_overwritten_unless_asked(trained, folder, capsys):
    given = ["sample", *ckpt(trained, "vae"), "--n=2"]
    main([*given, "--out=a.png"])
    before = (folder / "a.png").read_bytes()
    message = failure([*given, "--seed=1", "--out=a.png"], capsys)
    assert "a.png is already there: give another, or --overwrite" in message
    assert (folder / "a.png").read_bytes() == before
    main([*given, "--seed=1", "--out=a.png", "--overwrite"])
    assert (folder / "a.png").read_bytes() != before
    (folder / "full").mkdir()
    (folder / "full/mine.txt").touch()
    assert "is already there" in failure([*given, "--out=full"], capsys)
    assert "vae sample writes .png, .npz" in failure([*given, "--out=a.tiff"], capsys)


def test_a_file_with_the_samples_of_a_class(trained, folder):
    main(["sample", *ckpt(trained, "classes"), "--n=5", "--label=red", "--out=red.npz"])
    with np.load("red.npz") as arrays:
        x, label = arrays["x"], arrays["label"]
    assert label.tolist() == [1] * 5  # green, red
    model = vae_lightning.load(ckpt(trained, "classes")[1])
    expected = vae_lightning.explore.sample(model, 5, 1)
    assert np.array_equal(x, expected.numpy())


@pytest.mark.parametrize(
    ("model", "classes", "options", "n"),
    [
        ("cvae", 10, [], 70),  # full rows of classes
        ("cvae", 10, ["--n=20"], 20),
        ("cvae", 10, ["--n=12"], 12),
        ("classes", 2, [], 24),  # short rows
        ("classes", 2, ["--n=40"], 40),
    ],
)
def test_all_classes_in_turn(trained, folder, monkeypatch, model, classes, options, n):
    grids, draw = [], plotting.class_grid

    def class_grid(images, *args, **kwargs):
        grids.append(images)
        return draw(images, *args, **kwargs)

    monkeypatch.setattr(plotting, "class_grid", class_grid)
    main(["sample", *ckpt(trained, model), *options, "--out=results"])
    with np.load("results/samples.npz") as arrays:
        x, label = arrays["x"], arrays["label"]
    assert label.tolist() == [i % classes for i in range(n)]
    assert len(list((folder / "results/images").glob("*.png"))) == n
    assert len(grids) == (n % classes == 0)
    for grid in grids:
        assert np.array_equal(grid[1].numpy(), x[label == 1])


# Items


def test_the_split_is_that_of_predict(trained, folder):
    """In the order of the split, with the binarization of the run."""
    main(["predict", *ckpt(trained, "vae"), "--trainer.enable_progress_bar=false"])
    main(["encode", *ckpt(trained, "vae"), "--out=latents.npz"])
    predicted = trained / "runs/vae/version_0/predictions"
    with np.load("latents.npz") as arrays:
        assert arrays["name"].tolist() == [f"test/{i}" for i in range(30)]
        np.testing.assert_allclose(arrays["mu"], np.load(predicted / "mu.npy"), atol=1e-6)
        assert np.array_equal(arrays["label"], np.load(predicted / "label.npy"))


def test_a_map_of_codes_has_a_column_for_each_position(trained, folder):
    main(["encode", *ckpt(trained, "vq"), "--out=codes"])
    table = rows(folder / "codes/latents.csv")
    with np.load("codes/latents.npz") as arrays:
        for row, column in ((0, 0), (2, 5), (6, 6)):
            found = [int(line[f"codes_{row}_{column}"]) for line in table]
            assert found == arrays["codes"][:, row, column].tolist()


def test_a_folder_keeps_its_names_and_classes(trained, folder):
    main(["encode", str(trained / "photos"), *ckpt(trained, "photos"), "--out=latents"])
    table = rows(folder / "latents/latents.csv")
    assert [row["name"] for row in table][:2] == ["green/01.png", "green/03.png"]
    assert {row["label"] for row in table} == {"red", "green"}
    with np.load("latents/latents.npz") as arrays:
        mu = np.array([[float(row[f"mu_{i}"]) for i in range(20)] for row in table])
        np.testing.assert_allclose(mu, arrays["mu"], rtol=1e-5)


@pytest.mark.parametrize("split", ["test", "all"])
def test_images_of_the_run_have_their_file_names(split, trained, folder):
    given = [*ckpt(trained, "photos"), f"--split={split}"]
    main(["encode", *given, "--out=latents.csv"])
    names = [row["name"] for row in rows(folder / "latents.csv")]
    assert len(set(names)) == {"test": 2, "all": 24}[split]
    main(["encode", *given, "--out=again.npz"])
    main(["encode", str(trained / "photos"), *ckpt(trained, "photos"), "--out=files.npz"])
    with np.load("again.npz") as own, np.load("files.npz") as files:
        by_name = dict(zip(files["name"].tolist(), files["mu"], strict=True))
        for name, mu in zip(own["name"].tolist(), own["mu"], strict=True):
            np.testing.assert_allclose(mu, by_name[name], atol=1e-6)


def test_files_that_are_not_used_are_named(trained, folder, capsys):
    photos(folder / "new", 5)
    (folder / "new/notes.txt").touch()
    (folder / "new/blue").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "new/blue/0.png")
    main(["encode", "new", *ckpt(trained, "photos"), "--out=latents.csv"])
    assert "Left out: notes.txt" in capsys.readouterr().out
    labels = {row["name"]: row["label"] for row in rows(folder / "latents.csv")}
    assert labels["blue/0.png"] == ""  # a class that the model does not know
    assert labels["red/00.png"] == "red"
    assert "the classes of the model (green, red)" in failure(
        ["encode", "new", *ckpt(trained, "classes"), "--out=l.csv"], capsys
    )


def test_percentiles_are_those_of_images_in_their_own_classes(trained, folder):
    """The label is that of the items, not of the validation images that they are compared with."""
    np.save("x.npy", np.zeros((2, 28, 28), dtype="float32"))
    main(["score", "x.npy", *ckpt(trained, "cvae"), "--label=3", "--out=a.csv"])
    main(["score", "--split=val", *ckpt(trained, "cvae"), "--out=val.csv", "--reference=0"])
    known = [float(row["squared_error"]) for row in rows(folder / "val.csv")]
    for row in rows(folder / "a.csv"):
        below = np.mean([value < float(row["squared_error"]) for value in known])
        assert float(row["squared_error_percentile"]) == pytest.approx(100 * below, abs=0.1)


def test_an_unreadable_file_among_good_ones_is_named(trained, folder, capsys):
    photos(folder / "new", 5)
    (folder / "new/red/02.png").write_text("no image")
    main(["reconstruct", "new", *ckpt(trained, "photos"), "--out=results"])
    out = capsys.readouterr().out
    assert "4 images of new" in out
    assert "Left out: red/02.png" in out
    assert len(rows(folder / "results/reconstructions.csv")) == 4
    for path in (folder / "new").rglob("*.png"):
        path.write_text("no image")
    assert "none of the 5 images can be read" in failure(
        ["reconstruct", "new", *ckpt(trained, "photos"), "--out=r"], capsys
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 1, 28, 28), "float32"),
        ((3, 28, 28), "uint8"),
        ((28, 28), "bool"),
        ((3, 28, 28, 1), "u1"),
    ],
)
def test_arrays_in_usual_layouts(shape, dtype, trained, folder):
    array = (np.random.default_rng(0).random(shape) > 0.5).astype(dtype)
    np.save("x.npy", array * 255 if array.dtype == np.uint8 else array)
    main(["reconstruct", "x.npy", *ckpt(trained, "vae"), "--out=r.npz"])
    with np.load("r.npz") as arrays:
        n = 1 if shape == (28, 28) else 3
        expected = array.reshape(n, 1, 28, 28).astype("float32")
        assert np.array_equal(arrays["original"], expected)
        made = vae_lightning.load(ckpt(trained, "vae")[1]).reconstruct(torch.tensor(expected))
        np.testing.assert_allclose(arrays["reconstruction"], made.numpy(), atol=1e-6)


def test_scores_are_sorted_and_have_percentiles(trained, folder, capsys):
    main(["score", *ckpt(trained, "vae"), "--out=scores.csv", "--k=8", "--complexity"])
    table = rows(folder / "scores.csv")
    values = [float(row["negative_log_likelihood"]) for row in table]
    assert values == sorted(values, reverse=True)
    assert len(table) == 30
    percentiles = [float(row["negative_log_likelihood_percentile"]) for row in table]
    assert percentiles == sorted(percentiles, reverse=True)
    assert 0 <= percentiles[-1] <= percentiles[0] <= 100
    assert "complexity_corrected" in table[0]
    main(["score", *ckpt(trained, "vae"), "--out=by.csv", "--k=8", "--sort=kl", "--split=val"])
    table = rows(folder / "by.csv")
    # Among themselves: half of the values are below the middle one.
    assert float(table[12]["kl_percentile"]) == pytest.approx(100 * 11 / 24, abs=0.1)


def test_scores_of_images_that_are_none_of_the_kind(trained, folder):
    """Dark digits on white are more surprising than any others, by squared error."""
    longer = ["--trainer.max_epochs=40", "--optimizer.lr=0.01", "--trainer.limit_val_batches=0"]
    main(["fit", *SMALL, *MODELS["vae"], *longer])
    last = ["--ckpt_path", "runs/vae/version_0/checkpoints/last.ckpt"]
    main(["reconstruct", *last, "--out=digits.npz"])
    with np.load("digits.npz") as arrays:
        digits = arrays["original"]
    np.save("mixed.npy", np.concatenate([digits, 1 - digits[:3]]))
    main(["score", "mixed.npy", *last, "--sort=squared_error", "--out=s.csv"])
    first = [row["name"] for row in rows(folder / "s.csv")[:3]]
    assert set(first) == {f"mixed.npy[{i}]" for i in (30, 31, 32)}


def test_interpolations_between_files_items_and_classes(trained, folder):
    files = [str(path) for path in sorted((trained / "photos").rglob("*.png"))[:3]]
    main(["interpolate", *files, *ckpt(trained, "photos"), "--steps=4", "--out=files"])
    with np.load("files/interpolations.npz") as arrays:
        assert arrays["linear"].shape == (2, 4, 3, 8, 8)
        assert arrays["spherical_latents"].shape == (2, 4, 20)
    with Image.open("files/linear.gif") as animation:
        # Forth and back; the last image of the first pair is the first one of the second.
        assert animation.n_frames == 2 * 7 - 2
    main(
        ["interpolate", *ckpt(trained, "vae"), "--index", "3", "5", "--path=linear", "--out=i.npz"]
    )
    main(["interpolate", *ckpt(trained, "vae"), "--classes", "0", "1", "--out=c.gif"])


def test_a_traversal_of_a_file_and_of_the_prior(trained, folder):
    photo = str(trained / "photos/red/00.png")
    main(["traverse", photo, *ckpt(trained, "photos"), "--dimensions", "3", "1", "--out=a.npz"])
    with np.load("a.npz") as arrays:
        assert arrays["dimensions"].tolist() == [3, 1]
        assert arrays["x"].shape == (2, 11, 3, 8, 8)
    main(["traverse", "--prior", *ckpt(trained, "cvae"), "--label=7", "--out=b.gif"])
    with Image.open("b.gif") as animation:
        assert animation.n_frames == 20


@pytest.mark.parametrize("picture", ["pca", "tsne"])
def test_pictures_of_latents(picture, trained, folder):
    main(["encode", *ckpt(trained, "vae"), f"--picture={picture}", "--out=latents.png"])
    with Image.open("latents.png") as image:
        assert image.size[0] > 200


# Comparisons


def test_differences_are_paired(trained, folder, capsys):
    """On the same images with the same noise: a model differs from itself by exactly 0."""
    given = [ckpt(trained, name)[1] for name in ("vae", "vae", "hierarchical", "wae")]
    main(["compare", *given, "--out=results", "--k=4"])
    table = {(row["model"], row["score"]): row for row in rows(folder / "results/differences.csv")}
    capsys.readouterr()
    own = str(trained / "runs/vae/version_0/checkpoints/best.ckpt")
    assert float(table[own, "negative_log_likelihood"]["difference"]) == 0
    assert float(table[own, "negative_log_likelihood"]["standard_error"]) == 0
    other = given[2]
    difference = float(table[other, "negative_elbo"]["difference"])
    scores = []
    for path in (own, other):
        main(["score", f"--ckpt_path={path}", "--out=s.csv", "--overwrite", "--reference=0"])
        found = sorted(rows(folder / "s.csv"), key=lambda row: row["name"])
        scores.append(np.array([float(row["negative_elbo"]) for row in found]))
    assert difference == pytest.approx((scores[1] - scores[0]).mean(), abs=1e-2)
    assert (given[3], "squared_error") in table
    assert (given[3], "negative_elbo") not in table


def test_what_is_not_comparable_is_said(trained, folder, capsys):
    main(["compare", *(ckpt(trained, name)[1] for name in ("vae", "cvae")), "--out=d.csv"])
    out = capsys.readouterr().out
    assert "Not comparable in nats: vae has a cross-entropy of gray images, cvae" in out
    assert "given the class" in out
    assert {row["score"] for row in rows(folder / "d.csv")} == {"squared_error"}
    paths = [ckpt(trained, name)[1] for name in ("vae", "photos")]
    message = failure(["compare", *paths, "--out=e.csv"], capsys)
    assert "was trained on Digits" in message
    assert "on ImageFolder: compare models of the same data" in message
    assert "at least two" in failure(["compare", paths[0]], capsys)


def test_the_classifier_says_whether_samples_are_of_the_class(trained, folder, classifier, capsys):
    given = [*ckpt(trained, "cvae"), "--n=30", "--classifier", classifier]
    main(["sample", *given, "--out=all.npz"])
    (share,) = re.findall(r"gives ([\d.]+)% of the samples the class", capsys.readouterr().out)
    arrays = np.load("all.npz")
    found = vae_lightning.models.loading.load_classifier(classifier).classify(
        torch.from_numpy(arrays["x"])
    )
    expected = (found.argmax(1).numpy() == arrays["label"]).mean()
    assert float(share) == pytest.approx(100 * expected, abs=0.06)


def test_samples_side_by_side(trained, folder, classifier, capsys):
    """With a density that lies beside a checkpoint, and classes as often as they occur."""
    for name in ("vae", "cvae", "vq"):
        run = folder / f"runs/{name}/version_0/checkpoints"
        run.mkdir(parents=True)
        source = trained / f"runs/{name}/version_0/checkpoints/best.ckpt"
        (run / "best.ckpt").write_bytes(source.read_bytes())
    paths = [f"runs/{name}/version_0/checkpoints/best.ckpt" for name in ("vae", "cvae", "vq")]
    main(["density", "fit", "--ckpt_path", paths[0], "--components=2"])
    given = ["--classifier", classifier, "--samples=16", "--k=2"]
    main(["compare", *paths, *given, "--out=side"])
    table = rows(folder / "side/samples.csv")
    names = ["training images", "vae", "vae + gmm", "cvae"]
    assert [row["samples"] for row in table] == names
    distances = [float(row["frechet_distance"]) for row in table]
    assert all(math.isfinite(distance) and distance > 0 for distance in distances)
    assert f"  {'vae + gmm':<32} {distances[2]:8.2f}" in capsys.readouterr().out
    assert (folder / "side/samples.png").is_file()
    # The distance of the prior is that of the same samples from the same images.
    main(["sample", "--ckpt_path", paths[0], *given[:2], "--n=16", "--out=alone"])
    assert f"16 test images: {distances[1]:.2f}" in capsys.readouterr().out
    assert "give a folder" in failure(["compare", *paths, *given, "--out=a.png"], capsys)
    only = [paths[2], paths[2], *given, "--out=none"]
    assert "none of these models has a prior" in failure(["compare", *only], capsys)


# Wrong input


WRONG = [
    ("sample", "vae", ["--label=3"], 1, "this VAE is not conditional"),
    ("sample", "cvae", ["--label=ten"], 1, "there is no class 'ten'"),
    ("sample", "cvae", ["--label=10"], 1, "there is no class '10'"),
    ("sample", "vae", ["--n=0"], 2, "expected a positive integer, got '0'"),
    ("sample", "vae", ["--temperature=-1"], 1, "temperature must be positive"),
    ("sample", "vae", ["--top_k=3"], 1, "and this VAE has none: leave them out"),
    ("sample", "vq", ["--density=gmm"], 1, "and this VQVAE has none: leave it out"),
    ("sample", "vq", ["--top_k=3"], 1, "vae fit --config vq_prior"),
    ("sample", "vae", ["--m=3"], 2, "unrecognized arguments: --m=3"),
    ("sample", "vae", ["--device=tpu9"], 1, "--device tpu9 cannot be used here"),
    ("traverse", "vae", ["--dimensions", "4"], 1, "there is no latent dimension 4: give 0..3"),
    ("traverse", "vae", ["--index=30"], 1, "there is no item 30 in the test split of Digits"),
    ("traverse", "cvae", ["--prior"], 1, "is conditional: give --label"),
    ("traverse", "vae", ["--steps=1"], 1, "steps must be at least 2"),
    ("interpolate", "vae", ["--index", "3"], 1, "give at least two items"),
    ("interpolate", "vae", ["--classes", "0", "x"], 1, "there is no class 'x'"),
    ("interpolate", "cvae", ["--classes", "0", "1"], 1, "say nothing about the class"),
    ("reconstruct", "vae", ["absent.png"], 1, "absent.png does not exist"),
    ("reconstruct", "vae", ["empty"], 1, "empty has no images"),
    ("reconstruct", "vae", ["text.npy"], 1, "text.npy cannot be read as an array"),
    ("reconstruct", "vae", ["pickled.npy"], 1, "pickled.npy cannot be read as an array"),
    ("reconstruct", "vae", ["flat.npy"], 1, "has the shape (3, 784), but the model takes images"),
    ("reconstruct", "vae", ["bytes.npy"], 1, "has values from 0 to 255: give floats in [0, 1]"),
    ("reconstruct", "vae", ["nan.npy"], 1, "give floats in [0, 1]"),
    ("reconstruct", "vae", ["long.npy"], 1, "has values of type int64"),
    ("reconstruct", "vae", ["two.npz"], 1, "has the arrays a, b: call that of the images x"),
    ("reconstruct", "cvae", ["ok.npy"], 1, "the class of these images is not known: give --label"),
    ("reconstruct", "vae", ["empty", "ok.npy"], 1, "give files, or one folder, or one array"),
    ("reconstruct", "photos", ["--root=empty"], 1, "has 0 images"),
    ("encode", "vae", ["--picture=umap"], 1, "pip install umap-learn"),
    ("encode", "vae", ["--split=dev"], 2, "invalid choice: 'dev'"),
    ("reconstruct", "vae", ["none.npy"], 1, "none.npy has no images"),
    ("reconstruct", "vae", ["cut.npz"], 1, "cut.npz cannot be read as an array"),
    ("reconstruct", "vae", ["--root=empty"], 1, "--root: Digits cannot be built"),
    ("interpolate", "vae", ["--classes", "0", "1", "--index", "3", "4"], 1, "has no effect with"),
    ("score", "vae", ["--sort=beauty"], 1, "--sort beauty: there are the scores"),
    ("sample", "vae", ["--model=nothing.VAE"], 1, "there is no module 'nothing'"),
]


@pytest.mark.parametrize(("command", "name", "options", "code", "part"), WRONG)
def test_wrong_input(command, name, options, code, part, trained, folder, capsys):
    (folder / "empty").mkdir()
    (folder / "text.npy").write_text("no array")
    np.save("pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save("flat.npy", np.zeros((3, 784), dtype="float32"))
    np.save("bytes.npy", np.full((3, 28, 28), 255.0) * [[[0], [1]] * 14])
    np.save("nan.npy", np.full((3, 28, 28), np.nan, dtype="float32"))
    np.save("long.npy", np.zeros((3, 28, 28), dtype="int64"))
    np.save("ok.npy", np.zeros((3, 28, 28), dtype="float32"))
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    np.save("none.npy", np.zeros((0, 28, 28), dtype="float32"))
    (folder / "cut.npz").write_bytes((folder / "two.npz").read_bytes()[:200])
    before = sorted(folder.rglob("*"))
    message = failure([command, *ckpt(trained, name), *options, "--out=out"], capsys, code)
    assert part in message
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        ([], 2, "the following arguments are required: --ckpt_path"),
        (["--ckpt_path=absent.ckpt"], 1, "absent.ckpt"),
        (["--ckpt_path=text.ckpt"], 1, "text.ckpt"),
    ],
)
@pytest.mark.parametrize("command", sorted(EXPLORE.keys() - SEVERAL))
def test_a_checkpoint_is_needed(command, args, code, part, trained, folder, capsys):
    (folder / "text.ckpt").write_text("no checkpoint")
    assert part in failure([command, *FIRST.get(command, []), *args], capsys, code)


# Densities, Fréchet distance, figures


@pytest.fixture(scope="module")
def classifier(trained):
    """Checkpoint of a classifier of the digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        data = [option for option in SMALL if not option.startswith("--figures")]
        main(["fit", "--model=Classifier", "--model.features=8", *data, "--name=classifier"])
    return str(trained / "runs/classifier/version_0/checkpoints/best.ckpt")


@pytest.mark.parametrize("name", ["wae", "cvae"])
def test_a_density_is_fitted_beside_the_checkpoint_and_sampled(trained, folder, name, capsys):
    given = ckpt(trained, name)
    main(["density", "fit", *given, "--components=3"])
    out = capsys.readouterr().out
    assert "Fitted a gmm to the latents of 72 training images" in out
    assert "24 validation latents under gmm" in out
    kept = trained / f"runs/{name}/version_0/checkpoints/best.gmm.pt"
    assert kept.is_file()
    main(["sample", *given, "--n=20", "--density=gmm", "--out=with.npz"])
    main(["sample", *given, "--n=20", f"--density={kept}", "--out=file.npz"])
    main(["sample", *given, "--n=20", "--out=without.npz"])
    arrays = [np.load(f"{name}.npz")["x"] for name in ("with", "file", "without")]
    assert (arrays[0] == arrays[1]).all()
    assert np.abs(arrays[0] - arrays[2]).max() > 1e-3
    assert "best.gmm.pt is already there" in failure(["density", "fit", *given], capsys)
    main(["density", "fit", *given, "--components=2", "--overwrite"])
    kept.unlink()


def test_wrong_densities_and_classifiers(trained, folder, classifier, capsys):
    vae, vq = ckpt(trained, "vae"), ckpt(trained, "vq")
    assert "VQVAE has no continuous latent vector" in failure(["density", "fit", *vq], capsys)
    assert "has no effect" in failure(
        ["density", "fit", *vae, "--kind=flow", "--components=2"], capsys
    )
    assert "writes .pt" in failure(["density", "fit", *vae, "--out=a.png"], capsys)
    assert "invalid choice: 'draw'" in failure(["density", "draw", *vae], capsys, 2)
    assert "use fewer components" in failure(["density", "fit", *vae, "--components=97"], capsys)
    assert "fit one with vae density fit" in failure(["sample", *vae, "--density=flow"], capsys)
    assert "is of a VAE: give a checkpoint of" in failure(
        ["sample", *vae, "--classifier", vae[1]], capsys
    )
    assert "is of a Classifier, which neither" in failure(
        ["sample", "--ckpt_path", classifier], capsys
    )
    photos = ckpt(trained, "photos")
    assert "train one on the same data" in failure(
        ["sample", *photos, "--classifier", classifier], capsys
    )


def test_the_distance_of_samples_is_printed_and_tested(trained, folder, classifier, capsys):
    given = ckpt(trained, "vae")
    main(["sample", *given, "--n=20", "--classifier", classifier])
    out = capsys.readouterr().out
    assert "Fréchet distance of 20 samples from 20 test images: " in out
    assert "the class that was asked for" not in out
    assert "Fréchet distance of 20 training images from them: " in out
    others = ("disentanglement", "latents", "reconstruction", "log_likelihood")
    given += [f"--metrics.frechet.classifier={classifier}"]
    given += [f"--metrics.{name}=null" for name in others]
    main(["test", *given])
    report = json.loads((trained / "runs/vae/version_0/test/metrics.json").read_text())
    assert "30 samples against 30 images, 8 features" in report["units"]["frechet_distance"]
    distance = report["metrics"]["frechet_distance"]
    assert distance > report["metrics"]["frechet_distance_floor"] > 0
    main(["test", *given, "--data.batch_size=7"])
    again = json.loads((trained / "runs/vae/version_0/test/metrics.json").read_text())
    assert again["metrics"]["frechet_distance"] == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "figure", "options"),
    [
        ("vae", "traversals", ["--options", "rows=2", "steps=3", "limit=1.5"]),
        ("vae", "samples", ["--options", "n=9"]),
        ("photos", "reconstructions", ["--split=test"]),
        ("vq", "code_maps", []),
        ("cvae", "classes", []),
    ],
)
def test_figures_of_finished_models(trained, folder, name, figure, options):
    main(["figure", figure, *ckpt(trained, name), "--out=a.png", *options])
    with Image.open("a.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_wrong_figures(trained, folder, capsys):
    vae = ckpt(trained, "vae")
    assert "this VAE has no codebook" in failure(["figure", "code_maps", *vae], capsys)
    needs = "it needs a model with latent_dim 2 that is not conditional"
    assert needs in failure(["figure", "manifold", *vae], capsys)
    assert "invalid choice: 'nothing'" in failure(["figure", "nothing", *vae], capsys, 2)
    assert "has the options n, seed" in failure(
        ["figure", "samples", *vae, "--options", "m=3"], capsys
    )
    assert "n takes an integer" in failure(["figure", "samples", *vae, "--options", "n=x"], capsys)
    assert "must be at least 1" in failure(["figure", "samples", *vae, "--options", "n=0"], capsys)
    assert "fewer than two losses" in failure(["figure", "losses", *vae], capsys)


# The page


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_page_for_every_model(trained, folder, name, capsys):
    main(["explore", *ckpt(trained, name), "--n=10", "--out=a.html"])
    page = (folder / "a.html").read_text(encoding="utf-8")
    assert "10 of 30 images of the test split of Digits" in page
    assert "Wrote a.html" in capsys.readouterr().out
    assert "already there" in failure(["explore", *ckpt(trained, name), "--out=a.html"], capsys)


@pytest.mark.slow
def test_a_page_of_files_and_one_without_any_images(trained, folder, capsys):
    main(["explore", str(trained / "photos"), *ckpt(trained, "classes"), "--out=a.html"])
    assert "red/00.png" in (folder / "a.html").read_text(encoding="utf-8")
    gone = [*ckpt(trained, "photos"), "--root=gone"]
    main(["explore", *gone, "--out=b.html", "--n=5"])
    assert "Note: the page shows samples, because there are no images" in capsys.readouterr().out
    assert "samples of the model" in (folder / "b.html").read_text(encoding="utf-8")
    assert "gone" in failure(["explore", "gone", *ckpt(trained, "photos")], capsys)
    nothing = ["explore", *ckpt(trained, "vq"), "--root=gone", "--out=c.html"]
    assert "Digits cannot be built" in failure(nothing, capsys)  # there is no prior to sample from
    assert not (folder / "c.html").exists()


def test_a_page_names_what_it_lacks(trained, folder, capsys):
    photos(folder / "new", 5)
    (folder / "new/red/02.png").write_text("no image")
    main(["explore", "new", *ckpt(trained, "photos"), "--out=a.html"])
    assert "Left out: red/02.png" in capsys.readouterr().out
    page = (folder / "a.html").read_text(encoding="utf-8")
    assert "4 of 5 images of new" in page
    assert '"background":"white"' in page  # that of transparent pixels in the training
    assert "Made by vae explore from photos/version_0/checkpoints/best.ckpt." in page
    assert str(trained) not in page
    np.save("x.npy", np.zeros((3, 8, 8, 3), dtype="uint8"))
    given = ["explore", "x.npy", *ckpt(trained, "classes"), "--out=b.html"]
    assert "the class of these images is not known: give --label" in failure(given, capsys)
    main([*given, "--label=red"])
    assert '"labels":[1,1,1]' in (folder / "b.html").read_text(encoding="utf-8")


# Exported models


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "cvae", "vq"])
def test_a_model_is_exported_and_used_without_its_checkpoint(trained, folder, name, capsys):
    main(["export", *ckpt(trained, name), "--out=shared", "--formats", "pt2"])
    out = capsys.readouterr().out
    assert "Largest difference of the exported networks from the model: " in out
    files = {path.name for path in (folder / "shared").iterdir()}
    needed = {"model.safetensors", "config.json", "README.md", "encoder.pt2", "decoder.pt2"}
    assert needed | {"reconstructions.png"} <= files
    assert "encoder.onnx" not in files
    assert ("samples.png" in files) == (name != "vq")
    main(["reconstruct", "--ckpt_path=shared", "--out=a.npz"])
    main(["reconstruct", *ckpt(trained, name), "--out=b.npz"])
    with np.load("a.npz") as first, np.load("b.npz") as second:
        assert (first["reconstruction"] == second["reconstruction"]).all()
    assert "already there" in failure(["export", *ckpt(trained, name), "--out=shared"], capsys)
    message = failure(["test", "--ckpt_path=shared"], capsys)
    assert "is an exported model, which --init_from and commands such as vae sample" in message


def test_a_training_starts_from_an_exported_model(trained, folder):
    main(["export", *ckpt(trained, "vae"), "--out=shared", "--formats"])
    assert not (folder / "shared/encoder.pt2").exists()
    main(["fit", "--init_from=shared", *SMALL, "--optimizer.lr=1e-30", "--name=new"])
    new = vae_lightning.load(folder / "runs/new/version_0/checkpoints/best.ckpt")
    old = vae_lightning.load(folder / "shared")
    for name, value in old.state_dict().items():
        assert value.equal(new.state_dict()[name])


def test_onnx_without_its_packages(trained, folder, capsys, monkeypatch):
    from vae_lightning.explore import exporting

    monkeypatch.setattr(exporting, "missing_packages", lambda: ["onnx"])
    message = failure(["export", *ckpt(trained, "vae"), "--formats", "onnx"], capsys)
    assert message == "ONNX files need onnx: pip install 'vae-lightning[export]'"
    main(["export", *ckpt(trained, "vae"), "--out=shared"])
    assert "Note: without ONNX files (ONNX files need onnx" in capsys.readouterr().out
    assert (folder / "shared/encoder.pt2").is_file()


def test_a_folder_whose_name_has_a_dot(trained, folder, capsys):
    main(["sample", *ckpt(trained, "vae"), "--n=2", "--out=results.v2"])
    assert (folder / "results.v2/samples.png").is_file()
    message = failure(["sample", *ckpt(trained, "vae"), "--out=a.jpg"], capsys)
    assert "writes .png, .npz, or a folder" in message
