"""Every variant with every prior and posterior that fit each other. New ones are found here."""

import inspect
import itertools

import pytest
import torch
from contract_checks import (
    DISCRETE,
    IMAGE_SHAPE,
    NUM_CLASSES,
    FewImages,
    build,
    check_batch_independence,
    check_bound,
    check_gradients,
    check_sampling,
    check_terms,
    fits,
    implementations,
    labels_of,
    small,
    terms_of,
    train,
)

from vae_lightning import CVAE, VAE
from vae_lightning.distributions.posteriors import GaussianPosterior, Posterior
from vae_lightning.distributions.priors import Prior, StandardNormal
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.models.loading import build as build_from_settings
from vae_lightning.randomness import Noise

PRIORS, POSTERIORS = implementations(Prior), implementations(Posterior)
PAIRS = [pair for pair in itertools.product(PRIORS, POSTERIORS) if fits(*pair)]


def chooses(variant):
    """Whether prior and posterior of a variant can be chosen: it hands all options on."""
    try:
        variant(image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, latent_dim=4)
    except TypeError:  # it computes the size of its latent itself
        return False
    return issubclass(variant, LatentVariableModel)


VARIANTS = [cls for cls in implementations(BaseVAE) if chooses(cls)]


def names(value):
    return value.__name__


def make(variant, prior, posterior, batch=None, **kwargs) -> BaseVAE:
    """Build a model of these parts, and initialize it from data."""
    parts = {"prior": small(prior, **DISCRETE), "posterior": small(posterior, **DISCRETE)}
    model = build(variant, **{"latent_dim": 4, **parts, **kwargs})
    if batch is not None:
        model.init_from_data(FewImages(batch.x))
    return model


def refusal(*parts, **kwargs):
    """The sentence with which a combination is refused, None if it is possible."""
    try:
        make(*parts, **kwargs)
    except (ValueError, MissingCapabilityError) as error:
        return str(error)
    return None


# All pairs with the VAE; with other variants, each part beside the default of the other.
COMBINATIONS = {
    (variant, prior, posterior): refusal(variant, prior, posterior)
    for variant, (prior, posterior) in itertools.product(VARIANTS, PAIRS)
    if variant is VAE or prior is StandardNormal or posterior is GaussianPosterior
}
TRIED = [parts for parts, message in COMBINATIONS.items() if message is None]
OF_VAE = [parts[1:] for parts in TRIED if parts[0] is VAE]


def test_impossible_combinations_are_refused_with_a_sentence():
    """When they are built, about what the user chose and not about the tensors inside."""
    for parts, message in COMBINATIONS.items():
        if message is not None:
            assert message
            assert "\n" not in message
            named = {*(part.__name__ for part in parts), "density"}
            assert any(name in message for name in named), message
    assert VAE in {variant for variant, *_ in TRIED}
    assert set(VARIANTS) == {variant for variant, *_ in TRIED}
    assert set(PRIORS) == {prior for _, prior, _ in TRIED}
    assert set(POSTERIORS) == {posterior for *_, posterior in TRIED}


def test_every_distribution_is_here():
    assert {"StandardNormal"} <= {cls.__name__ for cls in PRIORS}
    assert {"GaussianPosterior", "DeterministicPosterior"} <= {cls.__name__ for cls in POSTERIORS}
    assert {prior for prior, _ in PAIRS} == set(PRIORS)
    assert {posterior for _, posterior in PAIRS} == set(POSTERIORS)


