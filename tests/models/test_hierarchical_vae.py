"""Two stochastic layers: densities by torch.distributions in float64."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

from vae_lightning import HierarchicalIWAE, HierarchicalVAE
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.hierarchical_vae import TwoLayerPosterior
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise


def model(cls=HierarchicalVAE, **kwargs):
    """Latents of 3 and 2 dimensions, with weights that make the layers depend on one another."""
    options = {
        "image_shape": (1, 2, 2),
        "latent_dim": 3,
        "top_dim": 2,
        "hidden": (5, 4),
        "encoder": functools.partial(MLPEncoder, hidden=(6,)),
        "decoder": functools.partial(MLPDecoder, hidden=(6,)),
        "num_classes": 3,
    }
    return cls(**{**options, **kwargs})


def images(n=5):
    return torch.rand(n, 1, 2, 2).round()


def noise(n=5, *keys):
    return Noise(torch.arange(n), "test", *keys)


def gaussian(net, z):
    """What a network says about the other layer, by hand and in float64."""
    h = z.double()
    for layer in net:
        h = (
            torch.tanh(h)
            if isinstance(layer, nn.Tanh)
            else h @ layer.weight.double().T + layer.bias.double()
        )
    mu, log_var = h.chunk(2, -1)
    return Independent(Normal(mu, (0.5 * log_var).exp()), 1)


def reference(vae, x, z_1, z_2, condition=None):
    """log p(x|z_1), log p(z_1, z_2) and log q(z_1, z_2|x) in float64, each (B, n)."""
    n = z_1.shape[1]
    mu, log_var = vae.encoder(x, condition).double().chunk(2, 1)
    q_1 = Independent(Normal(mu[:, None], (0.5 * log_var[:, None]).exp()), 1)
    log_q = q_1.log_prob(z_1.double()) + gaussian(vae.inference_net, z_1).log_prob(z_2.double())
    top = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    log_p = top.log_prob(z_2.double()) + gaussian(vae.generative_net, z_2).log_prob(z_1.double())
    seen = None if condition is None else condition.repeat_interleave(n, 0)
    logits = vae.decoder(z_1.flatten(0, 1), seen).unflatten(0, (-1, n)).double()
    pixels = Independent(Bernoulli(logits=logits, validate_args=False), 3)
    return pixels.log_prob(x[:, None].double()), log_p, log_q


@pytest.mark.parametrize("conditional", [False, True])
def test_densities_are_those_of_torch_distributions(conditional):
    vae, x = model(conditional=conditional), images()
    condition = torch.eye(3)[torch.arange(5) % 3] if conditional else None
    draws = vae.posterior(x, condition).rsample(noise(), 4)
    z_1, z_2 = draws.z
    assert z_1.shape == (5, 4, 3)
    assert z_2.shape == (5, 4, 2)
    log_likelihood, log_p, log_q = reference(vae, x, z_1, z_2, condition)
    torch.testing.assert_close(draws.log_prob.double(), log_q, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        vae.log_prior(draws.z, condition).double(), log_p, rtol=1e-5, atol=1e-4
    )
    found = vae.log_likelihood(x, draws.z, condition).double()
    torch.testing.assert_close(found, log_likelihood, rtol=1e-5, atol=1e-4)


def test_terms_are_those_of_the_draws():
    vae, x = model(num_samples=3), images()
    terms = vae.terms(x, None, noise())
    z_1, z_2 = vae.posterior(x).rsample(noise(), 3).z
    log_likelihood, log_p, log_q = reference(vae, x, z_1, z_2)
    torch.testing.assert_close(terms.reconstruction.double(), -log_likelihood.mean(1))
    torch.testing.assert_close(terms.kl.double(), (log_q - log_p).mean(1), rtol=1e-4, atol=1e-4)
    assert vae.objective(terms).equal(terms.reconstruction + terms.kl)


def test_draws_have_the_moments_of_both_layers():
    """z_2 given each z_1: its residual is standard normal, and no function of that of z_1."""
    vae, x, n = model(), images(1), 50_000
    with torch.no_grad():
        z_1, z_2 = vae.posterior(x).rsample(noise(1), n).z
        mu, log_var = vae.encoder(x).chunk(2, 1)
        e_1 = ((z_1[0] - mu) / (0.5 * log_var).exp()).double()
        q_2 = gaussian(vae.inference_net, z_1[0]).base_dist
        e_2 = (z_2[0].double() - q_2.loc) / q_2.scale
    e = torch.cat([e_1, e_2], 1)
    covariance = e.T @ e / n
    assert e.mean(0).abs().max() < 5 / math.sqrt(n)
    assert (covariance - torch.eye(5)).abs().max() < 5 * math.sqrt(2 / n)


def test_draws_are_the_same_at_once_or_in_parts():
    q = model().posterior(images())
    whole = q.rsample(noise(), 7)
    parts = [q.rsample(noise(), *args) for args in ((2,), (4, 2), (1, 6))]
    for level in (0, 1):
        joined = torch.cat([part.z[level] for part in parts], 1)
        torch.testing.assert_close(joined, whole.z[level])
    torch.testing.assert_close(torch.cat([part.log_prob for part in parts], 1), whole.log_prob)


def test_log_marginal_is_the_mean_of_importance_weights_in_parts_or_at_once():
    vae, x = model(), images()
    z_1, z_2 = vae.posterior(x).rsample(noise(), 50).z
    log_likelihood, log_p, log_q = reference(vae, x, z_1, z_2)
    expected = (log_likelihood + log_p - log_q).logsumexp(1) - math.log(50)
    for rows in (None, 1, 5, 35, 1000):
        found = vae.log_marginal(x, None, noise(), 50, rows)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_importance_weights_have_the_mean_one():
    """E_q[p(z_1, z_2) / q(z_1, z_2|x)] = 1 for every image, to 4 standard errors."""
    vae, x, n = model(), images(3), 100_000
    with torch.no_grad():
        for parameter in vae.parameters():  # q near enough to p, for weights with a variance
            parameter.mul_(0.4)
        for net in (vae.encoder.layers, vae.inference_net):
            half = len(net[-1].bias) // 2
            net[-1].bias[half:] = 0.4  # and wider than p
        draws = vae.posterior(x).rsample(noise(3), n)
        weights = vae.log_ratio(draws).double().exp()
    error = weights.std(1) / math.sqrt(n)
    assert (error < 0.02).all()
    assert ((weights.mean(1) - 1).abs() < 4 * error).all()
    # With a decoder that does not see z, log p(x) is its log-likelihood.
    for parameter in vae.decoder.layers[-1].parameters():
        nn.init.zeros_(parameter)
    found = vae.log_marginal(x, None, noise(3), 20_000, rows=30_000)
    torch.testing.assert_close(
        found, torch.full((3,), -4 * math.log(2)).double(), rtol=0, atol=0.03
    )


def test_samples_go_down_from_the_top():
    vae = model()
    z_1, z_2 = vae.sample_latents(50_000, None, torch.Generator().manual_seed(1))
    assert z_2.shape == (50_000, 2)
    p = gaussian(vae.generative_net, z_2).base_dist
    e = torch.cat([(z_1.double() - p.loc) / p.scale, z_2.double()], 1)
    assert e.mean(0).abs().max() < 5 / math.sqrt(50_000)
    assert (e.T @ e / 50_000 - torch.eye(5)).abs().max() < 5 * math.sqrt(2 / 50_000)


@pytest.mark.parametrize("conditional", [False, True])
def test_inference(conditional):
    vae, x = model(conditional=conditional), images()
    label = torch.arange(5) % 3 if conditional else None
    z_1, z_2 = vae.embed(x, label)
    assert z_1.shape == (5, 3)
    assert z_2.shape == (5, 2)
    torch.testing.assert_close(z_2.double(), gaussian(vae.inference_net, z_1).base_dist.loc)
    assert vae.latent_vectors(x, label).equal(torch.cat([z_1, z_2], 1))
    assert vae.decode((z_1, z_2), label).shape == x.shape
    assert vae.decode((z_1, z_2), label).equal(vae.decode((z_1, 9 + z_2), label))
    assert vae.reconstruct(x, label).equal(vae.decode((z_1, z_2), label))
    samples = vae.sample(7, generator=torch.Generator().manual_seed(1))
    assert samples.shape == (7, 1, 2, 2)
    assert samples.equal(vae.sample(7, generator=torch.Generator().manual_seed(1)))
    encoded = vae.encode(x, vae.encode_labels(label, 5))
    assert {name: value.shape[1] for name, value in encoded.items()} == {
        "mu": 3,
        "log_var": 3,
        "z_2": 2,
    }
    assert vae.log_prob(x, label).shape == (5,)


def test_capabilities_are_those_of_a_pair():
    vae = model()
    assert vae.has(Capability.DENSITY, Capability.SAMPLES)
    for missing in (
        Capability.LATENT_VECTOR,
        Capability.CONTINUOUS_LATENT,
        Capability.TRAVERSABLE,
        Capability.KL_PER_DIMENSION,
    ):
        assert not vae.has(missing)
    assert vae.latent_size is None
    with pytest.raises(MissingCapabilityError):
        vae.latent_kl(images())


def test_prior_is_one_of_the_top_layer():
    vae = model(prior=MixtureOfGaussians)
    assert vae.prior.mu.shape == (100, 2)
    x = images()
    draws = vae.posterior(x).rsample(noise(), 2)
    z_1, z_2 = draws.z
    _, log_p, _ = reference(vae, x, z_1, z_2)
    standard = Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob(z_2)
    expected = log_p - standard.double() + vae.prior.log_prob(z_2).double()
    torch.testing.assert_close(vae.log_prior(draws.z).double(), expected, rtol=1e-4, atol=1e-4)


def test_is_trained_with_importance_weights():
    """The bound is the mean of the weights in float64; all parameters get its gradient."""
    vae, x = model(HierarchicalIWAE, num_samples=6), images()
    assert vae.num_samples == 6
    terms = vae.terms(x, None, noise())
    z_1, z_2 = vae.posterior(x).rsample(noise(), 6).z
    log_likelihood, log_p, log_q = reference(vae, x, z_1, z_2)
    expected = -((log_likelihood + log_p - log_q).exp().mean(1).log())
    torch.testing.assert_close(vae.objective(terms).double(), expected, rtol=1e-5, atol=1e-5)
    assert (terms.negative_iwae_bound < terms.negative_elbo + 1e-5).all()
    vae.objective(terms).mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_top_dim_must_be_positive():
    with pytest.raises(ValueError, match="top_dim must be positive, got 0"):
        HierarchicalVAE(top_dim=0)


def test_density_of_the_top_layer_is_that_of_its_noise():
    """Where its variance is small, draws are rounded, and their density would lose digits."""
    net = nn.Linear(2, 6)
    nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor([3.0, 3.0, 3.0, -28.0, -28.0, -28.0])
    first = DiagonalGaussian(torch.zeros(4, 2), torch.zeros(4, 2))
    draws = TwoLayerPosterior(first, net).rsample(Noise(torch.arange(4), "test"), 5)
    noise = Noise(torch.arange(4), "test")
    below = first.rsample(noise, 5)
    epsilon = noise.normal(15).view(4, 5, 3)
    exact = Normal(0.0, 1.0).log_prob(epsilon.double()).sum(2) + 3 * 14
    found = (draws.log_prob - below.log_prob).double()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-5)


def test_the_noise_of_the_lower_level_is_what_it_was_drawn_with():
    hierarchy = model()
    z_2, epsilon = torch.randn(6, 2), torch.randn(6, 3)
    mu, log_var = hierarchy.generative_net(z_2).chunk(2, 1)
    z = hierarchy.from_noise(torch.cat([z_2, epsilon], 1))
    torch.testing.assert_close(z[0], mu + epsilon * log_var.exp().sqrt())
    assert z[1].equal(z_2)
    torch.testing.assert_close(
        hierarchy.to_noise(z), torch.cat([z_2, epsilon], 1), rtol=1e-4, atol=1e-5
    )
