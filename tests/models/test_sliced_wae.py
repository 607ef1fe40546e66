"""The sliced Wasserstein autoencoder; the distance itself is tested in test_discrepancies."""

import math

import pytest
import torch

from vae_lightning import SlicedWAE
from vae_lightning.discrepancies import random_directions, squared_sliced_wasserstein
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import GaussianPosterior
from vae_lightning.models.capabilities import Capability
from vae_lightning.randomness import Noise


def model(**kwargs) -> SlicedWAE:
    return SlicedWAE(**{"image_shape": (1, 8, 8), "latent_dim": 3, "num_classes": 4, **kwargs})


def test_terms_are_those_of_one_latent_and_one_draw_of_the_prior_per_image(batch):
    """Projected in float64, on directions that are a function of the noise."""
    swae = model(sliced_weight=20.0, num_directions=7)
    terms = swae.terms(batch.x, None, Noise(batch.indices, "test"))
    z = swae.encoder(batch.x)
    noise = Noise(batch.indices, "test")
    prior = torch.randn(16, 3, generator=noise.generator("prior"))
    directions = torch.randn(7, 3, generator=noise.generator("directions")).double()
    directions = directions / directions.square().sum(1, keepdim=True).sqrt()
    expected = 0.0
    for direction in directions:
        ours, theirs = (sorted((sample.double() @ direction).tolist()) for sample in (z, prior))
        expected += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / 16 / 7
    assert terms.sliced_wasserstein.shape == ()
    assert terms.sliced_wasserstein.item() == pytest.approx(expected, rel=1e-5)
    reconstruction = -swae.likelihood.log_prob(swae.decoder(z), batch.x)
    torch.testing.assert_close(terms.reconstruction, reconstruction)
    torch.testing.assert_close(swae.objective(terms), reconstruction + 20 * expected)


def test_the_reconstruction_is_the_mean_over_draws_and_the_distance_that_of_the_first(batch):
    swae = model(posterior=GaussianPosterior, num_samples=3)
    terms = swae.terms(batch.x, None, Noise(batch.indices, "test"))
    z = swae.posterior(batch.x).rsample(Noise(batch.indices, "test"), 3).z
    torch.testing.assert_close(terms.reconstruction, -swae.log_likelihood(batch.x, z).mean(1))
    noise = Noise(batch.indices, "test")
    prior = torch.randn(16, 3, generator=noise.generator("prior"))
    directions = random_directions(50, 3, noise.generator("directions"))
    expected = squared_sliced_wasserstein(z[:, 0], prior, directions)
    torch.testing.assert_close(terms.sliced_wasserstein, expected)


def test_directions_are_drawn_anew_for_each_batch(batch):
    swae = model(num_directions=1).eval()
    values = {
        swae.terms(batch.x, None, Noise(batch.indices, "test", step)).sliced_wasserstein.item()
        for step in range(4)
    }
    assert len(values) == 4


def test_objective_pulls_latents_to_the_prior():
    """Free latents far away and too narrow, which start to follow a mixture of two."""

    class Two(MixtureOfGaussians):
        def __init__(self, latent_dim, cond_features=0) -> None:
            super().__init__(latent_dim, cond_features, components=2)
            self.mu.data = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
            self.requires_grad_(False)

    swae = SlicedWAE(image_shape=(1, 8, 8), latent_dim=2, prior=Two)
    z = torch.nn.Parameter(3 + 0.2 * torch.randn(128, 2))
    swae.encoder.forward = lambda x, condition=None: z
    x = torch.rand(128, 1, 8, 8)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for step in range(120):
        optimizer.zero_grad()
        terms = swae.terms(x, None, Noise(torch.arange(128), step))
        terms.sliced_wasserstein.backward()
        optimizer.step()
    assert z.mean(0).abs().max() < 0.3
    expected = torch.tensor([math.sqrt(5), 1.0])  # of two unit Gaussians at 2 and -2
    torch.testing.assert_close(z.std(0), expected, rtol=0.2, atol=0)


def test_a_gaussian_encoder_has_a_density():
    assert not model().has(Capability.DENSITY)
    assert model(posterior=GaussianPosterior).has(Capability.DENSITY)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sliced_weight": -1.0}, "sliced_weight must not be negative"),
        ({"sliced_weight": math.nan}, "sliced_weight must not be negative"),
        ({"num_directions": 0}, "num_directions must be positive, got 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
