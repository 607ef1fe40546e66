"""Bad input of every kind through the real command line: one sentence, and nothing overwritten."""

import collections
import contextlib
import gzip
import hashlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vae_lightning
from vae_lightning.__main__ import main
from vae_lightning.errors import UserError

CKPT, LAST, RUN = (
    f"runs/vae/version_0/{name}" for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "")
)
CONDITIONAL = "runs/cvae/version_0/checkpoints/best.ckpt"
NETS = ["--model.encoder.channels=[2]", "--model.decoder.channels=[2]"]
SHORT = [
    "--data.batch_size=16",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    *(f"--figures.{n}=null" for n in ("samples", "reconstructions", "latents", "traversals")),
    "--figures.classes=null",
    *NETS,
]
SIZES = ["--data.train_size=64", "--data.val_size=16", "--data.test_size=16"]
QUIET = ["--trainer.enable_progress_bar=false", "--metrics.disentanglement=null"]

FIT = ["fit", *SIZES, *SHORT]
MNIST = ["fit", "--data=MNIST", "--data.root=root", "--data.val_size=16", *SHORT]
STATIC = ["fit", "--data=StaticMNIST", "--data.root=root", *SHORT]
FOLDER = ["fit", "--data=ImageFolder", "--data.root=photos", "--data.size=8", *SHORT]
TEST = ["test", "--ckpt_path", CKPT, *QUIET]
TEST_CONDITIONAL = ["test", "--ckpt_path", CONDITIONAL, "--data.root=photos", *QUIET]
PREDICT = ["predict", "--ckpt_path", CKPT, "--trainer.enable_progress_bar=false"]
RESUME = ["fit", "--ckpt_path", LAST, "--trainer.max_epochs=2"]

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with two runs, MNIST files, and images in sub-folders: all in order."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for split, n in ("train", 64), ("t10k", 16):
        raw = folder / "root" / "MNIST" / "raw"
        write_idx(raw / f"{split}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(n) % 10)
    for name in "ab":
        for i in range(6):
            path = folder / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    with contextlib.chdir(folder):
        main(FIT)
        main([*FOLDER, "--model=CVAE"])
    return folder


@pytest.fixture
def folder(given, tmp_path, monkeypatch):
    """A copy of it, to be damaged; without network."""
    copy = tmp_path / "work"
    shutil.copytree(given, copy)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("VAE_DATA_ROOT", raising=False)
    monkeypatch.delenv("VAE_TRACEBACK", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    return copy


def contents(folder):
    """Every path with a hash of what is there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def refused(args, folder, capsys):
    """Exit code and sentence of a command that fails, and leaves everything as it was."""
    before = contents(folder)
    with pytest.raises(SystemExit) as stop:
        main(args)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("vae: error: ")
    assert "Traceback" not in lines[0]
    assert "please report" not in lines[0]
    assert contents(folder) == before
    sentence = lines[0].removeprefix("vae: error: ")
    return stop.value.code, sentence.replace(f"{folder}/", "")  # whose length is not ours


# What is done to the folder


def write_idx(path, array):
    array = np.asarray(array, dtype=np.uint8)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def raw(name, change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a file of MNIST."""
    return at(f"root/MNIST/raw/train-{name}-ubyte", change)


def at(name, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def half(content):
    return content[: len(content) // 2]


def flipped(where) -> Callable[[bytes], bytes]:
    """Turn around 16 bytes at a share of the length."""

    def change(content):
        at = int(len(content) * where)
        return content[:at] + bytes(255 - b for b in content[at : at + 16]) + content[at + 16 :]

    return change


def replaced(start, new) -> Callable[[bytes], bytes]:
    return lambda content: content[:start] + new + content[start + len(new) :]


def idx(**arrays) -> Damage:
    """Write other arrays into the training files of MNIST."""

    def damage(folder):
        for name, array in arrays.items():
            file = {"images": "images-idx3", "labels": "labels-idx1"}[name]
            write_idx(folder / f"root/MNIST/raw/train-{file}-ubyte", array)

    return damage


def zipped(change: Callable[[bytes], bytes]) -> Damage:
    """Put damaged .gz in the place of a file of MNIST."""

    def damage(folder):
        path = folder / "root/MNIST/raw/train-images-idx3-ubyte"
        path.with_name(f"{path.name}.gz").write_bytes(change(gzip.compress(path.read_bytes())))
        path.unlink()

    return damage


def swapped(folder):
    first, second = (
        folder / f"root/MNIST/raw/train-{n}-ubyte" for n in ("images-idx3", "labels-idx1")
    )
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)


def amat(text) -> Damage:
    def damage(folder):
        for split in ("train", "valid", "test"):
            path = folder / f"root/binarized_mnist/binarized_mnist_{split}.amat"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)

    return damage


def every_photo(change: Callable[[Path], object]) -> Damage:
    return lambda folder: [change(path) for path in sorted(folder.glob("photos/*/*.png"))]


def as_cut_jpeg(path):
    Image.open(path).resize((64, 64)).save(path.with_suffix(".jpg"))
    path.with_suffix(".jpg").write_bytes(half(path.with_suffix(".jpg").read_bytes()))
    path.unlink()


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_link_to_nothing(path):
    path.unlink()
    path.symlink_to("absent.png")


def to_other_classes(path):
    new = path.parent.parent / f"{path.parent.name}{path.parent.name}" / path.name
    new.parent.mkdir(exist_ok=True)
    path.rename(new)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def write(name, content: str | bytes) -> Damage:
    def damage(folder):
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def checkpoint(change: Callable[[dict], object], name=CKPT) -> Damage:
    """Change what is in a checkpoint; what ``change`` returns is put in its place, if anything."""

    def damage(folder):
        content = torch.load(folder / name, weights_only=True)
        new = change(content)
        torch.save(content if new is None else new, folder / name)

    return damage


def without(key, name=CKPT) -> Damage:
    return checkpoint(lambda content: content.pop(key) and None, name)


def with_(name=CKPT, **parts) -> Damage:
    return checkpoint(lambda content: content.update(parts), name)


def record(change: Callable[[dict], object], name=CKPT) -> Damage:
    """Change what this project has written into a checkpoint."""
    return checkpoint(lambda content: change(content["vae_lightning"]) and None, name)


def model(**arguments) -> Damage:
    """Other settings of the model."""
    return record(lambda held: held["model"]["init_args"].update(arguments))


def model_class(class_path) -> Damage:
    return record(lambda held: held["model"].update(class_path=class_path))


def weight(value) -> Damage:
    bias = "model.encoder.head.bias"
    return checkpoint(lambda content: content["state_dict"].update({bias: value}))


def as_zip_of_text(folder):
    with zipfile.ZipFile(folder / CKPT, "w") as archive:
        archive.writestr("a.txt", "hello")


def as_old_format(folder):
    content = torch.load(folder / CKPT, weights_only=True)
    torch.save(content, folder / CKPT, _use_new_zipfile_serialization=False)


def renamed_setting(held):
    arguments = held["model"]["init_args"]
    arguments["latents"] = arguments.pop("latent_dim")


def boring(content):
    """What Lightning writes of a model that is none of this project."""
    return {
        "state_dict": {"layer.weight": torch.zeros(2, 32)},
        **{name: content[name] for name in ("epoch", "global_step", "pytorch-lightning_version")},
    }


def adam(change: Callable[[dict], object]) -> Damage:
    return checkpoint(lambda content: change(content["optimizer_states"][0]) and None, LAST)


def in_the_way(name) -> Damage:
    return lambda folder: (folder / name).write_text("mine")


# The table: name, arguments, what is done before, exit code, what the sentence says

DATA = [
    ("idx truncated", MNIST, raw("images-idx3", half), "its length does not match its header"),
    ("idx empty", MNIST, raw("images-idx3", lambda _: b""), "is corrupt"),
    ("idx of floats", MNIST, raw("images-idx3", replaced(2, b"\x0d")), "not an IDX file of bytes"),
    ("idx one image more", MNIST, raw("images-idx3", replaced(7, b"\x41")), "is corrupt"),
    ("idx of 4 billion", MNIST, raw("images-idx3", replaced(4, b"\xff" * 4)), "is corrupt"),
    ("idx 255 dimensions", MNIST, raw("images-idx3", replaced(3, b"\xff")), "is corrupt"),
    ("gzip truncated", MNIST, zipped(half), ".gz is damaged"),
    ("gzip altered", MNIST, zipped(flipped(0.5)), ".gz is damaged"),
    ("gzip of nothing", MNIST, zipped(lambda _: b""), "is corrupt"),
    ("fewer labels", MNIST, idx(labels=np.zeros(50)), "50 labels up to 0 for 64 images"),
    ("label 200", [*MNIST, "--model=CVAE"], idx(labels=np.full(64, 200)), "labels up to 200"),
    ("label 10", MNIST, idx(labels=np.arange(64) % 11), "of 10 classes"),
    ("labels for images", MNIST, swapped, "not images of (28, 28) and one label each"),
    ("images for labels", MNIST, idx(labels=np.zeros((64, 28, 28))), "not images of (28, 28)"),
    ("larger images", MNIST, idx(images=np.zeros((64, 32, 32))), "(64, 32, 32)"),
    ("no images", MNIST, idx(images=np.zeros((0, 28, 28)), labels=[]), "is corrupt"),
    (
        "labels missing",
        MNIST,
        lambda folder: (folder / "root/MNIST/raw/train-labels-idx1-ubyte").unlink(),
        "or use --data Digits, which needs no files",
    ),
    ("no network", ["fit", "--data=KMNIST", "--data.root=nowhere"], None, "--data Digits"),
    ("no network, amat", ["fit", "--data=StaticMNIST"], None, "could not be downloaded"),
    ("amat of three columns", STATIC, amat(b"0 1 0\n" * 5), "is not the published file"),
    ("amat of twos", STATIC, amat((b"2 " * 783 + b"2\n") * 10), "is not the published file"),
    ("amat empty", STATIC, amat(b""), "is not the published file"),
    ("text as png", FOLDER, every_photo(lambda p: p.write_text("hello")), "repair or remove them"),
    ("png cut", FOLDER, every_photo(lambda p: p.write_bytes(half(p.read_bytes()))), "cannot be"),
    ("jpeg cut", FOLDER, every_photo(as_cut_jpeg), "cannot be read:"),
    ("png of nothing", FOLDER, every_photo(lambda p: p.write_bytes(b"")), "the file is empty"),
    ("folder as png", FOLDER, every_photo(as_folder), "photos has 0 images"),
    ("links to nothing", FOLDER, every_photo(as_link_to_nothing), "a link to nothing"),
    (
        "16 bits among 8",
        FOLDER,
        lambda folder: Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "photos/a/1.png"),
        "values of different types (a/0.png has 8 bits, a/1.png has uint16 in 1 channel)",
    ),
    (
        "text as png, in a worker process",
        [*FOLDER, "--data.memory_limit=0", "--data.num_workers=1"],
        every_photo(lambda p: p.write_text("hello")),
        "cannot be read as an image",
    ),
    ("empty folder", FOLDER, every_photo(lambda p: p.unlink()), "photos has 0 images"),
    (
        "two images",
        FOLDER,
        every_photo(lambda p: p.unlink() if int(p.stem) else None),
        "at least three are needed",
    ),
    ("file as root", [*FOLDER, "--data.root=photos/a/1.png"], None, "has 1 images"),
    (
        "no classes for a conditional model",
        [*FOLDER, "--model=CVAE"],
        every_photo(lambda p: p.rename(p.parent.parent / f"{p.parent.name}{p.name}")),
        "the data have no classes",
    ),
    ("other classes", TEST_CONDITIONAL, every_photo(to_other_classes), "trained on a, b"),
    ("RGB for gray", [*TEST, "--data=ImageFolder", "--data.root=photos"], None, "(3, 64, 64)"),
    (
        "smaller images",
        [*TEST, "--data=ImageFolder", "--data.root=photos", "--data.size=8", "--data.color=gray"],
        None,
        "is of a model of (1, 28, 28) images, but the data have (1, 8, 8)",
    ),
]

CHECKPOINTS = [
    ("cut in the middle", TEST, at(CKPT, half), "only a part of one"),
    ("ten bytes short", TEST, at(CKPT, lambda content: content[:-10]), "only a part of one"),
    ("empty", TEST, write(CKPT, ""), "is not a checkpoint"),
    ("text", TEST, write(CKPT, "hello"), "is not a checkpoint"),
    ("weights altered", TEST, at(CKPT, flipped(0.5)), "has been altered"),
    ("weights altered, resumed", RESUME, at(LAST, flipped(0.7)), "has been altered"),
    ("weights altered, predicted", PREDICT, at(CKPT, flipped(0.6)), "has been altered"),
    ("pickle altered", TEST, at(CKPT, flipped(0.02)), "best.ckpt is damaged"),
    ("directory altered", TEST, at(CKPT, flipped(0.99)), "best.ckpt is damaged"),
    ("folder", ["test", "--ckpt_path", RUN], None, "is a folder: give runs/vae"),
    ("absent", ["test", "--ckpt_path", "absent.ckpt"], None, "absent.ckpt does not exist"),
    ("zip of text", TEST, as_zip_of_text, "is not a checkpoint that can be read"),
    ("old format", TEST, as_old_format, "is not a checkpoint"),
    ("bare pickle", TEST, write(CKPT, pickle.dumps({"state_dict": {}})), "is not a checkpoint"),
    ("a tensor", TEST, checkpoint(lambda _: torch.zeros(3)), "it has no 'state_dict'"),
    ("a list", TEST, checkpoint(lambda _: [1, 2]), "it has no 'state_dict'"),
    ("of another project", TEST, checkpoint(boring), "it has no 'vae_lightning'"),
    ("weights only", TEST, checkpoint(lambda c: {"state_dict": c["state_dict"]}), "it has no"),
    ("no record", TEST, without("vae_lightning"), "it has no 'vae_lightning'"),
    ("old version", TEST, record(lambda held: held.update(version=0)), "record of version 0"),
    ("no model", TEST, record(lambda held: held.pop("model")), "'vae_lightning.model' is missing"),
    ("no global step", TEST, without("global_step"), "it has no 'global_step'"),
    ("no version", TEST, without("pytorch-lightning_version"), "no 'pytorch-lightning_version'"),
    ("version x", TEST, with_(**{"pytorch-lightning_version": "x"}), "is of version 'x'"),
    ("record in a list", TEST, with_(vae_lightning=[1]), "has a record of version 'list'"),
    ("model in a list", TEST, record(lambda held: held.update(model=[1])), "is of type list"),
    ("state in a list", TEST, with_(state_dict=[1]), "is of type list"),
    ("a word as weight", TEST, weight("abc"), "'model.encoder.head.bias' is no tensor"),
    ("weight of another shape", TEST, weight(torch.zeros(3)), "encoder.head.bias has another size"),
    (
        "weight missing",
        TEST,
        checkpoint(lambda c: c["state_dict"].pop("model.encoder.head.bias") is None or None),
        "(encoder.head.bias is missing)",
    ),
    (
        "weight too many",
        TEST,
        checkpoint(lambda c: c["state_dict"].update({"model.extra": torch.zeros(1)})),
        "(extra is not part of the model)",
    ),
    ("class missing", TEST, model_class("vae_lightning.VEA"), "is no ImageModel known here"),
    ("class of someone", TEST, model_class("their.VAE"), "do not trust the file"),
    ("class abstract", TEST, model_class("vae_lightning.models.base.BaseVAE"), "no ImageModel"),
    ("class of data", TEST, model_class("vae_lightning.Digits"), "no ImageModel known here"),
    ("class is a number", TEST, model_class(5), "'vae_lightning.model' is of type dict"),
    ("class is empty", TEST, model_class(""), "names ''"),
    ("latent_dim a word", TEST, model(latent_dim="many"), "latent_dim: expected int, got 'many'"),
    ("latent_dim negative", TEST, model(latent_dim=-1), "best.ckpt describes cannot be built"),
    ("latent_dim nothing", TEST, model(latent_dim=None), "best.ckpt describes cannot be built"),
    ("encoder a number", TEST, model(encoder=3), "from another version of this project"),
    ("renamed", TEST, record(renamed_setting), "VAE has no option 'latents'"),
    (
        "option of the data renamed",
        TEST,
        record(lambda held: held["data"]["init_args"].update(color="red")),
        "Digits has no option 'color'",
    ),
    ("no data", TEST, record(lambda held: held.update(data=None)), "give --data NAME"),
    ("order seed lost", TEST, with_(Digits=[1]), "no 'order_seed'"),
    ("another class", [*TEST, "--model=BetaVAE"], None, "holds a VAE, but the options ask for"),
    ("another size", [*TEST, "--model.latent_dim=7"], None, "leave out options that change its"),
    ("resume: weights only", RESUME, without("optimizer_states", LAST), "holds only weights"),
    ("resume: no loops", RESUME, without("loops", LAST), "does not say how far its training got"),
    ("resume: loops a number", RESUME, with_(LAST, loops={"fit_loop": 5}), "cannot be resumed"),
    ("resume: done", ["fit", "--ckpt_path", LAST], None, "has already been trained for 1 epochs"),
    ("resume: callbacks", RESUME, with_(LAST, callbacks=5), "'callbacks' is of type int"),
    (
        "resume: step a word",
        RESUME,
        record(lambda held: held.update(step="x"), LAST),
        "'vae_lightning.step' is of type str",
    ),
    ("resume: optimizer a number", RESUME, with_(LAST, optimizer_states=[5]), "cannot be resumed"),
    ("resume: no groups", RESUME, adam(lambda s: s.update(param_groups=[])), "cannot be resumed"),
    (
        "resume: moments too short",  # the kernel would read beyond their end
        RESUME,
        adam(lambda s: s["state"][0].update(exp_avg=torch.zeros(1))),
        "the state of the optimizer in the checkpoint does not fit the weights",
    ),
    ("resume: config no YAML", RESUME, write(f"{RUN}config.yaml", "[a"), "is not a YAML file"),
    ("resume: config a list", RESUME, write(f"{RUN}config.yaml", "- a"), "options by name"),
    ("resume: config strange", RESUME, write(f"{RUN}config.yaml", "color: 3"), "no option 'co"),
]

OPTIONS = [
    ("ft", [], 2, ["no command 'ft'", "'vae fit'"]),
    ("frobnicate", [], 2, ["no command 'frobnicate'", "fit, validate, test, predict"]),
    ("fit", ["--trainer.max_epoch=3"], 2, ["trainer.max_epoch'", "'trainer.max_epochs'"]),
    ("fit", ["--foo", "3"], 2, ["no option 'foo'"]),
    ("fit", ["cvae"], 2, ["a configuration is given as --config cvae"]),
    ("fit", ["--data"], 2, ["--data needs a value"]),
    ("test", [], 1, ["vae test needs a trained model", "--ckpt_path"]),
    ("predict", [], 1, ["vae predict needs a trained model"]),
    (
        "fit",
        ["--trainer.accelerator=mps"],
        1,
        ["trainer.accelerator: torch finds no such device", "give cpu"],
    ),
    ("fit", ["--figures.manifold=true"], 2, ["figures.manifold: expected a class, or null"]),
    ("fit", ["--lr", "1e-3"], 2, ["no option 'lr'; did you mean 'optimizer.lr'?"]),
    ("fit", ["--epochs=3"], 2, ["did you mean 'trainer.max_epochs'?"]),
    ("fit", ["--batch_size=8"], 2, ["did you mean 'data.batch_size'?"]),
    ("fit", ["--beta=8"], 2, ["did you mean 'model.beta'?"]),
    ("fit", ["--latent_dim=8"], 2, ["did you mean 'model.latent_dim'?"]),
    ("fit", ["--seed=8"], 2, ["did you mean 'seed_everything'?"]),
    (
        "fit",
        ["--data.train_size=100", "--data.val_size=200"],
        1,
        ["data.val_size must be between 1 and 99, got 200"],
    ),
    (
        "fit",
        ["--model=VQVAE", "--model.codebook_size=9"],
        2,
        ["no option 'codebook_size'; did you mean 'model.quantizer.codebook_size' of VectorQ"],
    ),
    (
        "fit",
        ["--model.channels=9"],
        2,
        ["'model.encoder.channels' of ConvEncoder or 'model.decoder.channels' of ConvDecoder?"],
    ),
    ("test", ["--ckpt_pth=a.ckpt"], 2, ["no option 'ckpt_pth'", "'ckpt_path'"]),
    ("test", ["--ckpt_path", "~none/a.ckpt"], 1, ["~none/a.ckpt does not exist"]),
    ("fit", ["--config", "a" * 300], 1, ["File name too long"]),
    ("fit", ["--config", '\n{"model": "VAEE"}'], 2, ["no class named 'VAEE'"]),
    ("test", ["--ckpt_path"], 1, ["--ckpt_path needs the path of a checkpoint"]),
    ("test", ["--ckpt_path", "last"], 1, ["last has no meaning in a new process"]),
    ("fit", ["--ckpt_path", "last"], 1, ["last has no meaning in a new process"]),
    ("fit", ["--metrics.latents=null"], 1, ["--metrics.latents is an option of vae test"]),
    (
        "fit",
        ["--model.likelihood=Gaussian", "--model.likelihood.sigma=null"],
        2,
        ["model.likelihood.sigma: ", "for no value, write null in a configuration file"],
    ),
    (
        "fit",
        ["--trainer.max_epochs=None"],
        2,
        ["got 'None'; for no value, write null"],
    ),
    (
        "fit",
        ["--trainer.callbacks+=BatchSizeFinder", "--data.batch_size=8"],
        1,
        ["--data.batch_size has no effect with BatchSizeFinder"],
    ),
    (
        "fit",
        ["--trainer.callbacks=LearningRateFinder", "--optimizer.lr=0.1"],
        1,
        ["--optimizer.lr has no effect with LearningRateFinder"],
    ),
    (
        "fit",
        ["--trainer.callbacks=LearningRateFinder", "--trainer.devices=2", "--trainer.strategy=ddp"],
        1,
        ["LearningRateFinder works in one process"],
    ),
    (
        "fit",
        ["--ckpt_path", LAST, "--trainer.max_epochs=9", "--trainer.callbacks=LearningRateFinder"],
        1,
        ["LearningRateFinder is for the start of a training"],
    ),
    ("fit", ["--trainer.callbacks=BackboneFinetuning"], 1, ["needs a module with a backbone"]),
    ("fit", ["--trainer.gradient_clip_val", "none"], 2, ["for no value, write null"]),
    ("fit", ["--model.bse=x"], 2, ["VAE has no option 'bse'"]),
    (
        "fit",
        ["--lr_scheduler=ReduceLROnPlateau"],
        2,
        ["give --lr_scheduler.monitor such as val/loss"],
    ),
    ("fit", ["--output_dir=~/absent", "--model.latent_dim=0"], 1, ["latent_dim must be positive"]),
    # Classes
    ("fit", ["--model.encoder=torch.nn.Linear"], 2, ["vae_lightning.nets.Encoder, with the arg"]),
    ("fit", ["--model.prior=torch.nn.Linear"], 2, [".Prior, with the arguments latent_dim, cond_"]),
    ("fit", ["--model", "BetVAE"], 2, ["no class named 'BetVAE'", "'BetaVAE'"]),
    ("fit", ["--model=BaseVAE"], 2, ["BaseVAE is abstract: choose one of ", "VAE"]),
    ("fit", ["--model=torch.nn.Linear"], 2, ["torch.nn.Linear is not a class that"]),
    ("fit", ["--model=os.abort"], 2, ["os.abort is not a class that this option takes"]),
    ("fit", ["--model.likelihood=os.abort"], 2, ["os.abort is not a class that this option"]),
    ("fit", ["--model.latentdim=3"], 2, ["VAE has no option 'latentdim'", "'latent_dim'"]),
    ("fit", ["--model.beta=4"], 2, ["VAE has no option 'beta'", "BetaVAE, ", " have one"]),
    ("fit", ["--model.compile=true"], 2, ["no option 'compile'", "'training.compile'"]),
    ("fit", ["--model.encoder", "MLPEncodr"], 2, ["model.encoder", "'MLPEncoder'"]),
    ("fit", ["--model.encoder=Encoder"], 1, ["Encoder is abstract", "ConvEncoder"]),
    ("fit", ["--model.encoder.chanels=3"], 2, ["ConvEncoder has no option", "'channels'"]),
    ("fit", ["--optimizer=Adamw"], 2, ["'AdamW'"]),
    ("fit", ["--lr_scheduler=ExponentialLR"], 2, ["give --lr_scheduler.gamma"]),
    ("fit", ["--model=BetaVAE", "--model.schedule=LinearWarmup"], 2, ["needs steps"]),
    ("fit", ["--data", "MNST"], 2, ["no class named 'MNST'", "'MNIST'"]),
    ("fit", ["--data", "./photos"], 1, ["not a folder", "--data ImageFolder --data.root ./photos"]),
    ("fit", ["--data.batchsize=3"], 2, ["Digits has no option", "'batch_size'"]),
    ("fit", ["--model.help", "BetVAE"], 2, ["no class named 'BetVAE'", "'BetaVAE'"]),
    ("fit", ["--trainer.logger=nonsense"], 2, ["trainer.logger: no class named 'nonsense'"]),
    ("fit", ["--trainer.callbacks+=absent.C"], 2, ["there is no module 'absent'"]),
    (
        "fit",
        ["--trainer.logger+=WandbLogger", "--trainer.logger.offline=maybe"],
        2,
        ["trainer.logger.offline: expected bool, got 'maybe'"],
    ),
    # Models
    ("fit", ["--model.latent_dim=0"], 1, ["latent_dim must be positive, got 0"]),
    ("fit", ["--model.latent_dim=1.5"], 2, ["model.latent_dim: expected int, got '1.5'"]),
    ("fit", ["--model.latent_dim=100000000000"], 1, ["not enough memory (", "smaller"]),
    ("fit", ["--model.num_samples=-1"], 1, ["samples must be positive, got -1"]),
    ("fit", ["--model.encoder.channels=64"], 2, ["expected a list", "got '64'"]),
    ("fit", ["--model.encoder.channels=[]"], 1, ["channels must be positive, got []"]),
    ("fit", ["--model.encoder.channels=[4,-8]"], 1, ["channels must be positive"]),
    ("fit", ["--model.encoder=MLPEncoder", "--model.encoder.hidden=[0]"], 1, ["hidden must be"]),
    ("fit", ["--model.encoder=ResidualEncoder"], 1, ["ResidualEncoder and ConvDecoder do"]),
    ("fit", ["--model=VQVAE", "--model.encoder.downsamplings=1"], 1, ["do not fit a VQVAE"]),
    ("fit", ["--model=VQVAE", "--model.encoder.downsamplings=0"], 1, ["downsamplings must be"]),
    ("fit", ["--model=VQVAE", "--model.encoder.hidden=1"], 1, ["hidden must be"]),
    ("fit", ["--model=VQVAE", "--model.embedding_dim=0"], 1, ["must be positive, got 0"]),
    ("fit", ["--model=VQVAE", "--model.quantizer.codebook_size=1"], 1, ["codebook_size"]),
    ("fit", ["--model=VQVAE", "--model.quantizer.decay=2"], 1, ["decay must be in [0, 1), got 2"]),
    (
        "fit",
        ["--model=VQVAE", "--model.quantizer.dead_code_threshold=-1"],
        1,
        ["dead_code_threshold must be"],
    ),
    ("fit", ["--model=VQVAE", "--model.commitment_weight=-1"], 1, ["must not be negative"]),
    ("fit", ["--model=BetaVAE", "--model.beta=-1"], 1, ["beta must not be negative, got -1"]),
    ("fit", ["--model=BetaVAE", "--model.beta=.nan"], 1, ["beta must not be negative, got nan"]),
    ("fit", ["--model=CVAE", "--model.conditional=false"], 1, ["always conditional"]),
    ("fit", ["--model.likelihood=Gaussian", "--model.likelihood.sigma=-1"], 1, ["sigma must"]),
    ("fit", ["--training.steps_per_call=0"], 1, ["steps_per_call must be at least 1"]),
    ("fit", ["--model.image_shape=[3,8,8]"], 1, ["is taken from the data: leave it out"]),
    (
        "fit",
        [*SIZES, "--model.init_bias_from_data=true"],
        1,
        ["ConvDecoder cannot start at the mean image"],
    ),
    ("fit", ["--optimizer.lr=-1"], 1, ["optimizer: Invalid learning rate: -1.0"]),
    ("fit", ["--optimizer.lr=.nan"], 1, ["optimizer: Invalid learning rate: nan"]),
    ("fit", ["--optimizer.lr=fast"], 2, ["optimizer.lr: expected float, got 'fast'"]),
    ("fit", ["--optimizer.betas=[0.9,2]"], 1, ["optimizer: Invalid beta"]),
    # Data
    ("fit", ["--data.batch_size=0"], 1, ["data.batch_size must be at least 1, got 0"]),
    ("fit", ["--data.num_workers=-1"], 1, ["data.num_workers must not be negative, got -1"]),
    ("fit", [*SIZES, "--data.val_size=0"], 1, ["data.val_size must be between 1 and"]),
    ("fit", [*SIZES, "--data.val_size=-5"], 1, ["data.val_size must be between 1 and"]),
    ("fit", [*SIZES, "--data.val_size=64"], 1, ["between 1 and 63, got 64"]),
    ("fit", ["--data.train_size=-2"], 1, ["data.train_size and data.test_size must be positive"]),
    ("fit", ["--data.train_size=100000000000000"], 1, ["not enough memory ("]),
    ("fit", ["--data.binarization=rgb"], 2, ["data.binarization: expected", "'none'", "got 'rgb'"]),
    ("fit", ["--data=ImageFolder"], 2, ["give --data.root"]),
    ("fit", ["--data=ImageFolder", "--data.root=/absent"], 1, ["/absent does not exist"]),
    ("fit", ["--data=ImageFolder", "--data.root=photos", "--data.size=0"], 1, ["data.size must"]),
    (
        "fit",
        ["--data=ImageFolder", "--data.root=photos", "--data.val_share=0.95"],
        1,
        ["leave items for training"],
    ),
    # The trainer
    ("fit", ["--trainer.max_epochs=x"], 2, ["trainer.max_epochs: expected int, got 'x'"]),
    ("fit", ["--trainer.max_epochs=-3"], 1, ["trainer.max_epochs must be at least -1, got -3"]),
    ("fit", ["--trainer.max_epochs=0"], 1, ["trainer.max_epochs is 0"]),
    ("fit", ["--trainer.limit_train_batches=0"], 1, ["trainer.limit_train_batches is 0"]),
    ("fit", ["--trainer.limit_val_batches=1.5"], 1, ["invalid value 1.5 for limit_val_batches"]),
    ("fit", ["--trainer.accumulate_grad_batches=0"], 1, ["must be at least 1, got 0"]),
    ("fit", ["--trainer.check_val_every_n_epoch=0"], 1, ["must be at least 1, got 0"]),
    ("fit", ["--trainer.val_check_interval=0"], 1, ["val_check_interval must be positive"]),
    ("fit", ["--trainer.gradient_clip_val=-1"], 1, ["gradient_clip_val must be at least 0"]),
    ("fit", ["--trainer.gradient_clip_val=.nan"], 1, ["gradient_clip_val must be at least 0"]),
    ("fit", ["--trainer.log_every_n_steps=-1"], 1, ["log_every_n_steps must be at least 0"]),
    ("fit", ["--trainer.devices=0"], 1, ["trainer.devices must be at least 1"]),
    ("fit", ["--trainer.devices=-2"], 1, ["trainer.devices must be at least 1"]),
    ("fit", ["--trainer.devices=9999"], 1, ["trainer.devices is 9999", "or fewer"]),
    ("fit", ["--trainer.num_nodes=0"], 1, ["trainer.num_nodes must be at least 1, got 0"]),
    ("fit", ["--trainer.precision=fp8"], 2, ["trainer.precision: expected", "'bf16-mixed'"]),
    ("fit", ["--trainer.accelerator=quantum"], 1, ["invalid accelerator name", "quantum"]),
    ("fit", ["--trainer.strategy=dpp"], 1, ["invalid strategy name", "dpp"]),
    ("fit", ["--trainer.max_time=abc"], 1, ["is not a valid duration"]),
    ("fit", ["--seed_everything=-1"], 1, ["seed_everything must be between 0 and", "got -1"]),
    # Where things go
    ("fit", ["--name=../x"], 1, ["must be the name of a folder"]),
    ("fit", ["--name=.."], 1, ["must be the name of a folder"]),
    ("fit", ["--output_dir=photos/a/1.png"], 1, ["choose another --output_dir or --name"]),
    ("fit", ["--checkpoint.save_top_k=-5"], 1, ["save_top_k=-5"]),
    ("fit", ["--checkpoint.mode=up"], 1, ["`mode` can be min, max but got up"]),
    # Figures and metrics
    ("fit", ["--figures.sampels=null"], 2, ["figures.sampels'", "'figures.samples'"]),
    ("fit", ["--figures.latents.n=0"], 1, ["figures.latents.n must be at least 1"]),
    ("fit", ["--figures.samples.every_n_epochs=0"], 1, ["every_n_epochs must be at least 1"]),
    ("fit", ["--figures.traversals.image=-1"], 1, ["figures.traversals.image must be in 0.."]),
    ("test", [*TEST[1:], "--metrics.log_likelihood.num_samples=0"], 1, ["must be positive, got 0"]),
    ("test", [*TEST[1:], "--metrics.latent=null"], 2, ["'metrics.latent'", "'metrics.latents'"]),
    ("test", [*TEST[1:], "--metrics.latents=Nonsense"], 2, ["no class named 'Nonsense'"]),
    ("test", [*TEST[1:], "--evaluation_seed=x"], 2, ["evaluation_seed: expected int, got 'x'"]),
    ("test", [*TEST[1:], "--trainer.limit_test_batches=0"], 1, ["limit_test_batches is 0: give"]),
    ("predict", [*PREDICT[1:], "--trainer.limit_predict_batches=0"], 1, ["batches is 0: give"]),
    # Configurations
    ("fit", ["--config", "beta"], 1, ["no configuration file 'beta'", "'beta_vae'"]),
    ("fit", ["--config", "zzz"], 1, ["bundled are ", "beta_vae, "]),
    ("fit", ["--config", "photos"], 1, ["no configuration file 'photos'"]),
]

FILES = [
    ("unknown option of a model", "model: {class_path: VAE, init_args: {latent: 3}}", 2, "dim'"),
    ("unknown option of the trainer", "trainer: {max_epoch: 3}", 2, "'trainer.max_epochs'"),
    ("wrong type", "trainer: {max_epochs: many}", 2, "max_epochs: expected int, got 'many'"),
    ("no YAML", "model: [unclosed", 1, "mine.yaml is not a YAML file"),
    ("a list", "- VAE", 1, "must hold options by name"),
    ("empty", "", 1, "must hold options by name"),
    ("bytes", b"\xff\xfe\x00", 1, "mine.yaml is not a YAML file"),
    ("no model", "model: null", 2, "give --model NAME"),
    ("no trainer", "trainer: null", 1, "trainer must hold options by name"),
    ("a number as checkpoint", "ckpt_path: 5", 1, "5 does not exist"),
    ("Python", "model: !!python/object/apply:os.system ['touch pwned']", 1, "not a YAML file"),
    (
        "a command",
        "model: {class_path: VAE, init_args: {likelihood: {class_path: os.system, "
        "init_args: {command: touch pwned}}}}",
        2,
        "os.system is not a class that this option takes",
    ),
    (
        "a process",
        "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [ls]}}]}",
        2,
        "subprocess.Popen is not a class that this option takes",
    ),
    (
        "a function of a library",
        "model: {class_path: VAE, init_args: {likelihood: {class_path: torch.load, "
        "init_args: {f: evil.pt, weights_only: false}}}}",
        2,
        "torch.load is not a class that this option takes",
    ),
]


def names(table):
    return [row[0] for row in table]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args", "damage", "part"), DATA, ids=names(DATA))
def test_data(name, args, damage, part, folder, capsys):
    if damage:
        damage(folder)
    code, message = refused(args, folder, capsys)
    assert code == 1
    assert part in message
    assert len(message) < 400


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args", "damage", "part"), CHECKPOINTS, ids=names(CHECKPOINTS))
def test_checkpoints(name, args, damage, part, folder, capsys):
    if damage:
        damage(folder)
    code, message = refused(args, folder, capsys)
    assert code == {"no data": 2, "resume: done": 3}.get(name, 1)
    assert part in message
    assert len(message) < 400


def option_of(row):
    """What is wrong, without what only makes the case small."""
    return " ".join([row[0], *(o for o in row[1] if o not in (*SIZES, *TEST[1:], *PREDICT[1:]))])


@pytest.mark.parametrize(
    ("command", "options", "code", "parts"), OPTIONS, ids=[option_of(row) for row in OPTIONS]
)
def test_options(command, options, code, parts, folder, capsys):
    got, message = refused([command, *options], folder, capsys)
    assert got == code
    for part in parts:
        assert part in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("option", "module", "what"),
    [
        ("callbacks", "rich", "RichProgressBar needs the package rich"),
        ("logger", "mlflow", "MLFlowLogger needs the package mlflow"),
        ("logger", "comet_ml", "CometLogger needs the package comet-ml"),
    ],
)
def test_a_missing_package_is_named(option, module, what, folder, capsys):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    name = what.partition(" ")[0]
    _, message = refused(["fit", f"--trainer.{option}+={name}", *SIZES], folder, capsys)
    assert what in message
    assert "which is not installed: pip install " in message


