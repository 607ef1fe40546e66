import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from vae_lightning import IWAE, VAE
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise

SIGMA = 0.5


def small(cls, **kwargs):
    """Images of four pixels, two latents."""
    nets = {
        "encoder": functools.partial(MLPEncoder, hidden=(3,), activation="tanh"),
        "decoder": functools.partial(MLPDecoder, hidden=(3,), activation="tanh"),
    }
    return cls(image_shape=(1, 2, 2), latent_dim=2, **nets, **kwargs)


class LinearEncoder(nn.Module):
    """The exact posterior of `LinearDecoder`, or one that is ``off`` by so much."""

    def __init__(self, decoder, off) -> None:
        super().__init__()
        self.decoder, self.off = decoder, off
        # The columns of the weight are orthogonal, so the exact posterior is diagonal.
        self.precision = 1 + decoder.weight.square().sum(0) / SIGMA**2

    def forward(self, x, condition=None):
        error = x.flatten(1) - self.decoder.offset
        mu = error @ self.decoder.weight / SIGMA**2 / self.precision
        log_var = (-self.precision.log()).expand_as(mu)
        return torch.cat([mu + self.off, log_var + self.off], dim=1)


class LinearDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight = torch.linalg.qr(torch.randn(4, 2)).Q * torch.tensor([1.5, 0.7])
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.offset = nn.Parameter(torch.rand(4), requires_grad=False)

    def forward(self, z, condition=None):
        return (z @ self.weight.T + self.offset).view(-1, 1, 2, 2)


@pytest.fixture
def linear():
    """A model with p(x) = N(offset, W W^T + sigma^2 I), images of it, and their exact log p(x)."""
    model = small(IWAE, likelihood=functools.partial(Gaussian, sigma=SIGMA))
    model.decoder = LinearDecoder()
    weight = model.decoder.weight
    p = MultivariateNormal(model.decoder.offset, weight @ weight.T + SIGMA**2 * torch.eye(4))
    x = p.sample((2000,))
    return model, x.view(-1, 1, 2, 2), p.log_prob(x)


def bound(model, x, samples):
    model.num_samples = samples
    return -model.terms(x, None, Noise(torch.arange(len(x)), "test")).negative_iwae_bound


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_bound_of_the_exact_posterior_is_the_likelihood(linear, samples):
    """Not only on average: all importance weights are equal."""
    model, x, exact = linear
    model.encoder = LinearEncoder(model.decoder, off=0)
    torch.testing.assert_close(bound(model, x, samples), exact, rtol=0, atol=2e-5)


def test_bound_of_a_worse_posterior_rises_to_the_likelihood(linear):
    model, x, exact = linear
    model.encoder = LinearEncoder(model.decoder, off=0.4)
    # With one sample the gap is KL(q || p(z|x)), here the same for every image.
    precision = model.encoder.precision
    variances = math.exp(0.4) + 0.4**2 * precision
    kl = 0.5 * (variances - 1 - 0.4).sum()
    assert kl > 0.4
    gaps = [exact - bound(model, x, samples) for samples in (1, 2, 6, 20)]

    def error(values):
        return values.std() / math.sqrt(len(values))

    assert abs(gaps[0].mean() - kl) < 4 * error(gaps[0])
    for fewer, more in itertools.pairwise(gaps):
        gain = fewer - more
        assert gain.mean() > 4 * error(gain)
    assert 4 * error(gaps[-1]) < gaps[-1].mean() < 0.1 * kl


def test_bound_is_that_of_torch_distributions(batch):
    model = IWAE(image_shape=(1, 8, 8), latent_dim=3, num_samples=4)
    terms = model.terms(batch.x, None, Noise(batch.indices, "test"))
    mu, log_var = model.encoder(batch.x).chunk(2, dim=1)
    q = Independent(Normal(mu, (log_var / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    epsilon = Noise(batch.indices, "test").normal(4 * 3).view(16, 4, 3)
    weights = []
    for k in range(4):
        z = mu + (log_var / 2).exp() * epsilon[:, k]
        p = Independent(Bernoulli(logits=model.decoder(z), validate_args=False), 3)
        weights.append(p.log_prob(batch.x) + prior.log_prob(z) - q.log_prob(z))
    # In float64 the mean of the weights themselves can be taken.
    expected = torch.stack(weights).double().exp().mean(0).log().float()
    torch.testing.assert_close(-terms.negative_iwae_bound, expected)
    assert model.objective(terms).equal(terms.negative_iwae_bound)


def test_gradient_with_one_sample_is_that_of_the_vae():
    """In expectation: the KL term is drawn and not computed. To 4.5 standard errors."""
    vae = small(VAE)
    with torch.no_grad():  # far from the prior, so that the KL term matters
        for parameter in vae.encoder.parameters():
            parameter.normal_()
    iwae = small(IWAE, num_samples=1)
    iwae.load_state_dict(vae.state_dict())
    x = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 1]]).view(2, 1, 2, 2).repeat(1000, 1, 1, 1)

    def gradients(model, part):
        noise = Noise(torch.arange(len(x)), "test", part)
        loss = model.objective(model.terms(x, None, noise)).mean()
        grads = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        return torch.cat([grad.flatten() for grad in grads])

    ours = torch.stack([gradients(iwae, part) for part in range(100)])
    theirs = torch.stack([gradients(vae, part) for part in range(100)])
    difference = ours - theirs
    error = difference.std(0) / 10
    assert (difference.mean(0).abs() <= 4.5 * error + 1e-6).all()
    assert difference.abs().max() > 1e-3  # not the same draw by draw
    assert error.max() < 0.02 * theirs.mean(0).norm()


def test_more_samples_train_on_another_gradient():
    """Not on the mean of single bounds, which is what a VAE does."""
    iwae, vae = small(IWAE, num_samples=5), small(VAE, num_samples=5)
    vae.load_state_dict(iwae.state_dict())
    x = torch.rand(3, 1, 2, 2).round()
    noise = [Noise(torch.arange(3), "test") for _ in range(2)]
    ours, theirs = iwae.terms(x, None, noise[0]), vae.terms(x, None, noise[1])
    assert ours.reconstruction.equal(theirs.reconstruction)
    assert ours.kl.equal(theirs.kl)
    q = iwae.posterior(x)
    draws = q.rsample(Noise(torch.arange(3), "test"), 5)
    log_weights = iwae.log_likelihood(x, draws.z) + iwae.log_ratio(draws)
    (gradient,) = torch.autograd.grad(ours.negative_iwae_bound.sum(), iwae.decoder.layers[-1].bias)
    # The gradient of each draw, by its normalized importance weight.
    weights = log_weights.softmax(1).detach()
    expected = torch.autograd.grad(-(weights * log_weights).sum(), iwae.decoder.layers[-1].bias)
    torch.testing.assert_close(gradient, expected[0])
    assert weights.max() > 0.21


@pytest.mark.parametrize("conditional", [False, True])
def test_terms_are_named_and_per_image(batch, conditional):
    model = IWAE(image_shape=(1, 8, 8), num_classes=4, conditional=conditional)
    condition = model.encode_labels(batch.y if conditional else None, 16)
    named = model.terms(batch.x, condition, Noise(batch.indices)).as_dict()
    assert set(named) == {"reconstruction", "kl", "negative_elbo", "negative_iwae_bound"}
    for name, value in named.items():
        assert value.shape == (16,), name
    torch.testing.assert_close(named["negative_elbo"], named["reconstruction"] + named["kl"])


def test_samples_must_be_positive():
    with pytest.raises(ValueError, match="num_samples must be positive"):
        IWAE(num_samples=0)
