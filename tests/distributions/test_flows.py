"""Flows: Jacobians by autograd, densities by integration, and draws that follow them."""

import functools
import math
import subprocess
import sys

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal

from vae_lightning import VAE
from vae_lightning.distributions.planar_flow import PlanarFlowPosterior, planar_flows
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.distributions.zuko_flows import IAFPosterior, RealNVPPrior, _gated_update
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise


def planar_parameters(images=3, flows=4, size=3, scale=1.5):
    u, w = scale * torch.randn(2, images, flows, size)
    return u, w, torch.randn(images, flows)


def iaf(size=2, **kwargs) -> IAFPosterior:
    """A flow with large weights, which is far from the identity."""
    family = IAFPosterior(size, **{"context_features": 3, "hidden": (16,), **kwargs})
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.mul_(1.5)
    return family


def real_nvp(size=2, cond_features=0, **kwargs) -> RealNVPPrior:
    prior = RealNVPPrior(size, cond_features, **{"hidden": (16,), "transforms": 4, **kwargs})
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(1.2)
    return prior


FAMILIES = {
    "planar": lambda size: PlanarFlowPosterior(size, flows=4),
    "iaf": iaf,
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def check_log_det(q, images, size, tolerance=1e-3):
    """Compare the log-determinants of a transform with those of its Jacobian matrices."""
    e = torch.randn(images, 2, size)
    _, log_det = q.transform(e)
    # No image and no draw may depend on another: the whole Jacobian is a block per draw.
    full = jacobian(lambda e: q.transform(e)[0], e).view(images * 2, size, images * 2, size)
    for i in range(images * 2):
        for j in range(images * 2):
            if i != j:
                assert full[i, :, j].abs().max() == 0
        sign, expected = torch.linalg.slogdet(full[i, :, i].double())
        assert sign == 1
        assert log_det.flatten()[i].item() == pytest.approx(expected.item(), abs=tolerance)
    assert log_det.std() > 0.1


@pytest.mark.parametrize("size", [2, 5])
def test_log_det_is_that_of_the_jacobian(family, size):
    family = family(size)
    check_log_det(family(1.5 * torch.randn(3, family.in_features)), 3, size)


def test_density_of_draws_is_that_of_the_change_of_variables(family):
    """The same draws with log q from the base draws and the Jacobian, in float64."""
    family = family(3)
    features = torch.randn(4, family.in_features)
    q = family(features)
    draws = q.rsample(Noise(torch.arange(4), "test"), 5)
    e = q.base.rsample(Noise(torch.arange(4), "test"), 5).z
    torch.testing.assert_close(q.transform(e)[0], draws.z)
    base = Independent(Normal(q.base.mu[:, None], (0.5 * q.base.log_var[:, None]).exp()), 1)
    log_prob = base.log_prob(e).double()
    full = jacobian(lambda e: q.transform(e)[0].sum((0, 1)), e)  # (L, B, n, L)
    log_det = torch.linalg.slogdet(full.permute(1, 2, 0, 3).double()).logabsdet
    torch.testing.assert_close(draws.log_prob.double(), log_prob - log_det, rtol=1e-4, atol=1e-4)


def test_draws_are_the_same_at_once_or_in_parts(family):
    family = family(3)
    q = family(torch.randn(4, family.in_features))

    def draw(*args):
        return q.rsample(Noise(torch.arange(4), "test"), *args)

    whole = draw(7)
    for values in ("z", "log_prob"):
        parts = [getattr(draw(*args), values) for args in ((2,), (4, 2), (1, 6))]
        torch.testing.assert_close(torch.cat(parts, 1), getattr(whole, values))


def test_density_is_normalized_over_the_draws(family):
    """E_q[p(z) / q(z)] = 1 for another density p, to 4 standard errors."""
    family, n = family(2), 100_000
    q = family(0.5 * torch.randn(3, family.in_features))
    with torch.no_grad():
        draws = q.rsample(Noise(torch.arange(3), "test"), n)
        # A Gaussian inside the bulk of q, so that the ratio has few outliers.
        middle = draws.z.median(1, keepdim=True).values
        narrow = Independent(Normal(middle, 0.25 * draws.z.std(1, keepdim=True)), 1)
        ratio = (narrow.log_prob(draws.z) - draws.log_prob).exp()
    error = ratio.std(1) / math.sqrt(n)
    assert (error < 0.03).all()
    assert ((ratio.mean(1) - 1).abs() < 4 * error).all()


def test_density_integrates_over_a_grid_of_the_base(family):
    """The integral of p(f(e)) |det df/de| over e is that of p: no noise at all."""
    family = family(2)
    with torch.no_grad():
        q = family(0.7 * torch.randn(1, family.in_features))
        axis = torch.linspace(-25, 25, 501)
        e = torch.cartesian_prod(axis, axis)
        z, log_det = q.transform(e[None])
        p = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
        integral = (p.log_prob(z[0].double()) + log_det[0].double()).logsumexp(0).exp()
    assert (integral * (50 / 500) ** 2).item() == pytest.approx(1, abs=2e-3)


def test_density_of_one_dimension_is_that_of_the_distribution_function():
    """Planar flows in R increase: F_q(f(e)) = F(e), so q is its slope, and integrates to 1."""
    family = PlanarFlowPosterior(1, flows=3)
    q = family(torch.randn(1, family.in_features) * 1.5)
    mu, sigma = q.base.mu.double(), (0.5 * q.base.log_var).exp().double()
    e = (mu + sigma * torch.linspace(-6, 6, 20_001).double())[..., None]
    u, w, b = (torch.randn(1, 3, 1).double(), torch.randn(1, 3, 1).double(), torch.zeros(1, 3))
    z, log_det = planar_flows(e, 2 * u, 2 * w, b.double())
    z, step = z[0, :, 0], z[0, :, 0].diff()
    assert (step > 0).all()
    log_q = Normal(mu, sigma).log_prob(e[0].T)[0] - log_det[0]
    middle = 0.5 * (log_q.exp()[1:] + log_q.exp()[:-1])
    assert (middle * step).sum().item() == pytest.approx(1, abs=1e-5)
    distribution = Normal(mu, sigma).cdf(e[0].T)[0]
    torch.testing.assert_close((middle * step).cumsum(0), distribution[1:], rtol=0, atol=1e-5)
    assert len(z) == 20_001


# Planar flows


def test_planar_flows_are_those_of_the_paper():
    """One flow after the other, with the u of appendix A.1, in float64."""
    u, w, b = planar_parameters()
    z = torch.randn(3, 5, 3)
    found, log_det = planar_flows(z, u, w, b)
    for i in range(3):
        for k in range(5):
            value, total = z[i, k].double(), 0.0
            for t in range(4):
                direction, normal = u[i, t].double(), w[i, t].double()
                dot = float(normal @ direction)
                m = -1 + math.log1p(math.exp(dot))
                direction = direction + (m - dot) * normal / float(normal @ normal)
                h = math.tanh(float(normal @ value + b[i, t]))
                value = value + direction * h
                total += math.log(abs(1 + (1 - h**2) * float(normal @ direction)))
            torch.testing.assert_close(found[i, k].double(), value, rtol=1e-4, atol=1e-5)
            assert log_det[i, k].item() == pytest.approx(total, rel=1e-4, abs=1e-4)


def test_planar_flows_are_invertible():
    """Whatever u and w are, each flow increases along w: w u >= -1."""
    _, w, b = planar_parameters(images=1, flows=1, size=2, scale=4)
    for sign in (-1, 1):
        along = sign * w.abs()
        distance = torch.linspace(-8, 8, 2001)
        z = distance[:, None] * (w / w.norm())[0, 0]
        moved = planar_flows(z[None], along * w.sign(), w, b)[0][0]
        assert ((moved @ w[0, 0]).diff() > 0).all()


@pytest.mark.parametrize("dot", [-100.0, -20.0, -16.0, -5.0, 0.0, 5.0, 100.0])
def test_planar_flows_at_the_limit_of_invertibility(dot):
    """At w u near -1 the plane w z + b = 0 is squeezed, but log-determinants stay finite."""
    w = torch.tensor([[[1.0, 0.0]]])
    u = torch.tensor([[[dot, 0.3]]]).requires_grad_()
    z = torch.tensor([[[0.0, 1.0], [1e-4, 1.0], [0.7, 1.0]]])
    moved, log_det = planar_flows(z, u, w, torch.zeros(1, 1))
    assert log_det.isfinite().all()
    h = z[0, :, 0].double().tanh()
    # 1 + w u, which is at least 1e-6, so that rounding cannot make it 0.
    stretch = 1e-6 + torch.nn.functional.softplus(torch.tensor(dot).double())
    expected = (h.square() + (1 - h.square()) * stretch).log()
    torch.testing.assert_close(
        log_det[0].double(), expected, rtol=1e-3, atol=0.1 if dot < -14 else 1e-3
    )
    assert log_det[0, 2].item() == pytest.approx(expected[2].item(), abs=1e-5)
    (log_det.sum() + moved.sum()).backward()
    assert u.grad.isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-15])