@pytest.mark.parametrize(("name", "text", "code", "part"), FILES, ids=names(FILES))
def test_configurations(name, text, code, part, folder, capsys):
    write("mine.yaml", text)(folder)
    got, message = refused(["fit", "--config", "mine.yaml"], folder, capsys)
    assert got == code
    assert part in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("args", "file"),
    [
        ([*FIT, "--name=x"], "runs/x"),
        ([*FIT, "--output_dir=x/y"], "x"),
        (PREDICT, f"{RUN}predictions"),
        (TEST, f"{RUN}test"),
    ],
    ids=["name", "output_dir", "predictions", "test"],
)
def test_files_in_the_way_stay(args, file, folder, capsys):
    in_the_way(file)(folder)
    code, message = refused(args, folder, capsys)
    assert code == 1
    assert file in message


@pytest.mark.slow
def test_wandb_without_an_account_says_so_and_does_not_ask(folder):
    """In a process of its own: W&B reads its settings once."""
    own = {"HOME": str(folder.parent), "NETRC": str(folder / "absent")}
    env = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_API_KEY")} | own
    command = [sys.executable, "-m", "vae_lightning", *FIT, "--trainer.logger+=WandbLogger"]
    before = contents(folder)
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("run `wandb login`, or set WANDB_MODE=offline")
    assert "Traceback" not in done.stderr
    assert contents(folder) == before


