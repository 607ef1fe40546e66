"""An autoencoder without a prior: what it refuses, and samples from a density of its latents."""

import functools

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning import Autoencoder, explore
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import GaussianPosterior
from vae_lightning.explore.densities import draw_latents, fit_density
from vae_lightning.explore.traversal import traverse
from vae_lightning.metrics import METRICS
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE


def model(**kwargs) -> Autoencoder:
    return Autoencoder(**{"image_shape": (1, 8, 8), "latent_dim": 3, "num_classes": 4, **kwargs})


def test_objective_is_the_reconstruction(batch):
    ae = model()
    terms = ae.terms(batch.x, None, Noise(batch.indices))
    expected = -ae.likelihood.log_prob(ae.decoder(ae.encoder(batch.x)), batch.x)
    torch.testing.assert_close(terms.reconstruction, expected)
    assert ae.objective(terms).equal(terms.reconstruction)
    assert set(terms.as_dict()) == {"reconstruction"}


def test_there_is_no_noise(batch):
    ae = model().eval()
    first, second = (
        ae.terms(batch.x, None, Noise(batch.indices, seed)).reconstruction for seed in (1, 2)
    )
    assert first.equal(second)


def test_the_classes_reach_both_networks(batch):
    ae = model(conditional=True)
    condition = ae.encode_labels(batch.y, 16)
    terms = ae.terms(batch.x, condition, Noise(batch.indices))
    params = ae.decoder(ae.encoder(batch.x, condition), condition)
    torch.testing.assert_close(terms.reconstruction, -ae.likelihood.log_prob(params, batch.x))


@pytest.mark.parametrize("sample", [lambda m: m.sample(2), lambda m: explore.sample(m, 2)])
def test_samples_are_refused_with_what_to_do(sample):
    with pytest.raises(MissingCapabilityError) as error:
        sample(model())
    assert error.value.capability is Capability.SAMPLES
    assert "this Autoencoder has no prior to draw samples from; fit a density" in str(error.value)
    assert "vae density fit" in str(error.value)
    with pytest.raises(MissingCapabilityError, match="vae density fit"):
        model().sample_latents(2, None, None)


def test_it_has_no_density_but_a_latent_vector():
    ae = model()
    assert not ae.has(Capability.DENSITY)
    assert not ae.has(Capability.SAMPLES)
    assert not ae.has(Capability.KL_PER_DIMENSION)
    assert ae.has(Capability.LATENT_VECTOR, Capability.CONTINUOUS_LATENT)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_fitted_density_makes_samples_possible(batch, conditional):
    ae = model(conditional=conditional)
    label = batch.y if conditional else None
    z = draw_latents(ae, batch.x, label)
    assert z.equal(ae.embed(batch.x, label))
    density = fit_density(
        "gmm", z, label, num_classes=4 if conditional else 0, components=1, seed=0
    )
    images = explore.sample(ae, 6, density=density)
    assert images.shape == (6, 1, 8, 8)
    labels = torch.arange(6) % 4 if conditional else None
    latents = density.sample(6, labels, explore.sampling.generator(0, "sample"))
    torch.testing.assert_close(images, ae.decode(latents, labels))


def test_quantiles_are_those_of_the_latents_seen_in_training(batch):
    """At first as those of N(0, 1), then of a moving average over the batches."""
    ae = model().train()
    p = torch.tensor([0.1, 0.5, 0.975])
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(ae.latent_quantiles(p)[:, 1], normal.icdf(p))
    ae.terms(batch.x, None, Noise(batch.indices))
    z = ae.encoder(batch.x).detach()
    torch.testing.assert_close(ae.latent_mean, z.mean(0))
    torch.testing.assert_close(ae.latent_variance, z.var(0, correction=0))
    for d in range(3):
        expected = torch.distributions.Normal(z[:, d].mean(), z[:, d].std(correction=0)).icdf(p)
        torch.testing.assert_close(ae.latent_quantiles(p)[:, d], expected, rtol=1e-4, atol=1e-6)
    ae.step = 1  # the mean of two batches
    before = ae.latent_mean.clone()
    ae.terms(1 - batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(ae.latent_mean, (before + ae.encoder(1 - batch.x).mean(0)) / 2)
    ae.step = 10_000
    before = ae.latent_mean.clone()
    ae.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(ae.latent_mean, before + 0.01 * (z.mean(0) - before))
    before = ae.latent_mean.clone()
    ae.eval().terms(1 - batch.x, None, Noise(batch.indices))
    assert ae.latent_mean.equal(before)


def test_traversals_reach_the_latents(batch):
    """Of a model with large latents, whose values N(0, 1) would not reach."""
    ae = model().train()
    ae.encoder.head.weight.data.mul_(200)
    ae.terms(batch.x, None, Noise(batch.indices))
    z = ae.embed(batch.x)
    made = traverse(ae, z[0], [0], steps=3, limit=2.0)
    moved = z[0].repeat(3, 1)
    center, scale = z[:, 0].mean(), z[:, 0].std(correction=0)
    moved[:, 0] = torch.stack([center - 2 * scale, center, center + 2 * scale])
    assert scale > 3
    torch.testing.assert_close(made.images[0], ae.decode(moved), rtol=1e-3, atol=1e-4)


def test_a_report_has_no_densities(blobs, tmp_path):
    run = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[metric() for metric in METRICS.values()],
    )
    tested = run.test(LitVAE(model()), datamodule=blobs(), verbose=False)[0]
    assert {"test/loss", "test/reconstruction", "test/active_units"} <= set(tested)
    for name in tested:
        assert not any(word in name for word in ("likelihood", "importance", "kl", "elbo")), name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"prior": functools.partial(MixtureOfGaussians, components=2)},
            "has no prior, so MixtureOfGaussians has no effect",
        ),
        ({"posterior": GaussianPosterior}, "deterministic encoder, not a GaussianPosterior"),
        ({"num_samples": 2}, "num_samples has no effect on Autoencoder"),
    ],
)
def test_parts_that_would_have_no_effect_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
