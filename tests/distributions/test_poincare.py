"""Wrapped and Riemannian normal distributions on a Poincaré ball."""

import math
from functools import partial

import pytest
import torch
from scipy import integrate, special

from vae_lightning import VAE
from vae_lightning.distributions.poincare import (
    RiemannianNormal,
    RiemannianNormalPosterior,
    RiemannianNormalPrior,
    WrappedNormal,
    WrappedNormalPosterior,
    WrappedNormalPrior,
    radius_quantiles,
)
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.models.capabilities import Capability
from vae_lightning.poincare_ball import PoincareBall
from vae_lightning.randomness import Noise

CURVATURES = [0.3, 1.0, 2.0]


def noise(n: int = 1, *keys) -> Noise:
    return Noise(torch.arange(n), "test", *keys)


def distribution(kind, c, size=2, dtype=torch.float64, images=1):
    torch.manual_seed(3)
    ball = PoincareBall(c)
    mu = ball.exp(torch.zeros(images, size), torch.randn(images, size)).to(dtype)
    if kind is WrappedNormal:
        return WrappedNormal(
            ball, mu, torch.linspace(-1.5, -0.5, size, dtype=dtype).expand(images, -1)
        )
    return RiemannianNormal(ball, mu, torch.full((images,), -1.0, dtype=dtype))