def test_an_altered_cache_is_made_anew(folder, cache_folder):
    """Nobody's input is lost with it, so that it is no error."""
    main(["validate", "--ckpt_path", CKPT, *QUIET])
    expected = (folder / f"{RUN}val/metrics.json").read_text()
    drawn = sorted((cache_folder / "vae_lightning").glob("digits-*-64-0-*.pt"))
    assert drawn
    for path in drawn:
        path.write_bytes(flipped(0.5)(path.read_bytes()))
    main(["validate", "--ckpt_path", CKPT, *QUIET])
    assert (folder / f"{RUN}val/metrics.json").read_text() == expected


def test_a_flag_shows_the_traceback(folder, monkeypatch):
    monkeypatch.setenv("VAE_TRACEBACK", "1")
    with pytest.raises(UserError, match=r"absent\.ckpt does not exist"):
        main(["test", "--ckpt_path", "absent.ckpt"])


def test_what_nobody_has_foreseen_is_one_sentence_too(folder, capsys, monkeypatch):
    def broken(self, stage):
        raise ArithmeticError("one and one\nis three")

    monkeypatch.setattr(vae_lightning.Digits, "setup", broken)
    with pytest.raises(SystemExit, match="1"):
        main(FIT)
    assert capsys.readouterr().err == (
        "vae: error: ArithmeticError: one and one is three; VAE_TRACEBACK=1 shows where; if none "
        "of your options and files explains it, please report it\n"
    )


