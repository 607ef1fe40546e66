import numpy as np
import pytest
import torch
from PIL import Image

from vae_lightning import CelebA
from vae_lightning.data import celeba
from vae_lightning.data.base import InMemory
from vae_lightning.data.on_demand import OnDemand
from vae_lightning.errors import UserError

NAMES = [f"{i:06d}.jpg" for i in range(1, 13)]
SPLITS = [0, 0, 1, 0, 2, 0, 0, 2, 1, 0, 0, 0]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Twelve images in the layout of torchvision; the first one has a gradient."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        pixels = np.full((218, 178, 3), 20 * i, dtype=np.uint8)
        if i == 0:
            pixels[..., 0] = np.arange(178)
            pixels[..., 1] = np.arange(218)[:, None]
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name, quality=100, subsampling=0)
    partition = "".join(f"{name} {split}\n" for name, split in zip(NAMES, SPLITS, strict=True))
    (folder / "list_eval_partition.txt").write_text(partition)
    rows = "".join(
        f"{name} {1 if i % 3 == 0 else -1:2d} {1 if i % 2 == 0 else -1:2d} \n"
        for i, name in enumerate(NAMES)
    )
    (folder / "list_attr_celeba.txt").write_text(f"12\nMale Smiling \n{rows}")
    for split, n in (("train", 8), ("val", 2), ("test", 2)):
        monkeypatch.setitem(celeba.SIZES, split, n)
    return tmp_path


def loaded(root, **kwargs):
    data = CelebA(root=str(root), **{"batch_size": 4, **kwargs})
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def every(data, split):
    dataset = data.datasets[split]
    return dataset.__getitems__(range(len(dataset)))


def test_published_split_and_no_labels(root):
    data = loaded(root)
    for number, split in enumerate(("train", "val", "test")):
        batch = every(data, split)
        assert batch.x.shape == (data.split_size(split), 3, 64, 64)
        assert batch.x.dtype == torch.uint8
        assert batch.y is None
        expected = [20 * i for i, s in enumerate(SPLITS) if s == number]
        assert batch.x[:, 2, 32, 32].tolist() == pytest.approx(expected, abs=1)
    assert data.num_classes == 0


def test_crop(root):
    """The gradient says which pixels of the file an image shows."""

    def edges(**kwargs):
        red, green = every(loaded(root, **kwargs), "train").x[0, :2].double()
        return [red[:, 0].mean(), green[0].mean(), red[:, -1].mean(), green[-1].mean()]

    # Larsen et al.: each of 64 pixels covers 148 / 64 = 2.3 pixels, so the centers of the first and
    # the last are 1.2 pixels from the edges.
    half = 148 / 64 / 2
    expected = [15 + half, 40 + half, 163 - half, 188 - half]
    assert edges() == pytest.approx([e - 0.5 for e in expected], abs=0.8)
    assert edges(size=178, box=[0, 20, 178, 198]) == pytest.approx([0, 20, 177, 197], abs=1.5)


def test_as_torchvision_transforms_do(root):
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    transform = Compose([CenterCrop(148), Resize(64), PILToTensor()])
    with Image.open(root / "celeba" / "img_align_celeba" / NAMES[0]) as image:
        expected = transform(image.convert("RGB"))
    assert every(loaded(root, box=[15, 35, 163, 183]), "train").x[0].equal(expected)


def test_attribute_is_the_class(root):
    data = loaded(root, attribute="Smiling")
    assert data.num_classes == 2
    assert data.class_names == ("not Smiling", "Smiling")
    for number, split in enumerate(("train", "val", "test")):
        expected = [int(i % 2 == 0) for i, s in enumerate(SPLITS) if s == number]
        assert every(data, split).y.tolist() == expected


def test_unknown_attribute(root):
    with pytest.raises(UserError, match=r"no Smilling in .*did you mean 'Smiling'"):
        loaded(root, attribute="Smilling")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_large_splits_stay_on_disk(root, num_workers):
    limit = 3 * 3 * 64 * 64 / 1e9  # three images
    data = loaded(root, memory_limit=limit, attribute="Male", num_workers=num_workers)
    assert isinstance(data.datasets["train"], OnDemand)
    assert isinstance(data.datasets["test"], InMemory)
    held = loaded(root, attribute="Male")
    assert isinstance(held.datasets["train"], InMemory)
    whole = every(held, "train")
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    for batch in batches:
        assert batch.x.equal(whole.x[batch.indices])
        assert batch.y.equal(whole.y[batch.indices])


def test_names_of_the_files(root):
    data = loaded(root)
    assert data.item_name("test", 1) == NAMES[7]
    assert data.item_name("all", 8) == NAMES[2]
    assert loaded(root, train_on_val=True).item_name("train", 9) == NAMES[8]


def test_published_sizes():
    data = CelebA()
    assert [data.split_size(s) for s in ("train", "val", "test")] == [162_770, 19_867, 19_962]
    assert data.num_train == 162_770
    assert data.image_shape == (3, 64, 64)


@pytest.mark.parametrize("how", ["missing", "empty", "half", "another size"])
def test_damaged_image(root, how):
    path = root / "celeba" / "img_align_celeba" / NAMES[4]
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "another size":
        Image.new("RGB", (64, 64)).save(path)
    else:
        path.write_bytes(content[: len(content) // 2] if how == "half" else b"")
    with pytest.raises(UserError, match=f"{NAMES[4]} is missing or is not an aligned image"):
        loaded(root)


def test_partition_of_other_images(root):
    path = root / "celeba" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace("000003.jpg 1", "000003.jpg 0"))
    with pytest.raises(UserError, match=r"list_eval_partition\.txt in .* 9, 1, 2 images"):
        loaded(root)


def test_missing_files_without_network(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setitem(__import__("sys").modules, "gdown", None)  # not installed
    with pytest.raises(UserError) as raised:
        CelebA(root=str(tmp_path)).prepare_data()
    message = str(raised.value)
    for part in ("img_align_celeba, list_eval_partition.txt", "mmlab", "gdown", "celeba"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"data\.size must be positive"),
        ({"box": (0, 0, 179, 218)}, r"data\.box must be edges"),
        ({"box": (100, 0, 90, 218)}, r"data\.box must be edges"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CelebA(**options)
