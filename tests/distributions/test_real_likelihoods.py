"""Laplace and hyperbolic-secant pixels against closed forms, quadrature and torch.distributions."""

import functools
import math

import pytest
import torch
import torch.distributions as td
from contract_checks import FewImages, check_terms

from vae_lightning import VAE
from vae_lightning.batch import Batch
from vae_lightning.distributions.likelihoods import Gaussian, LocationScale
from vae_lightning.distributions.real_likelihoods import HyperbolicSecant, Laplace

N = 200_000
BOTH = pytest.mark.parametrize("cls", [Laplace, HyperbolicSecant])
LEARNED = pytest.mark.parametrize("learn_sigma", [False, True])
X = torch.rand(6, 2, 4, 5)
MU = 3 * torch.randn(6, 2, 4, 5)


def distribution_function(cls, t):
    """Of the standard density, in float64."""
    if cls is Laplace:
        return td.Laplace(0.0, math.sqrt(0.5)).cdf(t)
    return (2 / math.pi) * (math.pi * t / 2).exp().arctan()


def density(likelihood, mu, grid):
    return likelihood.log_prob(torch.tensor(mu).view(1, 1, 1), grid.float().view(-1, 1, 1, 1))


def test_are_location_scale_families():
    assert {Laplace, HyperbolicSecant, Gaussian} <= set(LocationScale.__subclasses__())


@LEARNED
@pytest.mark.parametrize("sigma", [0.05, 0.1, 2.0])
def test_laplace_is_that_of_torch_distributions(sigma, learn_sigma):
    expected = td.Laplace(MU.double(), sigma / math.sqrt(2)).log_prob(X.double()).sum((1, 2, 3))
    log_prob = Laplace(sigma, learn_sigma).log_prob(MU, X)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-5, atol=1e-4)


@LEARNED
@pytest.mark.parametrize("sigma", [0.05, 0.1, 2.0])
def test_hyperbolic_secant_is_its_formula(sigma, learn_sigma):
    """p(x) = sech(pi (x - mu) / (2 sigma)) / (2 sigma), where cosh does not overflow in float64."""
    x, mu = X.double() / 5, MU.double() / 5
    p = 1 / (2 * sigma * (math.pi * (x - mu) / (2 * sigma)).cosh())
    log_prob = HyperbolicSecant(sigma, learn_sigma).log_prob(mu.float(), x.float())
    torch.testing.assert_close(log_prob.double(), p.log().sum((1, 2, 3)), rtol=1e-5, atol=1e-3)


def test_hyperbolic_secant_is_the_log_cosh_loss():
    """With beta = a, the objective of the paper times a, up to a constant."""
    a = 10.0
    loss = (a * (X - MU).double()).cosh().log().sum((1, 2, 3)) / a
    log_prob = HyperbolicSecant(sigma=math.pi / (2 * a)).log_prob(MU, X).double()
    constant = X[0].numel() * math.log(math.pi / a)
    torch.testing.assert_close((-log_prob - constant) / a, loss, rtol=1e-4, atol=1e-3)


@BOTH
@LEARNED
@pytest.mark.parametrize(("mu", "sigma"), [(0.3, 0.1), (-2.0, 1.5)])
def test_density_integrates_to_one_with_this_mean_and_deviation(cls, mu, sigma, learn_sigma):
    grid = mu + sigma * torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    likelihood = cls(sigma, learn_sigma)
    p = density(likelihood, mu, grid).double().exp()
    assert torch.trapezoid(p, grid).item() == pytest.approx(1, abs=2e-4)
    mean = likelihood.mean(torch.tensor(mu)).item()
    assert torch.trapezoid(p * grid, grid).item() == pytest.approx(mean, abs=1e-4)
    variance = torch.trapezoid(p * (grid - mu).square(), grid).item()
    assert variance == pytest.approx(sigma**2, rel=1e-3)


@BOTH
@LEARNED
@pytest.mark.parametrize(("mu", "sigma"), [(0.3, 0.1), (-2.0, 1.5)])
def test_draws_have_the_distribution_function(cls, mu, sigma, learn_sigma):
    params = torch.full((N, 1, 1, 1), mu)
    likelihood = cls(sigma, learn_sigma)
    x = likelihood.sample(params, torch.Generator().manual_seed(3)).double().flatten()
    uniform = distribution_function(cls, (x - mu) / sigma).sort().values
    distance = (uniform - (torch.arange(N) + 0.5) / N).abs().max().item()
    assert distance < 2.0 / math.sqrt(N)  # Kolmogorov-Smirnov; exceeded by chance in 0.07 %
    assert x.std().item() == pytest.approx(sigma, rel=0.02)