# Code in files


class Smuggled:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def settings(content, part="model"):
    """The settings of the model, the data or an optimizer in a checkpoint."""
    return content["vae_lightning"][part]["init_args"]


PLACES = {
    "state": lambda c: c["state_dict"].update(x=Smuggled()),
    "setting": lambda c: settings(c).update(latent_dim=Smuggled()),
    "nested setting": lambda c: settings(c)["encoder"].update(x=[Smuggled()]),
    "setting of the data": lambda c: settings(c, "data").update(x=Smuggled()),
    "record": lambda c: c["vae_lightning"].update(x=Smuggled()),
    "state of the data": lambda c: c.update(Digits=Smuggled()),
    "optimizer": lambda c: c["optimizer_states"][0].update(x=Smuggled()),
    "schedulers": lambda c: c["lr_schedulers"].append(Smuggled()),
    "callbacks": lambda c: c["callbacks"].update(x=Smuggled()),
    "loops": lambda c: c["loops"].update(x=Smuggled()),
    "hyperparameters of Lightning": lambda c: c.update(hyper_parameters={"x": Smuggled()}),
    "field of its own": lambda c: c.update(extra=Smuggled()),
    "all of it": lambda c: Smuggled(),
}


@pytest.mark.parametrize("place", PLACES)
def test_pickled_code_is_not_run(place, folder, capsys):
    checkpoint(PLACES[place], LAST)(folder)
    for command in ("test", "validate", "predict", "fit"):
        code, message = refused([command, "--ckpt_path", LAST], folder, capsys)
        assert (code, "could run code" in message) == (1, True)
    with pytest.raises(UserError, match="could run code"):
        vae_lightning.load(LAST)
    assert not Path("pwned").exists()
    with contextlib.suppress(Exception):  # it would have been
        torch.load(LAST, weights_only=False)
    assert Path("pwned").exists()


