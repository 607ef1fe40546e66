"""Draws from p(x|z) have the distribution that `log_prob` and `mean` describe."""

import math

import pytest
import torch
import torch.distributions as td
from contract_checks import implementations, small

from vae_lightning.distributions.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
)

N = 200_000
LIKELIHOODS = [small(cls) for cls in implementations(Likelihood) if small(cls)().normalized]
LOSSES = [small(cls) for cls in implementations(Likelihood) if not small(cls)().normalized]


def names(build):
    return getattr(build, "func", build).__name__


def parameters(likelihood, values):
    """Combinations of ``values``: all of them, or some, (N, n_params, 1, 1)."""
    values, n = torch.tensor(values), likelihood.n_params
    if n > 3:
        return values[torch.randint(len(values), (300, n))].view(-1, n, 1, 1)
    return torch.cartesian_prod(*[values] * n).view(-1, n, 1, 1)


def draw(likelihood, *values: float):
    """Draw one pixel N times; float64, (N,)."""
    params = torch.tensor(values).view(-1, 1, 1).expand(N, -1, -1, -1)
    return likelihood.sample(params, torch.Generator().manual_seed(3)).double().flatten()


def check_moments(x, mean: float, variance: float):
    """Both within five standard errors, and a float32 rounding."""
    assert x.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / N) + 1e-6)
    error = (x - mean).square().sub(variance).square().mean().div(N).sqrt().item()
    assert (x - mean).square().mean().item() == pytest.approx(variance, abs=5 * error + 1e-6)


@pytest.mark.parametrize("cls", LIKELIHOODS, ids=names)
class TestEveryLikelihood:
    def params(self, cls):
        return 3 * torch.randn(6, 2 * cls().n_params, 4, 5)

    def test_has_the_shape_of_the_mean(self, cls):
        params = self.params(cls)
        for given in (params, params[0], params[:, None].expand(-1, 3, -1, -1, -1)):
            assert cls().sample(given).shape == cls().mean(given).shape

    def test_is_float32_under_mixed_precision(self, cls):
        assert cls().sample(self.params(cls).bfloat16()).dtype == torch.float32

    def test_is_finite_and_within_the_support(self, cls):
        params = parameters(cls(), [-1e3, -30.0, -1, 0, 1, 30, 1e3])
        side = 50 if cls().n_params <= 3 else 8
        x = cls().sample(params.expand(-1, -1, side, side))
        assert x.isfinite().all()
        if cls().bounded:
            assert x.min() >= 0
            assert x.max() <= 1
        log_prob = cls().log_prob(params, cls().sample(params))
        assert log_prob.isfinite().all()

    def test_depends_on_the_generator_alone(self, cls):
        params, state = self.params(cls), torch.get_rng_state()
        first, again, other = (
            cls().sample(params, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert first.equal(again)
        assert not first.equal(other)
        assert torch.get_rng_state().equal(state)

    def test_uses_the_global_generator_by_default(self, cls):
        params = self.params(cls)
        torch.manual_seed(5)
        first, second = cls().sample(params), cls().sample(params)
        torch.manual_seed(5)
        assert cls().sample(params).equal(first)
        assert not first.equal(second)

    def test_pixels_are_independent(self, cls):
        params = torch.zeros(1, cls().n_params, 1, 2).expand(20_000, -1, -1, -1)
        x = cls().sample(params).flatten(1)
        assert torch.corrcoef(x.T)[0, 1].abs() < 5 / math.sqrt(20_000)

    def test_parameters_belong_to_their_channel(self, cls):
        """The channels of an image with means far apart are not swapped."""
        image = torch.stack([torch.full((30, 30), 0.1), torch.full((30, 30), 0.9)])
        x = cls().sample(cls().params_at(image)[None])[0]
        assert x[0].mean() < x[1].mean() - 0.1


@pytest.mark.parametrize("cls", LOSSES, ids=names)
def test_a_loss_cannot_be_drawn_from(cls):
    with pytest.raises(ValueError, match="is a loss and not a distribution"):
        cls().sample(torch.zeros(1, cls().n_params, 8, 8))


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 0.5, 4.0])
def test_bernoulli(logit):
    x = draw(Bernoulli(), logit)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    p = 1 / (1 + math.exp(-logit))
    check_moments(x, p, p * (1 - p))


@pytest.mark.parametrize(
    "logit", [-200.0, -30.0, -3.0, -0.1, -1e-5, 0.0, 1e-5, 0.1, 3.0, 30.0, 200]
)
def test_continuous_bernoulli(logit):
    x = draw(ContinuousBernoulli(), logit)
    exact = torch.tensor(logit, dtype=torch.float64)
    mean, variance = 0.5, 1 / 12
    if abs(logit) > 1e-3:  # below, the closed form cancels
        mean = float(1 / -(-exact).expm1() - 1 / exact)
        variance = float(1 / exact**2 - 1 / (4 * (exact / 2).sinh() ** 2))
    check_moments(x, mean, variance)


@pytest.mark.parametrize("logit", [-6.0, -0.5, 0.5, 6.0])
def test_continuous_bernoulli_has_its_distribution_function(logit):
    x = draw(ContinuousBernoulli(), logit)
    reference = td.ContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.float64))
    uniform = reference.cdf(x).sort().values
    distance = (uniform - (torch.arange(N) + 0.5) / N).abs().max().item()
    assert distance < 2.0 / math.sqrt(N)  # Kolmogorov-Smirnov; exceeded by chance in 0.07 %


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("mu", "sigma"), [(0.3, 0.1), (0.9, 0.5), (-1.0, 0.01)])
def test_gaussian(mu, sigma, learn_sigma):
    x = draw(Gaussian(sigma, learn_sigma), mu)
    check_moments(x, mu, sigma**2)


def test_gaussian_draws_are_not_clipped():
    x = draw(Gaussian(0.5), 1.0)
    assert (x > 1).double().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("log_scale", [-200.0, -6.0, -3.0, -1.0, 1.0])
@pytest.mark.parametrize("mu", [-0.2, 0.0, 0.301, 1.0])
def test_discretized_logistic(mu, log_scale):
    """Against the probabilities of all its values."""
    likelihood = DiscretizedLogistic()
    x = draw(likelihood, mu, log_scale)
    levels = (x * 255).round()
    torch.testing.assert_close(x, levels / 255, rtol=0, atol=1e-7)
    values = torch.arange(256) / 255
    params = torch.tensor([mu, log_scale]).view(2, 1, 1)
    p = likelihood.log_prob(params, values.view(-1, 1, 1, 1)).double().exp()
    mean = (p * values).sum().item()
    check_moments(x, mean, (p * (values - mean).square()).sum().item())
    observed = levels.long().bincount(minlength=256).double() / N
    assert ((observed - p).abs() <= 5 * (p * (1 - p) / N).sqrt() + 1e-4).all()
