"""The limited KL term, by loops in float64."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vae_lightning import VAE, FreeBitsVAE
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.models.free_bits_vae import limited_kl
from vae_lightning.randomness import Noise


def model(**kwargs) -> FreeBitsVAE:
    made = FreeBitsVAE(**{"image_shape": (1, 8, 8), "latent_dim": 4, **kwargs})
    with torch.no_grad():  # KL terms that differ between images and dimensions
        made.encoder.head.weight[:2].mul_(10)
    return made


@pytest.mark.parametrize("groups", [None, 4, 2, 1])
def test_objective_is_that_of_the_paper(batch, groups):
    """For a lambda between the KL terms of the groups."""
    vae = model(groups=groups)
    q = vae.posterior(batch.x)
    exact = Normal(q.mu.double(), (0.5 * q.log_var.double()).exp())
    kl = kl_divergence(exact, Normal(torch.zeros(4).double(), 1)).detach()
    size = 4 // (groups or 4)
    of_group = [
        sum(float(kl[n, j]) for n in range(16) for j in range(first, first + size)) / 16
        for first in range(0, 4, size)
    ]
    vae.free_bits = sum(of_group) / len(of_group) if len(of_group) > 1 else 2 * of_group[0]
    terms = vae.terms(batch.x, None, Noise(batch.indices, "test"))
    expected = sum(max(vae.free_bits, value) for value in of_group)
    assert expected > sum(of_group)
    assert terms.limited_kl.shape == ()
    assert terms.limited_kl.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(vae.objective(terms), terms.reconstruction + expected)
    torch.testing.assert_close(terms.kl.double(), kl.sum(1), rtol=1e-5, atol=1e-5)


def test_the_limit_is_one_of_the_mean_over_the_batch():
    """Not of each image: here, the mean is 1, while the larger values would have a mean of 1.25."""
    kl = torch.tensor([[0.0], [2.0]])
    assert limited_kl(kl, 0.5, 1).item() == 1.0


def test_groups_below_the_limit_have_no_gradient():
    kl = torch.tensor([[0.1, 3.0], [0.3, 1.0]], requires_grad=True)
    limited_kl(kl, 0.5, 2).backward()
    assert kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]


def test_without_free_bits_it_is_the_vae(batch):
    """Of the mean over the batch, since the KL term of the mean is that of all images."""
    ours, theirs = model(free_bits=0.0), VAE(image_shape=(1, 8, 8), latent_dim=4)
    theirs.load_state_dict(ours.state_dict())
    terms = [m.terms(batch.x, None, Noise(batch.indices)) for m in (ours, theirs)]
    assert terms[0].negative_elbo.equal(terms[1].negative_elbo)
    losses = [m.objective(t).mean() for m, t in zip((ours, theirs), terms, strict=True)]
    torch.testing.assert_close(losses[0], losses[1])


def test_the_reported_bound_counts_every_nat(batch):
    vae = model(free_bits=5.0)
    terms = vae.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(terms.negative_elbo, terms.reconstruction + terms.kl)
    assert terms.limited_kl >= 20


def test_a_prior_without_a_closed_form_is_refused():
    with pytest.raises(ValueError, match=r"no closed form for GaussianPosterior and MixtureOf"):
        model(prior=MixtureOfGaussians)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"free_bits": -1.0}, "free_bits must not be negative"),
        ({"free_bits": math.nan}, "free_bits must not be negative"),
        ({"groups": 3}, "groups must divide the 4 latent variables, got 3"),
        ({"groups": 0}, "groups must divide the 4 latent variables, got 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
