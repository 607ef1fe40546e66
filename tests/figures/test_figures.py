"""When figures are drawn, what they ask of a model, and that they leave training alone."""

import functools

import lightning.pytorch as pl
import pytest
import torch
from matplotlib.text import Text

from vae_lightning import CVAE, VAE, VQVAE
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.figures import FIGURES, Figure
from vae_lightning.training.figures import FigureCallback
from vae_lightning.training.module import LitVAE


def fit(tmp_path, model, data, figures, **kwargs):
    lit = LitVAE(model)
    trainer = pl.Trainer(
        **{
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": figures,
            **kwargs,
        }
    )
    trainer.fit(lit, datamodule=data)
    return lit


def all_figures():
    return [FigureCallback(cls(every_n_epochs=1)) for cls in FIGURES.values()]


def drawn(tmp_path):
    return {folder.name for folder in (tmp_path / "figures").iterdir()}


GENERAL = {"samples", "reconstructions", "latents", "traversals"}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda **kwargs: VAE(**kwargs), GENERAL),
        (lambda **kwargs: VAE(latent_dim=2, **kwargs), GENERAL | {"manifold"}),
        (lambda **kwargs: VAE(latent_dim=1, **kwargs), GENERAL - {"latents"}),
        (lambda **kwargs: CVAE(latent_dim=2, **kwargs), GENERAL | {"classes"}),
        (
            lambda **kwargs: VQVAE(**kwargs),
            {"reconstructions", "latents", "code_usage", "code_maps", "code_gallery"},
        ),
    ],
    ids=["vae", "vae_2d", "vae_1d", "cvae", "vq_vae"],
)
def test_each_model_gets_the_figures_that_it_can_show(build, expected, blobs, tmp_path):
    model = build(image_shape=(1, 8, 8), num_classes=4)
    fit(tmp_path, model, blobs(), all_figures(), max_epochs=1)
    assert drawn(tmp_path) == expected


@pytest.mark.parametrize("cls", [VAE, CVAE, VQVAE])
def test_figures_never_change_the_weights(cls, blobs, tmp_path):
    states = []
    for figures in ([], all_figures()):
        torch.manual_seed(5)
        model = cls(image_shape=(1, 8, 8), num_classes=4)
        lit = fit(tmp_path, model, blobs(binarization="dynamic"), figures)
        states.append((model.state_dict(), torch.get_rng_state()))
        assert lit.training
        assert model.training
    for name, value in states[0][0].items():
        assert value.equal(states[1][0][name]), name
    assert states[0][1].equal(states[1][1])


class Recorder(Figure):
    name = "samples"
    images = 20

    def draw(self, model, x, label, class_names):
        self.seen = (x, label, class_names)
        return FIGURES["samples"](n=1).draw(model, x, label, class_names)


def epochs(tmp_path):
    return sorted(path.stem for path in (tmp_path / "figures" / "samples").iterdir())


def test_drawn_every_n_epochs_and_after_the_last(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8))
    fit(tmp_path, model, blobs(), [FigureCallback(Recorder(every_n_epochs=2))], max_epochs=5)
    assert epochs(tmp_path) == ["epoch=001", "epoch=003", "epoch=004"]


class StopAfterThree(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 2


def test_drawn_at_an_early_end(blobs, tmp_path):
    figures = [FigureCallback(Recorder(every_n_epochs=100)), StopAfterThree()]
    fit(tmp_path, VAE(image_shape=(1, 8, 8)), blobs(), figures, max_epochs=50)
    assert epochs(tmp_path) == ["epoch=002"]


def test_sees_validation_images_in_a_fixed_random_order(blobs, tmp_path):
    figure, data = Recorder(every_n_epochs=1), blobs()
    fit(tmp_path, VAE(image_shape=(1, 8, 8)), data, [FigureCallback(figure)], max_epochs=1)
    x, label, class_names = figure.seen
    images = data.datasets["val"].images
    chosen = torch.cat([batch.indices for batch in data.val_dataloader()])[:20]
    assert x.equal(images.x[chosen] / 255)
    assert label.equal(images.y[chosen])
    assert not chosen.equal(torch.arange(20))
    assert class_names is None


def test_data_without_labels(tmp_path):
    loader = torch.utils.data.DataLoader(torch.rand(20, 1, 8, 8), batch_size=5)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=all_figures(),
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(LitVAE(VAE(image_shape=(1, 8, 8))), loader, loader)
    assert drawn(tmp_path) == GENERAL


def test_nothing_is_drawn_in_a_dry_run(blobs, tmp_path):
    fit(tmp_path, VAE(image_shape=(1, 8, 8)), blobs(), all_figures(), fast_dev_run=True)
    assert not (tmp_path / "figures").exists()


def test_only_the_first_process_draws(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda self: False))
    fit(tmp_path, VAE(image_shape=(1, 8, 8)), blobs(), all_figures())
    assert not (tmp_path / "figures").exists()