@BOTH
def test_draws_are_finite_at_the_ends_of_the_generator(cls, monkeypatch):
    module = "vae_lightning.distributions.real_likelihoods.uniform_like"
    ends = torch.tensor([0.0, 0.5, 1 - 2.0**-24]).view(1, 1, 3)
    monkeypatch.setattr(module, lambda like, generator: ends)
    x = cls(1.0).sample(torch.zeros(1, 1, 3)).flatten()
    assert x.isfinite().all()
    assert x[1].item() == pytest.approx(0, abs=1e-6)
    assert 8 < x[2] < 20
    assert x[0].item() == pytest.approx(-x[2].item(), abs=0.5)  # 2^-25 and 2^-24


@BOTH
def test_digits_are_kept_far_from_the_mean(cls):
    """log p falls by sqrt(2) / sigma, or pi / (2 sigma), per unit, where p itself is 0."""
    rate = {Laplace: math.sqrt(2), HyperbolicSecant: math.pi / 2}[cls]
    x = torch.tensor([1e3, 1e6]).view(2, 1, 1, 1)
    near, far = cls(0.1).log_prob(torch.zeros(1, 1, 1), x).double()
    assert (near - far).item() == pytest.approx((1e6 - 1e3) * rate / 0.1, rel=1e-6)


@pytest.mark.parametrize("error", [1e-4, 1e-3, 1e-2])
def test_hyperbolic_secant_is_smooth_at_its_mode(error):
    """The gradient is -pi / (2 sigma) tanh(pi error / (2 sigma))."""
    mu = torch.tensor([-error, 0, error]).view(3, 1, 1, 1).requires_grad_()
    HyperbolicSecant(1.0).log_prob(mu, torch.zeros(1, 1, 1)).sum().backward()
    slope = math.pi / 2 * math.tanh(math.pi / 2 * error)
    assert mu.grad.flatten().tolist() == pytest.approx([slope, 0, -slope], rel=1e-3, abs=1e-9)


@BOTH
def test_learned_sigma_finds_the_maximum_of_the_likelihood(cls):
    """That of Laplace is sqrt(2) times the mean absolute error."""
    likelihood = cls(1.0, learn_sigma=True)
    optimizer = torch.optim.SGD(likelihood.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (-likelihood.log_prob(MU, X).mean() / X[0].numel()).backward()
        optimizer.step()
    u = (X - MU).double().abs()
    if cls is Laplace:
        assert likelihood.sigma == pytest.approx(math.sqrt(2) * u.mean().item(), rel=1e-4)
    else:
        t = math.pi * u / (2 * likelihood.sigma)
        assert (t * t.tanh()).mean().item() == pytest.approx(1, rel=1e-4)


@BOTH
def test_sigma_is_checked_and_starts_from_the_data(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__}: sigma must be positive, got -1"):
        cls(-1)
    with pytest.raises(ValueError, match=f"{cls.__name__}: sigma may be None only with"):
        cls(None)
    likelihood = cls(None, learn_sigma=True)
    generator = torch.Generator().manual_seed(0)
    images = 7 + 3 * torch.randn(1000, 1, 4, 4, generator=generator)
    likelihood.init_from_data(FewImages(images))
    assert likelihood.sigma == pytest.approx(1, rel=0.03)


@BOTH
def test_sigma_of_constant_data_starts_at_a_thousandth(cls):
    likelihood = cls(None, learn_sigma=True)
    likelihood.init_from_data(FewImages(torch.full((9, 1, 4, 4), 0.3)))
    assert likelihood.sigma == pytest.approx(1e-3)


@BOTH
def test_fits_values_of_any_size(cls):
    """A model of unbounded values with a learned sigma."""
    likelihood = functools.partial(cls, sigma=None, learn_sigma=True)
    model = VAE(image_shape=(1, 8, 8), latent_dim=2, bounded=False, likelihood=likelihood)
    x = 100 * torch.randn(9, 1, 8, 8)
    model.init_from_data(FewImages(x))
    check_terms(model, Batch(x, None, torch.arange(9)))
    model.likelihood.log_prob(torch.full_like(x, 1e30), x).sum().backward()
    assert model.likelihood.log_sigma.grad.isfinite()


def test_outliers_count_less_than_under_a_gaussian():
    """A shift of an outlier by one standard deviation costs the less, the heavier the tail."""
    x = torch.tensor([10.0, 11.0]).view(2, 1, 1, 1)
    costs = []
    for cls in (Laplace, HyperbolicSecant, Gaussian):
        near, far = cls(1.0).log_prob(torch.zeros(1, 1, 1), x).tolist()
        costs.append(near - far)
    assert costs == pytest.approx([math.sqrt(2), math.pi / 2, 10.5], rel=1e-4)
