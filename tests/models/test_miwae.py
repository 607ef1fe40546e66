import functools
import math

import pytest
import torch
from linear_gaussian import GivenFeatures, exact_features, images, linear
from torch.distributions import Bernoulli, Independent, Normal

from vae_lightning import IWAE, VAE
from vae_lightning.distributions.zuko_flows import RealNVPPrior
from vae_lightning.models.ciwae import CIWAE
from vae_lightning.models.hierarchical_vae import HierarchicalVAE
from vae_lightning.models.ladder_vae import LadderVAE
from vae_lightning.models.miwae import MIWAE
from vae_lightning.models.piwae import PIWAE
from vae_lightning.randomness import Noise

SMALL = {"image_shape": (1, 8, 8), "latent_dim": 3}


def objective(model, x, *keys):
    return model.objective(model.terms(x, None, Noise(torch.arange(len(x)), "test", *keys)))


def alike(model, other):
    """Give a model the weights of another one, or another one those of it."""
    other.load_state_dict(model.state_dict())
    return other


def gradients(model, x):
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(objective(model, x).mean(), list(named.values()))
    return dict(zip(named, found, strict=True))


def assert_same(found, expected, **kwargs):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name, **kwargs)


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class EstimatedKL(VAE):
    """The VAE whose KL term is drawn and not computed."""

    def kl(self, q, draws, condition=None, log_ratio=None):
        return -self.log_ratio(draws, condition).mean(1)


# Values


def test_the_bounds_are_those_of_torch_distributions(batch):
    """In float64 the mean of the weights themselves can be taken."""
    model = MIWAE(num_bounds=3, num_samples=4, **SMALL)
    terms = model.terms(batch.x, None, Noise(batch.indices, "test"))
    mu, log_var = model.encoder(batch.x).double().chunk(2, dim=1)
    q = Independent(Normal(mu, (log_var / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    epsilon = Noise(batch.indices, "test").normal(36).view(16, 12, 3).double()
    weights = []
    for k in range(12):
        z = mu + (log_var / 2).exp() * epsilon[:, k]
        logits = model.decoder(z.float()).double()
        p = Independent(Bernoulli(logits=logits, validate_args=False), 3)
        log_weight = p.log_prob(batch.x.double()) + prior.log_prob(z) - q.log_prob(z)
        weights.append(log_weight.exp())
    weights = torch.stack(weights)
    bounds = [part.mean(0).log() for part in weights.split(4)]
    expected = -torch.stack(bounds).mean(0)
    torch.testing.assert_close(terms.negative_miwae_bound.double(), expected, **CLOSE)
    tight = -weights.mean(0).log()
    torch.testing.assert_close(terms.negative_iwae_bound.double(), tight, **CLOSE)
    assert model.objective(terms).equal(terms.negative_miwae_bound)
    assert (terms.negative_iwae_bound < terms.negative_miwae_bound).all()

    partly = alike(model, PIWAE(num_bounds=3, num_samples=4, **SMALL))
    named = partly.terms(batch.x, None, Noise(batch.indices, "test")).as_dict()
    for name, value in terms.as_dict().items():
        assert named[name].equal(value), name
    torch.testing.assert_close(objective(partly, batch.x).double(), tight, **CLOSE)

    mean = weights.log().mean(0)
    combined = alike(model, CIWAE(beta=0.3, num_samples=12, **SMALL))
    expected = 0.7 * tight - 0.3 * mean
    torch.testing.assert_close(objective(combined, batch.x).double(), expected, **CLOSE)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(MIWAE, num_bounds=2, num_samples=3),
        functools.partial(PIWAE, num_bounds=2, num_samples=3),
        functools.partial(CIWAE, beta=0.4, num_samples=4),
    ],
)
def test_bounds_of_the_exact_posterior_are_the_likelihood(make):
    model = linear(make)
    x, exact = images(model, 500)
    model.encoder = GivenFeatures(exact_features(model, x))
    torch.testing.assert_close(-objective(model, x).double(), exact, rtol=0, atol=2e-5)


def test_several_bounds_are_as_tight_as_one_and_less_noisy():
    model = linear(MIWAE, num_bounds=6, num_samples=3)
    x, exact = images(model, 4000)
    features = exact_features(model, x) + 0.4
    model.encoder = GivenFeatures(features)
    one = linear(IWAE, num_samples=3)
    one.encoder = GivenFeatures(features)
    ours, theirs = -objective(model, x, 1).double(), -objective(one, x, 2).double()
    error = ((ours - exact).var() + (theirs - exact).var()).sqrt() / math.sqrt(len(x))
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert (ours - exact).var() < 0.3 * (theirs - exact).var()
    assert ours.mean() < exact.mean() - 4 * error
    one.num_samples = 18
    assert ours.mean() < -objective(one, x, 2).double().mean() - 4 * error


# Special cases, with their gradients


@pytest.mark.parametrize("cls", [MIWAE, PIWAE])
def test_one_bound_is_iwae(cls, batch):
    model = cls(num_bounds=1, num_samples=5, **SMALL)
    iwae = alike(model, IWAE(num_samples=5, **SMALL))
    assert objective(model, batch.x).equal(objective(iwae, batch.x))
    assert_same(gradients(model, batch.x), gradients(iwae, batch.x), **CLOSE)


def test_bounds_of_one_sample_are_the_vae(batch):
    model = MIWAE(num_bounds=5, num_samples=1, **SMALL)
    vae = alike(model, EstimatedKL(num_samples=5, **SMALL))
    torch.testing.assert_close(objective(model, batch.x), objective(vae, batch.x))
    assert_same(gradients(model, batch.x), gradients(vae, batch.x), **CLOSE)


@pytest.mark.parametrize(("beta", "other"), [(0, IWAE), (1, EstimatedKL)])
def test_combinations_end_at_iwae_and_at_the_vae(beta, other, batch):
    model = CIWAE(beta=beta, num_samples=5, **SMALL)
    other = alike(model, other(num_samples=5, **SMALL))
    torch.testing.assert_close(objective(model, batch.x), objective(other, batch.x))
    assert_same(gradients(model, batch.x), gradients(other, batch.x), **CLOSE)
    assert IWAE.objective(model, model.terms(batch.x, None, Noise(batch.indices))) is not None


# The two gradients of PIWAE


def compare_gradients(cls, x, of_encoder, **kwargs):
    """Compare the gradients of PIWAE with those of two models, each of which gives one part."""
    made = {
        base: type(base.__name__, (base, cls), {})(**{**sizes, **kwargs})
        for base, sizes in (
            (PIWAE, {"num_bounds": 3, "num_samples": 4}),
            (MIWAE, {"num_bounds": 3, "num_samples": 4}),
            (IWAE, {"num_samples": 12}),
        )
    }
    for parameter in made[PIWAE].parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    for other in (MIWAE, IWAE):
        alike(made[PIWAE], made[other])
    found, loose, tight = (gradients(model, x) for model in made.values())
    differing = 0
    for name, gradient in found.items():
        is_encoder = name.startswith(of_encoder)
        expected, other = (loose, tight) if is_encoder else (tight, loose)
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=name)
        differing += not torch.allclose(gradient, other[name], rtol=0.01, atol=0.01 * scale)
    assert differing > len(found) / 2  # the two bounds have other gradients
    return found


