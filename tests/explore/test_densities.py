"""Densities of latents: against scikit-learn, closed forms and integrals."""

import math

import pytest
import torch
from sklearn.mixture import GaussianMixture

from vae_lightning import VAE, VQVAE, WAE, HierarchicalVAE, explore
from vae_lightning.errors import UserError
from vae_lightning.explore.densities import (
    DENSITIES,
    GaussianMixtureDensity,
    draw_latents,
    fit_density,
    load_density,
    save_density,
)
from vae_lightning.models.capabilities import MissingCapabilityError
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise, generator

MLP = {"image_shape": (1, 4, 4), "encoder": MLPEncoder, "decoder": MLPDecoder}
FAST = {
    "gmm": {"components": 6},
    "flow": {"transforms": 2, "hidden": (32,), "max_epochs": 30, "learning_rate": 1e-2},
    "vae": {"hidden": (64,), "max_epochs": 60, "learning_rate": 3e-3},
}


@pytest.fixture(scope="module")
def banana():
    """A curved distribution, far from a normal one, whose density is known."""
    made = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=made)
    return torch.stack([4 * z[:, 0] + 2, z[:, 0].square() * 2 + 0.7 * z[:, 1] - 1], 1)


@pytest.fixture(scope="module")
def blobs_of_classes():
    """Two separate blobs and which of them each point is in."""
    made = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 2, generator=made) * torch.tensor([0.5, 2.0])
    side = torch.randint(2, (4000,), generator=made)
    z[:, 0] += torch.where(side == 1, 6.0, -2.0)
    return z, side


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSITIES)
def test_beats_a_normal_distribution_and_integrates_to_one(name, banana):
    z = banana
    density = fit_density(name, z, **FAST[name])
    normal = torch.distributions.MultivariateNormal(z.mean(0), z.T.cov()).log_prob(z).mean()
    assert density.log_prob(z[:1000]).mean() > normal + 0.4
    grid = torch.cartesian_prod(torch.linspace(-18, 22, 300), torch.linspace(-8, 32, 300))
    integral = density.log_prob(grid).exp().sum().item() * (40 / 299) ** 2
    assert integral == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_follow_the_density(name, banana):
    z = banana
    density = fit_density(name, z, **FAST[name])
    drawn = density.sample(4000, generator=generator(1, "test"))
    shares = torch.tensor([0.1, 0.5, 0.9])
    shift = (drawn.quantile(shares, 0) - z.quantile(shares, 0)) / z.std(0)
    assert shift.abs().max() < 0.35
    # The log-density of its own samples is minus its entropy: the same as of the data it fits.
    assert density.log_prob(drawn).mean().item() == pytest.approx(
        density.log_prob(z).mean().item(), abs=0.3
    )
    again = density.sample(4000, generator=generator(1, "test"))
    assert again.equal(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSITIES)
def test_given_the_class(name, blobs_of_classes):
    z, side = blobs_of_classes
    density = fit_density(name, z, side, num_classes=2, **FAST[name])
    left = density.sample(500, torch.zeros(500, dtype=torch.int64), generator(0, "a"))
    right = density.sample(500, torch.ones(500, dtype=torch.int64), generator(0, "a"))
    assert left[:, 0].mean() < 0 < 4 < right[:, 0].mean()
    assert (density.log_prob(z, side) > density.log_prob(z, 1 - side)).float().mean() > 0.95
    with pytest.raises(ValueError, match="given one of 2 classes"):
        density.sample(3)
    with pytest.raises(ValueError, match="give no label"):
        fit_density(name, z, **FAST[name]).log_prob(z, side)


@pytest.mark.parametrize("name", DENSITIES)
def test_the_seed_is_all_that_matters(name, blobs_of_classes):
    z, _ = blobs_of_classes
    torch.manual_seed(1)
    first = fit_density(name, z[:600], seed=3, **FAST[name])
    before = torch.get_rng_state()
    torch.manual_seed(2)
    second = fit_density(name, z[:600], seed=3, **FAST[name])
    for key, value in first.state_dict().items():
        assert value.equal(second.state_dict()[key]), key
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(before)


def test_the_mixture_is_that_of_scikit_learn(blobs_of_classes):
    z, _ = blobs_of_classes
    density = GaussianMixtureDensity(2, components=3)
    density.fit(z, seed=5)
    scaled = (z - z.mean(0)) / z.std(0)
    made = GaussianMixture(3, random_state=5, max_iter=300).fit(scaled.double().numpy())
    expected = torch.from_numpy(made.score_samples(scaled.double().numpy()))
    expected = expected - z.std(0).log().sum()
    assert density.log_prob(z).double().allclose(expected, atol=1e-4)


