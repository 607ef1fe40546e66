"""The ladder VAE: densities and KLs by torch.distributions in float64, and a linear hierarchy."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional

from vae_lightning import IWAE, HierarchicalVAE, LadderVAE
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import DiagonalGaussian, GaussianPosterior
from vae_lightning.distributions.vamp_prior import VampPrior
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.ladder_vae import merged
from vae_lightning.models.top_down import gaussian_kl
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise
from vae_lightning.schedules import LinearWarmup


def model(cls=LadderVAE, **kwargs):
    """Three levels, with weights that make them depend on one another."""
    options = {
        "image_shape": (1, 2, 2),
        "latent_dims": (4, 3, 2),
        "widths": (8, 7, 6),
        "encoder": functools.partial(MLPEncoder, hidden=(6,)),
        "decoder": functools.partial(MLPDecoder, hidden=(6,)),
        "num_classes": 3,
    }
    made = cls(**{**options, **kwargs})
    for net in (*made.up_heads, *(net[-1] for net in made.down_nets)):
        nn.init.normal_(net.weight, std=0.5)
        nn.init.normal_(net.bias, std=0.5)
    return made


def images(n=5):
    return torch.rand(n, 1, 2, 2).round()


def noise(n=5, *keys):
    return Noise(torch.arange(n), "test", *keys)


def gaussian(parameters):
    mu, log_var = parameters.double().chunk(2, 1)
    return Normal(mu, (0.5 * log_var).exp())


def reference(vae, x, z, condition=None):
    """p and q of every level in float64, given draws (B, n, L_l), the lowest level first."""
    n = z[0].shape[1]
    hidden, likelihoods = vae.start(vae.encoder(x, condition)), []
    for i, head in enumerate(vae.up_heads):
        hidden = hidden if i == 0 else vae.up_nets[i - 1](hidden)
        likelihoods.append(gaussian(head(hidden).repeat_interleave(n, 0)))
    size = z[-1].shape[2]
    ps, qs = [Normal(torch.zeros(size).double(), torch.ones(size).double())], [likelihoods[-1]]
    for level in reversed(range(len(z) - 1)):
        p, hat = gaussian(vae.down_nets[level](z[level + 1].flatten(0, 1))), likelihoods[level]
        precisions = 1 / p.scale**2, 1 / hat.scale**2
        mu = (p.loc * precisions[0] + hat.loc * precisions[1]) / sum(precisions)
        ps.insert(0, p)
        qs.insert(0, Normal(mu, sum(precisions) ** -0.5))
    return ps, qs


def summed(distributions, z):
    """The log-density of all levels, (B, n)."""
    n = z[0].shape[1]
    flat = [level.flatten(0, 1).double() for level in z]
    found = [p.log_prob(level).sum(1) for p, level in zip(distributions, flat, strict=True)]
    return sum(found).view(-1, n)


@pytest.mark.parametrize("conditional", [False, True])
def test_densities_and_kls_are_those_of_torch_distributions(conditional):
    vae, x = model(conditional=conditional, num_samples=4), images()
    condition = torch.eye(3)[torch.arange(5) % 3] if conditional else None
    draws = vae.posterior(x, condition).rsample(noise(), 4)
    assert [tuple(level.shape) for level in draws.z] == [(5, 4, 4), (5, 4, 3), (5, 4, 2)]
    ps, qs = reference(vae, x, draws.z, condition)
    log_p, log_q = summed(ps, draws.z), summed(qs, draws.z)
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-4)
    close(draws.log_prob.double(), log_q)
    close(vae.log_prior(tuple(draws.z), condition).double(), log_p)
    close(vae.log_ratio(draws, condition).double(), log_p - log_q)
    kl = [kl_divergence(q, p).sum(1).view(5, 4).mean(1) for p, q in zip(ps, qs, strict=True)]
    terms = vae.terms(x, condition, noise())
    close(terms.kl_per_level.double(), torch.stack(kl, 1))
    close(terms.kl.double(), sum(kl))
    named = terms.as_dict()
    assert list(named) == ["reconstruction", "kl", "negative_elbo", "kl_1", "kl_2", "kl_3"]
    close(named["kl_2"].double(), kl[1])
    seen = None if condition is None else condition.repeat_interleave(4, 0)
    logits = vae.decoder(draws.z[0].flatten(0, 1), seen)
    pixels = torch.distributions.Bernoulli(logits=logits.double(), validate_args=False)
    log_likelihood = pixels.log_prob(x.double().repeat_interleave(4, 0)).flatten(1).sum(1)
    close(-terms.reconstruction.double(), log_likelihood.view(5, 4).mean(1))


def test_kl_per_level_is_that_of_draws():
    """The mean over draws of log q - log p of each level, to 4 standard errors."""
    vae, x, n = model(), images(2), 40_000
    with torch.no_grad():
        draws = vae.posterior(x).rsample(noise(2), n)
        found = vae.kl_per_level(draws)
        ps, qs = reference(vae, x, draws.z)
        for level, (p, q) in enumerate(zip(ps, qs, strict=True)):
            z = draws.z[level].flatten(0, 1).double()
            ratio = (q.log_prob(z) - p.log_prob(z)).sum(1).view(2, n)
            error = ratio.std(1) / math.sqrt(n)
            assert ((ratio.mean(1) - found[:, level]).abs() < 4 * error + 1e-4).all()


def test_merging_is_bayes_rule_for_gaussians():
    p, q = (DiagonalGaussian(torch.randn(6, 4), 3 * torch.randn(6, 4)) for _ in range(2))
    found = merged(q, p)
    precisions = [(-d.log_var.double()).exp() for d in (q, p)]
    expected = (q.mu * precisions[0] + p.mu * precisions[1]) / sum(precisions)
    torch.testing.assert_close(found.mu.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.log_var.double(), -sum(precisions).log(), rtol=1e-5, atol=1e-5)
    # Where one of them knows nothing, it is the other, also for extreme variances.
    for one, other in ((-29.0, 29.0), (29.0, -29.0)):
        extreme = merged(
            DiagonalGaussian(torch.ones(1, 1), torch.full((1, 1), one)),
            DiagonalGaussian(-torch.ones(1, 1), torch.full((1, 1), other)),
        )
        assert extreme.mu.item() == pytest.approx(1.0 if one < other else -1.0)
        assert extreme.log_var.item() == pytest.approx(-29.0)


def test_kl_between_gaussians():
    q, p = (DiagonalGaussian(torch.randn(6, 4), torch.randn(6, 4)) for _ in range(2))
    as_torch = [Normal(d.mu.double(), (0.5 * d.log_var.double()).exp()) for d in (q, p)]
    torch.testing.assert_close(gaussian_kl(q, p).double(), kl_divergence(*as_torch))
    assert gaussian_kl(q, q).abs().max() == 0


# A linear hierarchy, whose exact posterior the ladder can express: every weight is p(x)

SIGMA, SPREAD, GAIN = 0.4, 0.7, 1.3


class LinearGaussian(nn.Module):
    """A linear map to the mean of a Gaussian, and a variance: (N, D) -> (N, 2 L)."""

    def __init__(self, weight, offset, variance) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.offset, self.variance = offset, variance

    def forward(self, x):
        mu = (x - self.offset) @ self.weight.T
        return torch.cat([mu, self.variance.log().expand_as(mu)], 1)


class Pixels(nn.Module):
    """The flattened image as features, and a linear map from z_1 to an image."""

    def __init__(self, weight=None, offset=None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.weight, self.offset = weight, offset

    def forward(self, x, condition=None):
        if self.weight is None:
            return x.flatten(1)
        return (x @ self.weight.T + self.offset).view(-1, 1, 2, 2)


def linear(cls=LadderVAE, **kwargs):
    """z_2 ~ N(0, I), z_1 ~ N(A z_2, s^2 I), x ~ N(W z_1 + c, sigma^2 I), and log p(x) of images."""
    made = cls(
        image_shape=(1, 2, 2),
        latent_dims=(3, 2),
        widths=(4, 4),
        bounded=False,
        likelihood=functools.partial(Gaussian, sigma=SIGMA),
        encoder=functools.partial(MLPEncoder, hidden=(4,)),
        decoder=functools.partial(MLPDecoder, hidden=(4,)),
        **kwargs,
    )
    generator = torch.Generator().manual_seed(0)
    w = GAIN * torch.linalg.qr(torch.randn(4, 3, generator=generator)).Q
    a = torch.linalg.qr(torch.randn(3, 2, generator=generator)).Q * torch.tensor([1.6, 0.9])
    c = torch.rand(4, generator=generator)
    made.encoder, made.decoder = Pixels(), Pixels(w, c)
    made.start, made.up_nets[0] = nn.Identity(), nn.Identity()
    made.down_nets[0] = LinearGaussian(a, 0.0, torch.tensor(SPREAD**2))
    # The likelihood of z_1 is Gaussian with the covariance sigma^2 (W^T W)^-1.
    made.up_heads[0] = LinearGaussian(w.T / GAIN**2, c, torch.tensor((SIGMA / GAIN) ** 2))
    # That of z_2 after z_1 is integrated out; its posterior is what the top level needs.
    marginal = GAIN**2 * SPREAD**2 + SIGMA**2
    precision = 1 + GAIN**2 * a.square().sum(0) / marginal
    top = a.T @ w.T / marginal / precision[:, None]
    made.up_heads[1] = LinearGaussian(top, c, 1 / precision)
    covariance = w @ (a @ a.T + SPREAD**2 * torch.eye(3)) @ w.T + SIGMA**2 * torch.eye(4)
    x = MultivariateNormal(c, covariance).sample((6,)).view(6, 1, 2, 2)
    return made, x, MultivariateNormal(c.double(), covariance.double()).log_prob(x.flatten(1))


def test_every_weight_of_a_linear_hierarchy_is_its_likelihood():
    vae, x, log_p = linear()
    draws = vae.posterior(x).rsample(noise(6), 50)
    weights = vae.log_ratio(draws) + vae.log_likelihood(x, draws.z)
    torch.testing.assert_close(weights.double(), log_p[:, None].expand(6, 50), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vae.log_prob(x, num_samples=3), log_p, rtol=1e-4, atol=1e-4)


def test_bound_of_a_linear_hierarchy_is_its_likelihood():
    """The ELBO with exact KLs has the weights' mean, but not their constancy."""
    vae, x, log_p = linear(num_samples=40_000)
    with torch.no_grad():
        terms = vae.terms(x, None, noise(6))
    torch.testing.assert_close(terms.negative_elbo.double(), -log_p, rtol=0, atol=0.1)