def test_planar_flows_with_tiny_normals_report_the_determinant_of_their_own_map(size):
    """With w = 0 (features of a new head may be 0), f only shifts, and the determinant is 1."""
    u, w, b = torch.ones(1, 1, 2), torch.full((1, 1, 2), size), torch.full((1, 1), 0.5)
    z = torch.randn(1, 3, 2)
    moved, log_det = planar_flows(z, u, w, b)
    assert moved.isfinite().all()
    if size < 1e-20:
        torch.testing.assert_close(log_det, torch.zeros(1, 3), rtol=0, atol=1e-4)
        torch.testing.assert_close(moved, z + math.tanh(0.5), rtol=0, atol=1e-4)


def test_planar_flows_keep_their_digits_under_autocast():
    z, parameters = torch.randn(3, 5, 3), planar_parameters()
    exact = planar_flows(z, *parameters)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = planar_flows(z, *parameters)
    assert mixed[0].equal(exact[0])
    assert mixed[1].equal(exact[1])


def test_planar_posterior_splits_its_features():
    family = PlanarFlowPosterior(3, flows=2)
    assert family.in_features == 6 + 2 * 7
    features = torch.arange(20.0)[None] / 20
    q = family(features)
    assert q.base.mu.equal(features[:, :3])
    assert q.base.log_var.equal(features[:, 3:6])
    u, w = features[:, 6:12].view(1, 2, 3), features[:, 12:18].view(1, 2, 3)
    z = torch.randn(1, 4, 3)
    assert q.transform(z)[0].equal(planar_flows(z, u, w, features[:, 18:])[0])
    assert set(q.parameters()) == {"mean", "base_mu", "base_log_var"}
    assert q.mean.equal(q.transform(q.base.mu[:, None])[0][:, 0])


