import functools
import math

import pytest
import torch
from linear_gaussian import GivenFeatures, exact_features, images, linear
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

from vae_lightning import IWAE
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import DiagonalGaussian, Posterior
from vae_lightning.distributions.vamp_prior import VampPrior
from vae_lightning.distributions.zuko_flows import IAFPosterior
from vae_lightning.models.capabilities import MissingCapabilityError
from vae_lightning.models.dreg import DReG
from vae_lightning.randomness import Noise

N = 20_000


def noise(n, *keys):
    return Noise(torch.arange(n), "test", *keys)


def bound_of(model, x, *keys):
    return model.objective(model.terms(x, None, noise(len(x), *keys)))


def pair(x, features=None, **kwargs):
    """DReG and IWAE with the same weights."""
    models = [linear(DReG, **kwargs), linear(IWAE, num_samples=kwargs.get("num_samples", 5))]
    if features is not None:
        for model in models:
            model.encoder = GivenFeatures(features)
    return models


def gradients(model, x, *keys):
    """The gradient of each image's bound with respect to its mu and log_var, (N, 4)."""
    loss = bound_of(model, x, *keys).sum()
    return torch.autograd.grad(loss, model.encoder.features)[0].double()


@pytest.fixture
def one_image():
    """Many copies of an image, and a posterior that is not p(z|x)."""
    model = linear(IWAE)
    x, _ = images(model, 1)
    features = exact_features(model, x) + torch.tensor([0.4, -0.3, 0.5, -0.4])
    return x.expand(N, -1, -1, -1), features.expand(N, -1)


@pytest.mark.parametrize("samples", [1, 2, 6])
def test_the_gradient_is_that_of_iwae_in_expectation_with_less_noise(one_image, samples):
    x, features = one_image
    ours, theirs = pair(x, features, num_samples=samples)
    found = torch.stack([gradients(ours, x, seed) for seed in range(10)]).flatten(0, 1)
    expected = torch.stack([gradients(theirs, x, seed) for seed in range(10)]).flatten(0, 1)
    difference = found - expected
    error = difference.std(0) / math.sqrt(len(difference))
    assert (difference.mean(0).abs() <= 4.5 * error).all()
    assert error.max() < 0.02 * expected.mean(0).abs().max()
    assert (found.var(0) < 0.8 * expected.var(0)).all()


def test_sticking_the_landing_is_biased_with_several_samples(one_image):
    """So that the test above can tell one weight from another."""
    x, features = one_image
    ours, theirs = pair(x, features, num_samples=6, estimator="stl")
    difference = gradients(ours, x) - gradients(theirs, x)
    error = difference.std(0) / math.sqrt(N)
    assert (difference.mean(0).abs() > 10 * error).any()


