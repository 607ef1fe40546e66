"""Products of posteriors and priors, against their parts."""

import math
from functools import partial

import pytest
import torch
from contract_checks import check_support
from torch.distributions import Normal, OneHotCategorical

from vae_lightning import IWAE, VAE
from vae_lightning.distributions.aggregate_posterior import AggregatePosterior
from vae_lightning.distributions.categorical import UniformCategorical
from vae_lightning.distributions.gumbel_softmax import GumbelSoftmaxPosterior
from vae_lightning.distributions.label_normal import LabelNormal
from vae_lightning.distributions.poincare import WrappedNormalPosterior, WrappedNormalPrior
from vae_lightning.distributions.posteriors import (
    REAL,
    DeterministicPosterior,
    GaussianPosterior,
)
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.distributions.product import Product, ProductPosterior, ProductPrior
from vae_lightning.distributions.vamp_prior import VampPrior
from vae_lightning.distributions.von_mises_fisher import UniformSphere, VonMisesFisherPosterior
from vae_lightning.models.capabilities import Capability
from vae_lightning.randomness import Noise

# Two real numbers, two variables of three categories, and a sphere in three dimensions.
SIZES = (2, 6, 3)
POSTERIORS = (
    GaussianPosterior,
    partial(GumbelSoftmaxPosterior, num_categories=3),
    VonMisesFisherPosterior,
)
PRIORS = (StandardNormal, partial(UniformCategorical, num_categories=3), UniformSphere)


def family() -> ProductPosterior:
    return ProductPosterior(11, posteriors=POSTERIORS, sizes=SIZES).eval()


def prior() -> ProductPrior:
    return ProductPrior(11, priors=PRIORS, sizes=SIZES)


def test_draws_are_those_of_the_parts():
    made = family()
    assert made.in_features == 4 + 6 + 4
    features = torch.randn(5, 14)
    noise = Noise(torch.arange(5), "test")
    draws = made(features).rsample(noise.restart(), 7)
    z, log_prob = [], []
    for part, x in zip(made.parts, features.split([4, 6, 4], 1), strict=True):
        drawn = part(x).rsample(noise, 7)
        z.append(drawn.z)
        log_prob.append(drawn.log_prob)
    assert draws.z.equal(torch.cat(z, 2))
    torch.testing.assert_close(draws.log_prob, sum(log_prob))


def test_parts_do_not_share_their_noise():
    twice = ProductPosterior(4, posteriors=(GaussianPosterior, GaussianPosterior))
    z = twice(torch.zeros(3, 8)).rsample(Noise(torch.arange(3), "test"), 500).z.flatten(0, 1)
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.1