# Flows of zuko


def test_iaf_depends_on_the_context_of_each_image():
    family = iaf(3)
    features = torch.randn(1, 9).repeat(2, 1)
    e = torch.randn(1, 4, 3).repeat(2, 1, 1)
    z, log_det = family(features).transform(e)
    assert z[0].equal(z[1])
    features[1, 6:] += 1
    z, log_det = family(features).transform(e)
    assert (z[0] - z[1]).abs().min() > 0
    assert (log_det[0] - log_det[1]).abs().min() > 0


def test_iaf_is_autoregressive_in_both_orders():
    """One transform has a triangular Jacobian, in one order; two in turn have a full one."""
    for transforms, triangular in ((1, True), (2, False)):
        family = iaf(3, transforms=transforms)
        transform = family(torch.randn(1, 9)).transform
        matrix = jacobian(lambda e, f=transform: f(e)[0], torch.randn(1, 1, 3))
        zeros = int((matrix == 0).sum())
        assert zeros == (3 if triangular else 0)


def test_gradients_reach_the_transforms_and_the_context():
    family = iaf(2)
    features = torch.randn(3, 7, requires_grad=True)
    draws = family(features).rsample(Noise(torch.arange(3), "test"), 4)
    (draws.log_prob - StandardNormal(2).log_prob(draws.z)).mean().backward()
    assert (features.grad.abs().sum(0) > 0).all()
    for name, parameter in family.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("cond_features", [0, 3])
