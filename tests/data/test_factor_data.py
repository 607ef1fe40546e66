"""dSprites, 3D Shapes and Cars3D: small files in the format of the published ones."""

import json
import math
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import vae_lightning
from vae_lightning import Cars3D, DSprites, Shapes3D
from vae_lightning.__main__ import main
from vae_lightning.data import dsprites
from vae_lightning.errors import UserError

SIZES = {DSprites: (3, 2, 4, 5, 5), Shapes3D: (2, 3, 2, 2, 4, 3), Cars3D: (5, 6, 4)}
SMALL = {"val_size": 10, "test_size": 40}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for cls, sizes in SIZES.items():
        monkeypatch.setattr(cls, "factor_sizes", sizes)
    return tmp_path / "cache" / "vae_lightning"


def grid(sizes):
    return np.indices(sizes).reshape(len(sizes), -1).T


def write_dsprites(root, sizes=SIZES[DSprites], inside="dsprites"):
    """A square at (x, y), as high as the scale says, with a notch for shape and orientation."""
    classes = grid(sizes)
    images = np.zeros((len(classes), 64, 64), dtype=np.uint8)
    for image, (shape, scale, orientation, x, y) in zip(images, classes, strict=True):
        image[8 + 8 * y : 16 + 8 * y + 4 * scale, 8 + 8 * x : 16 + 8 * x] = 1
        image[8 + 8 * y + shape, 8 + 8 * x + orientation] = 0
    folder = root / inside
    folder.mkdir(parents=True, exist_ok=True)
    metadata = np.array({"title": "dSprites dataset"}, dtype=object)  # pickled, as published
    color = np.zeros((len(classes), 1), dtype=np.int64)
    np.savez_compressed(
        folder / dsprites.NAME,
        imgs=images,
        latents_classes=np.concatenate([color, classes], axis=1),
        latents_values=np.concatenate([color + 1.0, classes * 0.5], axis=1),
        metadata=metadata,
    )
    return 255 * images[:, None], classes


def write_shapes3d(root, sizes=SIZES[Shapes3D], chunks=(7, 64, 64, 1), inside="3dshapes"):
    labels = grid(sizes)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 64, 64, 3), dtype=np.uint8)
    images[:, :8, :8, 0] = 20 * labels[:, :1, None]
    folder = root / inside
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "3dshapes.h5", "w") as file:
        compression = "gzip" if chunks else None
        file.create_dataset("images", data=images, chunks=chunks, compression=compression)
        # Numbers of any kind, as published: hues, sizes, shapes from 0 to 3, degrees.
        units = np.array([0.1, 0.1, 0.1, 0.07, 1, 4.3])
        file.create_dataset("labels", data=labels * units - [0, 0, 0, -0.75, 0, 30])
    return images.transpose(0, 3, 1, 2), labels


def write_cars3d(root, sizes=SIZES[Cars3D]):
    """Gray squares of 2x2 pixels, which scaling keeps."""
    factors = grid(sizes)
    (root / "cars").mkdir(parents=True, exist_ok=True)
    small = np.zeros((len(factors), 64, 64, 3), dtype=np.uint8)
    small[:] = (factors * [40, 30, 60])[:, None, None]
    large = small.repeat(2, axis=1).repeat(2, axis=2).reshape(*sizes, 128, 128, 3)
    for i, car in enumerate(large):
        # (height, width, channel, azimuth, elevation)
        path = root / "cars" / f"car_{i:03d}_mesh.mat"
        scipy.io.savemat(path, {"im": car.transpose(2, 3, 4, 0, 1)}, do_compression=True)
    return small.transpose(0, 3, 1, 2), factors


WRITE = {DSprites: write_dsprites, Shapes3D: write_shapes3d, Cars3D: write_cars3d}
every_set = pytest.mark.parametrize("cls", SIZES, ids=lambda cls: cls.__name__)


