"""The residual hierarchy: an independent pass through its networks in float64."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae_lightning import IWAE, ResidualHierarchicalVAE
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.vamp_prior import VampPrior
from vae_lightning.functional import soft_clamp
from vae_lightning.models.capabilities import Capability
from vae_lightning.nets import ConvEncoder
from vae_lightning.nets.top_down import Bottleneck, BottomUp
from vae_lightning.randomness import Noise
from vae_lightning.schedules import LinearWarmup

SHAPE = (1, 6, 5)


def model(cls=ResidualHierarchicalVAE, **kwargs):
    """Four groups at 3x3 and 2x2, with weights that make them depend on one another."""
    options = {
        "image_shape": SHAPE,
        "groups_per_resolution": (2, 2),
        "latent_channels": 2,
        "channels": 6,
        "hidden": 4,
        "num_classes": 3,
    }
    made = cls(**{**options, **kwargs})
    for group in made.decoder.groups:
        for net in (group.prior, group.posterior):
            if net is not None:
                nn.init.normal_(net.layers[-1].weight, std=0.3)
                nn.init.normal_(net.layers[-1].bias, std=0.3)
    nn.init.normal_(made.decoder.bias)
    return made


def images(n=3, shape=SHAPE):
    return torch.rand(n, *shape).round()


def noise(n=3, *keys):
    return Noise(torch.arange(n), "test", *keys)


def reference(vae, x, z, condition=None):
    """p and q of every level and the logits in float64, for latents (N, L_l), the lowest first.

    One image per row; the passes are written out, with torch.distributions.
    """
    vae = copy.deepcopy(vae).double()
    x, z = x.double(), [level.double() for level in z]
    condition = None if condition is None else condition.double()

    def split(parameters):
        mu, log_var = parameters.flatten(1).chunk(2, 1)
        return mu, soft_clamp(log_var, 5.0, 8.0)

    # Up
    if condition is not None:
        planes = condition[:, :, None, None].expand(-1, -1, *x.shape[2:])
        x = torch.cat([x, planes], 1)
    maps = []
    for halving, blocks in zip(vae.encoder.halvings, vae.encoder.blocks, strict=True):
        x = halving(x)
        for block in blocks:
            x = x + block.layers(x)
        maps.append(x)

    # Down
    net = vae.decoder

    def conditioned(state, resolution):
        if condition is None:
            return state
        return state + (condition @ net.conditions[resolution - 1].weight.T)[:, :, None, None]

    h = conditioned(net.start.expand(len(x), -1, -1, -1), len(maps))
    ps, qs, at = {}, {}, len(maps)
    for level in (3, 2, 1, 0):
        group, resolution = net.groups[level], 1 if level < 2 else 2
        if resolution < at:
            height, width = net.sizes[resolution]
            h = conditioned(net.doublings[1](h)[:, :, :height, :width], resolution)
            at = resolution
        mu, log_var = torch.zeros_like(z[level]), torch.zeros_like(z[level])
        if level < 3:
            parameters = group.prior.layers(h)
            mu, log_var = split(parameters[:, :4])
            h = h + parameters[:, 4:]
        delta, log_ratio = split(group.posterior.layers(torch.cat([h, maps[resolution - 1]], 1)))
        ps[level] = Normal(mu, (0.5 * log_var).exp())
        qs[level] = Normal(mu + delta, (0.5 * (log_var + log_ratio)).exp())
        h = h + group.project(z[level].view(len(x), 2, *net.sizes[resolution]))
        h = h + group.block.layers(h)
    logits = net.head(net.doublings[0](h)[:, :, :6, :5]) + net.bias
    return [ps[i] for i in range(4)], [qs[i] for i in range(4)], logits


@pytest.mark.parametrize("conditional", [False, True])
def test_everything_is_that_of_an_independent_pass(conditional):
    vae, x, n = model(conditional=conditional, num_samples=4), images(), 4
    condition = torch.eye(3) if conditional else None
    draws = vae.posterior(x, condition).rsample(noise(), n)
    assert [level.shape[2] for level in draws.z] == [18, 18, 8, 8]
    flat = [level.flatten(0, 1) for level in draws.z]
    seen = None if condition is None else condition.repeat_interleave(n, 0)
    repeated = x.repeat_interleave(n, 0)
    ps, qs, logits = reference(vae, repeated, flat, seen)
    log_p, log_q = (
        sum(p.log_prob(z.double()).sum(1) for p, z in zip(each, flat, strict=True)).view(-1, n)
        for each in (ps, qs)
    )
    kl = [kl_divergence(q, p).sum(1).view(-1, n).mean(1) for p, q in zip(ps, qs, strict=True)]
    pixels = Bernoulli(logits=logits, validate_args=False)
    log_likelihood = pixels.log_prob(repeated.double()).flatten(1).sum(1).view(-1, n)
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=3e-4)
    close(draws.log_prob.double(), log_q)
    close(vae.log_ratio(draws, condition).double(), log_p - log_q)
    close(vae.log_prior(tuple(draws.z), condition).double(), log_p)
    for z in (draws.z, tuple(draws.z)):  # with the state of the pass, and without
        close(vae.log_likelihood(x, z, condition).double(), log_likelihood)
    terms = vae.terms(x, condition, noise())
    close(terms.kl_per_level.double(), torch.stack(kl, 1))
    close(terms.reconstruction.double(), -log_likelihood.mean(1))
    assert [f"kl_{i}" in terms.as_dict() for i in range(1, 6)] == [True] * 4 + [False]
    weights = log_likelihood + log_p - log_q
    found = vae.log_marginal(x, condition, noise(), n)
    close(found, (weights.logsumexp(1) - math.log(n)))


def test_log_marginal_draws_no_more_than_it_decodes(monkeypatch):
    vae, x, rows = model(), images(), []
    real = ResidualHierarchicalVAE.top_down

    def counting(self, choose, n, condition):
        rows.append(n)
        return real(self, choose, n, condition)

    whole = vae.log_marginal(x, None, noise(), 20, rows=60)
    monkeypatch.setattr(ResidualHierarchicalVAE, "top_down", counting)
    found = vae.log_marginal(x, None, noise(), 20, rows=7)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert rows == [6] * 10  # once for each pair of draws of three images, and never again


def test_a_posterior_that_knows_nothing_is_the_prior():
    vae, x = model(), images()
    for group in vae.decoder.groups:
        nn.init.zeros_(group.posterior.layers[-1].weight)
        nn.init.zeros_(group.posterior.layers[-1].bias)
    draws = vae.posterior(x).rsample(noise(), 5)
    assert vae.kl_per_level(draws).abs().max() == 0
    torch.testing.assert_close(vae.log_ratio(draws), torch.zeros(3, 5), rtol=0, atol=1e-4)
    q, p, _ = draws.levels[1]
    assert p.mu.std() > 0.01
    assert q.mu.equal(p.mu)


def test_kl_per_level_is_that_of_draws():
    vae, x, n = model(), images(1), 20_000
    with torch.no_grad():
        draws = vae.posterior(x).rsample(noise(1), n)
        found = vae.kl_per_level(draws)[0]
        for level, (_, p, drawn) in enumerate(draws.levels):
            log_p = vae.prior.log_prob(drawn.z)[:, 0] if p is None else p.log_prob(drawn.z)[:, 0]
            ratio = (drawn.log_prob[:, 0] - log_p).double()
            assert abs(ratio.mean() - found[level]) < 4 * ratio.std() / math.sqrt(n)


def test_importance_weights_have_the_mean_one():
    vae, x, n = model(), images(2), 40_000
    with torch.no_grad():
        for group in vae.decoder.groups:
            group.posterior.layers[-1].weight.mul_(0.2)
            group.posterior.layers[-1].bias[:2] = 0.05
            group.posterior.layers[-1].bias[2:] = 0.15  # wider than the prior
        weights = vae.log_ratio(vae.posterior(x).rsample(noise(2), n)).double().exp()
    error = weights.std(1) / math.sqrt(n)
    assert (error < 0.05).all()
    assert ((weights.mean(1) - 1).abs() < 4 * error).all()


def test_samples_follow_the_priors_of_the_levels():
    vae, n = model(), 4_000
    z = vae.sample_latents(n, None, torch.Generator().manual_seed(1))
    ps, _, logits = reference(vae, torch.zeros(n, *SHAPE), z)
    e = torch.cat([(level - p.loc) / p.scale for level, p in zip(z, ps, strict=True)], 1)
    assert e.mean(0).abs().max() < 5 / math.sqrt(n)
    assert (e.T @ e / n - torch.eye(52)).abs().max() < 6 * math.sqrt(2 / n)
    torch.testing.assert_close(
        vae.decode(tuple(level[:5] for level in z)), logits[:5].sigmoid().float()
    )
    noise_of = vae.to_noise(z)
    assert noise_of[:, :8].equal(z[3])
    torch.testing.assert_close(
        noise_of[:, 8:16].double(), e[:, 36:44].double(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        vae.mean_image(vae.decode_noise(noise_of[:5])), logits[:5].sigmoid().float()
    )


def test_each_of_many_samples_has_its_own_class(monkeypatch):
    """However many are drawn at once."""
    vae, classes = model(conditional=True), torch.eye(3)[torch.arange(10) % 3]
    whole = vae.sample_latents(10, classes, torch.Generator().manual_seed(0))
    monkeypatch.setattr("vae_lightning.models.hierarchy._ROWS", 4)
    parts = vae.sample_latents(10, classes, torch.Generator().manual_seed(0))
    for level, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(level, expected)


def test_a_residual_branch_has_a_silu_before_each_of_four_convolutions():
    branch, x = Bottleneck(6, 5, hidden=3, scale=1.0), torch.randn(2, 6, 4, 4)
    layers = [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size for layer in layers] == [(1, 1), (3, 3), (3, 3), (1, 1)]
    h = x
    for layer in layers:
        h = layer(h * h.sigmoid())
    torch.testing.assert_close(branch(x), h)


def test_residual_branches_start_the_smaller_the_more_there_are():
    for number in (1, 9):
        net = BottomUp((1, 8, 8), 64, hidden=64, blocks=(number,))
        for branch in net.blocks[0]:
            std = (2 / 64 / number) ** 0.5
            assert branch.layers[-1].weight.std().item() == pytest.approx(std, rel=0.1)


def test_upper_levels_influence_all_below():
    """A change at the top changes the priors and the draws of every level below it."""
    vae = model()
    vector = torch.zeros(2, 52)
    vector[1, 0] = 2.0
    changed = vae.from_noise(vector)
    for level in changed:
        assert (level[0] - level[1]).abs().max() > 1e-3
    vector = torch.zeros(2, 52)
    vector[1, -1] = 2.0  # the lowest level
    lowest, *above = vae.from_noise(vector)
    assert (lowest[0] - lowest[1]).abs().max() > 1e-3
    for level in above:  # but for rounding, which depends on the place in the batch
        torch.testing.assert_close(level[0], level[1], rtol=0, atol=1e-6)
    images = vae.mean_image(vae.decode_noise(vector))
    assert (images[0] - images[1]).abs().max() > 1e-5


def test_draws_are_the_same_at_once_or_in_parts():
    q = model().posterior(images())
    whole = q.rsample(noise(), 7)
    parts = [q.rsample(noise(), *args) for args in ((2,), (4, 2), (1, 6))]
    for level in range(4):
        joined = torch.cat([part.z[level] for part in parts], 1)
        torch.testing.assert_close(joined, whole.z[level])


@pytest.mark.parametrize(
    ("shape", "groups", "sizes"),
    [
        ((1, 28, 28), (1, 2, 1), [14, 7, 7, 4]),
        ((3, 32, 32), (0, 1, 1), [8, 4]),
        ((2, 9, 17), (1, 0, 1), [5, 2]),
        ((1, 1, 50), (1, 1, 1), [1, 1, 1]),
    ],
)
def test_any_size(shape, groups, sizes):
    vae = ResidualHierarchicalVAE(
        image_shape=shape,
        groups_per_resolution=groups,
        latent_channels=2,
        channels=4,
        hidden=4,
        conditional=True,
        num_classes=2,
        bounded=False,
        likelihood=Gaussian,
    )
    assert [group.height for group in vae.groups] == sizes
    x, label = torch.randn(2, *shape), torch.tensor([0, 1])
    assert vae.reconstruct(x, label).shape == x.shape
    assert vae.sample(3).shape == (3, *shape)
    assert vae.log_prob(x, label, 3).isfinite().all()
    if shape[1] == 1:
        kernels = [m.kernel_size for m in vae.modules() if isinstance(m, nn.Conv2d)]
        assert all(kernel[0] == 1 for kernel in kernels)
    # The class reaches the prior, the posterior and the image.
    condition = vae.encode_labels(label, 2)
    z = vae.from_noise(torch.zeros(2, sum(vae.level_sizes)), condition)
    assert not z[0][0].equal(z[0][1])
    swapped = vae.encode_labels(1 - label, 2)
    assert not vae.posterior(x, condition).mean[-1].equal(vae.posterior(x, swapped).mean[-1])


def test_images_do_not_depend_on_each_other_in_training():
    vae, x = model().train(), images(6)
    whole, part = vae.terms(x, None, noise(6)), vae.terms(x[:2], None, noise(2))
    torch.testing.assert_close(part.negative_elbo, whole.negative_elbo[:2], rtol=1e-4, atol=1e-4)
    normalizing = nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm
    assert not any(isinstance(module, normalizing) for module in vae.modules())


def test_an_untrained_model_starts_with_a_small_kl_and_the_mean_image():
    vae = ResidualHierarchicalVAE(init_bias_from_data=True)
    x = torch.rand(8, 1, 28, 28).round()

    class Data:
        def mean_image(self):
            return torch.full((1, 28, 28), 0.2)

        def random_images(self, n, seed):
            return x[:n]

    vae.init_from_data(Data())
    assert vae.decoder.bias.mean().item() == pytest.approx(math.log(0.2 / 0.8), abs=1e-4)
    terms = vae.terms(x, None, noise(8))
    assert (terms.kl < 100).all()  # of 2,600 latents


def balanced(**kwargs):
    vae = model(balance=True, schedule=functools.partial(LinearWarmup, steps=10), **kwargs)
    return vae.train(), type(vae.terms(images(2), None, noise(2)))


def test_groups_are_balanced_during_the_warm_up():
    """Weights are mean KL + 0.01 over positions per group at the resolution, with the mean 1."""
    vae, terms = balanced()
    kl = torch.tensor([[9.0, 3.0, 1.0, 0.0], [7.0, 1.0, 3.0, 0.2]], requires_grad=True)
    given = terms(torch.tensor([5.0, 6.0]), kl.sum(1), kl)
    # 3x3 positions and 2x2 positions, in two groups each.
    raw = torch.tensor([8.01 / 4.5, 2.01 / 4.5, 2.01 / 2, 0.11 / 2])
    weights = raw / raw.mean()
    vae.step = 4
    loss = vae.objective(given)
    torch.testing.assert_close(loss, given.reconstruction + 0.4 * (weights * kl).sum(1))
    (gradient,) = torch.autograd.grad(loss.sum(), kl)
    torch.testing.assert_close(gradient, 0.4 * weights.expand(2, 4))
    vae.step = 10
    assert vae.objective(given).equal(given.negative_elbo)
    vae.step = 4
    assert vae.eval().objective(given).equal(given.negative_elbo)


def test_balancing_with_free_bits():
    vae, terms = balanced(free_bits=2.5)
    kl = torch.tensor([[9.0, 3.0, 1.0, 0.0], [7.0, 1.0, 3.0, 0.2]], requires_grad=True)
    vae.step = 5
    loss = vae.objective(terms(torch.zeros(2), kl.sum(1), kl)).mean()
    raw = torch.tensor([8.01 / 4.5, 2.01 / 4.5, 2.01 / 2, 0.11 / 2])
    weights = raw / raw.mean()
    expected = 0.5 * (weights * torch.tensor([8.0, 2.5, 2.5, 2.5])).sum()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, kl)
    assert gradient[:, 1:].abs().max() == 0
    torch.testing.assert_close(gradient[:, 0], 0.25 * weights[:1].expand(2))


class ResidualIWAE(IWAE, ResidualHierarchicalVAE):
    """The importance-weighted bound of the hierarchy."""


def test_is_trained_with_importance_weights():
    vae, x = model(ResidualIWAE, num_samples=6), images()
    terms = vae.terms(x, None, noise())
    draws = vae.posterior(x).rsample(noise(), 6)
    weights = vae.log_likelihood(x, draws.z) + vae.log_ratio(draws)
    expected = -(weights.logsumexp(1) - math.log(6))
    torch.testing.assert_close(vae.objective(terms), expected)
    torch.testing.assert_close(terms.kl, vae.kl_per_level(draws).sum(1))


@pytest.mark.parametrize("prior", [MixtureOfGaussians, functools.partial(VampPrior, components=5)])
def test_other_priors_of_the_top(prior):
    vae = model(prior=prior)
    draws = vae.posterior(images()).rsample(noise(), 2)
    torch.testing.assert_close(
        vae.log_ratio(draws), vae.log_prior(tuple(draws.z)) - draws.log_prob, rtol=1e-4, atol=1e-3
    )
    vae.objective(vae.terms(images(), None, noise())).mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.prior.parameters())
    assert vae.sample(2).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="a temperature is defined for"):
        vae.tempered(vae.sample_latents(2, None, None), 0.5)


def test_capabilities():
    vae = model()
    assert vae.has(Capability.DENSITY, Capability.SAMPLES)
    assert not vae.has(Capability.LATENT_VECTOR)
    assert vae.latent_size is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"groups_per_resolution": ()}, "at least one at the smallest resolution, got"),
        ({"groups_per_resolution": (1, 0)}, r"at least one at the smallest resolution, got \[1, 0"),
        ({"groups_per_resolution": (-1, 1)}, "must be numbers of groups"),
        ({"latent_channels": 0}, "ResidualHierarchicalVAE: latent_channels must be positive"),
        ({"channels": 0}, "channels must be positive, got 0"),
    ],
)
def test_wrong_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)


def test_the_networks_are_no_option():
    with pytest.raises(TypeError, match="encoder"):
        model(encoder=ConvEncoder)
