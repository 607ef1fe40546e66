import lightning.pytorch as pl
import pytest
import torch

from vae_lightning import VAE, Digits
from vae_lightning.data import strokes
from vae_lightning.training.module import LitVAE


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vae_lightning"


def small(**kwargs) -> Digits:
    data = Digits(**{"train_size": 60, "val_size": 10, "test_size": 20, **kwargs})
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def test_sizes_labels_and_factors():
    data = small()
    for split, n in (("train", 50), ("val", 10), ("test", 20)):
        images, factors = data.datasets[split].images, data.factors[split]
        assert images.x.shape == (n, 1, 28, 28)
        assert images.y.equal(factors[:, 0].long())
        assert factors.shape == (n, len(strokes.FACTORS)) == (n, len(data.factor_names))


def test_factors_belong_to_their_images():
    data = small()
    drawn = strokes.draw_factors(1, 0)
    factors = data.factors["val"][:1]
    thick, thin = factors.clone(), factors.clone()
    column = strokes.FACTORS.index("thickness")
    thin[:, column], thick[:, column] = strokes.FACTOR_RANGES["thickness"]
    wobble = torch.zeros_like(drawn.wobble)
    images = [
        strokes.render(strokes.Strokes(f, wobble)).float().sum() for f in (thin, factors, thick)
    ]
    assert images[0] <= images[1] <= images[2]
    assert images[0] < images[2]


def test_same_for_the_same_seed_and_other_for_another(own_cache):
    first, again, other = small(), small(), small(seed=1)
    for split in ("train", "test"):
        x = first.datasets[split].images.x
        assert again.datasets[split].images.x.equal(x)
        assert not other.datasets[split].images.x.equal(x)
    assert not first.datasets["test"].images.x.equal(first.datasets["train"].images.x[:20])


def test_drawn_once(own_cache, monkeypatch):
    first = small().datasets["test"].images.x
    monkeypatch.setattr(strokes, "render", None)
    assert small().datasets["test"].images.x.equal(first)


def test_a_stage_draws_what_it_needs(own_cache):
    """So that the first training of all begins sooner."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet)
    data = Digits(train_size=60, val_size=10, test_size=20, batch_size=10)
    trainer.fit(LitVAE(VAE(latent_dim=2)), datamodule=data)
    assert [path.name.split("-")[1] for path in own_cache.iterdir()] == ["train"]
    trainer.test(LitVAE(VAE(latent_dim=2)), datamodule=data, verbose=False)
    assert {path.name.split("-")[1] for path in own_cache.iterdir()} == {"train", "test"}


def test_damaged_cache_is_drawn_again(own_cache):
    first = small().datasets["test"].images.x
    files = list(own_cache.iterdir())
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    assert small().datasets["test"].images.x.equal(first)


def test_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    drawn = []
    render = strokes.render
    monkeypatch.setattr(strokes, "render", lambda s: drawn.append(s) or render(s))
    assert len(small().datasets["test"]) == 20
    assert len(drawn) == 2  # training and test images, once each


def test_bad_size():
    with pytest.raises(ValueError, match="must be positive"):
        Digits(test_size=0)
