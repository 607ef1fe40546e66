"""Categorical latents against torch.distributions and against sums over all of their values."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Independent,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    kl_divergence,
)

from vae_lightning import IWAE, VAE
from vae_lightning.distributions.categorical import Categorical, UniformCategorical
from vae_lightning.distributions.gumbel_softmax import GumbelSoftmaxPosterior
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.randomness import Noise
from vae_lightning.schedules import Constant, ExponentialDecay, LinearWarmup


def logits(images=4, variables=3, categories=5, scale=1.5):
    return (scale * torch.randn(images, variables, categories)).log_softmax(-1)


def test_kl_is_that_of_torch_distributions():
    values = logits()
    uniform = OneHotCategorical(logits=torch.zeros(5))
    expected = kl_divergence(OneHotCategorical(logits=values.double()), uniform)
    found = UniformCategorical(15, num_categories=5).kl(Categorical(values))
    assert found.shape == (4, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_kl_of_certain_and_of_uniform_categories():
    prior = UniformCategorical(10, num_categories=5)
    certain = torch.zeros(1, 2, 5)
    certain[..., 0] = 300
    assert prior.kl(Categorical(certain.log_softmax(-1))).tolist() == [
        pytest.approx([math.log(5)] * 2)
    ]
    even = prior.kl(Categorical(torch.zeros(1, 2, 5).log_softmax(-1)))
    torch.testing.assert_close(even, torch.zeros(1, 2), rtol=0, atol=1e-6)


def test_there_is_no_kl_of_other_posteriors():
    q = DiagonalGaussian(torch.zeros(1, 10), torch.zeros(1, 10))
    assert UniformCategorical(10, num_categories=5).kl(q) is None


def test_log_prob_of_the_prior_is_that_of_torch_distributions():
    uniform = Independent(OneHotCategorical(logits=torch.zeros(3, 5)), 1)
    z = uniform.sample((4, 2))
    found = UniformCategorical(15, num_categories=5).log_prob(z.flatten(2))
    torch.testing.assert_close(found, uniform.log_prob(z))


def test_exact_draws_are_one_hot_with_the_log_prob_of_torch_distributions():
    values = logits()
    draws = Categorical(values).rsample(Noise(torch.arange(4), "test"), 6)
    z = draws.z.unflatten(2, (3, 5))
    assert ((z == 0) | (z == 1)).all()
    assert z.sum(3).eq(1).all()
    expected = Independent(OneHotCategorical(logits=values[:, None]), 1).log_prob(z)
    torch.testing.assert_close(draws.log_prob, expected)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_draws_have_the_probabilities_of_the_categories(temperature):
    """By the Gumbel-max trick, relaxed or not: the largest entry, to 4.5 standard errors."""
    values, n = logits(images=2, variables=2, categories=4), 100_000
    z = Categorical(values, temperature).rsample(Noise(torch.arange(2), "test"), n).z
    found = nn.functional.one_hot(z.unflatten(2, (2, 4)).argmax(3), 4).double().mean(1)
    p = values.double().exp()
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_draws_of_different_variables_are_independent():
    values, n = logits(images=1, variables=2, categories=3, scale=1.0), 100_000
    z = Categorical(values).rsample(Noise(torch.arange(1), "test"), n).z[0].double()
    joint = z[:, :3].T @ z[:, 3:] / n
    p = values[0].double().exp()
    expected = p[0][:, None] * p[1]
    assert ((joint - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt()).all()


def test_relaxed_draws_follow_the_concrete_distribution():
    """Moments of each entry, against draws of torch.distributions, to 5 standard errors."""
    values, n = logits(images=1, variables=1, categories=3), 100_000
    ours = Categorical(values, 0.7).rsample(Noise(torch.arange(1), "test"), n).z[0].double()
    torch.testing.assert_close(ours.sum(1), torch.ones(n).double(), rtol=0, atol=1e-5)
    theirs = RelaxedOneHotCategorical(torch.tensor(0.7), logits=values[0, 0]).sample((n,)).double()
    for power in (1, 2, 3):
        mine, other = ours**power, theirs**power
        error = ((mine.var(0) + other.var(0)) / n).sqrt()
        assert ((mine.mean(0) - other.mean(0)).abs() < 5 * error).all()


def test_relaxed_draws_approach_one_hot_vectors_as_the_temperature_falls():
    values = logits()
    noise = [Noise(torch.arange(4), "test") for _ in range(3)]
    cold, warm = (
        Categorical(values, t).rsample(n, 50).z for t, n in zip((0.01, 5.0), noise, strict=False)
    )
    exact = Categorical(values).rsample(noise[2], 50).z
    assert (cold - exact).abs().mean() < 0.005
    assert (warm - exact).abs().mean() > 0.1


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_draws_are_the_same_at_once_or_in_parts(temperature):
    q = Categorical(logits(), temperature)

    def draw(*args):
        return q.rsample(Noise(torch.arange(4), "test"), *args).z

    whole = draw(9)
    assert whole.shape == (4, 9, 15)
    assert torch.cat([draw(2), draw(1, 2), draw(6, 3)], 1).equal(whole)


def test_relaxed_draws_have_no_density():
    draws = Categorical(logits(), 0.5).rsample(Noise(torch.arange(4), "test"))
    with pytest.raises(ValueError, match="no density under a categorical prior: train this"):
        _ = draws.log_prob


def test_gradients_of_relaxed_draws_are_those_of_the_concrete_distribution():
    """Of a function of z, in expectation, against torch.distributions, to 5 standard errors."""
    weight, n, raw = torch.randn(3), 40_000, torch.randn(3)

    def gradients(z, leaf):
        value = (z @ weight).square()
        # One gradient per draw: each draw has logits of its own.
        return torch.autograd.grad(value.sum(), leaf)[0].double()

    mine = raw.expand(n, 3).clone().requires_grad_()
    q = Categorical(mine.log_softmax(-1)[:, None], 0.8)
    ours = gradients(q.rsample(Noise(torch.arange(n), "test")).z[:, 0], mine)
    other = raw.expand(n, 3).clone().requires_grad_()
    p = RelaxedOneHotCategorical(torch.tensor(0.8), logits=other)
    theirs = gradients(p.rsample(), other)
    error = ((ours.var(0) + theirs.var(0)) / n).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert (ours.mean(0).abs() > 5 * error).any()


def test_means_and_point_estimates():
    values = logits()
    q = Categorical(values, 0.5)
    torch.testing.assert_close(q.mean.unflatten(1, (3, 5)).sum(2), torch.ones(4, 3))
    assert q.point_estimate.unflatten(1, (3, 5)).argmax(2).equal(values.argmax(2))
    assert q.point_estimate.sum(1).eq(3).all()


# The posterior family


def test_posterior_normalizes_each_variable():
    family = GumbelSoftmaxPosterior(15, num_categories=5)
    assert family.in_features == 15
    features = torch.randn(4, 15)
    q = family(features)
    torch.testing.assert_close(q.logits, features.view(4, 3, 5).log_softmax(-1))


def test_training_relaxes_and_evaluation_does_not():
    family = GumbelSoftmaxPosterior(15, num_categories=5, temperature=0.8)
    assert family.train()(torch.randn(2, 15)).temperature == pytest.approx(0.8)
    assert family.eval()(torch.randn(2, 15)).temperature is None


def test_temperature_follows_the_step():
    schedule = functools.partial(ExponentialDecay, rate=0.01, minimum=0.5)
    family = GumbelSoftmaxPosterior(15, num_categories=5, temperature=2.0, schedule=schedule)
    for step, expected in {0: 2.0, 30: 2 * math.exp(-0.3), 1000: 1.0}.items():
        family.step = step
        assert family(torch.randn(2, 15)).temperature == pytest.approx(expected)


def test_schedule_of_the_paper_is_the_default():
    family = GumbelSoftmaxPosterior(10)
    family.step = 10_000
    assert family(torch.randn(2, 10)).temperature == pytest.approx(math.exp(-0.3))
    family.step = 10**6
    assert family(torch.randn(2, 10)).temperature == pytest.approx(0.5)


# log p(x) by a sum over all latents


class Table(nn.Module):
    """Encoder whose posterior is a table of logits, one row for each image."""

    def __init__(self, values) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, x, condition=None):
        return self.values


def small(cls=VAE, **kwargs):
    """2 variables with 3 categories, 4 pixels."""
    prior = functools.partial(UniformCategorical, num_categories=3)
    posterior = functools.partial(GumbelSoftmaxPosterior, num_categories=3, schedule=Constant)
    options = {"image_shape": (1, 2, 2), "latent_dim": 6, "prior": prior, "posterior": posterior}
    return cls(**options, **kwargs)


def every_latent():
    rows = [torch.eye(3)[list(pair)].flatten() for pair in itertools.product(range(3), repeat=2)]
    return torch.stack(rows)


def joint(model, x):
    """log p(x, z) for all 9 values of z in float64, (B, 9)."""
    z = every_latent()
    with torch.no_grad():
        p = model.decoder(z).double().flatten(1).sigmoid()
    x = x.flatten(1).double()
    log_likelihood = torch.einsum("bd,zd->bz", x, p.log()) + torch.einsum(
        "bd,zd->bz", 1 - x, (1 - p).log()
    )
    return log_likelihood - 2 * math.log(3)


@pytest.fixture
def enumerable():
    model = small()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    model.encoder = Table(0.7 * torch.randn(3, 6))
    x = torch.tensor([[0.0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]]).view(3, 1, 2, 2)
    return model, x


def test_log_marginal_is_the_sum_over_all_latents(enumerable):
    """The mean importance weight, in float64, to 4 standard errors of it."""
    model, x = enumerable
    terms = joint(model, x)
    expected = terms.logsumexp(1)
    log_q = Independent(
        OneHotCategorical(logits=model.encoder.values.detach().view(3, 1, 2, 3).double()), 1
    ).log_prob(every_latent().view(9, 2, 3).double())
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(3).double())
    n = 20_000
    weights = (terms - log_q - expected[:, None]).exp()  # of each z, relative to p(x)
    error = ((log_q.exp() * (weights - 1).square()).sum(1) / n).sqrt()
    assert (error < 0.05).all()
    for mode in (True, False):  # a model in training is evaluated exactly, too
        model.train(mode)
        found = model.log_marginal(x, None, Noise(torch.arange(3), "test"), n, rows=6000)
        assert found.dtype == torch.float64
        assert ((found - expected).exp() - 1).abs().lt(4 * error).all()


def test_log_marginal_of_the_exact_posterior_has_no_error():
    """Where one variable matters and the other is known, all importance weights are equal."""
    model = small().eval()
    model.decoder = OneVariable()
    x = torch.tensor([[0.0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]]).view(3, 1, 2, 2)
    terms = joint(model, x)
    log_joint = terms.view(3, 3, 3)  # the first and the second variable
    exact = torch.cat([log_joint[:, :, 0], torch.zeros(3, 3)], 1).float()
    model.encoder = Table(exact)
    found = model.log_marginal(x, None, Noise(torch.arange(3), "test"), 5)
    torch.testing.assert_close(found, terms.logsumexp(1), rtol=0, atol=1e-5)


class OneVariable(nn.Module):
    """A decoder that sees the first variable only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(2 * torch.randn(3, 4))

    def forward(self, z, condition=None):
        return (z[:, :3] @ self.weight).view(-1, 1, 2, 2)