def test_a_worse_posterior_of_a_linear_hierarchy_is_below_its_likelihood():
    vae, x, log_p = linear()
    vae.up_heads[0].offset = vae.up_heads[0].offset + 0.5
    found = vae.log_prob(x, num_samples=20_000)
    torch.testing.assert_close(found, log_p, rtol=0, atol=0.15)
    with torch.no_grad():
        terms = vae.terms(x, None, noise(6))
    assert (terms.negative_elbo.double().mean() + log_p.mean()) > 0.2


class LadderIWAE(IWAE, LadderVAE):
    """The importance-weighted bound of a ladder."""


def test_importance_weighted_ladder():
    vae, x, log_p = linear(LadderIWAE, num_samples=3)
    terms = vae.terms(x, None, noise(6))
    torch.testing.assert_close(-vae.objective(terms).double(), log_p, rtol=1e-4, atol=1e-4)


# Levels


def test_upper_levels_influence_lower_ones_and_not_the_reverse():
    vae, x = model(), images(1)
    seen = {}

    class Recorded(Noise):
        def normal(self, size, first=0):
            drawn = super().normal(size, first).requires_grad_()
            seen[len(seen)] = drawn
            return drawn

    z = vae.posterior(x).rsample(Recorded(torch.arange(1), "test")).z
    for level in range(3):
        gradients = torch.autograd.grad(
            z[level].sum(), list(seen.values()), allow_unused=True, retain_graph=True
        )
        # The top level is drawn first.
        reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
        assert reached == [level <= 2, level <= 1, level <= 0]