def grid_of_the_disk(c: float, n: int = 1200) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a disk, and their shares of the area of the hyperbolic plane."""
    ball = PoincareBall(c)
    edges = torch.linspace(0, 9 / ball.root, n + 1, dtype=torch.float64)
    distance = (edges[1:] + edges[:-1]) / 2
    angle = torch.arange(256, dtype=torch.float64) * 2 * math.pi / 256
    radius = (ball.root * distance / 2).tanh() / ball.root
    z = radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)
    area = (ball.root * distance).sinh() / ball.root * edges.diff() * 2 * math.pi / 256
    return z.flatten(0, 1), area[:, None].expand(-1, 256).flatten()


@pytest.mark.parametrize("kind", [WrappedNormal, RiemannianNormal])
@pytest.mark.parametrize("c", CURVATURES)
def test_density_integrates_to_one_over_the_hyperbolic_plane(kind, c):
    q = distribution(kind, c)
    z, area = grid_of_the_disk(c)
    total = (q.log_prob(z[None])[0].exp() * area).sum()
    assert total.item() == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("kind", [WrappedNormal, RiemannianNormal])
@pytest.mark.parametrize("c", CURVATURES)
def test_draws_follow_the_density(kind, c):
    """Means over draws of functions, against integrals over the plane, to 4 standard errors."""
    q, n = distribution(kind, c, dtype=torch.float32), 40_000
    draws = q.rsample(noise(), n)
    z = draws.z[0].double()
    grid, area = grid_of_the_disk(c)
    exact = distribution(kind, c)
    log_q = exact.log_prob(grid[None])[0]
    weights = log_q.exp() * area
    ball = exact.ball

    def functions(z):
        distance = ball.distance(z, exact.mu)
        return torch.stack([distance, distance.square(), z[:, 0], z[:, 1], z[:, 0] * z[:, 1]], 1)

    found, expected = functions(z), (functions(grid) * weights[:, None]).sum(0)
    assert ((found.mean(0) - expected).abs() < 4 * found.std(0) / n**0.5 + 2e-4).all()
    entropy = -(log_q * weights).sum()
    assert (draws.log_prob.mean() + entropy).abs() < 4 * draws.log_prob.std() / n**0.5 + 1e-3


@pytest.mark.parametrize("kind", [WrappedNormal, RiemannianNormal])
@pytest.mark.parametrize("size", [2, 5])
def test_densities_of_draws_and_of_points_agree(kind, size):
    for dtype, error in ((torch.float32, 5e-3), (torch.float64, 1e-7)):
        q = distribution(kind, 0.7, size, dtype, images=3)
        draws = q.rsample(noise(3), 200)
        assert draws.z.dtype == draws.log_prob.dtype == dtype
        torch.testing.assert_close(q.log_prob(draws.z), draws.log_prob, rtol=0, atol=error)
        assert q.marginal_log_prob(draws.z).shape == (3, 200, 1)


@pytest.mark.parametrize("kind", [WrappedNormal, RiemannianNormal])
def test_density_by_the_determinant_of_the_map_from_the_tangent_space(kind):
    """In the coordinates of the ball, with the volume element (2 / (1 - c |z|^2))^L dz."""
    q = distribution(kind, 0.7, size=3)
    v = 0.5 * torch.randn(3).double()
    z = q.ball.exp(q.mu[0], v)
    jacobian = torch.autograd.functional.jacobian(lambda v: q.ball.exp(q.mu[0], v), v)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    log_volume = 3 * (2 / (1 - 0.7 * z.square().sum())).log()
    if kind is WrappedNormal:
        normal = torch.distributions.Normal(0.0, (0.5 * q.log_var[0]).exp())
        of_v = normal.log_prob(v).sum()
    else:  # uniform directions, and the density of the radius by scipy
        root, sigma, r = math.sqrt(0.7), math.exp(-0.5), v.norm().item()

        def density(r):
            return math.exp(-((r / sigma) ** 2) / 2) * (math.sinh(root * r) / root) ** 2

        radial = density(r) / integrate.quad(density, 0, 12)[0]
        of_v = torch.tensor(math.log(radial / (4 * math.pi * r**2))).double()
    expected = of_v - log_det - log_volume
    torch.testing.assert_close(
        q.log_prob(z.view(1, 1, 3)).squeeze(), expected, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("sigma", [0.05, 0.6, 2.0])
@pytest.mark.parametrize("c", CURVATURES)
def test_the_normalizer_in_two_dimensions_has_a_closed_form(sigma, c):
    """2 pi sqrt(pi / 2) sigma / sqrt(c) exp(c sigma^2 / 2) erf(sqrt(c) sigma / sqrt(2))."""
    found = radius_quantiles(
        PoincareBall(c), 2, torch.tensor([sigma], dtype=torch.float64)
    ).log_integral
    s = math.sqrt(c) * sigma
    expected = math.sqrt(math.pi / 2) * sigma / math.sqrt(c) * special.erf(s / math.sqrt(2))
    assert found.item() == pytest.approx(math.log(expected) + s**2 / 2, abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_radius_is_right_for_every_scale(size):
    """Derivatives by finite differences, and the distribution function by scipy."""
    ball = PoincareBall(0.7)
    sigma = torch.tensor([1e-3, 0.1, 1.0, 1.5], dtype=torch.float64)
    p = torch.tensor([1e-3, 0.2, 0.5, 0.8, 0.999], dtype=torch.float64).expand(4, -1)
    radius, derivative = radius_quantiles(ball, size, sigma)(p)
    for i, s in enumerate(sigma.tolist()):

        def density(r, s=s):
            scaled = math.sinh(ball.root * r) / ball.root / s
            return math.exp(-((r / s) ** 2) / 2) * scaled ** (size - 1) / s

        whole = integrate.quad(density, 0, radius[i, -1].item() + 5 * s, epsabs=0, limit=200)[0]
        for j in range(5):
            below = integrate.quad(density, 0, radius[i, j].item(), epsabs=0, limit=200)[0]
            assert below / whole == pytest.approx(p[0, j].item(), abs=1e-4)
    step = 1e-5
    ends = [radius_quantiles(ball, size, sigma * (1 + s))(p)[0] for s in (step, -step)]
    slope = (ends[0] - ends[1]) / (2 * step) / sigma[:, None]
    torch.testing.assert_close(derivative, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [WrappedNormal, RiemannianNormal])
def test_gradients_of_expectations_are_unbiased(kind):
    """50 independent estimates, against those by the score function."""
    images, n = 50, 2000
    ball = PoincareBall(0.7)
    torch.manual_seed(5)
    mu = torch.tensor([[0.3, -0.2]]).expand(images, -1).clone().requires_grad_()
    log_var = torch.full((images, 2) if kind is WrappedNormal else (images,), -1.0)
    log_var.requires_grad_()

    def f(z):
        return (3 * z[..., 0]).sin() + (2 * z[..., 1]).exp() + z.square().sum(-1)

    def draws(*keys):
        return kind(ball, mu, log_var).rsample(noise(images, *keys), n)

    path = torch.autograd.grad(f(draws().z).mean(1).sum(), (mu, log_var))
    z = draws("other").z.detach()
    weights = f(z) - f(z).mean()
    log_prob = kind(ball, mu, log_var).log_prob(z)
    score = torch.autograd.grad((weights * log_prob).mean(1).sum(), (mu, log_var))
    for a, b in zip(path, score, strict=True):
        error = ((a.var(0) + b.var(0)) / images).sqrt()
        assert (error < 0.3 * a.mean(0).abs() + 0.01).all()
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all()


def test_gradients_of_densities_are_those_of_finite_differences():
    ball = PoincareBall(0.7)
    z = ball.exp(torch.zeros(2, 3, 2), torch.randn(2, 3, 2)).double()
    mu = torch.tensor([[0.3, -0.2], [0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    for kind, shape in ((WrappedNormal, (2, 2)), (RiemannianNormal, (2,))):
        log_var = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda mu, log_var, kind=kind: kind(ball, mu, log_var).log_prob(z), (mu, log_var)
        )


def test_a_small_curvature_gives_the_gaussian():
    """With coordinates of half the size, and densities by the length in hyperbolic space."""
    ball = PoincareBall(1e-6)
    h, log_var = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    q = WrappedNormalPosterior(3, curvature=1e-6)(torch.cat([h, log_var], 1))
    gaussian = DiagonalGaussian(h, log_var)
    found, expected = q.rsample(noise(4), 5), gaussian.rsample(noise(4), 5)
    torch.testing.assert_close(2 * found.z, expected.z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)
    isotropic = RiemannianNormal(ball, h / 2, log_var[:, 0])
    z = expected.z / 2
    flat = DiagonalGaussian(h, log_var[:, :1].expand(-1, 3)).log_prob(expected.z)
    torch.testing.assert_close(isotropic.log_prob(z), flat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", [WrappedNormalPrior, RiemannianNormalPrior])
def test_priors_are_the_distributions_around_the_center(prior):
    made = prior(2, curvature=0.7, scale=1.3)
    kind = WrappedNormal if prior is WrappedNormalPrior else RiemannianNormal
    size = (1, 2) if kind is WrappedNormal else (1,)
    q = kind(made.ball, torch.zeros(1, 2), torch.full(size, 2 * math.log(1.3)))
    z = made.sample(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.log_prob(z[:, None])[:, 0], q.log_prob(z[None])[0])
    assert made.log_prob(z.view(7, 1, 1, 2)).shape == (7, 1, 1)
    distances = made.ball.distance(made.sample(20_000), torch.zeros(2))
    if kind is WrappedNormal:  # of a two-dimensional Gaussian
        assert distances.square().mean().item() == pytest.approx(2 * 1.3**2, rel=0.05)
    middle = made.geodesic(z[0], -z[0], torch.tensor([0.5]))
    torch.testing.assert_close(middle, torch.zeros(2), rtol=0, atol=1e-5)


def test_a_model_on_the_ball(batch):
    parts = {"prior": WrappedNormalPrior, "posterior": WrappedNormalPosterior}
    vae = VAE(image_shape=(1, 8, 8), latent_dim=2, **parts)
    assert vae.has(Capability.DENSITY, Capability.POSTERIOR_DENSITY, Capability.SAMPLES)
    assert not vae.has(Capability.KL_PER_DIMENSION)
    assert not vae.has(Capability.CONTINUOUS_LATENT)
    assert (vae.embed(batch.x).norm(dim=1) < 1).all()


def test_far_features_stay_finite(batch):
    """Whatever an encoder says, in float32: values, densities and gradients."""
    for family, prior in (
        (WrappedNormalPosterior(4), WrappedNormalPrior(4)),
        (RiemannianNormalPosterior(4), RiemannianNormalPrior(4, scale=0.5)),
    ):
        for scale in (1e-8, 1.0, 30.0, 1e4):
            features = (scale * torch.randn(20, family.in_features)).requires_grad_()
            draws = family(features).rsample(noise(20), 4)
            values = draws.log_prob, prior.log_prob(draws.z), draws.z
            assert all(value.isfinite().all() for value in values)
            total = sum(value.clamp(-1e4, 1e4).sum() for value in values)
            (gradient,) = torch.autograd.grad(total, features)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 5, 10, 20])
@pytest.mark.parametrize("c", [0.3, 1.0])
@pytest.mark.parametrize("family", [WrappedNormalPosterior, RiemannianNormalPosterior])
def test_the_kl_is_not_negative_at_any_scale(family, c, size):
    """Draws with no room in the ball would have the density of points farther away."""
    made = family(size, curvature=c)
    prior = WrappedNormalPrior(size, curvature=c, scale=0.5)
    features = torch.zeros(7, made.in_features)
    features[:, size:] = torch.tensor([-5.0, -1.0, 0.0, 1.0, 3.0, 10.0, 100.0])[:, None]
    draws = made(features).rsample(noise(7), 2000)
    ratio = draws.log_prob - prior.log_prob(draws.z)
    error = ratio.std(1) / math.sqrt(2000)
    assert (ratio.mean(1) > -3 * error).all()
    exact = made(features.double()).rsample(noise(7), 2000)
    again = exact.log_prob - prior.log_prob(exact.z)
    torch.testing.assert_close(ratio.mean(1), again.mean(1).float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WrappedNormalPosterior(2, curvature=0.0), "must be positive"),
        (lambda: WrappedNormalPrior(2, scale=0.0), "WrappedNormalPrior: scale must be positive"),
        (lambda: WrappedNormalPrior(20, scale=3.0), "too far from the center for float32"),
        (lambda: RiemannianNormalPrior(20), "in 20 dimensions, draws are too far"),
        (
            lambda: VAE(
                latent_dim=2,
                prior=WrappedNormalPrior,
                posterior=lambda size: WrappedNormalPosterior(size, curvature=0.5),
            ),
            "plain data",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


@pytest.mark.parametrize("prior", [WrappedNormalPrior, RiemannianNormalPrior])
def test_the_radius_is_that_of_the_ball(prior):
    made = prior(2, curvature=4.0, scale=0.5)
    assert made.radius == 0.5
    lengths = made.sample(2000, generator=torch.Generator().manual_seed(0)).norm(dim=1)
    assert 0.4 < lengths.max() < 0.5
    parts = {"posterior": partial(WrappedNormalPosterior, curvature=4.0)}
    model = VAE(latent_dim=2, prior=partial(prior, curvature=4.0, scale=0.5), **parts)
    assert model.latent_radius == 0.5
    assert VAE(latent_dim=2).latent_radius is None


def test_prior_and_posterior_need_the_same_curvature():
    with pytest.raises(ValueError, match=r"curvature -0\.5, but WrappedNormalPrior .* -1"):
        VAE(
            latent_dim=2,
            prior=WrappedNormalPrior,
            posterior=partial(WrappedNormalPosterior, curvature=0.5),
        )
