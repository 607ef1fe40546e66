"""The categorical VAE as a whole: training relaxed, everything else exact."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.distributions import Independent, OneHotCategorical, kl_divergence

from vae_lightning import CategoricalVAE, load
from vae_lightning.models.capabilities import Capability
from vae_lightning.randomness import Noise
from vae_lightning.schedules import Constant, ExponentialDecay
from vae_lightning.training.module import LitVAE


def model(**kwargs) -> CategoricalVAE:
    options = {"image_shape": (1, 8, 8), "num_variables": 4, "num_categories": 3}
    return CategoricalVAE(**{**options, **kwargs})


def trainer(folder, **kwargs) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def test_parts_have_the_sizes_of_the_model():
    vae = model(temperature=0.7, schedule=Constant)
    assert vae.latent_dim == 12
    assert vae.prior.num_categories == vae.posterior_family.num_categories == 3
    assert vae.prior.num_variables == 4
    assert vae.posterior_family.temperature == 0.7
    assert isinstance(vae.posterior_family.schedule, Constant)


def test_kl_is_exact_in_training_and_evaluation(batch):
    vae = model(num_samples=2)
    logits = vae.encoder(batch.x).view(16, 4, 3)
    expected = kl_divergence(
        OneHotCategorical(logits=logits), OneHotCategorical(logits=torch.zeros(3))
    )
    for mode in (True, False):
        terms = vae.train(mode).terms(batch.x, None, Noise(batch.indices))
        torch.testing.assert_close(terms.kl, expected.sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(vae.latent_kl(batch.x), expected, rtol=1e-4, atol=1e-6)


def test_training_decodes_relaxed_draws_and_evaluation_one_hot_vectors(batch):
    vae = model()
    seen = []
    vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    vae.train().terms(batch.x, None, Noise(batch.indices))
    vae.eval().terms(batch.x, None, Noise(batch.indices))
    relaxed, exact = (z.view(16, 4, 3) for z in seen)
    torch.testing.assert_close(relaxed.sum(2), torch.ones(16, 4))
    assert relaxed.amax(2).max() < 1
    assert ((exact == 0) | (exact == 1)).all()
    assert exact.argmax(2).equal(relaxed.argmax(2))  # the same noise


def test_log_prob_is_the_mean_of_importance_weights(batch):
    vae, x = model(), batch.x.round()
    found = vae.train().log_prob(x, num_samples=30, seed=5)
    assert vae.training
    vae.eval()
    with torch.no_grad():
        z = vae.posterior(x).rsample(Noise(torch.arange(16), 5, "log_prob"), 30).z
        logits = vae.encoder(x).view(16, 1, 4, 3).double()
        log_q = Independent(OneHotCategorical(logits=logits), 1).log_prob(z.view(16, 30, 4, 3))
        weights = vae.log_likelihood(x, z).double() - 4 * math.log(3) - log_q
    torch.testing.assert_close(found, weights.logsumexp(1) - math.log(30), rtol=1e-5, atol=1e-4)


def test_inference_is_discrete(batch):
    vae = model()
    z = vae.embed(batch.x)
    assert z.view(16, 4, 3).argmax(2).equal(vae.encoder(batch.x).view(16, 4, 3).argmax(2))
    assert z.view(16, 4, 3).sum(2).eq(1).all()
    assert vae.reconstruct(batch.x).equal(vae.decode(z))
    assert vae.sample(5).shape == (5, 1, 8, 8)
    assert not vae.has(Capability.CONTINUOUS_LATENT)
    assert vae.has(Capability.DENSITY, Capability.KL_PER_DIMENSION, Capability.SAMPLES)


class Keeping(ExponentialDecay):
    """Keeps the steps at which it was asked."""

    def __init__(self) -> None:
        super().__init__(rate=0.1)
        self.asked = []

    def __call__(self, step):
        self.asked.append(step)
        return super().__call__(step)


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_temperature_follows_the_batches_of_the_training(blobs, tmp_path, steps_per_call):
    """And of no validation, which relaxes nothing."""
    vae = model(schedule=Keeping)
    vae.posterior_family.schedule.asked.clear()
    lit = LitVAE(vae, steps_per_call=steps_per_call)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(lit, datamodule=blobs())
    asked = vae.posterior_family.schedule.asked
    assert asked == list(range(8))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = model(schedule=Keeping)
    again.posterior_family.schedule.asked.clear()
    lit = LitVAE(again, steps_per_call=steps_per_call)
    trainer(tmp_path, max_epochs=3).fit(
        lit, datamodule=blobs(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert again.posterior_family.schedule.asked == list(range(8, 12))


def test_training_learns_to_reconstruct_with_one_hot_vectors(blobs, batch, tmp_path):
    """The class of a blob is in the latent: reconstructions are nearer than the mean image."""
    vae = model(num_variables=3, num_categories=4)
    lit = LitVAE(vae, optimizer=functools.partial(torch.optim.Adam, lr=5e-3))
    trainer(tmp_path, max_epochs=25, limit_val_batches=0).fit(lit, datamodule=blobs())
    error = (vae.reconstruct(batch.x) - batch.x).square().mean()
    assert error < 0.5 * (batch.x.mean(0) - batch.x).square().mean()


def test_is_saved_and_loaded(blobs, batch, tmp_path):
    schedule = functools.partial(ExponentialDecay, rate=0.01, minimum=0.25)
    vae = model(temperature=2.0, schedule=schedule)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(LitVAE(vae), datamodule=blobs())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load(tmp_path / "a.ckpt")
    assert isinstance(loaded, CategoricalVAE)
    family = loaded.posterior_family
    assert (family.temperature, family.schedule.rate, family.schedule.minimum) == (2.0, 0.01, 0.25)
    assert loaded.log_prob(batch.x).equal(vae.log_prob(batch.x))


@pytest.mark.parametrize("conditional", [False, True])
def test_every_parameter_gets_a_gradient(batch, conditional):
    vae = model(conditional=conditional, num_classes=4)
    condition = vae.encode_labels(batch.y if conditional else None, 16)
    vae.objective(vae.terms(batch.x, condition, Noise(batch.indices))).mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