def test_draws_are_the_same_at_once_or_in_parts():
    q = model().posterior(images())
    whole = q.rsample(noise(), 7)
    parts = [q.rsample(noise(), *args) for args in ((2,), (4, 2), (1, 6))]
    for level in range(3):
        joined = torch.cat([part.z[level] for part in parts], 1)
        torch.testing.assert_close(joined, whole.z[level])
    torch.testing.assert_close(torch.cat([part.log_prob for part in parts], 1), whole.log_prob)


def test_importance_weights_have_the_mean_one():
    vae, x, n = model(), images(3), 100_000
    with torch.no_grad():
        for head in vae.up_heads:
            head.weight.mul_(0.2)
            head.bias.chunk(2)[1].fill_(1.0)
        weights = vae.log_ratio(vae.posterior(x).rsample(noise(3), n)).double().exp()
    error = weights.std(1) / math.sqrt(n)
    assert (error < 0.02).all()
    assert ((weights.mean(1) - 1).abs() < 4 * error).all()


@pytest.mark.parametrize("make", [model, lambda: HierarchicalVAE(image_shape=(1, 2, 2))])
def test_latents_are_noise_and_noise_is_latents(make):
    vae = make()
    z = vae.sample_latents(300, None, torch.Generator().manual_seed(1))  # in two parts
    vector = vae.to_noise(z)
    assert vector.shape == (300, sum(vae.level_sizes))
    top = vae.level_sizes[-1]
    assert vector[:, :top].equal(z[-1])
    for found, expected in zip(vae.from_noise(vector), z, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        vae.decode_noise(vector), vae.likelihood_params(z, None), rtol=1e-4, atol=1e-4
    )
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(300, top, generator=generator)
    below = torch.randn(300, sum(vae.level_sizes[:-1]), generator=generator)
    torch.testing.assert_close(vector, torch.cat([drawn, below], 1), rtol=1e-3, atol=1e-3)