def test_evaluated_bound_is_that_of_the_discrete_model(enumerable):
    """The mean over many draws is the exact ELBO, a sum over all latents."""
    model, x = enumerable
    model.eval()
    n = 20_000
    model.num_samples = n
    with torch.no_grad():
        terms = model.terms(x, None, Noise(torch.arange(3), "test"))
    values = model.encoder.values.detach().view(3, 2, 3).double().log_softmax(-1)
    log_q = (values[:, 0, :, None] + values[:, 1, None]).flatten(1)
    log_ratio = joint(model, x) - log_q
    expected = (log_q.exp() * log_ratio).sum(1)
    log_likelihood = joint(model, x) + 2 * math.log(3)
    error = ((log_q.exp() * log_likelihood.square()).sum(1) / n).sqrt()
    assert ((-terms.negative_elbo - expected).abs() < 4 * error).all()
    assert (expected < joint(model, x).logsumexp(1)).all()


def test_gradients_flow_to_the_encoder_in_training_only_through_relaxed_draws(enumerable):
    model, x = enumerable
    gradients = []
    for mode in (True, False):
        model.train(mode)
        terms = model.terms(x, None, Noise(torch.arange(3), "test"))
        (gradient,) = torch.autograd.grad(
            terms.reconstruction.sum(), model.encoder.values, allow_unused=True
        )
        gradients.append(gradient)
    assert (gradients[0].abs().sum(1) > 0).all()
    assert gradients[1] is None or gradients[1].abs().sum() == 0
    terms = model.train().terms(x, None, Noise(torch.arange(3), "test"))
    (gradient,) = torch.autograd.grad(terms.kl.sum(), model.encoder.values)
    assert (gradient.abs().sum(1) > 0).all()