def test_decoder_and_encoder_follow_two_bounds(batch):
    prior = functools.partial(RealNVPPrior, hidden=(8,))
    found = compare_gradients(VAE, batch.x, ("encoder.",), prior=prior, **SMALL)
    assert any(name.startswith("prior.") for name in found)


def test_networks_between_two_layers_belong_to_one_side(batch):
    compare_gradients(
        HierarchicalVAE,
        batch.x,
        ("encoder.", "inference_net."),
        image_shape=(1, 8, 8),
        latent_dim=4,
        top_dim=2,
        hidden=(6,),
    )


def test_a_posterior_that_shares_networks_with_the_prior_trains(batch):
    cls = type("PartlyWeightedLadder", (PIWAE, LadderVAE), {})
    model = cls(latent_dims=(4, 3), widths=(8, 6), image_shape=(1, 8, 8), num_bounds=2)
    assert all(gradient.isfinite().all() for gradient in gradients(model, batch.x).values())


def test_the_encoder_learns_from_bounds_that_are_far_below_others(batch):
    """With weights that are zero in float32 in the bound with all draws."""
    makes = [functools.partial(cls, num_bounds=4, num_samples=2, **SMALL) for cls in (PIWAE, MIWAE)]
    model = makes[0]()
    model.encoder.head.weight.data *= 30
    model.decoder.head.weight.data *= 30
    other = alike(model, makes[1]())
    terms = model.terms(batch.x, None, Noise(batch.indices, "test"))
    assert (terms.negative_miwae_bound - terms.negative_iwae_bound).max() > 90
    found, expected = gradients(model, batch.x), gradients(other, batch.x)
    for name, gradient in found.items():
        assert gradient.isfinite().all()
        if name.startswith("encoder."):
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * scale)


# Refusals


def test_refusals(batch):
    with pytest.raises(ValueError, match="num_bounds must be positive, got 0"):
        MIWAE(num_bounds=0)
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        PIWAE(num_samples=0)
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
            CIWAE(beta=beta)


def test_gradients_that_float16_cannot_hold_are_refused(batch):
    model = PIWAE(**SMALL)
    with torch.autocast("cpu", torch.float16):
        with pytest.raises(ValueError, match="bf16-mixed or 32 instead of 16-mixed"):
            objective(model, batch.x)
        with torch.no_grad():  # nothing to refuse
            assert objective(model, batch.x).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        objective(model, batch.x).mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