@pytest.mark.parametrize("samples", [1, 4])
def test_the_gradient_at_the_exact_posterior_is_zero(samples):
    """All weights are equal there, whatever was drawn; IWAE's estimate is zero on average only."""
    x, exact = images(linear(IWAE), 100)
    ours, theirs = pair(x, exact_features(linear(IWAE), x), num_samples=samples)
    assert gradients(ours, x).abs().max() < 1e-4
    assert gradients(theirs, x).abs().max() > 0.01
    torch.testing.assert_close(-bound_of(ours, x).double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("estimator", ["dreg", "stl"])
def test_gradients_are_those_of_the_formula(batch, estimator):
    """Draw by draw, with torch.distributions: w^2, or w, times d log w / dz dz / d features."""
    model = DReG(estimator, num_samples=4, image_shape=(1, 8, 8), latent_dim=3)
    model.encoder.head.weight.data *= 3
    features = model.posterior_features(batch.x).detach().requires_grad_()
    mu, log_var = features.chunk(2, 1)
    epsilon = noise(16).normal(12).view(16, 4, 3)
    fixed = Independent(Normal(mu.detach(), (log_var / 2).exp().detach()), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    drawn, log_weights = [], []
    for k in range(4):
        z = mu + (log_var / 2).exp() * epsilon[:, k]
        leaf = z.detach().requires_grad_()
        p = Independent(Bernoulli(logits=model.decoder(leaf), validate_args=False), 3)
        log_weights.append(p.log_prob(batch.x) + prior.log_prob(leaf) - fixed.log_prob(leaf))
        drawn.append((z, leaf))
    weights = torch.stack(log_weights).detach().softmax(0)
    expected = torch.zeros_like(features)
    for k, (z, leaf) in enumerate(drawn):
        (slope,) = torch.autograd.grad(log_weights[k].sum(), leaf, retain_graph=True)
        power = weights[k] ** (2 if estimator == "dreg" else 1)
        expected -= torch.autograd.grad(z, features, power[:, None] * slope, retain_graph=True)[0]
    model.posterior_features = lambda *_: features
    (found,) = torch.autograd.grad(bound_of(model, batch.x).sum(), features)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert weights.max() > 0.5


@pytest.mark.parametrize("estimator", ["dreg", "stl"])
def test_bound_decoder_and_prior_are_those_of_iwae(batch, estimator):
    kwargs = {"image_shape": (1, 8, 8), "latent_dim": 3, "num_samples": 4}
    kwargs["prior"] = functools.partial(MixtureOfGaussians, components=3)
    ours, theirs = DReG(estimator, **kwargs), IWAE(**kwargs)
    theirs.load_state_dict(ours.state_dict())
    found, expected = (bound_of(model, batch.x) for model in (ours, theirs))
    assert found.equal(expected)
    for name, value in ours.terms(batch.x, None, noise(16)).as_dict().items():
        assert value.equal(theirs.terms(batch.x, None, noise(16)).as_dict()[name]), name
    for loss in (found, expected):
        loss.mean().backward()
    same = {"decoder.": True, "prior.": True, "encoder.": False}
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close = torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
        assert close == next(same[part] for part in same if name.startswith(part)), name


def test_the_bound_without_gradients_is_the_same(batch):
    model = DReG(num_samples=4, image_shape=(1, 8, 8), latent_dim=3)
    with torch.no_grad():
        expected = bound_of(model, batch.x)
    with torch.inference_mode():
        assert bound_of(model, batch.x).equal(expected)
    assert bound_of(model, batch.x).detach().equal(expected)


class LearnedScale(Posterior):
    """A family with parameters of its own."""

    def __init__(self, latent_dim):
        super().__init__(latent_dim)
        self.log_var = nn.Parameter(torch.zeros(latent_dim))

    @property
    def in_features(self):
        return self.latent_dim

    def forward(self, features):
        return DiagonalGaussian(features, self.log_var.expand_as(features))


def test_parameters_of_the_family_learn_through_the_draws_only():
    model = linear(DReG, posterior=LearnedScale, num_samples=3)
    x, _ = images(model, 100)
    exact = exact_features(model, x)
    model.encoder = GivenFeatures(exact[:, :2])
    model.posterior_family.log_var.data = exact[0, 2:].float()
    loss = bound_of(model, x).mean()
    gradient = torch.autograd.grad(loss, model.posterior_family.log_var)[0]
    assert gradient.abs().max() < 1e-5  # with log q's own gradient, it would be 0.5 or so


def test_a_prior_that_uses_the_encoder_keeps_its_gradient(batch):
    """The pseudo-inputs belong to the prior: their gradient is that of IWAE."""
    kwargs = {"image_shape": (1, 8, 8), "latent_dim": 3, "num_samples": 4}
    kwargs["prior"] = functools.partial(VampPrior, components=3)
    ours, theirs = DReG(**kwargs), IWAE(**kwargs)
    theirs.load_state_dict(ours.state_dict())
    found, expected = (
        torch.autograd.grad(bound_of(m, batch.x).sum(), m.prior.pseudo_input_logits)[0]
        for m in (ours, theirs)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0


def test_refusals():
    with pytest.raises(ValueError, match="estimator must be dreg or stl"):
        DReG("path")
    with pytest.raises(MissingCapabilityError, match="choose another posterior than IAFPosterior"):
        DReG(posterior=IAFPosterior)
