import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vae_lightning
from vae_lightning import VAE, checkpoint
from vae_lightning.distributions.likelihoods import DiscretizedLogistic, Gaussian
from vae_lightning.nets import Decoder, MLPDecoder, MLPEncoder
from vae_lightning.training.module import LitVAE

MLP = {"encoder": MLPEncoder, "decoder": MLPDecoder}


class Start(pl.Callback):
    """Weights before the first step, and after loading a checkpoint."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.state = {name: value.clone() for name, value in pl_module.model.state_dict().items()}


def fit(model, tmp_path, *data, ckpt_path=None, max_epochs=1):
    """Train a model, or a `LitVAE`; return the trainer and the model's weights at the start."""
    start = Start()
    lit = model if isinstance(model, LitVAE) else LitVAE(model)
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
    trainer.fit(lit, *data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, start.state


@pytest.fixture
def image(blobs):
    data = blobs()
    data.setup("fit")
    return data.datasets["train"].images.x.double().mean(0).div(255).float()


def test_output_bias_is_the_logit_of_the_mean_image(blobs, image, tmp_path):
    model = VAE(image_shape=(1, 8, 8), init_bias_from_data=True, **MLP)
    _, state = fit(model, tmp_path, blobs())
    expected = (image / (1 - image)).log().flatten()
    *_, bias = (value for name, value in state.items() if name.startswith("decoder"))
    torch.testing.assert_close(bias, expected)
    assert not model.decoder.layers[-1].bias.equal(bias)  # trained after


@pytest.mark.parametrize("likelihood", [Gaussian, DiscretizedLogistic])
def test_images_start_at_the_mean_under_other_likelihoods(likelihood, blobs, image, tmp_path):
    model = VAE(image_shape=(1, 8, 8), init_bias_from_data=True, likelihood=likelihood, **MLP)
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)
    _, state = fit(model, tmp_path, blobs())
    model.load_state_dict(state)
    images = model.decode(torch.randn(3, model.latent_dim))
    torch.testing.assert_close(images, image.expand(3, -1, -1, -1))


def test_mean_is_that_of_the_binarized_images(blobs, tmp_path):
    data = blobs(binarization="threshold")
    model = VAE(image_shape=(1, 8, 8), init_bias_from_data=True, **MLP)
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
    first, start = fit(
        VAE(image_shape=(1, 8, 8), init_bias_from_data=True, **MLP), tmp_path, blobs()
    )
    first.save_checkpoint(tmp_path / "a.ckpt")
    model = VAE(image_shape=(1, 8, 8), init_bias_from_data=True, **MLP)
    _, resumed = fit(model, tmp_path, blobs(), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    saved = checkpoint.read(tmp_path / "a.ckpt").weights
    assert not saved["decoder.layers.4.bias"].equal(start["decoder.layers.4.bias"])
    assert set(resumed) == set(saved)
    for name, value in saved.items():
        assert resumed[name].equal(value), name


def test_a_second_training_goes_on_where_the_first_was(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8), init_bias_from_data=True, **MLP)
    lit = LitVAE(model)
    trainer, _ = fit(lit, tmp_path, blobs())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trained = model.decoder.layers[-1].bias.detach().clone()
    for again in (lit, vae_lightning.load(tmp_path / "a.ckpt").train()):
        _, state = fit(again, tmp_path, blobs())
        assert state["decoder.layers.4.bias"].equal(trained)


def test_evaluation_leaves_the_weights_alone(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8), init_bias_from_data=True, **MLP)
    lit = LitVAE(model)
    trainer, _ = fit(lit, tmp_path, blobs())
    trained = model.decoder.layers[-1].bias.clone()
    trainer.validate(lit, blobs(), verbose=False)
    trainer.test(lit, blobs(), verbose=False)
    assert model.decoder.layers[-1].bias.equal(trained)


class OtherData(pl.LightningDataModule):
    """A data module of somebody else, with labels or without."""

    def __init__(self, labels=False) -> None:
        super().__init__()
        self.x = torch.rand(8, 1, 8, 8)
        self.dataset = TensorDataset(self.x, torch.arange(8) % 4) if labels else self.x

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=3)

    val_dataloader = train_dataloader


@pytest.mark.parametrize("labels", [False, True])
def test_mean_image_of_other_data(labels, tmp_path):
    data = OtherData(labels)
    _, state = fit(VAE(image_shape=(1, 8, 8), init_bias_from_data=True, **MLP), tmp_path, data)
    torch.testing.assert_close(state["decoder.layers.4.bias"], data.x.mean(0).logit().flatten())


def test_loaders_without_a_data_module(tmp_path):
    loader = OtherData().train_dataloader()
    with pytest.raises(ValueError, match=r"give the data to Trainer\.fit as a LightningDataModule"):
        fit(VAE(image_shape=(1, 8, 8), init_bias_from_data=True), tmp_path, loader, loader)


class OtherDecoder(Decoder):
    """A decoder of somebody else."""

    def __init__(self, image_shape, in_features, cond_features=0) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z, condition=None):
        return (self.scale * z.mean(1)).view(-1, 1, 1, 1).expand(-1, *self.image_shape)


def test_decoder_that_cannot_start_anywhere(blobs, tmp_path):
    model = VAE(image_shape=(1, 8, 8), decoder=OtherDecoder, init_bias_from_data=True)
    message = "OtherDecoder cannot start at the mean image.*: leave out init_bias_from_data"
    with pytest.raises(ValueError, match=message):
        fit(model, tmp_path, blobs())
