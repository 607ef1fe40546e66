"""The mixture of Gaussians against torch.distributions in float64."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vae_lightning.distributions.mixture_prior import MixtureOfGaussians, mixture_log_prob
from vae_lightning.distributions.posteriors import DiagonalGaussian


def reference(mu, log_var, log_weights) -> MixtureSameFamily:
    """The same mixture in float64."""
    mu, log_var, log_weights = mu.double(), log_var.double(), log_weights.double()
    components = Independent(Normal(mu, (0.5 * log_var).exp()), 1)
    return MixtureSameFamily(Categorical(logits=log_weights), components)


def mixture(size, components=50, variance=1.0, offset=0.0):
    """Means that are 1.5 apart around an offset, and log-variances around that of a variance."""
    mu = offset + 1.5 * torch.randn(components, size)
    log_var = math.log(variance) + 0.3 * torch.randn(components, size)
    return mu, log_var, torch.randn(components).log_softmax(0)


def prior(size=2, components=3) -> MixtureOfGaussians:
    """A prior whose components have different weights and variances."""
    made = MixtureOfGaussians(size, components=components)
    made.mu.data = 2 * torch.randn(components, size)
    made.log_var.data = torch.randn(components, size)
    made.logits.data = torch.randn(components)
    return made


@pytest.mark.parametrize("shape", [(7,), (3, 4), (1, 1)])
def test_log_prob_is_that_of_torch_distributions(shape):
    made = prior(size=5, components=6)
    z = 3 * torch.randn(*shape, 5)
    expected = reference(made.mu, made.log_var, made.logits).log_prob(z.double())
    found = made.log_prob(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 5.0, 100.0])
@pytest.mark.parametrize(
    ("size", "variance", "tolerance"),
    # Those of float32 values of that size, but for the last one: the distances are expanded.
    [(2, 1.0, 1e-6), (20, 1e-2, 3e-6), (50, 1e-3, 1.2e-5), (8, 1e-9, 6e-5), (8, 1e-11, 3e-3)],
)
def test_log_prob_keeps_its_digits_with_small_variances_and_offsets(
    size, variance, tolerance, offset
):
    """Where draws are: near a component, as those of an encoder that knows its images well."""
    mu, log_var, log_weights = mixture(size, 200, variance, offset)
    chosen = torch.randint(200, (40,))
    z = mu[chosen] + (0.5 * log_var[chosen]).exp() * torch.randn(40, size)
    expected = reference(mu, log_var, log_weights).log_prob(z.double())
    error = mixture_log_prob(z, mu, log_var, log_weights).double() - expected
    assert error.abs().max() < tolerance
    assert error.mean().abs() < tolerance / 5  # no bias: an average over images is as good


def test_gradients_are_those_of_torch_distributions():
    mu, log_var, log_weights = mixture(4, components=5, variance=0.1)
    values = [torch.randn(3, 2, 4), mu, log_var, log_weights]
    ours = [value.clone().requires_grad_() for value in values]
    theirs = [value.double().requires_grad_() for value in values]
    mixture_log_prob(*ours).sum().backward()
    reference(*theirs[1:]).log_prob(theirs[0]).sum().backward()
    for name, mine, other in zip(("z", "mu", "log_var"), ours, theirs, strict=False):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-4, msg=name)
    # Categorical normalizes its logits once more, which takes the mean out of the gradient.
    normalized = ours[3].grad - ours[3].grad.sum() * log_weights.exp()
    torch.testing.assert_close(normalized.double(), theirs[3].grad, rtol=1e-4, atol=1e-4)


def test_density_does_not_lose_digits_under_autocast():
    made = prior(size=8, components=4)
    z = torch.randn(5, 2, 8)
    exact = made.log_prob(z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made.log_prob(z)
    assert mixed.equal(exact)


def test_density_far_from_all_components_is_finite():
    made = prior()
    z = torch.full((1, 1, 2), 1e4)
    expected = reference(made.mu, made.log_var, made.logits).log_prob(z.double())
    torch.testing.assert_close(made.log_prob(z).double(), expected, rtol=1e-5, atol=0)
    assert expected < -1e5


def test_one_component_is_a_gaussian():
    made = MixtureOfGaussians(3, components=1)
    z = torch.randn(4, 2, 3)
    q = DiagonalGaussian(made.mu.expand(4, -1), made.log_var.expand(4, -1))
    torch.testing.assert_close(made.log_prob(z), q.log_prob(z))


def test_weights_means_and_variances_are_learned_by_maximum_likelihood():
    """Two clusters, one with three times as many points and half the standard deviation."""
    near = torch.tensor([-2.0, 0.0]) + 0.5 * torch.randn(600, 2)
    far = torch.tensor([2.0, 1.0]) + torch.randn(200, 2)
    z = torch.cat([near, far])
    made = MixtureOfGaussians(2, components=2)
    made.mu.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-made.log_prob(z).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(
        made.logits.softmax(0), torch.tensor([0.75, 0.25]), atol=0.03, rtol=0
    )
    expected = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    torch.testing.assert_close(made.mu.data, expected, atol=0.25, rtol=0)
    deviations = (0.5 * made.log_var.data).exp().mean(1)
    torch.testing.assert_close(deviations, torch.tensor([0.5, 1.0]), atol=0.1, rtol=0)


def test_samples_have_the_moments_of_the_mixture():
    """Mean and covariance of the law of total variance, to 5 standard errors."""
    made, n = prior(size=2, components=3), 100_000
    z = made.sample(n, generator=torch.Generator().manual_seed(1)).double().detach()
    weights = made.logits.double().softmax(0)
    mu, variances = made.mu.double(), made.log_var.double().exp()
    mean = weights @ mu
    second = torch.diag(weights @ variances) + torch.einsum("k,ki,kj->ij", weights, mu, mu)
    for found, expected in ((z, mean), (torch.einsum("ni,nj->nij", z, z), second)):
        error = found.std(0) / math.sqrt(n)
        assert ((found.mean(0) - expected).abs() < 5 * error).all()
    assert made.sample(9, generator=torch.Generator().manual_seed(1)).equal(
        made.sample(9, generator=torch.Generator().manual_seed(1))
    )


def test_entropy_of_samples_is_the_one_that_their_log_prob_says():
    """E_p[p'(z) / p(z)] = 1 for another density p': samples and log_prob belong together."""
    made, n = prior(size=2, components=3), 100_000
    with torch.no_grad():
        z = made.sample(n, generator=torch.Generator().manual_seed(2))
        narrow = reference(
            made.mu, made.log_var - 0.5, made.logits + torch.tensor([0.3, 0.0, -0.3])
        )
        ratio = (narrow.log_prob(z.double()) - made.log_prob(z)).exp()
    error = ratio.std() / math.sqrt(n)
    assert error < 0.01
    assert (ratio.mean() - 1).abs() < 4 * error


def test_there_is_no_closed_form_of_the_kl():
    assert MixtureOfGaussians(2).kl(DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2))) is None


@pytest.mark.parametrize(
    "kwargs", [{"components": 0}, {"init_scale": 0.0}, {"init_scale": math.nan}]
)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="components and init_scale must be positive"):
        MixtureOfGaussians(2, **kwargs)
