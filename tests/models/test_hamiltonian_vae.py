import functools
import math

import pytest
import torch
from linear_gaussian import SIGMA, GivenFeatures, exact_features, images, linear
from torch import nn

from vae_lightning import IWAE, VAE
from vae_lightning.distributions.posteriors import (
    DeterministicPosterior,
    DiagonalGaussian,
)
from vae_lightning.distributions.vamp_prior import VampPrior
from vae_lightning.distributions.von_mises_fisher import UniformSphere, VonMisesFisherPosterior
from vae_lightning.distributions.zuko_flows import IAFPosterior, RealNVPPrior
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.hamiltonian_vae import HamiltonianPosterior, HamiltonianVAE
from vae_lightning.models.miwae import MIWAE
from vae_lightning.nets import ConvDecoder
from vae_lightning.randomness import Noise

SMALL = {"image_shape": (1, 8, 8), "latent_dim": 3}
TEMPERINGS = ["quadratic", "free", "none"]


def noise(n, *keys):
    return Noise(torch.arange(n), "test", *keys)


def moved(model):
    """Give the steps of a model other values than those of the start, some of them large."""
    for name, parameter in model.named_parameters():
        if name.endswith("_logits"):
            parameter.data += torch.linspace(-0.5, 1.5, len(parameter))
    return model


def of_linear(tempering, off=0.3, n=50, **kwargs):
    """A linear model, images, their log p(x), and a posterior that is ``off`` by so much."""
    model = moved(linear(HamiltonianVAE, tempering=tempering, beta_zero=0.4, **kwargs))
    x, exact = images(model, n)
    model.encoder = GivenFeatures(exact_features(model, x) + off)
    return model, x, exact


# The map


def jacobian(posterior, heat):
    """The Jacobian of (z_0, gamma) -> (z_K, momentum), at random points, in float64."""
    start = torch.randn(2, 6, dtype=torch.float64)

    def move(start):
        z, gamma = start.view(1, 1, 6).chunk(2, 2)
        return torch.cat(posterior.leapfrog(z, gamma * heat), 2).flatten()

    return [torch.autograd.functional.jacobian(move, each) for each in start]


@pytest.mark.parametrize("heated", [False, True])
def test_volume_is_preserved_but_for_the_tempering(heated):
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    net[0].weight.data *= 3
    alphas = torch.tensor([0.9, 0.5, 0.7, 0.8], dtype=torch.float64)
    steps = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    base = DiagonalGaussian(torch.zeros(1, 3).double(), torch.zeros(1, 3).double())
    q = HamiltonianPosterior(base, lambda z: 5 * net(z)[..., 0], steps, alphas)
    expected = 3 * alphas.log().sum() * (0 if heated else 1)
    for each in jacobian(q, 1 / alphas.prod() if heated else 1.0):
        torch.testing.assert_close(torch.linalg.slogdet(each).logabsdet, expected)
        assert (each[:3, :3] - torch.eye(3)).abs().max() > 0.1  # it moves


def test_time_runs_backwards():
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    base = DiagonalGaussian(torch.zeros(1, 3).double(), torch.zeros(1, 3).double())
    steps = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    q = HamiltonianPosterior(base, lambda z: 5 * net(z)[..., 0], steps, torch.ones(4).double())
    z, momentum = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    later, speed = q.leapfrog(z, momentum)
    back, turned = q.leapfrog(later, -speed)
    assert (later - z).abs().min() > 1e-3
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(-turned, momentum)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("tempering", TEMPERINGS)
def test_temperatures_end_at_one(tempering, steps):
    model = moved(HamiltonianVAE(leapfrog_steps=steps, tempering=tempering, beta_zero=0.4, **SMALL))
    found = model.alphas
    assert found.shape == (steps,)
    if tempering == "none":
        assert found.equal(torch.ones(steps))
        return
    logits = model.tempering_logits.detach()
    assert (logits.sigmoid() - 0.4).abs().max() > 0.05
    if tempering == "free":
        torch.testing.assert_close(found, logits.sigmoid())
        return
    beta_zero = 1 / (1 + math.exp(-logits.item()))
    k = torch.arange(steps + 1)
    beta = ((1 - beta_zero**-0.5) * k**2 / steps**2 + beta_zero**-0.5) ** -2
    torch.testing.assert_close(found, (beta[:-1] / beta[1:]).sqrt())
    torch.testing.assert_close(found.prod(), torch.tensor(beta_zero).sqrt())