def test_real_nvp_integrates_to_one(cond_features):
    prior = real_nvp(cond_features=cond_features)
    axis = torch.linspace(-20, 20, 401)
    z = torch.cartesian_prod(axis, axis)
    condition = torch.eye(3)[1:2] if cond_features else None
    with torch.no_grad():
        log_prob = prior.log_prob(z[None], condition)[0]
        integral = log_prob.double().logsumexp(0).exp() * (40 / 400) ** 2
    assert integral.item() == pytest.approx(1, abs=2e-3)
    gaussian = StandardNormal(2).log_prob(z)
    assert (log_prob - gaussian).abs()[gaussian > -5].max() > 0.3  # no standard normal


@pytest.mark.parametrize("cond_features", [0, 3])
def test_samples_of_real_nvp_follow_its_density(cond_features):
    """Probabilities of cells, from 40,000 samples and by integration, to 4.5 standard errors."""
    prior, n = real_nvp(cond_features=cond_features), 40_000
    condition = torch.eye(3)[1:2] if cond_features else None
    axis = torch.linspace(-4, 4, 401)[:-1] + 0.01
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        expanded = None if condition is None else condition.expand(n, -1)
        z = prior.sample(n, expanded, torch.Generator().manual_seed(1))
        density = prior.log_prob(grid[None], condition)[0].double().exp().view(400, 400)
    expected = density.unflatten(0, (8, 50)).unflatten(2, (8, 50)).sum((1, 3)) * 0.02**2
    inside = ((z > -4) & (z < 4)).all(1)
    cells = (z[inside] + 4).floor().long()
    found = torch.bincount(8 * cells[:, 0] + cells[:, 1], minlength=64).view(8, 8) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert ((found - expected).abs() <= 4.5 * error + 2e-4).all()
    assert (expected > 0.01).sum() > 8


def test_log_prob_of_real_nvp_is_that_of_the_jacobian():
    prior = real_nvp(3)
    z = torch.randn(1, 5, 3)
    found = prior.log_prob(z)[0]
    for k in range(5):
        matrix = jacobian(lambda z: prior.transforms(None)(z), z[0, k])
        base = prior.transforms(None)(z[0, k])
        expected = StandardNormal(3).log_prob(base) + torch.linalg.slogdet(matrix).logabsdet
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-4)
        # The inverse, which samples are drawn with, is that of the same map.
        torch.testing.assert_close(prior.transforms(None).inv(base), z[0, k], rtol=1e-4, atol=1e-4)


def test_conditional_real_nvp_depends_on_the_class():
    prior, classes = real_nvp(cond_features=3), torch.eye(3)
    z = torch.randn(1, 4, 2).repeat(3, 1, 1)
    found = prior.log_prob(z, classes)
    assert (found[0] - found[1]).abs().min() > 0
    # Each row has its own class.
    for i in range(3):
        torch.testing.assert_close(prior.log_prob(z[:1], classes[i : i + 1])[0], found[i])
    samples = [
        prior.sample(3, order, torch.Generator().manual_seed(1))
        for order in (classes, classes[[0, 2, 1]])
    ]
    torch.testing.assert_close(samples[0][0], samples[1][0])
    assert (samples[0][1] - samples[1][1]).abs().min() > 0


def test_real_nvp_learns_the_density_of_points():
    """To less than what any Gaussian costs: the best one is 1 nat above the entropy."""
    prior = RealNVPPrior(2, hidden=(32,), transforms=4)
    centers = torch.tensor([[-2.0, 1.0], [2.0, -1.0]])
    z = centers[torch.arange(256) % 2] + 0.4 * torch.randn(256, 2)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = -prior.log_prob(z[None]).mean()
        loss.backward()
        optimizer.step()
    entropy = math.log(2) + math.log(2 * math.pi * math.e * 0.4**2)
    assert entropy - 0.1 < loss.item() < entropy + 0.5


def test_far_features_leave_the_iaf_finite():
    """Whatever an encoder says: values and gradients."""
    family = IAFPosterior(2)
    for scale in (1.0, 30.0, 1e4):
        features = (scale * torch.randn(100, family.in_features)).requires_grad_()
        draws = family(features).rsample(Noise(torch.arange(100), "test"), 10)
        assert draws.log_prob.isfinite().all()
        assert draws.z.isfinite().all()
        (gradient,) = torch.autograd.grad(draws.log_prob.clamp(-1e4, 1e4).sum(), features)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("posterior", [PlanarFlowPosterior, IAFPosterior])
