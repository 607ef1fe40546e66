"""What every prior and every posterior promises. A new one is found here by itself."""

import math

import pytest
import torch
from contract_checks import DISCRETE, check_support, implementations, small
from torch import Tensor

from vae_lightning.distributions.posteriors import REAL, LatentDistribution, Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.functional import standard_normal_log_prob
from vae_lightning.randomness import Noise

POSTERIORS = implementations(Posterior)
WITH_DENSITY = [cls for cls in POSTERIORS if cls.has_density]
SIZE = 4


@pytest.fixture(params=POSTERIORS, ids=lambda cls: cls.__name__)
def family(request) -> Posterior:
    return small(request.param, **DISCRETE)(SIZE).eval()


@pytest.fixture
def q(family) -> LatentDistribution:
    return family(torch.randn(3, family.in_features))


def noise(*keys) -> Noise:
    return Noise(torch.arange(3), "test", *keys)


def test_shapes(family, q):
    draws = q.rsample(noise(), 5)
    assert draws.z.shape == (3, 5, SIZE)
    assert q.mean.shape == q.point_estimate.shape == (3, SIZE)
    assert all(len(value) == 3 for value in q.parameters().values())
    assert q.parameters()
    if family.has_density:
        assert draws.log_prob.shape == (3, 5)
        assert draws.log_prob.isfinite().all()
    else:
        with pytest.raises(ValueError, match="no density"):
            _ = draws.log_prob


def test_draws_are_the_same_at_once_or_in_parts(family, q):
    whole = q.rsample(noise(), 9)
    parts = [q.rsample(noise(), n, first) for n, first in ((2, 0), (1, 2), (6, 3))]
    torch.testing.assert_close(torch.cat([part.z for part in parts], 1), whole.z)
    torch.testing.assert_close(q.rsample(noise()).z, whole.z[:, :1])
    if family.has_density:
        density = torch.cat([part.log_prob for part in parts], 1)
        torch.testing.assert_close(density, whole.log_prob)


def test_draws_belong_to_their_image(family):
    """Whatever the other images of the batch are."""
    features = torch.randn(3, family.in_features)
    whole = family(features).rsample(noise(), 4).z
    alone = family(features[[2]]).rsample(Noise(torch.tensor([2]), "test"), 4).z
    torch.testing.assert_close(alone[0], whole[2])


def test_draws_are_a_function_of_the_noise(family, q):
    first, again, other = (q.rsample(noise(key), 4).z for key in (1, 1, 2))
    assert first.equal(again)
    assert first.equal(other) == (not family.has_density)


def test_gradients_reach_the_features(family):
    """In training, where draws may be relaxed; the density has gradients as well."""
    features = torch.randn(3, family.in_features, requires_grad=True)
    draws = family.train()(features).rsample(noise(), 2)
    weights = torch.randn(draws.z.shape)
    (gradient,) = torch.autograd.grad((draws.z * weights).sum(), features, retain_graph=True)
    assert gradient.isfinite().all()
    assert gradient.abs().sum(1).min() > 0
    if family.has_density and not family.relaxed_in_training:
        (gradient,) = torch.autograd.grad(draws.log_prob.sum(), features)
        assert gradient.isfinite().all()
        assert gradient.abs().sum(1).min() > 0


class Given(Noise):
    """Noise that is given: standard normal numbers, (1, n * SIZE)."""

    def __init__(self, epsilon: Tensor) -> None:
        super().__init__(torch.arange(1), "given")
        self.epsilon = epsilon

    def normal(self, size, first=0):
        assert (size, first) == (self.epsilon.numel(), 0)
        return self.epsilon.view(1, -1)


