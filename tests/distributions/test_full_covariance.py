"""The Gaussian with a full covariance against torch.distributions in float64."""

import functools

import pytest
import torch
from contract_checks import check_real_sampler
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vae_lightning import VAE, LabelNormal
from vae_lightning.distributions.full_covariance import (
    FullCovarianceGaussian,
    FullCovariancePosterior,
)
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.explore.traversal import dimension_use
from vae_lightning.models.capabilities import Capability
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise


def gaussian(images=4, size=5, correlation=1.0) -> FullCovarianceGaussian:
    mu, log_var = torch.randn(2, images, size).double()
    return FullCovarianceGaussian(mu, log_var, correlation * torch.randn(images, size, size))


def reference(q) -> MultivariateNormal:
    return MultivariateNormal(q.mu, scale_tril=q.cholesky)


def test_log_prob_is_that_of_torch_distributions():
    q, z = gaussian(), 3 * torch.randn(4, 6, 5).double()
    expected = reference(q).log_prob(z.transpose(0, 1)).T
    torch.testing.assert_close(q.log_prob(z), expected)


def test_density_of_draws_is_that_of_their_values():
    q = gaussian()
    draws = q.rsample(Noise(torch.arange(4), "test"), 6)
    torch.testing.assert_close(draws.log_prob, q.log_prob(draws.z))


def test_marginals_are_those_of_the_covariance():
    q, z = gaussian(), torch.randn(4, 6, 5).double()
    deviations = q.covariance.diagonal(dim1=1, dim2=2).sqrt()
    expected = Normal(q.mu[:, None], deviations[:, None]).log_prob(z)
    torch.testing.assert_close(q.marginal_log_prob(z), expected)


def test_draws_have_mean_and_covariance():
    q, n = gaussian(images=2, size=3), 200_000
    z = q.rsample(Noise(torch.arange(2), "test"), n).z
    for i in range(2):
        error = 6 * q.covariance[i].diagonal().max() / n**0.5
        assert (z[i].mean(0) - q.mu[i]).abs().max() < error
        assert (z[i].T.cov() - q.covariance[i]).abs().max() < 2 * error


def test_draws_follow_the_density():
    q = FullCovarianceGaussian(*torch.randn(2, 1, 2), torch.full((1, 2, 2), 0.8))
    check_real_sampler(
        lambda n: q.rsample(Noise(torch.arange(1), "test"), n).z[0],
        lambda z: q.log_prob(z[None])[0],
    )


def test_kl_is_that_of_torch_distributions():
    q = gaussian()
    standard = MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double())
    found = StandardNormal(5).kl(q)
    assert found.shape == (4, 5)
    torch.testing.assert_close(found.sum(1), kl_divergence(reference(q), standard))
    mu, log_var = torch.randn(2, 4, 5).double()
    other = MultivariateNormal(mu, covariance_matrix=log_var.exp().diag_embed())
    torch.testing.assert_close(q.normal_kl(mu, log_var).sum(1), kl_divergence(reference(q), other))


def test_the_share_of_a_dimension_is_its_kl_given_the_dimensions_before():
    """By conditioning a draw: E_q[KL(q(z_j|z_<j) || N(0, 1))], to 5 standard errors."""
    q, n = gaussian(images=1, size=3), 100_000
    z = q.rsample(Noise(torch.arange(1), "test"), n).z[0]
    covariance, shares = q.covariance[0], q.standard_normal_kl()[0]
    for j in range(3):
        weights = torch.linalg.solve(covariance[:j, :j], covariance[:j, j])
        mean = q.mu[0, j] + (z[:, :j] - q.mu[0, :j]) @ weights
        variance = covariance[j, j] - covariance[j, :j] @ weights
        of_draw = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0))
        error = 5 * of_draw.std() / n**0.5
        assert (of_draw.mean() - shares[j]).abs() <= error + 1e-9
    assert (shares >= 0).all()


def test_the_share_of_an_unused_dimension_is_zero():
    below = torch.randn(1, 3, 3)
    below[:, 1] = 0
    mu, log_var = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 0.0, -1.0]])
    shares = FullCovarianceGaussian(mu, log_var, below).standard_normal_kl()[0]
    assert shares[1] == 0
    assert (shares[[0, 2]] > 0.1).all()


def test_small_values_of_the_kl_keep_their_digits():
    """In float32, where log_var is nearly 0 and exp(v) - v - 1 cancels."""
    log_var = torch.full((1, 2), 1e-3)
    found = FullCovarianceGaussian(torch.zeros(1, 2), log_var, torch.zeros(1, 2, 2))
    expected = FullCovarianceGaussian(torch.zeros(1, 2), log_var.double(), torch.zeros(1, 2, 2))
    torch.testing.assert_close(
        found.standard_normal_kl().double(), expected.standard_normal_kl(), rtol=1e-4, atol=0
    )