@pytest.mark.slow_except("VAE")
@pytest.mark.parametrize(("variant", "prior", "posterior"), TRIED, ids=names)
class TestEveryCombination:
    def test_terms(self, variant, prior, posterior, batch):
        model = make(variant, prior, posterior, batch)
        check_terms(model, batch)
        check_terms(model.eval(), batch)
        check_batch_independence(model, batch)

    def test_gradients(self, variant, prior, posterior, batch):
        check_gradients(make(variant, prior, posterior, batch), batch)

    def test_settings_and_inference(self, variant, prior, posterior, batch):
        torch.manual_seed(5)
        model = make(variant, prior, posterior, batch)
        again = build_from_settings(model.describe())
        assert again.describe() == model.describe()
        again.load_state_dict(model.state_dict())
        label = labels_of(model, batch)
        assert again.reconstruct(batch.x, label).equal(model.reconstruct(batch.x, label))
        if model.has(Capability.SAMPLES):
            seeded = (torch.Generator().manual_seed(1) for _ in range(2))
            samples = [m.sample(5, generator=next(seeded)) for m in (model, again)]
            assert samples[0].equal(samples[1])
        if model.has(Capability.CONTINUOUS_LATENT):
            quantiles = model.latent_quantiles(torch.tensor([0.1, 0.5, 0.9]))
            assert (quantiles.diff(dim=0) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "prior", "posterior"),
    [parts for parts in TRIED if parts[0] in (VAE, CVAE)],
    ids=names,
)
def test_likelihood_is_not_below_the_bound(variant, prior, posterior, batch):
    model = make(variant, prior, posterior, batch)
    if not model.has(Capability.DENSITY):
        assert not (prior.has_density and posterior.has_density)
        return
    train(model, batch, 40)
    check_bound(model, batch, seeds=8)


@pytest.mark.parametrize("prior", PRIORS, ids=names)
@pytest.mark.parametrize("conditional", [False, True])
def test_samples_follow_the_prior(prior, conditional, batch):
    """With parameters that are not those of the start, as after a training."""
    posterior = next(posterior for p, posterior in OF_VAE if p is prior)
    sizes = {"latent_dim": 4 if "num_categories" in inspect.signature(prior).parameters else 2}
    if conditional and (message := refusal(VAE, prior, posterior, conditional=True)):
        assert "conditional model" in message
        return
    model = make(VAE, prior, posterior, batch, conditional=conditional, **sizes)
    for parameter in model.prior.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    if model.prior.has_density:
        for label in range(2) if conditional else [None]:
            check_sampling(model, label)


@pytest.mark.parametrize(("prior", "posterior"), OF_VAE, ids=names)
def test_closed_form_kl_is_that_of_draws(prior, posterior, batch):
    """Of each image, to 4 standard errors; in evaluation, where draws are exact."""
    model = make(VAE, prior, posterior, batch).eval()
    q = model.posterior(3 * batch.x)
    exact = model.prior.kl(q)
    assert (exact is not None) == model.has(Capability.KL_PER_DIMENSION)
    if exact is None:
        return
    with torch.no_grad():
        draws = q.rsample(Noise(batch.indices, "kl"), 4000)
        differences = -model.log_ratio(draws) - exact.sum(1, keepdim=True)
    error = differences.std(1) / 4000**0.5
    assert (differences.mean(1).abs() <= 4 * error + 1e-4).all()


@pytest.mark.parametrize(("prior", "posterior"), OF_VAE, ids=names)
def test_converted_models_measure_and_sample(prior, posterior, batch):
    """Lightning's 64-true and bf16-true set the default type, too."""
    model = make(VAE, prior, posterior, batch).eval()

    def results() -> list[torch.Tensor]:
        found = [model.reconstruct(batch.x)]
        if model.has(Capability.DENSITY):
            found.append(model.log_prob(batch.x, num_samples=3))
        if model.has(Capability.SAMPLES):
            found.append(model.sample(3, generator=torch.Generator().manual_seed(0)))
        return [one.double() for one in found]

    expected = results()
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.1)):
        model.to(dtype)
        torch.set_default_dtype(dtype)
        try:
            found = results()
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("prior", "posterior"), OF_VAE, ids=names)
def test_trained_weights_can_be_told_from_the_start(prior, posterior, batch):
    """An update changes every part that has parameters, the prior included."""
    model = make(VAE, prior, posterior, batch)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, batch, 3)
    assert terms_of(model, batch).reconstruction.isfinite().all()
    for name, parameter in model.named_parameters():
        assert not parameter.equal(before[name]), name