def loaded(cls, root, **kwargs):
    data = cls(root=str(root), **{**SMALL, **kwargs})
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def every(data, split):
    return data.datasets[split].__getitems__(range(data.split_size(split)))


@every_set
def test_images_have_their_factors(cls, tmp_path):
    images, factors = WRITE[cls](tmp_path)
    data = loaded(cls, tmp_path)
    assert len(data.factor_names) == len(data.factor_sizes) == len(data.categorical)
    by_factors = {tuple(row): image for row, image in zip(factors.tolist(), images, strict=True)}
    seen = []
    for split in ("train", "val", "test"):
        batch = every(data, split)
        assert batch.x.shape == (data.split_size(split), *data.image_shape)
        assert batch.x.dtype == torch.uint8
        rows = data.factors[split].long().tolist()
        for image, row in zip(batch.x, rows, strict=True):
            assert np.array_equal(image.numpy(), by_factors[tuple(row)])
        if data.label:
            column = data.factor_names.index(data.label)
            assert batch.y.tolist() == [row[column] for row in rows]
            assert data.num_classes == SIZES[cls][column]
        else:
            assert batch.y is None
            assert data.num_classes == 0
        seen += map(tuple, rows)
    assert sorted(seen) == sorted(by_factors)  # every image in one split


@every_set
def test_splits_are_random_and_seeded(cls, tmp_path):
    WRITE[cls](tmp_path)
    first, again, other = (loaded(cls, tmp_path, split_seed=seed) for seed in (0, 0, 1))
    rows = first.factors["test"]
    assert again.factors["test"].equal(rows)
    assert not other.factors["test"].equal(rows)
    # Scores need them in random order: the first half has all values of the first factor.
    assert len(rows[:20, 0].unique()) == SIZES[cls][0]


@every_set
def test_one_factor_is_fixed(cls, tmp_path):
    images, factors = WRITE[cls](tmp_path)
    data = loaded(cls, tmp_path)
    fixed = torch.arange(len(data.factor_sizes)).repeat(8)
    x, y = data.with_fixed_factor(fixed, 30, seed=0)
    assert x.shape == (len(fixed) * 30, *data.image_shape)
    by_image = {image.tobytes(): row for image, row in zip(images, factors.tolist(), strict=True)}
    assert len(by_image) == len(images)  # so the images say what their factors are
    rows = torch.tensor([by_image[image.numpy().tobytes()] for image in x])
    if data.label:
        assert y.equal(rows[:, data.factor_names.index(data.label)])
    else:
        assert y is None
    groups = rows.unflatten(0, (len(fixed), 30))
    for group, factor in zip(groups, fixed.tolist(), strict=True):
        varies = [len(column.unique()) > 1 for column in group.T]
        # With 30 images, a factor with two values is constant by chance once in 5e8 groups.
        assert varies == [i != factor for i in range(len(varies))]
    values = groups[torch.arange(len(fixed)), 0, fixed]
    assert len(values[fixed == 0].unique()) > 1  # groups differ
    assert data.with_fixed_factor(fixed, 30, seed=0)[0].equal(x)
    assert not data.with_fixed_factor(fixed, 30, seed=1)[0].equal(x)


def test_published_sizes(monkeypatch):
    monkeypatch.undo()
    for cls, sizes in (
        (DSprites, [717_280, 10_000, 10_000]),
        (Shapes3D, [460_000, 10_000, 10_000]),
        (Cars3D, [11_568, 1_000, 5_000]),
    ):
        data = cls()
        assert [data.split_size(split) for split in ("train", "val", "test")] == sizes
        assert data.num_train == sizes[0]
        assert cls.num_classes is not None
    assert math.prod(DSprites().factor_sizes) == 737_280
    assert DSprites().is_binary
    assert not Shapes3D().is_binary
    assert Shapes3D(binarization="threshold").is_binary


