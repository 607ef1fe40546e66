"""Von Mises-Fisher posterior and uniform prior, against scipy and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from vae_lightning import VAE
from vae_lightning.distributions.von_mises_fisher import (
    UniformSphere,
    VonMisesFisher,
    VonMisesFisherPosterior,
    angle_quantiles,
)
from vae_lightning.models.capabilities import Capability
from vae_lightning.randomness import Noise

DIMENSIONS = [2, 3, 4, 11, 40, 128]
KAPPA = [1e-3, 0.3, 5.0, 80.0, 1e4]


def unit(*shape, dtype=torch.float64) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def noise(n: int = 1, *keys) -> Noise:
    return Noise(torch.arange(n), "test", *keys)


# Density


@pytest.mark.parametrize("dim", [2, 3, 11])
@pytest.mark.parametrize("kappa", KAPPA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_is_that_of_scipy(dim, kappa, dtype):
    mu = unit(3, dim)
    near = torch.nn.functional.normalize(mu[:, None] + 0.1 * torch.randn(3, 5, dim).double(), dim=2)
    z = torch.cat([unit(3, 5, dim), near], 1)
    q = VonMisesFisher(mu.to(dtype), torch.full((3,), kappa, dtype=dtype))
    found = q.log_prob(z.to(dtype))
    expected = [stats.vonmises_fisher(mu[i].numpy(), kappa).logpdf(z[i].numpy()) for i in range(3)]
    precision = 1e-10 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(
        found.double(), torch.from_numpy(np.stack(expected)), rtol=precision, atol=precision * 10
    )
    assert q.marginal_log_prob(z.to(dtype)).squeeze(2).equal(found)


def test_the_circle_is_the_von_mises_distribution():
    angle = torch.linspace(-3, 3, 13)
    z = torch.stack([angle.cos(), angle.sin()], 1)
    q = VonMisesFisher(torch.tensor([[1.0, 0.0]]), torch.tensor([4.0]))
    expected = torch.distributions.VonMises(0.0, 4.0).log_prob(angle)
    torch.testing.assert_close(q.log_prob(z[None])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_kl_is_minus_the_entropy_less_that_of_the_prior(dim):
    kappa = torch.tensor([0.3, 5.0, 80.0, 1e4], dtype=torch.float64)
    kl = VonMisesFisher(unit(4, dim), kappa).uniform_kl()
    order = dim / 2 - 1
    # Entropy by scipy's Bessel functions: -log C - kappa A.
    k = kappa.numpy()
    log_i = np.log(special.ive(order, k)) + k
    log_c = order * np.log(k) - (order + 1) * np.log(2 * np.pi) - log_i
    entropy = -log_c - k * special.ive(order + 1, k) / special.ive(order, k)
    log_area = np.log(2) + dim / 2 * np.log(np.pi) - special.gammaln(dim / 2)
    expected = torch.from_numpy(log_area - entropy)
    finite = expected.isfinite()
    assert finite[1:].all()
    torch.testing.assert_close(kl[finite], expected[finite], rtol=1e-9, atol=1e-9)
    single = VonMisesFisher(unit(4, dim).float(), kappa.float()).uniform_kl()
    torch.testing.assert_close(single, kl.float(), rtol=1e-6, atol=1e-6)


def test_kl_of_a_nearly_uniform_distribution_keeps_its_digits():
    """kappa^2 / (2 L), in float32 too, though it is a difference of large numbers."""
    for dim in (2, 128):
        kl = VonMisesFisher(unit(1, dim).float(), torch.tensor([0.01])).uniform_kl()
        assert kl.item() == pytest.approx(1e-4 / 2 / dim, rel=1e-3)


def test_kl_and_its_gradient_by_draws():
    """The mean of log q - log p over draws, to 4 standard errors."""
    for dim, kappa in ((2, 3.0), (5, 0.5), (20, 60.0)):
        q = VonMisesFisher(unit(1, dim).float(), torch.tensor([kappa]))
        ratio = q.rsample(noise(), 40_000).log_prob - UniformSphere(dim).log_prob(torch.ones(dim))
        error = ratio.std() / 200
        assert (ratio.mean() - q.uniform_kl()).abs() < 4 * error
    kappa = torch.tensor([0.01, 2.0, 300.0], dtype=torch.float64, requires_grad=True)
    mu = unit(3, 6)
    assert torch.autograd.gradcheck(lambda k: VonMisesFisher(mu, k).uniform_kl(), kappa)
    z = unit(3, 2, 6)
    assert torch.autograd.gradcheck(lambda k: VonMisesFisher(mu, k).log_prob(z), kappa)


# Draws


@pytest.mark.parametrize("dim", [2, 3, 4, 11, 128])
@pytest.mark.parametrize("kappa", [1e-3, 0.7, 20.0, 1e4])
def test_draws_follow_the_distribution(dim, kappa):
    """The angle by its distribution function, and the direction around mu, which is uniform."""
    n = 20_000
    mu = unit(1, dim).float()
    z = VonMisesFisher(mu, torch.tensor([kappa])).rsample(noise(), n).z[0].double()
    torch.testing.assert_close(z.norm(dim=1), torch.ones(n).double(), rtol=0, atol=1e-6)
    along = (z * mu).sum(1)
    # The chord is 2 (1 - cos theta); its mean and variance by scipy's Bessel functions.
    chord = 1 - along
    order = dim / 2 - 1
    ratio = special.ive(order + 1, kappa) / special.ive(order, kappa)
    if math.isfinite(ratio) and kappa > 0.1:
        variance = 1 - ratio**2 - (dim - 1) / kappa * ratio
        assert abs(chord.mean() - (1 - ratio)) < 4 * math.sqrt(variance / n)
        assert chord.var().item() == pytest.approx(variance, rel=0.08)
    around = z - along[:, None] * mu
    around = around / around.norm(dim=1, keepdim=True)
    assert (around.mean(0).abs() < 4.5 / math.sqrt(n)).all()
    products = around.T @ around / n
    expected = (torch.eye(dim) - mu.T @ mu) / (dim - 1)
    assert (products - expected).abs().max() < 6 / math.sqrt(n) / (dim - 1) ** 0.5


@pytest.mark.parametrize("kappa", [0.5, 30.0])
def test_the_angle_of_a_sphere_in_three_dimensions_has_a_closed_form(kappa):
    p = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)[None]
    angle, derivative = angle_quantiles(3, torch.tensor([kappa], dtype=torch.float64))(p)
    k = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    # 1 - cos(theta) is exponential with the rate kappa, truncated to [0, 2].
    height = 1 + (1 - p * (1 - (-2 * k).exp())).log() / k
    torch.testing.assert_close(angle.cos(), height.detach(), rtol=1e-9, atol=1e-9)
    for i in range(50):
        (expected,) = torch.autograd.grad(height[0, i].acos(), k, retain_graph=True)
        torch.testing.assert_close(derivative[0, i], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_the_angle_is_the_quantile_for_every_concentration(dim):
    """Against a distribution function by much finer quadrature, from 1e-3 to 1e6."""
    kappa = torch.logspace(-3, 6, 10, dtype=torch.float64)
    p = torch.tensor([2.0**-24, 1e-3, 0.2, 0.5, 0.8, 0.999, 1 - 2.0**-24]).double()
    quantiles = angle_quantiles(dim, kappa)
    angle, derivative = quantiles(p.expand(10, -1))
    fine = torch.linspace(0, 1, 4001, dtype=torch.float64)
    for i in range(10):
        for j in range(1, 6):
            t = torch.lerp(quantiles.edges[i, 0], angle[i, j], fine)
            log_f = (dim - 2) * t.sin().log().nan_to_num(neginf=-1e300)
            if dim == 2:
                log_f = torch.zeros_like(t)
            f = (log_f - 2 * kappa[i] * (t / 2).sin().square() - quantiles.log_integral[i]).exp()
            assert torch.trapezoid(f, t).item() == pytest.approx(p[j].item(), abs=2e-6)
    # The normalizer by the Bessel function.
    order = dim / 2 - 1
    k = kappa.numpy()
    log_i = np.log(special.ive(order, k)) - order * np.log(k / 2)
    expected = torch.from_numpy(log_i) + 0.5 * math.log(math.pi) + math.lgamma(order + 0.5)
    known = expected.isfinite()
    torch.testing.assert_close(quantiles.log_integral[known], expected[known], rtol=0, atol=1e-10)
    # Derivatives by finite differences.
    step = 1e-4
    above = angle_quantiles(dim, kappa * (1 + step))(p.expand(10, -1))[0]
    below = angle_quantiles(dim, kappa * (1 - step))(p.expand(10, -1))[0]
    slope = (above - below) / (2 * step)
    inner = slice(1, 6)
    torch.testing.assert_close(
        (derivative * kappa[:, None])[:, inner], slope[:, inner], rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize(("dim", "kappa"), [(2, 1.5), (3, 4.0), (6, 12.0)])
def test_gradients_of_expectations_are_unbiased(dim, kappa):
    """Those of E[f(z)], by 50 independent estimates of 2000 draws each.

    They are compared with the estimates by the score function, which are unbiased as well, and
    with finite differences of draws with the same noise.
    """
    torch.manual_seed(dim)
    w, images, n = torch.randn(dim), 50, 2000

    def f(z):
        return (z * w).sum(-1).sin() + (2 * z[..., 0]).exp()

    def draws(mu, kappa, *keys):
        return VonMisesFisher(mu, kappa).rsample(noise(images, *keys), n)

    mu = unit(1, dim).float().expand(images, dim).clone().requires_grad_()
    k = torch.full((images,), kappa, requires_grad=True)
    of_kappa, of_mu = torch.autograd.grad(f(draws(mu, k).z).mean(1).sum(), (k, mu))
    z = draws(mu, k, "other").z.detach()
    log_prob = VonMisesFisher(mu, k).log_prob(z)
    (score,) = torch.autograd.grad(((f(z) - f(z).mean()) * log_prob).mean(1).sum(), k)
    error = ((of_kappa.var() + score.var()) / images).sqrt()
    assert error < 0.2 * of_kappa.mean().abs()
    assert (of_kappa.mean() - score.mean()).abs() < 4 * error
    with torch.no_grad():
        ends = [f(draws(mu, k + step).z) for step in (0.01, -0.01)]
        torch.testing.assert_close(
            of_kappa.mean(), ((ends[0] - ends[1]) / 0.02).mean(), rtol=5e-3, atol=1e-4
        )
        # Along the sphere, the gradient by mu is the change when mu is turned.
        tangent = unit(1, dim).float()
        tangent = tangent - (tangent * mu[:1]).sum() * mu[:1]
        turned = [torch.nn.functional.normalize(mu + s * tangent, dim=1) for s in (0.01, -0.01)]
        ends = [f(draws(m, k, "other").z).mean(1) for m in turned]
        slope, found = (ends[0] - ends[1]) / 0.02, (of_mu * tangent).sum(1)
        error = ((found.var() + slope.var()) / images).sqrt()
        assert (found.mean() - slope.mean()).abs() < 4.5 * error + 1e-3


def test_gradients_are_finite_for_nearly_parallel_noise():
    class Parallel(Noise):
        def normal(self, size, first=0):
            return torch.tensor([[1.0, 1e-7, 0.0]])

    mu = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    z = VonMisesFisher(mu, torch.tensor([5.0])).rsample(Parallel(torch.arange(1), "test")).z
    assert z.norm(dim=2).item() == pytest.approx(1, abs=1e-6)
    (gradient,) = torch.autograd.grad(z.sum(), mu)
    assert gradient.isfinite().all()


def test_double_precision_is_kept():
    q = VonMisesFisher(unit(2, 4), torch.tensor([3.0, 4.0], dtype=torch.float64))
    draws = q.rsample(noise(2), 3)
    assert draws.z.dtype == draws.log_prob.dtype == torch.float64
    assert q.mean.dtype == q.uniform_kl().dtype == torch.float64


# The posterior family, the prior, and the model


def test_the_family_bounds_its_concentration():
    family = VonMisesFisherPosterior(3, min_concentration=0.5)
    assert family.in_features == 4
    features = torch.tensor([[3.0, 4.0, 0.0, -200.0], [0.0, 0.0, -2.0, 1.0]])
    q = family(features)
    torch.testing.assert_close(q.mu, torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, -1.0]]))
    torch.testing.assert_close(q.concentration, torch.tensor([0.5, 0.5 + math.log1p(math.e)]))
    lowest = VonMisesFisherPosterior(3, min_concentration=0.0)(features)
    assert lowest.concentration[0] > 0
    assert lowest.uniform_kl().isfinite().all()


def test_the_prior_is_uniform():
    prior = UniformSphere(3)
    assert (
        prior.log_prob(unit(5, 1, 3))
        .exp()
        .reciprocal()
        .allclose(torch.tensor(4 * math.pi).double())
    )
    assert prior.kl(torch.distributions.Normal(0, 1)) is None
    start, end = torch.eye(3)[:2]
    middle = prior.geodesic(start, end, torch.tensor([0.5]))
    torch.testing.assert_close(middle, torch.tensor([1.0, 1.0, 0.0]) / math.sqrt(2))
    torch.testing.assert_close(
        prior.project(torch.tensor([0.0, 3.0, 4.0])).norm(), torch.tensor(1.0)
    )


def test_a_direction_of_zero_is_a_point_of_the_sphere():
    family = VonMisesFisherPosterior(3)
    features = torch.zeros(4, 4, requires_grad=True)
    draws = family(features).rsample(noise(4), 6)
    torch.testing.assert_close(draws.z.norm(dim=2), torch.ones(4, 6))
    (gradient,) = torch.autograd.grad(draws.z.sum(), features)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_slope_of_the_kl_at_large_concentrations(size):
    """Its leading term is that of (L - 1) / 2 log(kappa)."""
    kappa = torch.tensor([1e5, 1e7, 1e9], dtype=torch.float64, requires_grad=True)
    mu = torch.eye(size, dtype=torch.float64)[:1].expand(3, -1)
    (slope,) = torch.autograd.grad(VonMisesFisher(mu, kappa).uniform_kl().sum(), kappa)
    expected = torch.full_like(kappa, (size - 1) / 2)
    torch.testing.assert_close(slope * kappa, expected, rtol=1e-4, atol=0)


def test_a_model_on_the_sphere(batch):
    vae = VAE(
        image_shape=(1, 8, 8), latent_dim=3, prior=UniformSphere, posterior=VonMisesFisherPosterior
    )
    assert vae.has(Capability.DENSITY, Capability.KL_PER_DIMENSION, Capability.SAMPLES)
    assert not vae.has(Capability.CONTINUOUS_LATENT)
    assert vae.latent_kl(batch.x).shape == (16, 1)
    torch.testing.assert_close(vae.embed(batch.x).norm(dim=1), torch.ones(16))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformSphere(1), "UniformSphere: a sphere needs at least 2 dimensions, got 1"),
        (lambda: VonMisesFisherPosterior(1), "needs at least 2 dimensions"),
        (lambda: VonMisesFisherPosterior(3, -1.0), "min_concentration must not be negative"),
        (lambda: VAE(prior=UniformSphere), "choose a prior and a posterior of the same kind"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