@pytest.fixture
def trap(folder, monkeypatch):
    """A module that leaves a file when it is imported, and options in a file that name it."""
    (folder / "trap.py").write_text(
        "import os\nos.mkdir('pwned')\nclass Trap: ...\ndef make(): ...\n"
    )
    (folder / "trap.yaml").write_text("class_path: trap.Trap\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    yield
    assert not (folder / "pwned").exists()
    assert "trap" not in sys.modules


COMMAND = {"class_path": "os.system", "init_args": {"command": "touch pwned"}}
TRAPS = {
    "class": {"class_path": "trap.Trap"},
    "function": {"class_path": "trap.make"},
    "path": "trap.Trap",
    "path of a function": "trap.make",
    "text of options": "{class_path: trap.Trap}",
    "file of options": "trap.yaml",
    "command": COMMAND,
    "process": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "pwned"]}},
    "eval": {"class_path": "builtins.eval", "init_args": {"source": "os.mkdir('pwned')"}},
    "loader": {
        "class_path": "lightning.fabric.utilities.cloud_io._load",
        "init_args": {"path_or_url": "evil.pt", "weights_only": False},
    },
    "the command itself": {
        "class_path": "vae_lightning.__main__.main",
        "init_args": {"args": ["fit", "--output_dir=pwned"]},
    },
}


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        *(("likelihood", name) for name in TRAPS),
        *(("encoder", name) for name in ("class", "path", "file of options")),
        *(("prior", name) for name in ("class", "path", "file of options")),
    ],
)
def test_settings_of_a_model_call_nothing(argument, name, folder, trap, capsys):
    torch.save(Smuggled(), folder / "evil.pt")
    model(**{argument: TRAPS[name]})(folder)
    refused(TEST, folder, capsys)
    with pytest.raises(UserError):
        vae_lightning.load(CKPT)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["optimizer", "critic_optimizer", "lr_scheduler", "data"])
