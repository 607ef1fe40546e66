"""What every posterior promises, and each one's own density against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vae_lightning.distributions.posteriors import (
    DeterministicPosterior,
    DiagonalGaussian,
    GaussianPosterior,
)
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.functional import standard_normal_log_prob
from vae_lightning.randomness import Noise


def gaussian(images=5, size=7) -> DiagonalGaussian:
    return DiagonalGaussian(*torch.randn(2, images, size, dtype=torch.float64))


def reference(q: DiagonalGaussian) -> Independent:
    """The same distribution with a dimension for the draws."""
    return Independent(Normal(q.mu[:, None], (0.5 * q.log_var[:, None]).exp()), 1)


def test_log_densities_are_those_of_torch_distributions():
    q, z = gaussian(), torch.randn(5, 3, 7, dtype=torch.float64)
    prior = Independent(Normal(torch.zeros(7).double(), torch.ones(7).double()), 1)
    torch.testing.assert_close(standard_normal_log_prob(z), prior.log_prob(z))
    torch.testing.assert_close(StandardNormal(7).log_prob(z), prior.log_prob(z))
    torch.testing.assert_close(q.log_prob(z), reference(q).log_prob(z))


def test_density_of_draws_is_that_of_their_values():
    q = gaussian()
    draws = q.rsample(Noise(torch.arange(5), "test"), 6)
    assert draws.log_prob.shape == (5, 6)
    torch.testing.assert_close(draws.log_prob, q.log_prob(draws.z))
    torch.testing.assert_close(draws.log_prob, reference(q).log_prob(draws.z))


def test_density_of_draws_keeps_its_digits_where_sigma_is_small():
    """From the noise itself, not from (z - mu) / sigma, which in float32 has none left here."""
    mu, log_var = torch.full((1, 2), 100.0), torch.full((1, 2), -30.0)
    draws = DiagonalGaussian(mu, log_var).rsample(Noise(torch.arange(1), "test"), 50)
    epsilon = Noise(torch.arange(1), "test").normal(100).view(1, 50, 2).double()
    expected = Normal(0.0, 1.0).log_prob(epsilon).sum(2) + 30
    torch.testing.assert_close(draws.log_prob.double(), expected, rtol=1e-6, atol=1e-6)


def test_log_ratio_of_the_prior_to_itself_is_zero():
    q = DiagonalGaussian(torch.zeros(4, 3), torch.zeros(4, 3))
    draws = q.rsample(Noise(torch.arange(4), "test"), 6)
    assert (StandardNormal(3).log_prob(draws.z) - draws.log_prob).equal(torch.zeros(4, 6))


def test_kl_is_that_of_torch_distributions():
    q = gaussian()
    expected = kl_divergence(Normal(q.mu, (0.5 * q.log_var).exp()), Normal(0.0, 1.0))
    kl = StandardNormal(7).kl(q)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-6)


def test_kl_is_the_mean_of_log_ratios_of_draws():
    """To 4 standard errors, of each image; the draws are those of `rsample`."""
    q, n, prior = gaussian(images=3, size=2), 100_000, StandardNormal(2)
    draws = q.rsample(Noise(torch.arange(3), "test"), n)
    ratios = draws.log_prob - prior.log_prob(draws.z)
    error = ratios.std(1) / math.sqrt(n)
    assert (error < 0.05).all()
    assert ((ratios.mean(1) - prior.kl(q).sum(1)).abs() < 4 * error).all()


@pytest.mark.parametrize("size", [1, 3, 50])
def test_draws_are_the_same_at_once_or_in_parts(size):
    q = gaussian(images=6, size=size)

    def draw(*args):
        return q.rsample(Noise(torch.arange(6), "test"), *args).z

    whole = draw(9)
    assert whole.shape == (6, 9, size)
    assert len(whole.flatten(0, 1).unique(dim=0)) == 54
    assert torch.cat([draw(2), draw(1, 2), draw(6, 3)], dim=1).equal(whole)
    assert draw(1, 8).equal(whole[:, 8:])
    assert draw().equal(whole[:, :1])


def test_draws_have_the_moments_of_the_posterior():
    q = gaussian(images=2, size=3)
    z = q.rsample(Noise(torch.arange(2), "test"), 100_000).z
    torch.testing.assert_close(z.mean(1), q.mu, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(1).log(), q.log_var, rtol=0, atol=0.03)


def test_sampling_passes_gradients_to_both_parameters():
    mu, log_var = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    noise = Noise(torch.arange(3), "test")
    epsilon = Noise(torch.arange(3), "test").normal(2)
    DiagonalGaussian(mu, log_var).rsample(noise).z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(3, 2))
    torch.testing.assert_close(log_var.grad, 0.5 * epsilon)


def test_gaussian_posterior_takes_mu_first_and_log_var_second():
    features = torch.randn(4, 6)
    family = GaussianPosterior(3)
    assert family.in_features == 6
    q = family(features)
    assert q.mu.equal(features[:, :3])
    assert q.log_var.equal(features[:, 3:])
    assert q.mean.equal(q.mu)
    assert q.point_estimate.equal(q.mu)
    assert set(q.parameters()) == {"mu", "log_var"}


def test_a_deterministic_posterior_has_one_latent_and_no_density():
    features = torch.randn(4, 3, requires_grad=True)
    family = DeterministicPosterior(3)
    assert family.in_features == 3
    assert not family.has_density
    draws = family(features).rsample(Noise(torch.arange(4), "test"), 5)
    assert draws.z.equal(features[:, None].expand(4, 5, 3))
    with pytest.raises(ValueError, match="a deterministic encoder has no density"):
        _ = draws.log_prob
    draws.z.sum().backward()
    assert features.grad.equal(torch.full((4, 3), 5.0))
    assert StandardNormal(3).kl(family(features)) is None


@pytest.mark.parametrize("log_var", [-1e30, -200.0, -28.0, 88.0, 200.0, 1e30])
def test_extreme_variances_stay_finite(log_var):
    features = torch.tensor([[0.5, log_var]], requires_grad=True)
    q = GaussianPosterior(1)(features)
    draws = q.rsample(Noise(torch.arange(1), "test"), 50)
    kl = StandardNormal(1).kl(q)
    total = kl.sum() + draws.z.mean() + draws.log_prob.mean()
    total.backward()
    assert total.isfinite()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("log_var", [-28.0, -10.0, 3.0])
def test_log_density_is_that_of_the_noise(log_var):
    q = DiagonalGaussian(torch.full((1, 4), 3.0), torch.full((1, 4), log_var))
    epsilon = torch.randn(1, 1000, 4)
    exact = Normal(0.0, 1.0).log_prob(epsilon.double()).sum(2) - 2 * log_var
    torch.testing.assert_close(q.draws_at(epsilon).log_prob.double(), exact, rtol=1e-6, atol=1e-5)