def test_options_are_the_values_at_the_start():
    for tempering in ("quadratic", "free"):
        model = HamiltonianVAE(4, 0.2, 0.8, tempering, beta_zero=0.3, **SMALL)
        torch.testing.assert_close(model.alphas.prod().square(), torch.tensor(0.3))
        torch.testing.assert_close(model.step_sizes, torch.full((3,), 0.2))


# The weight


def loop(model, x, epsilon, gamma):
    """The negative ELBO of each image, in float64, with the gradient of log p(x, z) by hand."""
    weight, offset = model.decoder.weight.double(), model.decoder.offset.double()
    mu, log_var = model.encoder.features.double().chunk(2, 1)
    steps = model.max_step_size / (1 + (-model.step_size_logits.double()).exp())
    beta = torch.ones(model.leapfrog_steps + 1, dtype=torch.float64)
    if model.tempering == "quadratic":
        root = 1 / (1 + (-model.tempering_logits.double()).exp()).rsqrt()
        k = torch.arange(model.leapfrog_steps + 1) / model.leapfrog_steps
        beta = 1 / ((1 - root) * k**2 + root) ** 2
    if model.tempering == "free":
        alphas = 1 / (1 + (-model.tempering_logits.double()).exp())
        betas = [torch.tensor(1.0).double()]
        for alpha in reversed(alphas):
            betas.insert(0, betas[0] * alpha**2)
        beta = torch.stack(betas)

    def score(z):
        error = x.flatten(1)[:, None].double() - z @ weight.T - offset
        return error @ weight / SIGMA**2 - z

    z = mu[:, None] + (log_var / 2).exp()[:, None] * epsilon
    log_w = (0.5 * epsilon**2).sum(2) + 0.5 * log_var.sum(1, keepdim=True)
    log_w = log_w + 0.5 * (gamma**2).sum(2)
    rho = gamma / beta[0].sqrt()
    for k in range(model.leapfrog_steps):
        half = rho + steps / 2 * score(z)
        z = z + steps * half
        rho = (beta[k] / beta[k + 1]).sqrt() * (half + steps / 2 * score(z))
    error = x.flatten(1)[:, None].double() - z @ weight.T - offset
    log_w = log_w - 0.5 * (z**2).sum(2) - 0.5 * (rho**2).sum(2)
    log_w = (
        log_w - 0.5 * (error**2).sum(2) / SIGMA**2 - 4 * math.log(SIGMA * math.sqrt(2 * math.pi))
    )
    return log_w, z


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("tempering", TEMPERINGS)
def test_terms_and_gradients_are_those_of_a_loop(tempering, steps):
    """The gradients go through the scores, twice differentiated."""
    model, x, _ = of_linear(tempering, leapfrog_steps=steps, max_step_size=1.0, num_samples=4)
    model.step_size_logits.data += 2.0
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    terms = model.terms(x, None, noise(50))
    found = torch.autograd.grad(model.objective(terms).mean(), list(parameters.values()))
    source = noise(50)
    epsilon, gamma = (source.normal(8).view(50, 4, 2).double() for _ in range(2))
    log_w, z = loop(model, x, epsilon, gamma)
    torch.testing.assert_close(-terms.negative_elbo.double(), log_w.mean(1), rtol=1e-5, atol=1e-4)
    expected = torch.autograd.grad(-log_w.mean(), list(parameters.values()))
    for name, a, b in zip(parameters, found, expected, strict=True):
        assert b.abs().max() > 1e-4, name
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-4 * b.abs().max(), msg=name)
    q = model.posterior(x)
    torch.testing.assert_close(q.rsample(noise(50), 4).z.double(), z, rtol=1e-5, atol=1e-5)
    zero = torch.zeros(50, 1, 2).double()
    torch.testing.assert_close(q.mean.double(), loop(model, x, zero, zero)[1][:, 0])