@pytest.mark.parametrize("name", TRAPS)
def test_descriptions_call_nothing(part, name, folder, trap, capsys):
    """Those of a checkpoint without the settings of its run beside it."""
    torch.save(Smuggled(), folder / "evil.pt")
    (folder / RUN / "config.yaml").unlink()
    record(lambda held: held.update({part: TRAPS[name]}), LAST)(folder)
    _, message = refused(RESUME, folder, capsys)
    assert "do not trust the file" in message or "is damaged" in message


@pytest.mark.parametrize("name", ["class", "command"])
@pytest.mark.parametrize(
    "place",
    [
        lambda c, x: settings(c)["encoder"]["init_args"].update(channels=[x]),
        lambda c, x: settings(c)["encoder"]["init_args"].update(activation=x),
        lambda c, x: settings(c)["encoder"].update(dict_kwargs={"x": x}),
        lambda c, x: c["vae_lightning"]["model"].update(class_path=x["class_path"]),
        lambda c, x: c["vae_lightning"]["data"].update(class_path=x["class_path"]),
        lambda c, x: settings(c, "data").update(seed=x),
    ],
    ids=["list", "activation", "dict_kwargs", "model", "data", "of data"],
)
def test_nested_settings_call_nothing(place, name, folder, trap, capsys):
    checkpoint(lambda content: place(content, TRAPS[name]))(folder)
    refused(TEST, folder, capsys)
    with contextlib.suppress(UserError):  # those of the data are nothing to it
        vae_lightning.load(CKPT)


