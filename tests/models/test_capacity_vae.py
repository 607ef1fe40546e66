"""The distance of the KL term from a capacity, which grows."""

import functools
import math

import pytest
import torch

from vae_lightning import VAE, CapacityVAE
from vae_lightning.distributions.zuko_flows import IAFPosterior
from vae_lightning.randomness import Noise
from vae_lightning.schedules import LinearWarmup


def model(**kwargs) -> CapacityVAE:
    made = CapacityVAE(**{"image_shape": (1, 8, 8), "latent_dim": 3, **kwargs})
    with torch.no_grad():  # KL terms that differ between images
        made.encoder.head.weight.mul_(10)
    return made


def test_objective_is_the_distance_of_each_image(batch):
    """On both sides of the capacity, which is among the KL terms of the images."""
    vae = model(gamma=7.0)
    terms = vae.terms(batch.x, None, Noise(batch.indices))
    vae.capacity = float(terms.kl.detach().median())
    distances = [7 * abs(kl - vae.capacity) for kl in terms.kl.double().tolist()]
    expected = terms.reconstruction.double() + torch.tensor(distances).double()
    torch.testing.assert_close(vae.objective(terms).double(), expected, rtol=1e-5, atol=1e-4)
    assert (terms.kl > vae.capacity).any()
    assert (terms.kl < vae.capacity).any()
    # The mean over the batch is another quantity.
    mean = (terms.kl.mean() - vae.capacity).abs()
    assert not vae.objective(terms).mean().allclose(terms.reconstruction.mean() + 7 * mean)


def test_gradient_pushes_the_kl_to_the_capacity_from_both_sides(batch):
    vae = model(gamma=7.0)
    for capacity, sign in ((0.0, 1.0), (1000.0, -1.0)):
        vae.capacity = capacity
        terms = vae.terms(batch.x, None, Noise(batch.indices))
        (gradient,) = torch.autograd.grad(vae.objective(terms).sum(), terms.kl)
        assert gradient.eq(7 * sign).all()


def test_capacity_grows_in_training_and_is_whole_in_evaluation(batch):
    schedule = functools.partial(LinearWarmup, steps=100)
    vae = model(gamma=2.0, capacity=30.0, schedule=schedule).train()
    terms = vae.terms(batch.x, None, Noise(batch.indices))
    for step, capacity in ((0, 0.0), (25, 7.5), (100, 30.0), (1000, 30.0)):
        vae.step = step
        expected = terms.reconstruction + 2 * (terms.kl - capacity).abs()
        torch.testing.assert_close(vae.objective(terms), expected)
    vae.step = 0
    expected = terms.reconstruction + 2 * (terms.kl - 30).abs()
    torch.testing.assert_close(vae.eval().objective(terms), expected)


def test_training_reaches_the_capacity(batch):
    vae = model(gamma=100.0, capacity=6.0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    for step in range(100):
        optimizer.zero_grad()
        terms = vae.terms(batch.x, None, Noise(batch.indices, step))
        vae.objective(terms).mean().backward()
        optimizer.step()
    assert (terms.kl - 6).abs().max() < 1.5


def test_the_reported_bound_is_that_of_the_plain_vae(batch):
    capacity, vae = model(), VAE(image_shape=(1, 8, 8), latent_dim=3)
    vae.load_state_dict(capacity.state_dict())
    ours, theirs = (m.terms(batch.x, None, Noise(batch.indices)) for m in (capacity, vae))
    assert ours.negative_elbo.equal(theirs.negative_elbo)


@pytest.mark.parametrize("kwargs", [{"gamma": -1.0}, {"capacity": -1.0}, {"capacity": math.nan}])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))} must not be negative"):
        model(**kwargs)


def test_an_estimated_kl_is_refused():
    with pytest.raises(ValueError, match="no closed form for IAFPosterior and StandardNormal"):
        CapacityVAE(posterior=IAFPosterior, image_shape=(1, 8, 8), latent_dim=2)
