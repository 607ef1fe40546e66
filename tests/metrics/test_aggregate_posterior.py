"""Terms of the aggregate posterior, against closed forms, quadrature and torch.distributions."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
import torch.distributions as td
from torch import nn

import vae_lightning
from vae_lightning.distributions.aggregate_posterior import AggregatePosterior
from vae_lightning.distributions.categorical import UniformCategorical
from vae_lightning.distributions.gumbel_softmax import GumbelSoftmaxPosterior
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.planar_flow import PlanarFlowPosterior
from vae_lightning.distributions.posteriors import (
    DeterministicPosterior,
    GaussianPosterior,
    LatentDistribution,
)
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.metrics.aggregate_posterior import AggregatePosteriorTerms
from vae_lightning.models.capabilities import Capability
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE

DOUBLE = torch.float64
TERMS = ("information", "kl", "correlation", "dimension_kl", "kl_by_dimension")


class Given(MLPEncoder):
    """Features of each image by its mean pixel; the class shifts them, too."""

    features = 4
    scale = 3.0

    def forward(self, x, condition=None):
        level = x.mean((1, 2, 3))[:, None] * torch.arange(1, self.features + 1)
        made = self.scale * (300 * level).sin()
        return made if condition is None else made + 0.3 * condition.argmax(1, keepdim=True)


class Correlated(Given):
    """Two means that are close to each other, for each image."""

    scale = 1.5

    def forward(self, x, condition=None):
        made = super().forward(x, condition)
        return torch.cat([made[:, :1], 0.8 * made[:, :1] + 0.2, made[:, 2:] - 1], 1)


def model_of(latent_dim=2, variant="VAE", **kwargs):
    return getattr(vae_lightning, variant)(
        image_shape=(1, 8, 8),
        num_classes=4,
        latent_dim=latent_dim,
        **{
            "encoder": type("Encoder", (Given,), {"features": 2 * latent_dim}),
            "decoder": functools.partial(MLPDecoder, hidden=(4,)),
            **kwargs,
        },
    )


def evaluate(model, data, **options):
    metric = AggregatePosteriorTerms(**options)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[metric],
    )
    lit = LitVAE(model)
    trainer.test(lit, datamodule=data, verbose=False)
    assert metric.applies
    return {name.removeprefix("test/"): result for name, result in lit.results.items()}


def features_of(model, data):
    data.setup("test")
    raw = data.datasets["test"].__getitems__(range(len(data.datasets["test"])))
    condition = nn.functional.one_hot(raw.y, 4).float() if model.conditional else None
    with torch.no_grad():
        return model.encoder(raw.x / 255, condition).double(), raw.y


def mixture(features):
    """The aggregate posterior by torch.distributions, and its marginals."""
    mu, log_var = features.chunk(2, 1)
    weights = td.Categorical(logits=torch.zeros(len(mu), dtype=DOUBLE))
    normal = td.Normal(mu, (log_var / 2).exp())
    of_each = td.Categorical(logits=torch.zeros(mu.shape[1], len(mu), dtype=DOUBLE))
    return (
        td.MixtureSameFamily(weights, td.Independent(normal, 1)),
        td.MixtureSameFamily(of_each, td.Normal(mu.T, (log_var / 2).exp().T)),
    )


# The mixture itself


@pytest.mark.parametrize("images", [1, 7, 3000])
def test_densities_are_those_of_the_mixture(images):
    """Also where most images are far away, and with more images than fit in a block."""
    features = torch.cat([3 * torch.randn(images, 5), 4 * torch.randn(images, 5) - 4], 1).double()
    z = torch.cat([torch.randn(80, 5), 30 * torch.randn(20, 5), features[:5, :5]]).double()
    joint, marginals = AggregatePosterior(GaussianPosterior(5), features).log_prob(z)
    exact, exact_marginals = mixture(features)
    torch.testing.assert_close(joint, exact.log_prob(z), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(marginals, exact_marginals.log_prob(z), rtol=1e-10, atol=1e-10)


def test_densities_of_narrow_posteriors_far_from_the_origin():
    """Float32 would lose the draws: a standard deviation of 1e-6 at 100."""
    features = torch.tensor([[100.0, -28.0], [100.0, -28.0], [-50.0, 1.0]]).double()
    q = AggregatePosterior(GaussianPosterior(1), features)
    z, own = q.draw(torch.tensor([0, 1]), Noise(torch.arange(2), "draw"))
    epsilon = Noise(torch.arange(2), "draw").normal(1).double()
    expected = (-epsilon.square() / 2 + 14 - math.log(2 * math.pi) / 2).flatten()
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)
    joint, _ = q.log_prob(z)
    two_of_three = torch.tensor(math.log(2 / 3), dtype=DOUBLE)
    torch.testing.assert_close(joint, own + two_of_three)


def test_draws_are_those_of_the_posterior():
    """The same numbers as from the family itself, draw by draw."""
    features = torch.randn(6, 8)
    q = AggregatePosterior(GaussianPosterior(4), features)
    images = torch.tensor([4, 0, 2])
    expected = GaussianPosterior(4)(features[images]).rsample(Noise(images, "a"), 3).z
    for draw in range(3):
        z, _ = q.draw(images, Noise(images, "a"), draw)
        assert z.dtype == DOUBLE
        torch.testing.assert_close(z.float(), expected[:, draw])


def test_a_family_that_only_knows_its_own_draws():
    for family in (PlanarFlowPosterior(2), DeterministicPosterior(2)):
        with pytest.raises(ValueError, match="can evaluate its density only at its own draws"):
            AggregatePosterior(family, torch.zeros(3, family.in_features))
        assert not model_of(variant="WAE", posterior=type(family), encoder=MLPEncoder).has(
            Capability.POSTERIOR_DENSITY
        )
    with pytest.raises(ValueError, match="at least one image"):
        AggregatePosterior(GaussianPosterior(2), torch.zeros(0, 4))


def test_marginals_of_a_categorical():
    logits = torch.randn(9, 12).double()
    family = GumbelSoftmaxPosterior(12, num_categories=4)
    z = nn.functional.one_hot(torch.randint(4, (5, 3)), 4).double().flatten(1)
    joint, marginals = AggregatePosterior(family, logits).log_prob(z)
    probs = logits.view(9, 3, 4).softmax(2)
    of_z = (probs[None] * z.view(5, 1, 3, 4)).sum(3)  # (5, 9, 3)
    torch.testing.assert_close(joint, of_z.prod(2).mean(1).log())
    torch.testing.assert_close(marginals, of_z.mean(1).log())


@pytest.mark.parametrize(
    ("prior", "size"), [(StandardNormal(4), 4), (UniformCategorical(4, num_categories=2), 2)]
)
def test_marginals_of_a_factorial_prior_sum_to_its_density(prior, size):
    z = prior.sample(7)[:, None].double()
    found = prior.marginal_log_prob(z)
    assert found.shape == (7, 1, size)
    torch.testing.assert_close(found.sum(2), prior.log_prob(z))
    assert MixtureOfGaussians(4).marginal_log_prob(z) is None


# The metric


def quadrature(features, log_prior):
    """I(n; z), KL(q || p), total correlation and dimension KL in two dimensions, on a grid."""
    mu, log_var = features.chunk(2, 1)
    reach = (mu.abs() + 8 * (log_var / 2).exp()).max().item()
    axis = torch.linspace(-reach, reach, 301, dtype=DOUBLE)
    cell = (axis[1] - axis[0]) ** 2
    z = torch.cartesian_prod(axis, axis)
    joint, of_each = mixture(features)
    log_q = joint.log_prob(z)
    log_marginals = of_each.log_prob(axis[:, None])
    log_product = (log_marginals[:, None, 0] + log_marginals[None, :, 1]).flatten()
    log_p = log_prior(z)
    q = log_q.exp() * cell
    assert q.sum().item() == pytest.approx(1, abs=1e-6)
    conditional_entropy = (0.5 * log_var.sum(1)).mean() + math.log(2 * math.pi * math.e)
    return {
        "information": -(q * log_q).sum() - conditional_entropy,
        "kl": (q * (log_q - log_p)).sum(),
        "correlation": (q * (log_q - log_product)).sum(),
        "dimension_kl": (q * (log_product - log_p)).sum(),
    }


def check(results, expected, names=TERMS[:4]):
    for name in names:
        result = results[f"aggregate_{name}"]
        assert result.value == pytest.approx(expected[name].item(), abs=4 * result.error), name
        assert result.error < 0.15, name


def test_terms_are_those_of_quadrature(blobs):
    model = model_of(encoder=Correlated)
    data = blobs(size=40)
    results = evaluate(model, data, draws=4000)
    features, _ = features_of(model, data)
    normal = td.Independent(td.Normal(torch.zeros(2, dtype=DOUBLE), 1.0), 1)
    expected = quadrature(features, normal.log_prob)
    assert min(expected.values()) > 0.15  # each of them matters here
    check(results, expected)
    value = {name: results[f"aggregate_{name}"].value for name in TERMS}
    assert value["kl"] == pytest.approx(value["correlation"] + value["dimension_kl"], rel=1e-9)
    assert sum(value["kl_by_dimension"]) == pytest.approx(value["dimension_kl"], rel=1e-9)
    assert len(value["kl_by_dimension"]) == 2


def test_the_parts_of_the_kl_term_add_up_to_it(blobs):
    """KL = I(n; z) + KL(q(z) || p(z)): the left side is exact, and not drawn."""
    results = evaluate(model_of(6), blobs(size=60), draws=6000)
    parts = results["aggregate_information"], results["aggregate_kl"]
    error = sum(part.error for part in parts)
    assert results["kl"].value == pytest.approx(sum(p.value for p in parts), abs=4 * error)
    assert error < 0.02 * results["kl"].value


def test_another_prior_changes_the_kl_only(blobs):
    prior = functools.partial(MixtureOfGaussians, components=3, init_scale=2)
    model = model_of(prior=prior, encoder=type("Encoder", (Given,), {"scale": 1.5}))
    model.prior.logits.data = torch.tensor([0.0, 1.0, -1.0])
    data = blobs(size=40)
    results = evaluate(model, data, draws=4000)
    features, _ = features_of(model, data)
    p = model.prior
    log_prior = td.MixtureSameFamily(
        td.Categorical(logits=p.logits.detach().double()),
        td.Independent(td.Normal(p.mu.detach().double(), (p.log_var / 2).exp().detach()), 1),
    )
    check(results, quadrature(features, log_prior.log_prob), TERMS[:3])
    assert "aggregate_dimension_kl" not in results  # its variables are not independent


def test_known_values(blobs):
    """Equal posteriors: no information. Posteriors without overlap: log N."""
    equal = type("Equal", (Given,), {"scale": 0.0})
    results = evaluate(model_of(encoder=equal), blobs(size=30), draws=200)
    for name in TERMS[:4]:
        assert results[f"aggregate_{name}"].value == pytest.approx(0, abs=1e-12)

    class Apart(Given):
        def forward(self, x, condition=None):
            place = 1e6 * x.mean((1, 2, 3))
            ones = torch.ones_like(place)
            return torch.stack([place, 2 * ones, -3 * ones, ones], 1)

    results = evaluate(model_of(encoder=Apart), blobs(size=30), draws=300)
    assert results["aggregate_information"].value == pytest.approx(math.log(30), rel=1e-9)
    assert "30 images allow at most log N = 3.40" in results["aggregate_information"].unit
    # The second dimension is the same for all, N(2, e): its KL is known.
    by_dimension = results["aggregate_kl_by_dimension"].value
    assert by_dimension[1] == pytest.approx((4 + math.e - 2) / 2, abs=0.6)
    assert results["aggregate_correlation"].value == pytest.approx(0, abs=1e-9)


def test_a_linear_gaussian_encoder_whose_aggregate_is_the_prior():
    """mu ~ N(0, 1 - s^2) and variance s^2: I(n; z) = -L log s, and no marginal KL."""
    n, s = 5000, 0.5
    mu = math.sqrt(1 - s**2) * torch.randn(n, 1, dtype=DOUBLE)
    features = torch.cat([mu, torch.full_like(mu, 2 * math.log(s))], 1)
    q = AggregatePosterior(GaussianPosterior(1), features)
    z, own = q.draw(torch.arange(n), Noise(torch.arange(n), "draw"))
    joint, _ = q.log_prob(z)
    assert (own - joint).mean().item() == pytest.approx(-math.log(s), abs=0.03)
    kl = joint + z.square().sum(1) / 2 + math.log(2 * math.pi) / 2
    assert kl.mean().item() == pytest.approx(0, abs=0.01)


def test_a_conditional_model_has_an_aggregate_for_each_class(blobs):
    model = model_of(variant="CVAE", encoder=type("Encoder", (Given,), {"scale": 1.0}))
    data = blobs(size=42)  # 11 images of two classes, 10 of the others
    results = evaluate(model, data, draws=4200)
    features, y = features_of(model, data)
    normal = td.Independent(td.Normal(torch.zeros(2, dtype=DOUBLE), 1.0), 1)
    expected = dict.fromkeys(TERMS[:4], torch.tensor(0.0, dtype=DOUBLE))
    for label in range(4):
        part = quadrature(features[y == label], normal.log_prob)
        share = (y == label).double().mean()
        expected = {name: expected[name] + share * part[name] for name in expected}
    check(results, expected)
    total = results["aggregate_information"].value + results["aggregate_kl"].value
    assert results["kl"].value == pytest.approx(total, abs=0.1)
    unit = results["aggregate_information"].unit
    most = (22 * math.log(11) + 20 * math.log(10)) / 42
    assert f"images of a class on average allow at most {most:.2f}" in unit
    assert "given the class" in unit


def test_some_of_the_images_and_fewer_draws(blobs):
    data = blobs(size=64)
    results = evaluate(model_of(), data, draws=10, images=8)
    assert "8 images" in results["aggregate_information"].unit
    assert results["aggregate_information"].value <= math.log(8) + 1e-12
    again = evaluate(model_of(), blobs(size=64, batch_size=7), draws=10, images=8)
    for name in TERMS:
        assert again[f"aggregate_{name}"].value == pytest.approx(
            results[f"aggregate_{name}"].value, rel=1e-5
        )


def test_categorical_latents(blobs):
    """Two variables of two categories: everything by enumeration."""
    model = model_of(
        4,
        posterior=functools.partial(GumbelSoftmaxPosterior, num_categories=2),
        prior=functools.partial(UniformCategorical, num_categories=2),
        encoder=type("Encoder", (Given,), {"features": 4, "scale": 2.0}),
    )
    data = blobs(size=40)
    results = evaluate(model, data, draws=8000)
    features, _ = features_of(model, data)
    p = features.view(40, 2, 2).softmax(2)
    joint = torch.einsum("na,nb->nab", p[:, 0], p[:, 1])
    q = joint.mean(0)
    product = p[:, 0].mean(0)[:, None] * p[:, 1].mean(0)
    expected = {
        "information": torch.special.entr(q).sum() - torch.special.entr(joint).sum((1, 2)).mean(),
        "kl": math.log(4) - torch.special.entr(q).sum(),
        "correlation": (q * (q / product).log()).sum(),
        "dimension_kl": math.log(4) + (q * product.log()).sum(),
    }
    check(results, expected)


def test_models_without_such_a_density_have_no_report(blobs):
    assert LatentDistribution.log_prob(None, torch.zeros(1)) is None
    assert not vae_lightning.HierarchicalVAE(image_shape=(1, 8, 8)).has(
        *AggregatePosteriorTerms.requires
    )
    assert model_of().has(*AggregatePosteriorTerms.requires)
    with pytest.raises(ValueError, match=r"metrics\.aggregate_posterior\.draws must be positive"):
        AggregatePosteriorTerms(draws=0)