def test_density_and_kl_by_torch():
    features = torch.randn(5, 14)
    q = family()(features)
    draws = q.rsample(Noise(torch.arange(5), "test"), 4)
    mu, log_var, logits = features[:, :2], features[:, 2:4], features[:, 4:10].view(5, 2, 3)
    normal = Normal(mu, (0.5 * log_var).exp())
    real, one_hot = draws.z[..., :2], draws.z[..., 2:8].unflatten(2, (2, 3))
    categories = OneHotCategorical(logits=logits[:, None])
    sphere = q.parts[2]
    expected = (
        normal.log_prob(real.transpose(0, 1)).sum(2).T
        + categories.log_prob(one_hot).sum(2)
        + sphere.log_prob(draws.z[..., 8:])
    )
    torch.testing.assert_close(draws.log_prob, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(q.log_prob(draws.z), expected, rtol=1e-4, atol=1e-4)
    marginals = q.marginal_log_prob(draws.z)
    assert marginals.shape == (5, 4, 2 + 2 + 1)
    torch.testing.assert_close(marginals.sum(2), expected, rtol=1e-4, atol=1e-4)
    kl = prior().kl(q)
    assert kl.shape == (5, 5)
    log_ratio = draws.log_prob - prior().log_prob(draws.z)
    torch.testing.assert_close(
        prior().log_prob(draws.z),
        Normal(0.0, 1.0).log_prob(real).sum(2) - 2 * math.log(3) - math.log(4 * math.pi),
    )
    many = q.rsample(Noise(torch.arange(5), "many"), 4000)
    log_ratio = many.log_prob - prior().log_prob(many.z)
    error = log_ratio.std(1) / 4000**0.5
    assert ((log_ratio.mean(1) - kl.sum(1)).abs() < 4 * error).all()


def test_kl_needs_the_same_parts():
    q = family()(torch.randn(2, 14))
    assert ProductPrior(11, priors=PRIORS[:1]).kl(q) is None
    assert StandardNormal(11).kl(q) is None
    other = ProductPrior(11, priors=(StandardNormal, StandardNormal), sizes=(5, 6))
    assert other.kl(q) is None


def test_samples_follow_the_prior():
    made = prior()
    check_support(
        made,
        lambda n: made.sample(n, generator=torch.Generator().manual_seed(n)),
        lambda z: made.log_prob(z[:, None])[:, 0],
    )
    samples = made.sample(6, generator=torch.Generator().manual_seed(1))
    assert samples.equal(made.sample(6, generator=torch.Generator().manual_seed(1)))


def test_point_estimates_lie_on_the_support():
    q = family()(torch.randn(5, 14))
    z = q.point_estimate
    assert z[:, 2:8].unflatten(1, (2, 3)).sum(2).eq(1).all()
    torch.testing.assert_close(z[:, 8:].norm(dim=1), torch.ones(5))
    assert q.parameters().keys() == {"mu_0", "log_var_0", "logits_1", "mu_2", "concentration_2"}


def test_paths_are_geodesics_in_every_part():
    made = prior()
    start, end = made.sample(5), made.sample(5)
    path = made.geodesic(start[:, None], end[:, None], torch.tensor([0.0, 0.5, 1.0])[:, None])
    torch.testing.assert_close(path[:, 0], start)
    torch.testing.assert_close(path[:, 2], end)
    torch.testing.assert_close(path[:, 1, :8], (start + end)[:, :8] / 2)
    torch.testing.assert_close(path[..., 8:].norm(dim=2), torch.ones(5, 3))
    torch.testing.assert_close(made.project(3 * start)[:, 8:].norm(dim=1), torch.ones(5))
    flat = ProductPrior(4, priors=(StandardNormal, StandardNormal))
    assert flat.geodesic(start[:, :4], end[:, :4], torch.tensor([0.5])) is None


def test_a_product_of_real_parts_is_real():
    made = ProductPrior(4, priors=(StandardNormal, StandardNormal))
    assert made.support == ProductPosterior(4).support == REAL
    p = torch.tensor([0.1, 0.5])
    torch.testing.assert_close(made.marginal_quantiles(p), StandardNormal(4).marginal_quantiles(p))


def test_a_model_with_a_mixed_latent(batch):
    parts = {
        "prior": partial(ProductPrior, priors=PRIORS, sizes=SIZES),
        "posterior": partial(ProductPosterior, posteriors=POSTERIORS, sizes=SIZES),
    }
    vae = VAE(image_shape=(1, 8, 8), latent_dim=11, **parts)
    assert vae.has(Capability.DENSITY, Capability.KL_PER_DIMENSION, Capability.POSTERIOR_DENSITY)
    assert not vae.has(Capability.CONTINUOUS_LATENT)
    assert vae.log_prob(batch.x, num_samples=3).shape == (16,)
    aggregate = AggregatePosterior(vae.posterior_family, torch.randn(6, 14))
    joint, marginals = aggregate.log_prob(vae.prior.sample(3).double())
    assert joint.shape == (3,)
    assert marginals.shape == (3, 5)
    with pytest.raises(ValueError, match="those of ProductPosterior have none in training"):
        IWAE(image_shape=(1, 8, 8), latent_dim=11, **parts)


def test_mixed_curvature(batch):
    """A ball and a sphere; only the sphere has a closed-form KL."""
    posteriors = (WrappedNormalPosterior, VonMisesFisherPosterior)
    priors = (WrappedNormalPrior, UniformSphere)
    vae = IWAE(
        image_shape=(1, 8, 8),
        latent_dim=6,
        prior=partial(ProductPrior, priors=priors),
        posterior=partial(ProductPosterior, posteriors=posteriors),
    )
    assert not vae.has(Capability.KL_PER_DIMENSION)
    assert vae.log_prob(batch.x, num_samples=3).isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ProductPosterior(4, posteriors=()), "ProductPosterior: give at least one part"),
        (
            lambda: ProductPosterior(5, posteriors=POSTERIORS[:2]),
            "be divided equally into 2",
        ),
        (lambda: ProductPrior(5, priors=PRIORS[:1], sizes=(4,)), "sum latent_dim = 5, got"),
        (lambda: ProductPrior(5, priors=PRIORS[:1], sizes=(2, 3)), "each of the 1 parts"),
        (lambda: ProductPrior(4, priors=(VampPrior,)), "VampPrior cannot be a part"),
        (
            lambda: VAE(
                latent_dim=4,
                prior=partial(ProductPrior, priors=(StandardNormal, UniformSphere)),
                posterior=partial(
                    ProductPosterior, posteriors=(VonMisesFisherPosterior, GaussianPosterior)
                ),
            ),
            "choose a prior and a posterior of the same kind",
        ),
        (
            lambda: VAE(
                latent_dim=4,
                posterior=partial(ProductPosterior, posteriors=(DeterministicPosterior,)),
            ),
            "draws of ProductPosterior have no density",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_every_part_of_a_prior_sees_the_class():
    made = ProductPrior(4, 3, priors=(LabelNormal, LabelNormal), sizes=(1, 3))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    z, y = torch.randn(3, 2, 4), torch.eye(3)
    first, second = made.parts
    expected = first.log_prob(z[..., :1], y) + second.log_prob(z[..., 1:], y)
    torch.testing.assert_close(made.log_prob(z, y), expected)
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    parts = [part.sample(3, y, seeded[0]) for part in (first, second)]
    assert made.sample(3, y, seeded[1]).equal(torch.cat(parts, 1))
    q = [GaussianPosterior(size)(torch.randn(3, 2 * size)) for size in (1, 3)]
    expected = torch.cat([first.kl(q[0], y), second.kl(q[1], y)], 1)
    torch.testing.assert_close(made.kl(Product(q, [1, 3]), y), expected)