def test_one_gaussian_is_the_maximum_likelihood_fit(blobs_of_classes):
    z, _ = blobs_of_classes
    density = fit_density("gmm", z, components=1)
    cov = (z - z.mean(0)).T @ (z - z.mean(0)) / len(z)
    exact = torch.distributions.MultivariateNormal(z.mean(0), cov)
    assert density.log_prob(z).allclose(exact.log_prob(z), atol=1e-3)


def test_latents_are_draws_from_the_posterior():
    model = VAE(latent_dim=3, **MLP)
    x = torch.rand(5, 1, 4, 4)
    z = draw_latents(model, x, seed=2)
    with model.inference():
        q = model.posterior(x)
        expected = q.rsample(Noise(torch.arange(5), 2, "density"), 1).z[:, 0]
    assert z.equal(expected)
    # The noise belongs to the image, not to the batch.
    assert draw_latents(model, x[3:4], indices=torch.tensor([3]), seed=2).allclose(z[3:4])
    deterministic = WAE(latent_dim=3, **MLP)
    assert draw_latents(deterministic, x).equal(deterministic.embed(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: VQVAE(image_shape=(1, 8, 8)), "has no continuous latent vector"),
        (lambda: HierarchicalVAE(**MLP), "no continuous latent vector|one latent vector per image"),
    ],
    ids=["vq", "hierarchy"],
)
def test_models_without_one_continuous_vector(model, message):
    made = model()
    with pytest.raises((MissingCapabilityError, UserError), match=message):
        draw_latents(made, torch.rand(2, *made.image_shape))


def test_samples_of_a_model_use_the_density():
    torch.manual_seed(0)
    model = WAE(latent_dim=2, **MLP)
    z = torch.tensor([3.0, -5.0]) + 0.01 * torch.randn(200, 2)
    density = fit_density("gmm", z, components=1)
    images = explore.sample(model, 6, density=density, seed=1)
    expected = model.decode(density.sample(6, generator=generator(1, "sample")))
    assert images.allclose(expected, atol=1e-6)
    assert images.allclose(model.decode(z.mean(0, keepdim=True)), atol=0.02)
    with pytest.raises(ValueError, match="temperature is defined for samples from a normal"):
        explore.sample(model, 6, density=density, temperature=0.5)


def test_samples_of_a_conditional_model_use_the_density_of_their_class():
    torch.manual_seed(0)
    model = VAE(latent_dim=2, conditional=True, num_classes=2, **MLP)
    label = torch.arange(2).repeat(100)
    z = torch.stack([label * 8.0, -label * 4.0], 1) + 0.01 * torch.randn(200, 2)
    density = fit_density("gmm", z, label, num_classes=2, components=1)
    images = explore.sample(model, 2, torch.tensor([1, 0]), density=density)
    centers = torch.tensor([[8.0, -4.0], [0.0, 0.0]])
    assert images.allclose(model.decode(centers, torch.tensor([1, 0])), atol=0.02)


@pytest.mark.parametrize("name", DENSITIES)
def test_files_hold_the_density_and_belong_to_a_model(name, blobs_of_classes, tmp_path):
    z, side = blobs_of_classes
    model = VAE(latent_dim=2, **MLP)
    density = fit_density(name, z[:600], side[:600], num_classes=2, **FAST[name])
    save_density(density, tmp_path / "a.pt", model)
    again = load_density(tmp_path / "a.pt", model)
    assert type(again) is type(density)
    assert again.log_prob(z, side).equal(density.log_prob(z, side))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(UserError, match="latents of another model, or before it was trained"):
        load_density(tmp_path / "a.pt", model)


def test_files_that_are_no_densities(tmp_path):
    model = VAE(latent_dim=2, **MLP)
    with pytest.raises(UserError, match=r"no density at .*fit one with vae density fit"):
        load_density(tmp_path / "none.pt", model)
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": 1}, tmp_path / "other.pt")
    torch.save(model, tmp_path / "pickled.pt")
    for name in ("text", "other", "pickled"):
        with pytest.raises(UserError, match=f"{name}.pt is no density, or is damaged"):
            load_density(tmp_path / f"{name}.pt", model)


@pytest.mark.parametrize(
    ("name", "z", "settings", "message"),
    [
        ("gmm", torch.randn(5, 2), {}, "10 components need at least as many latents"),
        ("gmm", torch.randn(5, 2), {"components": 0}, "components must be positive"),
        ("gmm", torch.full((5, 2), math.nan), {}, "NaN or infinite"),
        ("flow", torch.randn(50, 1), {}, "at least two latent dimensions"),
        ("vae", torch.randn(1, 2), {}, "at least two latents"),
        ("kde", torch.randn(5, 2), {}, "no density 'kde': use one of gmm, flow, vae"),
    ],
)
def test_wrong_arguments(name, z, settings, message):
    with pytest.raises((ValueError, UserError), match=message):
        fit_density(name, z, **settings)