def test_noise_is_standard_normal_below_any_top():
    vae = model()
    z_1, z_2, z_3 = vae.sample_latents(50_000, None, torch.Generator().manual_seed(1))
    with torch.no_grad():
        parts = [z_3.double()]
        for net, above, z in ((vae.down_nets[1], z_3, z_2), (vae.down_nets[0], z_2, z_1)):
            p = gaussian(net(above))
            parts.append((z.double() - p.loc) / p.scale)
    e = torch.cat(parts, 1)
    assert e.mean(0).abs().max() < 5 / math.sqrt(50_000)
    assert (e.T @ e / 50_000 - torch.eye(9)).abs().max() < 5 * math.sqrt(2 / 50_000)


def test_temperature_multiplies_every_standard_deviation():
    vae = model()
    z = vae.sample_latents(20, None, torch.Generator().manual_seed(1))
    cold = vae.tempered(z, 0.5)
    torch.testing.assert_close(cold[2], 0.5 * z[2])
    p, other = (gaussian(vae.down_nets[1](top)) for top in (z[2], cold[2]))
    epsilon = (z[1].double() - p.loc) / p.scale
    torch.testing.assert_close(
        cold[1].double(), other.loc + 0.5 * other.scale * epsilon, rtol=1e-4, atol=1e-5
    )
    coldest = vae.tempered(z, 1e-6)
    torch.testing.assert_close(coldest[0][:1].expand(20, -1), coldest[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="a temperature is defined for"):
        model(prior=MixtureOfGaussians).tempered(z, 0.5)


@pytest.mark.parametrize("conditional", [False, True])
def test_inference(conditional):
    vae, x = model(conditional=conditional), images()
    label = torch.arange(5) % 3 if conditional else None
    z = vae.embed(x, label)
    condition = vae.encode_labels(label, 5)
    with vae.inference():
        _, qs = reference(vae, x, [level[:, None] for level in z], condition)
    for level, q in zip(z, qs, strict=True):
        torch.testing.assert_close(level.double(), q.loc, rtol=1e-4, atol=1e-5)
    assert vae.latent_vectors(x, label).equal(torch.cat(z, 1))
    assert vae.decode(z, label).equal(vae.decode((z[0], 9 + z[1], z[2]), label))
    assert vae.reconstruct(x, label).equal(vae.decode(z, label))
    encoded = vae.encode(x, condition)
    assert list(encoded) == [f"{name}_{i}" for i in (1, 2, 3) for name in ("mu", "log_var")]
    assert encoded["log_var_2"].shape == (5, 3)
    assert encoded["mu_3"].equal(z[2])
    assert vae.log_prob(x, label).shape == (5,)
    for missing in (Capability.LATENT_VECTOR, Capability.KL_PER_DIMENSION):
        assert not vae.has(missing)


# Priors of the top level


def test_mixture_at_the_top():
    vae, x = model(prior=MixtureOfGaussians), images(2)
    assert vae.prior.mu.shape == (100, 2)
    draws = vae.posterior(x).rsample(noise(2), 3)
    _, (_, _, q) = reference(vae, x, draws.z)
    expected = q.log_prob(draws.z[2].flatten(0, 1)).sum(1).view(2, 3) - vae.prior.log_prob(
        draws.z[2]
    )
    found = vae.kl_per_level(draws)[:, 2]
    torch.testing.assert_close(found.double(), expected.mean(1), rtol=1e-4, atol=1e-4)


def test_vamp_prior_at_the_top():
    """Its components are the posteriors of the top level of its pseudo-inputs."""
    vae = model(prior=functools.partial(VampPrior, components=7))
    with torch.no_grad():
        q = vae.posterior(vae.prior.pseudo_inputs).rsample(noise(7)).levels[-1].q
        mixture = vae.prior.mixture()
    torch.testing.assert_close(mixture.mu, q.mu)
    vae.objective(vae.terms(images(), None, noise())).mean().backward()
    assert vae.prior.pseudo_input_logits.grad.abs().sum() > 0


# Objective


def test_warm_up_weighs_the_kl_in_training_only():
    vae, x = model(schedule=functools.partial(LinearWarmup, steps=10)), images()
    terms = vae.terms(x, None, noise())
    for step, beta in ((0, 0.0), (3, 0.3), (10, 1.0), (99, 1.0)):
        vae.step = step
        torch.testing.assert_close(
            vae.train().objective(terms), terms.reconstruction + beta * terms.kl
        )
        assert vae.eval().objective(terms).equal(terms.negative_elbo)


def test_free_bits_are_those_of_the_mean_over_the_batch():
    vae, x = model(free_bits=1.0), images()
    terms = vae.terms(x, None, noise())
    kl = torch.tensor([[0.2, 3.0, 0.0], [0.6, 5.0, 2.5]], requires_grad=True)
    given = type(terms)(torch.zeros(2), kl.sum(1), kl)
    loss = vae.train().objective(given).mean()
    assert loss.item() == pytest.approx(1.0 + 4.0 + 1.25)
    (gradient,) = torch.autograd.grad(loss, kl)
    assert gradient.tolist() == [[0, 0.5, 0.5], [0, 0.5, 0.5]]
    assert vae.eval().objective(given).equal(given.negative_elbo)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"latent_dims": (3, 0, 1)}, r"LadderVAE: latent_dims must be positive, got \[3, 0, 1\]"),
        ({"latent_dims": ()}, r"latent_dims must be positive, got \[\]"),
        ({"widths": (8, 8)}, r"widths must have one number for each of latent_dims"),
        ({"free_bits": -1.0}, "free_bits must not be negative, got -1.0"),
    ],
)
def test_wrong_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)