@pytest.mark.parametrize("name", ["class", "command"])
@pytest.mark.parametrize(
    "place",
    [
        lambda c, x: settings(c, "optimizer").update(lr=x),
        lambda c, x: c["vae_lightning"]["optimizer"].update(dict_kwargs={"x": x}),
    ],
    ids=["lr", "dict_kwargs"],
)
def test_settings_of_the_optimizer_call_nothing(place, name, folder, trap, capsys):
    checkpoint(lambda content: place(content, TRAPS[name]), LAST)(folder)
    (folder / RUN / "config.yaml").unlink()
    refused(RESUME, folder, capsys)


@pytest.mark.parametrize("module", ["best", "trainer", "metrics"])
def test_names_of_files_and_options_permit_nothing(module, folder, monkeypatch, capsys):
    """As in a folder of somebody else's, with best.ckpt and best.py in it."""
    (folder / f"{module}.py").write_text("import os\nos.mkdir('pwned')\nclass Trap: ...\n")
    monkeypatch.syspath_prepend(folder)
    shutil.copy(folder / CKPT, folder / "best.ckpt")
    record(
        lambda held: held["model"]["init_args"].update(likelihood=f"{module}.Trap"), "best.ckpt"
    )(folder)
    refused(["test", "--ckpt_path", "best.ckpt", *QUIET], folder, capsys)
    assert not (folder / "pwned").exists()