@pytest.mark.parametrize("tempering", TEMPERINGS)
def test_the_mean_weight_is_the_likelihood(tempering):
    """Without bias, with steps of any size, in the extended space."""
    model, x, exact = of_linear(tempering, off=0.2, n=8, max_step_size=1.0)
    model.step_size_logits.data += 1.5
    with torch.no_grad():
        draws = model.posterior(x).rsample(noise(8), 20_000)
        log_weights = model.log_likelihood(x, draws.z) + model.log_ratio(draws)
    ratios = (log_weights.double() - exact[:, None]).exp()
    error = ratios.std(1) / math.sqrt(20_000)
    assert error.max() < 0.05
    assert ((ratios.mean(1) - 1).abs() < 4 * error).all()
    assert (log_weights.mean(1) < exact - 4 * log_weights.std(1) / math.sqrt(20_000)).all()
    torch.testing.assert_close(
        model.log_marginal(x, None, noise(8), 2000, rows=16_000), exact, rtol=0, atol=0.1
    )


def test_learned_steps_tighten_the_bound():
    """Of a posterior that is too wide and beside the right place, and kept as it is."""
    gaps = {}
    for tempering in TEMPERINGS:
        model = linear(HamiltonianVAE, leapfrog_steps=3, tempering=tempering)
        x, exact = images(model, 500)
        model.encoder = GivenFeatures(exact_features(model, x) + torch.tensor([0.5, 0.5, 1, 1]))
        learned = [p for name, p in model.named_parameters() if name.endswith("_logits")]
        optimizer = torch.optim.Adam(learned, lr=0.2)
        for step in range(31):
            optimizer.zero_grad()
            bound = model.terms(x, None, noise(500, step)).negative_elbo
            bound.mean().backward()
            optimizer.step()
            gaps.setdefault(tempering, []).append((bound + exact).mean().item())
    for tempering in ("quadratic", "free"):
        assert gaps[tempering][-1] < 0.6 * gaps[tempering][0]
        # An exact flow keeps the energy: without tempering, only errors of large steps help.
        assert gaps[tempering][-1] < gaps["none"][-1] - 0.5
    assert min(min(values) for values in gaps.values()) > 0


def test_without_steps_it_is_the_vae(batch):
    model = HamiltonianVAE(leapfrog_steps=0, **SMALL)
    vae = VAE(**SMALL)
    vae.load_state_dict(model.state_dict())  # no parameters of its own
    found, expected = (m.terms(batch.x, None, noise(16)).as_dict() for m in (model, vae))
    for name, value in expected.items():
        assert found[name].equal(value), name
    assert model.log_prob(batch.x).equal(vae.log_prob(batch.x))


class HamiltonianIWAE(IWAE, HamiltonianVAE):
    """Bounds with several draws from the extended space."""


class HamiltonianMIWAE(MIWAE, HamiltonianVAE):
    pass


def test_bounds_with_several_draws():
    means = []
    for samples in (1, 4, 30):
        model = linear(HamiltonianIWAE, num_samples=samples)
        x, exact = images(model, 400)
        model.encoder = GivenFeatures(exact_features(model, x) + 0.4)
        means.append((-model.objective(model.terms(x, None, noise(400))) - exact).mean().item())
    assert means[0] < means[1] - 0.05 < means[2] - 0.06 < 0.0
    model = linear(HamiltonianMIWAE, num_samples=2, num_bounds=2)
    model.objective(model.terms(x, None, noise(400))).mean().backward()


# Where autograd is switched off


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_evaluation_needs_gradients_where_there_are_none(off, conditional, batch):
    """Of images and classes that were made there, too."""
    model = HamiltonianVAE(num_classes=4, conditional=conditional, **SMALL).eval()

    def terms(x, y):
        condition = model.encode_labels(y if conditional else None, 16)
        return model.terms(x, condition, noise(16)).as_dict()

    expected = terms(batch.x, batch.y)
    with off():
        found = terms(batch.x.clone(), batch.y.clone())
        model.log_marginal(
            batch.x, model.encode_labels(batch.y, 16) if conditional else None, noise(16), 5
        )
    for name, value in found.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, expected[name].detach())