def test_posterior_is_no_option():
    with pytest.raises(TypeError, match="posterior"):
        model(posterior=GaussianPosterior)


def test_one_level_is_a_vae():
    vae, x = model(latent_dims=(3,), widths=(8,)), images()
    terms = vae.terms(x, None, noise())
    q = Independent(gaussian(vae.up_heads[0](vae.start(vae.encoder(x)))), 1)
    p = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    torch.testing.assert_close(terms.kl.double(), kl_divergence(q, p), rtol=1e-5, atol=1e-5)


def test_without_normalization_there_are_no_such_layers():
    assert not any(isinstance(m, nn.LayerNorm) for m in model(normalize=False).modules())
    assert sum(isinstance(m, nn.LayerNorm) for m in model().modules()) == 1 + 4 + 4
    assert not any("BatchNorm" in type(m).__name__ for m in model().modules())


@pytest.mark.parametrize("normalize", [True, False])
def test_hidden_layers_are_two_with_leaky_rectifiers(normalize):
    """Each of them linear, normalized, and rectified with a slope of 0.1 below 0."""
    vae = LadderVAE(image_shape=(1, 8, 8), latent_dims=(4, 3), widths=(8, 6), normalize=normalize)

    def activated(x):
        x = functional.layer_norm(x, x.shape[1:]) if normalize else x
        return torch.where(x > 0, x, 0.1 * x)

    x = torch.randn(5, 8)
    torch.testing.assert_close(vae.start(x), activated(x))
    for net in (vae.up_nets[0], vae.down_nets[0][0]):
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
        assert len(layers) == 2
        h = x = torch.randn(5, layers[0].in_features)
        for layer in layers:
            h = activated(layer(h))
        torch.testing.assert_close(net(x), h)