def test_traversals_move_one_dimension_at_a_time_ordered_by_kl(monkeypatch, batch):
    from vae_lightning import plotting

    model = VAE(image_shape=(1, 8, 8), latent_dim=3)
    monkeypatch.setattr(
        model, "latent_kl", lambda x, label: torch.tensor([[0.1, 2.0, 0.5]]).expand(len(x), 3)
    )
    decoded = []
    monkeypatch.setattr(
        model, "decode", lambda z, label: decoded.append(z) or torch.rand(len(z), 1, 8, 8)
    )
    labels = []
    original = plotting.traversals
    monkeypatch.setattr(
        plotting, "traversals", lambda i, r, v, **k: labels.extend(r) or original(i, r, v, **k)
    )
    figure = FIGURES["traversals"](steps=5, limit=2.0).draw(model, batch.x, None, None)
    assert figure.axes[0].get_xlabel() == "value of the latent dimension"
    assert labels == ["z1  KL 2.00", "z2  KL 0.50", "z0  KL 0.10"]
    z = decoded[0][:-1].view(3, 5, 3)  # the last one is the image itself
    base = model.embed(batch.x[:1])[0]
    for row, dimension in enumerate((1, 2, 0)):
        assert z[row, :, dimension].tolist() == [-2, -1, 0, 1, 2]
        for other in {0, 1, 2} - {dimension}:
            assert (z[row, :, other] == base[other]).all()


def test_traversals_of_another_prior_say_what_their_axis_is(batch):
    prior = functools.partial(MixtureOfGaussians, components=3)
    model = VAE(image_shape=(1, 8, 8), latent_dim=3, prior=prior)
    figure = FIGURES["traversals"](steps=5).draw(model, batch.x, None, None)
    assert figure.axes[0].get_xlabel().startswith("prior quantile")


def test_manifold_has_z0_to_the_right_and_z1_upwards(monkeypatch):
    from vae_lightning import plotting

    model = VAE(image_shape=(1, 8, 8), latent_dim=2)
    # An image that shows z: its left half is z_0, its right half z_1.
    monkeypatch.setattr(
        model,
        "decode",
        lambda z, label=None: (
            (0.5 + z / 6)[:, None, None, :].repeat_interleave(4, 3).expand(-1, 1, 8, 8)
        ),
    )
    shown = {}
    original = plotting.manifold
    monkeypatch.setattr(
        plotting,
        "manifold",
        lambda images, values, **kwargs: (
            shown.update(images=images, values=values) or original(images, values)
        ),
    )
    FIGURES["manifold"](n=4).draw(model, torch.empty(0), None, None)
    values = torch.tensor(shown["values"])
    expected = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(shown["images"][1, 3, 0, 0, 0], 0.5 + values[3] / 6)  # z_0 by column
    torch.testing.assert_close(shown["images"][1, 3, 0, 0, 7], 0.5 + values[1] / 6)  # z_1 by row


@pytest.mark.parametrize("name", FIGURES)
def test_bad_interval(name):
    with pytest.raises(ValueError, match=f"figures.{name}.every_n_epochs must be at least 1"):
        FIGURES[name](every_n_epochs=0)


def test_a_collapsed_codebook_has_a_gallery_of_one_code(batch):
    """Whatever the number of the code is."""
    model = VQVAE(image_shape=(1, 8, 8)).eval()
    model.quantizer.codebook.data.fill_(1e3)
    model.quantizer.codebook.data[300] = 0
    figure = FIGURES["code_gallery"]().draw(model, batch.x, None, None)
    said = [figure.get_suptitle(), *(text.get_text() for text in figure.findobj(Text))]
    assert any("What 1 code looks like" in text for text in said)


def test_what_lies_outside_an_image_is_no_part_of_a_code():
    from vae_lightning.figures.codes import _mean_parts

    x = torch.full((3, 1, 8, 8), 0.7)
    anywhere, in_one_corner = torch.zeros(2, 2, dtype=torch.long), torch.arange(4).view(2, 2)
    for codes in (anywhere, in_one_corner):
        number = int(codes.max()) + 1
        parts = _mean_parts(x, codes.expand(3, 2, 2), torch.full((number,), 12 // number))
        torch.testing.assert_close(parts, torch.full((number, 1, 8, 8), 0.7))


class Broken(Figure):
    name = "broken"

    def draw(self, model, x, label, class_names):
        raise IndexError("no such row")


def test_a_figure_that_fails_is_named_and_costs_nothing_else(blobs, tmp_path):
    figures = [FigureCallback(Broken()), FigureCallback(FIGURES["samples"]())]
    message = r"figures.broken could not be drawn in epoch 2 \(IndexError: no such row\)"
    with pytest.warns(UserWarning, match=message):
        lit = fit(tmp_path, VAE(image_shape=(1, 8, 8)), blobs(), figures)
    assert lit.trainer.current_epoch == 2
    assert drawn(tmp_path) == {"samples"}