def test_without_entries_below_the_diagonal_it_is_the_diagonal_gaussian():
    mu, log_var = torch.randn(2, 3, 4)
    q = FullCovarianceGaussian(mu, log_var, torch.zeros(3, 4, 4))
    other, z = DiagonalGaussian(mu, log_var), torch.randn(3, 6, 4)
    torch.testing.assert_close(q.log_prob(z), other.log_prob(z))
    torch.testing.assert_close(q.marginal_log_prob(z), other.marginal_log_prob(z))
    torch.testing.assert_close(q.standard_normal_kl(), other.standard_normal_kl())
    noise = Noise(torch.arange(3), "test")
    torch.testing.assert_close(q.rsample(noise.restart(), 2).z, other.rsample(noise, 2).z)


def test_the_posterior_splits_its_features():
    family = FullCovariancePosterior(3)
    assert family.in_features == 9
    q = family(torch.arange(9.0)[None] / 4)
    assert q.mu[0].tolist() == [0.0, 0.25, 0.5]
    torch.testing.assert_close(q.cholesky[0].diagonal().log() * 2, torch.tensor([0.75, 1.0, 1.25]))
    below = torch.tensor([1.5, 1.75, 2.0]) / 3
    torch.testing.assert_close(q.cholesky[0, [1, 2, 2], [0, 0, 1]], below)
    assert q.cholesky[0].triu(1).abs().max() == 0
    assert set(q.parameters()) == {"mu", "cholesky"}
    assert FullCovariancePosterior(1)(torch.zeros(2, 2)).cholesky.shape == (2, 1, 1)


def test_extreme_features_are_finite():
    family = FullCovariancePosterior(3)
    for scale in (-1e3, 1e3):
        features = torch.full((1, 9), scale).requires_grad_()
        q = family(features)
        draws = q.rsample(Noise(torch.arange(1), "test"), 2)
        assert draws.z.isfinite().all()
        assert draws.log_prob.isfinite().all()


def test_draws_keep_their_digits_under_autocast():
    q, z = FullCovarianceGaussian(*torch.randn(2, 3, 4), torch.randn(3, 4, 4)), torch.randn(3, 5, 4)
    noise = Noise(torch.arange(3), "test")
    exact = q.rsample(noise.restart(), 5).z, q.log_prob(z), q.covariance
    with torch.autocast("cpu", torch.bfloat16):
        mixed = q.rsample(noise.restart(), 5).z, q.log_prob(z), q.covariance
    assert all(a.equal(b) for a, b in zip(exact, mixed, strict=True))


def small_vae(**kwargs) -> VAE:
    return VAE(
        image_shape=(1, 8, 8),
        latent_dim=3,
        posterior=FullCovariancePosterior,
        encoder=functools.partial(MLPEncoder, hidden=(8,)),
        decoder=functools.partial(MLPDecoder, hidden=(8,)),
        **kwargs,
    ).eval()


def test_measures_of_the_dimensions_have_one_value_for_each(batch):
    """KL per dimension orders figures; its sum is the KL of the bound."""
    model = small_vae()
    assert model.has(Capability.KL_PER_DIMENSION, Capability.POSTERIOR_DENSITY)
    kl = model.latent_kl(batch.x)
    assert kl.shape == (16, 3)
    terms = model.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(kl.sum(1), terms.kl)
    use, unit = dimension_use(model, batch.x)
    assert use.shape == (3,)
    assert unit == "KL"


def test_kl_from_a_prior_of_each_class(batch):
    model = small_vae(prior=LabelNormal, conditional=True, num_classes=4)
    model.prior.mu.data.normal_()
    model.prior.log_var.data.normal_()
    condition = model.encode_labels(batch.y, 16)
    q = model.posterior(batch.x, condition)
    p = Independent(
        Normal(model.prior.mu[batch.y], (0.5 * model.prior.log_var[batch.y]).exp()), 1
    ).expand([16])
    p = MultivariateNormal(p.mean, covariance_matrix=p.variance.diag_embed())
    torch.testing.assert_close(model.prior.kl(q, condition).sum(1), kl_divergence(reference(q), p))


@pytest.mark.parametrize("size", [1, 4])
def test_gradients_reach_every_feature(size):
    family = FullCovariancePosterior(size)
    features = torch.randn(2, family.in_features, requires_grad=True)
    family(features).standard_normal_kl().sum().backward()
    assert (features.grad.abs() > 0).all()
