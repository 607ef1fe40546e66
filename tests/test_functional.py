import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vae_lightning.functional import (
    DiagonalGaussian,
    log_mean_exp,
    perplexity,
    softplus,
    standard_normal_kl,
    standard_normal_log_prob,
)
from vae_lightning.randomness import Noise


def test_kl_is_that_of_torch_distributions():
    mu, log_var = torch.randn(50, 7), torch.randn(50, 7)
    expected = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(standard_normal_kl(mu, log_var), expected, rtol=1e-5, atol=1e-6)


def test_kl_keeps_its_digits_near_the_prior():
    mu, log_var = torch.full((1,), 1e-4), torch.full((1,), 1e-4)
    exact = 0.5 * (1e-8 + (math.expm1(1e-4) - 1e-4))
    assert standard_normal_kl(mu, log_var).item() == pytest.approx(exact, rel=1e-3)


def posterior(images=5, size=7) -> DiagonalGaussian:
    return DiagonalGaussian(*torch.randn(2, images, size, dtype=torch.float64))


def test_log_densities_are_those_of_torch_distributions():
    q, z = posterior(), torch.randn(5, 3, 7, dtype=torch.float64)
    density = Independent(Normal(q.mu[:, None], (0.5 * q.log_var[:, None]).exp()), 1)
    prior = Independent(Normal(torch.zeros(7).double(), torch.ones(7).double()), 1)
    torch.testing.assert_close(standard_normal_log_prob(z), prior.log_prob(z))
    torch.testing.assert_close(q.log_prob(z), density.log_prob(z))
    torch.testing.assert_close(q.log_ratio(z), prior.log_prob(z) - density.log_prob(z))


def test_log_ratio_of_the_prior_to_itself_is_zero():
    prior = DiagonalGaussian(torch.zeros(4, 3), torch.zeros(4, 3))
    z = prior.sample(Noise(torch.arange(4), "test"), 6)
    assert prior.log_ratio(z).equal(torch.zeros(4, 6))


def test_kl_is_the_mean_of_log_ratios_of_draws():
    """To 4 standard errors, of each image; the draws are those of `sample`."""
    q, n = posterior(images=3, size=2), 100_000
    ratios = -q.log_ratio(q.sample(Noise(torch.arange(3), "test"), n))
    error = ratios.std(1) / math.sqrt(n)
    assert (error < 0.05).all()
    assert ((ratios.mean(1) - q.kl().sum(1)).abs() < 4 * error).all()


@pytest.mark.parametrize("size", [1, 3, 50])
def test_draws_are_the_same_at_once_or_in_parts(size):
    q = posterior(images=6, size=size)

    def draw(*args):
        return q.sample(Noise(torch.arange(6), "test"), *args)

    whole = draw(9)
    assert whole.shape == (6, 9, size)
    assert len(whole.flatten(0, 1).unique(dim=0)) == 54
    assert torch.cat([draw(2), draw(1, 2), draw(6, 3)], dim=1).equal(whole)
    assert draw(1, 8).equal(whole[:, 8:])
    assert draw().equal(whole[:, :1])


def test_draws_have_the_moments_of_the_posterior():
    q = posterior(images=2, size=3)
    z = q.sample(Noise(torch.arange(2), "test"), 100_000)
    torch.testing.assert_close(z.mean(1), q.mu, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(1).log(), q.log_var, rtol=0, atol=0.03)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_log_mean_exp_is_safe_for_large_values(shift):
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    for dim in (0, 1, 2):
        expected = x.exp().mean(dim).log() + shift
        torch.testing.assert_close(log_mean_exp(x + shift, dim), expected)
    assert log_mean_exp(torch.tensor([[-math.inf, 1.0]]), 1).item() == pytest.approx(
        1 - math.log(2)
    )


def test_sampling_passes_gradients_to_both_parameters():
    mu, log_var = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    noise = Noise(torch.arange(3), "test")
    epsilon = Noise(torch.arange(3), "test").normal(2)
    DiagonalGaussian(mu, log_var).sample(noise).sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(3, 2))
    torch.testing.assert_close(log_var.grad, 0.5 * epsilon)


@pytest.mark.parametrize(
    ("counts", "expected"), [([5, 5, 5, 5], 4.0), ([7, 0, 0], 1.0), ([0, 0], 0.0), ([1, 3], None)]
)
def test_perplexity(counts, expected):
    if expected is None:
        expected = math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_softplus_against_float64():
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([-1e-6, 0.0, 1e-6, 1e4, -1e4])])
    exact = torch.logaddexp(x.double(), torch.zeros(()).double())
    # Absolutely below 0, where the value is small; relatively above.
    torch.testing.assert_close(softplus(x).double(), exact, rtol=2e-7, atol=1.2e-7)


def test_gradient_of_softplus_is_the_sigmoid():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softplus, x)
    assert torch.autograd.gradgradcheck(softplus, x)
    by_func = torch.func.vmap(torch.func.grad(softplus))(x.detach())
    torch.testing.assert_close(by_func, x.detach().sigmoid())
    weight = torch.linspace(1, 2, 61, dtype=torch.float64)
    (softplus(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight * torch.sigmoid(x.detach()))