STOPS = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor"]
SAVES = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename"]
PLATEAU = "--lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"
STEP = "--lr_scheduler=torch.optim.lr_scheduler.StepLR"
ONE_CYCLE = ["--lr_scheduler=OneCycleLR", "--lr_scheduler.max_lr=0.01"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--checkpoint.monitor=val/los"], "there is no 'val/los' to monitor: choose one of val/"),
        ([*STOPS, "val/los"], "there is no 'val/los' to monitor: choose one of val/loss,"),
        (
            [*STOPS, "val/los", "--trainer.num_sanity_val_steps=0"],
            "there is no 'val/los' to monitor",
        ),
        (["--model=VQVAE", *STOPS, "val/code_bit"], "val/perplexity, val/codes_used"),
        ([*STOPS, "val/loss", "--trainer.limit_val_batches=0"], "but nothing is validated"),
        ([PLATEAU, "--trainer.limit_val_batches=0"], "val/loss is monitored, but nothing is"),
        ([*STOPS, "train/kl"], "logged every 50 steps, and an epoch has 1"),
        ([*ONE_CYCLE, "--lr_scheduler.total_steps=2"], "OneCycleLR fails after epoch 2 of 3"),
        ([STEP, "--lr_scheduler.step_size=0"], "StepLR fails after epoch 0"),
        ([*SAVES, "{epoch"], "filename '{epoch' of ModelCheckpoint is not a valid format"),
        (["--checkpoint.filename={epoch:q}"], "filename '{epoch:q}' of BestCheckpoint is not"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_fail_after_an_epoch(options, part, folder, capsys):
    """Refused before the first batch."""
    data = [*SIZES, "--trainer.log_every_n_steps=50", "--trainer.max_epochs=3"]
    code, message = refused(["fit", *data, *QUIET[:1], *options], folder, capsys)
    assert code == 1
    assert part in message
    assert len(message) < 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [PLATEAU],
        [*ONE_CYCLE, "--lr_scheduler.total_steps=4"],
        [*ONE_CYCLE, "--lr_scheduler.total_steps=2", "--trainer.max_steps=2"],
        ["--trainer.limit_val_batches=0"],
        ["--model=VQVAE", *STOPS, "val/perplexity"],
        [*STOPS, "train/kl", "--trainer.log_every_n_steps=1", "--trainer.precision=bf16-true"],
        ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:01:00:00"],
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler")
def test_what_does_not_fail_after_an_epoch(options, folder):
    main(["fit", *SIZES, "--trainer.max_epochs=3", *QUIET[:1], "--name=mine", *options])
    # A configuration that was written can be read.
    written = folder / "runs/mine/version_0/config.yaml"
    main(["fit", "--config", str(written), "--name=again", "--trainer.max_epochs=1"])


def test_other_parsers_are_left_alone(folder, capsys):
    refused(["test", "--ckpt_path", "absent.ckpt"], folder, capsys)
    refused(["fit", "--model.latent_dim=0"], folder, capsys)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cls", type=type[dict])
    assert parser.parse_args(["--cls=collections.OrderedDict"]).cls is collections.OrderedDict


def test_hyperparameters_of_lightning_are_not_used(folder, trap):
    hyperparameters = {"_instantiator": "trap.make", "_class_path": "trap.Trap", "latent_dim": 3}
    with_(hyper_parameters=hyperparameters)(folder)
    main(TEST)
    assert vae_lightning.load(CKPT).latent_dim == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "names"),
    [
        (lambda config, x: config["trainer"].update(callbacks=[x]), ["path", "file of options"]),
        (lambda config, x: config["trainer"].update(logger=x), []),
        (lambda config, x: config["trainer"].update(strategy=x), ["path of a function"]),
        (lambda config, x: config["trainer"].update(profiler=x), []),
        (lambda config, x: config["trainer"].update(plugins=[x]), []),
        (lambda config, x: config["model"]["init_args"].update(likelihood=x), []),
        (lambda config, x: config["figures"].update(samples=x), []),
        (lambda config, x: config.update(data=x), []),
    ],
    ids=["callbacks", "logger", "strategy", "profiler", "plugins", "model", "figures", "data"],
)
def test_the_configuration_beside_a_checkpoint_calls_nothing(place, names, folder, trap, capsys):
    torch.save(Smuggled(), folder / "evil.pt")
    path = folder / RUN / "config.yaml"
    text = path.read_text()
    for name in ["class", "function", "command", "loader", *names]:
        config = yaml.safe_load(text)
        place(config, TRAPS[name])
        path.write_text(yaml.safe_dump(config))
        _, message = refused(RESUME, folder, capsys)
        if isinstance(TRAPS[name], dict):
            assert "config.yaml names" in message
            assert "do not trust the file" in message


@pytest.mark.parametrize("name", ["path", "file of options", "text of options"])
def test_the_model_of_the_configuration_beside_a_checkpoint_is_not_used(name, folder, trap):
    """The checkpoint says what its model and data are."""
    path = folder / RUN / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"]["likelihood"] = config["data"] = TRAPS[name]
    path.write_text(yaml.safe_dump(config))
    main(RESUME)
    assert yaml.safe_load(path.read_text())["model"]["init_args"]["likelihood"] != TRAPS[name]


def test_yaml_of_a_stranger_runs_no_python(folder, trap, capsys):
    text = "model: !!python/object/apply:os.system ['touch pwned']\n"
    write(f"{RUN}config.yaml", text)(folder)
    _, message = refused(RESUME, folder, capsys)
    assert "is not a YAML file" in message


OWN = """
from vae_lightning.models.vae import VAE
from vae_lightning.nets import MLPEncoder

class MyEncoder(MLPEncoder): ...
class MyVAE(VAE): ...
"""


def test_functions_of_ones_own_are_not_called(folder, monkeypatch, capsys):
    (folder / "my_functions.py").write_text("import os\ndef make(): os.mkdir('pwned')\n")
    monkeypatch.syspath_prepend(folder)
    write(
        "mine.yaml",
        "model: {class_path: VAE, init_args: {likelihood: {class_path: my_functions.make}}}",
    )(folder)
    with pytest.raises(SystemExit, match="1"):  # the module is imported, as it is named
        main(["fit", "--config", "mine.yaml"])
    assert "my_functions.make is not a class" in capsys.readouterr().err
    assert not (folder / "pwned").exists()


def test_classes_of_ones_own_are_used_where_they_are_named(folder, monkeypatch, capsys):
    (folder / "my_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    own = ["--model=my_own.MyVAE", "--model.encoder=my_own.MyEncoder"]
    short = [option for option in SHORT if not option.startswith("--model.encoder")]
    main(["fit", *own, *SIZES, *short, "--name=own", "--model.encoder.hidden=[8]"])
    ckpt = "runs/own/version_0/checkpoints/best.ckpt"
    assert type(vae_lightning.load(ckpt)).__name__ == "MyVAE"  # it is imported
    monkeypatch.delitem(sys.modules, "my_own")
    code, message = refused(["test", "--ckpt_path", ckpt], folder, capsys)
    assert (code, "add --import MODULE" in message) == (1, True)
    main(["test", "--ckpt_path", ckpt, *own, *QUIET])
    assert (folder / "runs/own/version_0/test/metrics.json").is_file()