def test_every_parameter_of_a_vae_with_flows_gets_a_gradient(batch, posterior, conditional):
    model = VAE(
        image_shape=(1, 8, 8),
        num_classes=4,
        conditional=conditional,
        latent_dim=4,
        posterior=posterior,
        prior=RealNVPPrior,
    )
    condition = model.encode_labels(batch.y if conditional else None, 16)
    terms = model.terms(batch.x, condition, Noise(batch.indices))
    model.objective(terms).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    found = model.log_prob(batch.x, batch.y if conditional else None, num_samples=8)
    assert found.shape == (16,)
    assert found.isfinite().all()


def test_log_prob_of_a_vae_with_flows_is_the_integral_over_the_latents():
    """By a sum over a fine grid of z, which knows nothing of q; the draws see both flows."""
    model = VAE(
        image_shape=(1, 2, 2),
        latent_dim=2,
        posterior=functools.partial(PlanarFlowPosterior, flows=3),
        prior=RealNVPPrior,
        encoder=functools.partial(MLPEncoder, hidden=(8,)),
        decoder=functools.partial(MLPDecoder, hidden=(8,)),
    ).eval()
    with torch.no_grad():  # wider than the prior, else a few draws have most of the weight
        model.encoder.layers[-1].bias[2:4] = 1.5
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
    x = torch.tensor([[0.0, 0, 1, 1], [1, 0, 1, 0]]).view(2, 1, 2, 2)
    axis = torch.linspace(-10, 10, 201)
    z = torch.cartesian_prod(axis, axis)[None].expand(2, -1, -1)
    with torch.no_grad():
        joint = model.log_prior(z).double() + model.log_likelihood(x, z).double()
        expected = joint.logsumexp(1) + 2 * math.log(20 / 200)
        assert (expected[0] - expected[1]).abs() > 0.1
        draws = model.posterior(x).rsample(Noise(torch.arange(2), "test"), 8000)
        log_weights = (model.log_likelihood(x, draws.z) + model.log_ratio(draws)).double()
        weights = (log_weights - expected[:, None]).exp()  # relative to p(x)
        error = weights.std(1) / math.sqrt(8000)
        assert (error < 0.1).all()
        assert ((weights.mean(1) - 1).abs() < 4.5 * error).all()
    found = model.log_marginal(x, None, Noise(torch.arange(2), "test"), 8000, rows=4000)
    torch.testing.assert_close(found, log_weights.logsumexp(1) - math.log(8000))


@pytest.mark.slow
def test_zuko_is_imported_when_needed_and_leaves_the_checks_of_torch_as_they_were():
    """Importing it switches off the checks of all distributions, for everybody."""
    script = """
import sys
from torch.distributions import Distribution, Normal
from vae_lightning import VAE
from vae_lightning.distributions.zuko_flows import IAFPosterior, RealNVPPrior

def checked():
    try:
        Normal(0.0, -1.0)
    except ValueError:
        return True
    return False

VAE()
print("zuko" in sys.modules, checked())
RealNVPPrior(2, hidden=(4,))
print("zuko" in sys.modules, checked())
Distribution.set_default_validate_args(False)
IAFPosterior(2, hidden=(4,))
print("zuko" in sys.modules, checked())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["False True", "True True", "True False"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PlanarFlowPosterior(2, flows=0), "PlanarFlowPosterior: flows must be positive"),
        (lambda: IAFPosterior(1), "IAFPosterior needs at least two latent dimensions, got 1"),
        (lambda: IAFPosterior(2, transforms=0), "IAFPosterior: transforms must be positive"),
        (lambda: IAFPosterior(2, context_features=0), "context_features must be positive"),
        (lambda: RealNVPPrior(1), "RealNVPPrior needs at least two latent dimensions, got 1"),
        (lambda: RealNVPPrior(2, transforms=0), "RealNVPPrior: transforms must be positive"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_update_mixes_the_latent_with_the_prediction():
    """z -> g z + (1 - g) m, with a gate that starts near 1 (equation 14 of the paper)."""
    z, m, s = torch.randn(3, 20)
    gate = (s + 2).sigmoid()
    torch.testing.assert_close(_gated_update(m, s)(z), gate * z + (1 - gate) * m)
