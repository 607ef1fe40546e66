import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vae_lightning
from vae_lightning import VAE
from vae_lightning.likelihoods import DiscretizedLogistic, Gaussian
from vae_lightning.nets import Decoder, MLPDecoder, MLPEncoder

MLP = {"encoder": MLPEncoder, "decoder": MLPDecoder}


class Start(pl.Callback):
    """Weights before the first step, and after loading a checkpoint."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


def fit(model, tmp_path, *data, ckpt_path=None, max_epochs=1, **kwargs):
    start = Start()
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[start],
    )
    trainer.fit(model, *data, ckpt_path=ckpt_path, weights_only=True, **kwargs)
    return trainer, start.state


@pytest.fixture
def image(blobs):
    data = blobs()
    data.setup("fit")
    return data.datasets["train"].images.x.double().mean(0).div(255).float()


def test_output_bias_is_the_logit_of_the_mean_image(blobs, image, tmp_path):
    model = VAE(image_shape=(1, 8, 8), start_at_mean=True, **MLP)
    _, state = fit(model, tmp_path, blobs())
    expected = (image / (1 - image)).log().flatten()
    *_, bias = (value for name, value in state.items() if name.startswith("decoder"))
    torch.testing.assert_close(bias, expected)
    assert not model.decoder.layers[-1].bias.equal(bias)  # trained after


@pytest.mark.parametrize("likelihood", [Gaussian, DiscretizedLogistic])
def test_images_start_at_the_mean_under_other_likelihoods(likelihood, blobs, image, tmp_path):
    model = VAE(image_shape=(1, 8, 8), start_at_mean=True, likelihood=likelihood, **MLP)
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)
    _, state = fit(model, tmp_path, blobs())
    model.load_state_dict(state)
    images = model.decode(torch.randn(3, model.latent_dim))
    torch.testing.assert_close(images, image.expand(3, -1, -1, -1))


def test_mean_is_that_of_the_binarised_images(blobs, tmp_path):
    data = blobs(pixels="threshold")
    model = VAE(image_shape=(1, 8, 8), start_at_mean=True, **MLP)
    _, state = fit(model, tmp_path, data)
    binary = (data.datasets["train"].images.x > 127).float().mean(0)
    expected = binary.clamp(0.001, 0.999).logit().flatten()
    torch.testing.assert_close(state["decoder.layers.4.bias"], expected)


def test_only_if_asked_for(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8))
    before = model.decoder.layers[-1].bias.clone()
    _, state = fit(model, tmp_path, blobs())
    assert state["decoder.layers.1.bias"].equal(before)


def test_a_resumed_training_goes_on_where_it_was(blobs, tmp_path):
    first, start = fit(VAE(image_shape=(1, 8, 8), start_at_mean=True, **MLP), tmp_path, blobs())
    first.save_checkpoint(tmp_path / "a.ckpt")
    model = VAE(image_shape=(1, 8, 8), start_at_mean=True, **MLP)
    _, resumed = fit(model, tmp_path, blobs(), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert not saved["decoder.layers.4.bias"].equal(start["decoder.layers.4.bias"])
    assert set(resumed) == set(saved)
    for name, value in saved.items():
        assert resumed[name].equal(value), name


def test_a_second_training_goes_on_where_the_first_was(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8), start_at_mean=True, **MLP)
    trainer, _ = fit(model, tmp_path, blobs())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trained = model.decoder.layers[-1].bias.detach().clone()
    for again in (model, vae_lightning.load(tmp_path / "a.ckpt").train()):
        _, state = fit(again, tmp_path, blobs())
        assert state["decoder.layers.4.bias"].equal(trained)


def test_evaluation_leaves_the_weights_alone(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8), start_at_mean=True, **MLP)
    trainer, _ = fit(model, tmp_path, blobs())
    trained = model.decoder.layers[-1].bias.clone()
    trainer.validate(model, blobs(), verbose=False)
    trainer.test(model, blobs(), verbose=False)
    assert model.decoder.layers[-1].bias.equal(trained)


class OtherData(pl.LightningDataModule):
    """A data module of somebody else."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(8, 1, 8, 8)))

    val_dataloader = train_dataloader


LOADER = OtherData().train_dataloader()


@pytest.mark.parametrize("data", [[OtherData()], [LOADER, LOADER]], ids=["module", "loaders"])
def test_data_without_a_mean_image(data, tmp_path):
    with pytest.raises(ValueError, match="start_at_mean needs data with a method mean_image"):
        fit(VAE(image_shape=(1, 8, 8), start_at_mean=True), tmp_path, *data)


class OtherDecoder(Decoder):
    """A decoder of somebody else."""

    def __init__(self, image_shape, features, condition_features=0) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z, condition=None):
        return (self.scale * z.mean(1)).view(-1, 1, 1, 1).expand(-1, *self.image_shape)


def test_decoder_that_cannot_start_anywhere(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8), decoder=OtherDecoder, start_at_mean=True)
    message = "OtherDecoder cannot start at the mean image.*: leave out start_at_mean"
    with pytest.raises(ValueError, match=message):
        fit(model, tmp_path, blobs())
