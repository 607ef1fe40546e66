import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vae_lightning.functional import DiagonalGaussian, perplexity, standard_normal_kl
from vae_lightning.randomness import Noise


def test_kl_is_that_of_torch_distributions():
    mu, log_var = torch.randn(50, 7), torch.randn(50, 7)
    expected = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(standard_normal_kl(mu, log_var), expected, rtol=1e-5, atol=1e-6)


def test_kl_keeps_its_digits_near_the_prior():
    mu, log_var = torch.full((1,), 1e-4), torch.full((1,), 1e-4)
    exact = 0.5 * (1e-8 + (math.expm1(1e-4) - 1e-4))
    assert standard_normal_kl(mu, log_var).item() == pytest.approx(exact, rel=1e-3)


def test_kl_is_the_mean_of_log_ratios_of_samples():
    mu, log_var = torch.tensor([[0.7, -1.2]]), torch.tensor([[-0.5, 0.3]])
    n = 200_000
    q = DiagonalGaussian(mu.expand(n, 2), log_var.expand(n, 2))
    z = q.sample(Noise(torch.arange(n), "test"))
    density = Independent(Normal(mu, (0.5 * log_var).exp()), 1)
    prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    ratios = density.log_prob(z) - prior.log_prob(z)
    error = ratios.std() / math.sqrt(n)
    kl = DiagonalGaussian(mu, log_var).kl().sum(1)
    assert abs(ratios.mean() - kl.item()) < 4 * error


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