def test_evaluation_with_weights_that_autocast_keeps(batch):
    """Converted in the inference mode, before and after they are used for a gradient."""
    model = HamiltonianVAE(**SMALL).eval()
    exact = model.terms(batch.x, None, noise(16)).negative_elbo
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            model.decoder(torch.zeros(2, 3))
            mixed = model.terms(batch.x, None, noise(16)).negative_elbo
            torch.testing.assert_close(mixed, exact, rtol=0.01, atol=1.0)
    assert mixed.dtype == torch.float32


def test_bfloat16_training(batch):
    """With gradients near those of float32."""
    model = HamiltonianVAE(**SMALL)
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model.objective(model.terms(batch.x, None, noise(16))).mean()
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, exact in found[0].items():
        assert (found[1][name] - exact).norm() < 0.15 * exact.norm() + 1e-3, name


class WithBatchNorm(ConvDecoder):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.norm = nn.BatchNorm2d(self.layers[0].in_channels)
        self.head = nn.Sequential(self.head, self.norm)


def test_batch_normalization(batch):
    """Statistics are updated in training, and used in evaluation."""
    model = HamiltonianVAE(decoder=WithBatchNorm, **SMALL)
    model.objective(model.terms(batch.x, None, noise(16))).mean().backward()
    assert model.decoder.norm.num_batches_tracked == 5  # each of the K + 2 times it decodes
    before = model.decoder.norm.running_mean.clone()
    assert model.log_prob(batch.x, num_samples=3).isfinite().all()
    assert model.decoder.norm.running_mean.equal(before)


def test_draws_do_not_depend_on_how_many_are_decoded_at_once(batch):
    model = HamiltonianVAE(**SMALL)
    whole, parts = (model.log_marginal(batch.x, None, noise(16), 20, rows) for rows in (999, 48))
    torch.testing.assert_close(whole, parts)


# Parts


@pytest.mark.parametrize("posterior", [IAFPosterior, None])
@pytest.mark.parametrize(
    "prior",
    [functools.partial(VampPrior, components=5), functools.partial(RealNVPPrior, hidden=(8,))],
)
def test_other_priors_and_posteriors(prior, posterior, batch):
    """A VampPrior is the mixture of the distributions before the steps."""
    parts = {"prior": prior} | ({"posterior": posterior} if posterior else {})
    if posterior and prior.func is VampPrior:
        with pytest.raises(ValueError, match="VampPrior needs a Gaussian posterior"):
            HamiltonianVAE(**parts, **SMALL)
        return
    model = HamiltonianVAE(**parts, **SMALL)
    model.objective(model.terms(batch.x, None, noise(16))).mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.log_prob(batch.x, num_samples=4).isfinite().all()


def test_capabilities(batch):
    model = HamiltonianVAE(**SMALL)
    assert model.has(Capability.DENSITY, Capability.CONTINUOUS_LATENT)
    assert not model.has(Capability.KL_PER_DIMENSION)
    assert not model.has(Capability.POSTERIOR_DENSITY)
    assert model.networks == [model.encoder]
    assert set(model.encode(batch.x, None)) == {"mean", "initial_mu", "initial_log_var"}
    assert model.embed(batch.x).equal(model.posterior(batch.x).mean)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"leapfrog_steps": -1}, "leapfrog_steps must not be negative, got -1"),
        ({"step_size": 0.0}, "step_size must be between 0 and max_step_size, got 0.0 and 0.5"),
        ({"step_size": 0.5}, "step_size must be between 0 and max_step_size"),
        ({"beta_zero": 1.0}, "beta_zero must be between 0 and 1, got 1.0"),
        ({"tempering": "fixed"}, "tempering must be quadratic, free, none, got 'fixed'"),
        ({"posterior": DeterministicPosterior}, "choose another posterior"),
        (
            {"posterior": VonMisesFisherPosterior, "prior": UniformSphere},
            "moves real vectors, but VonMisesFisherPosterior draws",
        ),
    ],
)
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HamiltonianVAE(**kwargs)
