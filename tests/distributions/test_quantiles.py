"""Quantiles by quadrature, against those of scipy, and derivatives by finite differences."""

import math

import pytest
import torch
from scipy import stats

from vae_lightning.distributions.quantiles import Quantiles, with_derivative

P = [2.0**-24, 1e-4, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-4, 1 - 2.0**-24]


def gamma(shape: float, scale: torch.Tensor) -> Quantiles:
    """Gamma distributions with one shape, whose parameter is the scale."""
    wide = scale[:, None]

    def log_density(t):
        like = scale.view(-1, *[1] * (t.ndim - 1))
        return (shape - 1) * t.log() - t / like

    def score(t):
        return t / scale.view(-1, *[1] * (t.ndim - 1)) ** 2

    low = torch.zeros_like(scale)
    high = wide[:, 0] * (shape + 10 * math.sqrt(shape) + 10)
    return Quantiles(log_density, score, low, high)


@pytest.mark.parametrize("shape", [2, 3, 10, 50])
def test_values_are_those_of_scipy(shape):
    scale = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    q = gamma(shape, scale)
    torch.testing.assert_close(q.log_integral, math.lgamma(shape) + shape * scale.log())
    torch.testing.assert_close(q.mean_score, shape / scale)
    p = torch.tensor(P, dtype=torch.float64).expand(3, -1)
    t, derivative = q(p)
    expected = torch.from_numpy(stats.gamma.ppf(p.numpy(), shape, scale=scale[:, None].numpy()))
    torch.testing.assert_close(t, expected, rtol=1e-2, atol=0)
    inner = slice(1, -1)
    torch.testing.assert_close(t[:, inner], expected[:, inner], rtol=1e-5, atol=0)
    # The quantile is proportional to the scale.
    torch.testing.assert_close(derivative, expected / scale[:, None], rtol=1e-2, atol=0)
    torch.testing.assert_close(
        derivative[:, inner], (expected / scale[:, None])[:, inner], rtol=1e-5, atol=0
    )


def test_draws_from_uniform_numbers_follow_the_density():
    q = gamma(3, torch.ones(1, dtype=torch.float64))
    p = torch.rand(1, 20_000, dtype=torch.float64)
    t, _ = q(p)
    assert stats.kstest(t[0].numpy(), stats.gamma(3).cdf).pvalue > 1e-3
    assert (t[0].sort().indices == p[0].sort().indices).all()


def test_with_derivative():
    theta = torch.tensor([2.0, 3.0], requires_grad=True)
    found = with_derivative(torch.ones(2, 2).double(), theta, torch.full((2, 2), 5.0).double())
    assert found.equal(torch.ones(2, 2))
    (gradient,) = torch.autograd.grad((found * torch.tensor([1.0, 10.0])).sum(), theta)
    assert gradient.equal(torch.tensor([55.0, 55.0]))