@pytest.mark.parametrize(("cls", "write"), [(DSprites, write_dsprites), (Shapes3D, write_shapes3d)])
def test_files_beside_the_other_data_sets(cls, write, tmp_path):
    write(tmp_path, inside=".")
    assert len(loaded(cls, tmp_path).datasets["test"]) == 40


@pytest.mark.parametrize("chunks", [None, (144, 2, 4, 1), (1, 64, 64, 3)])
def test_chunks_of_shapes3d(tmp_path, chunks):
    images, _ = write_shapes3d(tmp_path, chunks=chunks)
    data = loaded(Shapes3D, tmp_path)
    assert len(images) == 288
    strides = [math.prod(SIZES[Shapes3D][i + 1 :]) for i in range(6)]
    positions = data.factors["val"].long() @ torch.tensor(strides)
    assert np.array_equal(every(data, "val").x.numpy(), images[positions.numpy()])


def test_cars_are_scaled_to_half(tmp_path):
    write_cars3d(tmp_path)
    path = tmp_path / "cars" / "car_000_mesh.mat"
    detailed = np.random.default_rng(0).integers(0, 256, (128, 128, 3, 6, 4), dtype=np.uint8)
    scipy.io.savemat(path, {"im": detailed})
    data = loaded(Cars3D, tmp_path)
    picture = Image.fromarray(detailed[:, :, :, 5, 2])
    picture.thumbnail((64, 64), Image.Resampling.LANCZOS)
    position = torch.tensor([5 * 4 + 2])
    assert data.factors_at(position).tolist() == [[0, 5, 2]]
    found = data._images()(position)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.asarray(picture))


def test_nothing_is_unpickled(tmp_path):
    """The metadata of the published file are pickled, so they are not read."""

    class Evil:
        def __reduce__(self):
            return (tmp_path / "harmed").touch, ()

    write_dsprites(tmp_path)
    path = tmp_path / "dsprites" / dsprites.NAME
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["metadata.npy"] = parts["metadata.npy"][:128] + pickle.dumps(Evil())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    loaded(DSprites, tmp_path)
    assert not (tmp_path / "harmed").exists()


def rewrite(path, **changes):
    with np.load(path, allow_pickle=True) as held:
        arrays = {name: held[name] for name in held.files}
    np.savez_compressed(path, **{**arrays, **changes})


def test_order_of_dsprites(tmp_path, cache):
    write_dsprites(tmp_path)
    path = tmp_path / "dsprites" / dsprites.NAME
    with np.load(path) as held:
        classes = held["latents_classes"]
    rewrite(path, latents_classes=classes[::-1])
    with pytest.raises(UserError, match="not in the published order of factors"):
        loaded(DSprites, tmp_path)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((600, 64, 64), dtype=np.float32),
        np.zeros((599, 64, 64), dtype=np.uint8),
        np.zeros((600, 32, 32), dtype=np.uint8),
        np.full((600, 64, 64), 2, dtype=np.uint8),
    ],
    ids=["float", "fewer", "smaller", "not binary"],
)
def test_other_images_than_dsprites(tmp_path, images):
    write_dsprites(tmp_path)
    path = tmp_path / "dsprites" / dsprites.NAME
    rewrite(path, imgs=images)
    with pytest.raises(UserError, match=f"{dsprites.NAME} in .* is damaged"):
        loaded(DSprites, tmp_path)


def source(cls, root):
    names = {
        DSprites: f"dsprites/{dsprites.NAME}",
        Shapes3D: "3dshapes/3dshapes.h5",
        Cars3D: "cars/car_002_mesh.mat",
    }
    return root / names[cls]