def test_importance_weights_of_relaxed_draws_are_refused():
    with pytest.raises(ValueError, match=r"those of GumbelSoftmaxPosterior have none in training"):
        small(IWAE)


def test_samples_of_the_prior_are_uniform_one_hot_vectors():
    prior, n = UniformCategorical(6, num_categories=3), 60_000
    z = prior.sample(n, generator=torch.Generator().manual_seed(1))
    assert z.shape == (n, 6)
    assert z.view(n, 2, 3).sum(2).eq(1).all()
    counts = z[:, :3].T @ z[:, 3:]
    assert ((counts / n - 1 / 9).abs() < 4.5 * math.sqrt(8 / 81 / n)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GumbelSoftmaxPosterior(10, num_categories=3), "must be at least 2 and divide"),
        (lambda: GumbelSoftmaxPosterior(10, num_categories=1), "must be at least 2 and divide"),
        (lambda: UniformCategorical(10, num_categories=4), "must be at least 2 and divide"),
        (lambda: GumbelSoftmaxPosterior(10, temperature=0), "temperature must be positive"),
        (lambda: VAE(posterior=GumbelSoftmaxPosterior), "choose a prior and a posterior"),
        (lambda: VAE(prior=UniformCategorical), "choose a prior and a posterior"),
        (
            lambda: VAE(
                latent_dim=12,
                prior=functools.partial(UniformCategorical, num_categories=3),
                posterior=functools.partial(GumbelSoftmaxPosterior, num_categories=4),
            ),
            "one-hot vectors of 4 categories, but UniformCategorical",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_temperature_of_zero_is_refused_when_it_is_used():
    """A schedule may return 0, with which every relaxed draw would be NaN."""
    family = GumbelSoftmaxPosterior(10, schedule=functools.partial(LinearWarmup, steps=10))
    with pytest.raises(ValueError, match="temperature"):
        family(torch.randn(2, 10))