@pytest.mark.parametrize("cls", WITH_DENSITY, ids=lambda cls: cls.__name__)
def test_density_is_that_of_the_map_from_the_noise(cls):
    """In float64: log q(z) = log N(epsilon) - log |det dz / d epsilon|."""
    family = small(cls, **DISCRETE)(SIZE).eval()
    for part in (family, *family.children()):  # a family may keep float32, unlike its parts
        part.double()
    if family.support != REAL:
        pytest.skip("no map from Gaussian noise")
    q = family(torch.randn(1, family.in_features, dtype=torch.float64))
    for seed in range(5):
        epsilon = torch.randn(SIZE, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(
            lambda epsilon: q.rsample(Given(epsilon)).z.flatten(), epsilon
        )
        expected = standard_normal_log_prob(epsilon) - torch.linalg.slogdet(jacobian).logabsdet
        found = q.rsample(Given(epsilon)).log_prob.squeeze()
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7, msg=f"draw {seed}")


@pytest.mark.parametrize("cls", WITH_DENSITY, ids=lambda cls: cls.__name__)
def test_discrete_draws_have_their_probabilities(cls):
    family = small(cls, **DISCRETE)(SIZE).eval()
    if not family.support.startswith("one-hot"):
        pytest.skip("continuous")
    n = 20_000
    draws = family(torch.randn(1, family.in_features)).rsample(Noise(torch.arange(1), "test"), n)
    values, inverse, counts = draws.z[0].unique(dim=0, return_inverse=True, return_counts=True)
    p = torch.stack([draws.log_prob[0][inverse == i].mean().exp() for i in range(len(values))])
    for i in range(len(values)):
        assert draws.log_prob[0][inverse == i].std() < 1e-5
    assert p.sum() > 0.99
    assert ((counts / n - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-6).all()


def test_the_mean_is_that_of_draws_where_it_is_in_closed_form(family, q):
    if type(q).__name__ == "TransformedGaussian" or family.support.startswith("points"):
        pytest.skip("a point estimate or the mean of a curved space, by its docstring")
    z = q.rsample(noise(), 20_000).z
    error = z.std(1) / math.sqrt(20_000)
    assert ((z.mean(1) - q.mean).abs() <= 4.5 * error + 1e-5).all()


# Priors that need nothing of a model


@pytest.fixture(params=implementations(Prior), ids=lambda cls: cls.__name__)
def prior(request) -> Prior:
    made = small(request.param, **DISCRETE)(SIZE)
    if type(made).attach is not Prior.attach:
        pytest.skip("tested with the model that it needs, see models/test_combinations.py")
    return made


def test_prior_samples_follow_its_density(prior):
    """Of two dimensions, which a broad Gaussian covers well enough to integrate over."""
    prior = small(type(prior), **DISCRETE)(2)
    for parameter in prior.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    generator = torch.Generator().manual_seed(0)
    check_support(
        prior,
        lambda n: prior.sample(n, generator=generator),
        lambda z: prior.log_prob(z[:, None])[:, 0],
    )


def test_prior_shapes_and_generators(prior):
    samples = [prior.sample(6, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert samples[0].shape == (6, SIZE)
    assert samples[0].equal(samples[1])
    assert not samples[0].equal(samples[2])
    before = torch.get_rng_state()
    prior.sample(6, generator=torch.Generator().manual_seed(1))
    assert torch.get_rng_state().equal(before)
    z = samples[0].view(2, 3, SIZE)
    log_prob = prior.log_prob(z)
    assert log_prob.shape == (2, 3)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(prior.log_prob(z[1:])[0], log_prob[1])


def test_prior_quantiles_are_those_of_samples(prior):
    if prior.support != REAL:
        pytest.skip("no order")
    p = torch.tensor([0.1, 0.5, 0.9])
    quantiles = prior.marginal_quantiles(p)
    assert quantiles.shape == (3, SIZE)
    samples = prior.sample(40_000, generator=torch.Generator().manual_seed(3)).detach()
    below = (samples[:, None] < quantiles).float().mean(0)
    assert (below - p[:, None]).abs().max() < 0.02
    double = prior.marginal_quantiles(p.double())
    torch.testing.assert_close(double.float(), quantiles, rtol=1e-4, atol=1e-4)