@every_set
@pytest.mark.parametrize("how", ["half", "altered", "empty", "something else"])
def test_damaged_files(cls, how, tmp_path, cache):
    WRITE[cls](tmp_path)
    path = source(cls, tmp_path)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "half": content[:half],
            "altered": content[:half] + bytes(256) + content[half + 256 :],
            "empty": b"",
            "something else": b"<html>not found</html>",
        }[how]
    )
    with pytest.raises(UserError, match=r"(is|are) damaged"):
        loaded(cls, tmp_path)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_car_is_missing(tmp_path):
    write_cars3d(tmp_path)
    source(Cars3D, tmp_path).unlink()
    with pytest.raises(UserError, match=r"found 4 \.mat files, not 5"):
        loaded(Cars3D, tmp_path)


@every_set
def test_missing_files_without_network(cls, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError) as raised:
        cls(root=str(tmp_path), **SMALL).prepare_data()
    message = str(raised.value)
    for part in (str(tmp_path), " lacks ", "Network is unreachable", "http", "VAE_DATA_ROOT"):
        assert part in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_without_h5py(tmp_path, monkeypatch):
    write_shapes3d(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match="Shapes3D needs h5py: pip install h5py"):
        loaded(Shapes3D, tmp_path)


@every_set
@pytest.mark.parametrize(("val_size", "test_size"), [(0, 10), (10, 0), (300, 300)])
def test_bad_sizes(cls, val_size, test_size):
    with pytest.raises(ValueError, match=r"data\.val_size and data\.test_size must be positive"):
        cls(val_size=val_size, test_size=test_size)


def test_files_are_needed_for_the_first_time_only_to_unpack(tmp_path, capsys):
    images, _ = write_dsprites(tmp_path)
    loaded(DSprites, tmp_path)
    assert capsys.readouterr().out.count("Unpacking") == 1
    again = loaded(DSprites, tmp_path)
    assert capsys.readouterr().out == ""
    assert len(again.datasets["train"]) == len(images) - 50
    # Another file is unpacked again.
    write_dsprites(tmp_path)
    path = source(DSprites, tmp_path)
    with np.load(path) as held:
        rewrite(path, imgs=1 - held["imgs"])
    assert every(loaded(DSprites, tmp_path), "test").x.float().mean() > 127


def test_disentanglement_is_measured_through_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dsprites(tmp_path)
    main(
        [
            *("fit", "--data=DSprites", f"--data.root={tmp_path}", "--data.val_size=40"),
            *("--data.test_size=100", "--data.batch_size=40", "--model.latent_dim=3"),
            *("--model.encoder=MLPEncoder", "--model.encoder.hidden=[4]"),
            *("--model.decoder=MLPDecoder", "--model.decoder.hidden=[4]"),
            *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
            *("--trainer.enable_progress_bar=false", "--figures.traversals=null"),
            *("--figures.samples=null", "--figures.reconstructions=null", "--figures.latents=null"),
        ]
    )
    main(
        [
            *("test", "--ckpt_path=runs/vae/version_0/checkpoints/best.ckpt"),
            *("--metrics.disentanglement.votes=30", "--metrics.disentanglement.per_vote=8"),
            *("--metrics.log_likelihood=null", "--trainer.enable_progress_bar=false"),
        ]
    )
    metrics = json.loads(Path("runs/vae/version_0/test/metrics.json").read_text())["metrics"]
    for name in ("mig", "sap", "dci_disentanglement", "factor_vae_score"):
        assert 0 <= metrics[name] <= 1
    # Squared correlations of the codes of all test images with their factors.
    data = DSprites(root=str(tmp_path), val_size=40, test_size=100)
    data.setup("test")
    model = vae_lightning.load("runs/vae/version_0/checkpoints/best.ckpt")
    codes = model.embed(every(data, "test").x / 255)
    factors = data.factors["test"]
    for name in ("scale", "orientation", "x", "y"):
        factor = factors[:, data.factor_names.index(name)]
        expected = [torch.stack([code, factor]).corrcoef()[0, 1].item() ** 2 for code in codes.T]
        assert metrics["predictability"][name] == pytest.approx(expected, abs=1e-4)
