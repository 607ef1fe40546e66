"""The decomposition of the KL term, and its estimate from a batch, by loops in float64."""

import functools
import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vae_lightning import VAE, BetaTCVAE
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.planar_flow import PlanarFlowPosterior
from vae_lightning.distributions.posteriors import (
    DeterministicPosterior,
    DiagonalGaussian,
    GaussianPosterior,
)
from vae_lightning.randomness import Noise


def model(**kwargs) -> BetaTCVAE:
    made = BetaTCVAE(**{"image_shape": (1, 8, 8), "latent_dim": 3, "num_train": 700, **kwargs})
    with torch.no_grad():  # posteriors that differ from one another
        made.encoder.head.weight.mul_(10)
    return made


def gaussians(images=6, size=3, draws=2):
    q = DiagonalGaussian(*torch.randn(2, images, size))
    return q, q.rsample(Noise(torch.arange(images), "test"), draws)


def test_estimates_are_those_of_the_code_of_the_paper():
    """1 / (N M) times the sum over the batch, of the joint density and of each dimension's.

    As in https://github.com/rtqichen/beta-tcvae, which has log(N M) once in log q(z) and once for
    each dimension in sum_j log q(z_j).
    """
    q, draws = gaussians()
    joint, dimensions = model(num_train=700).aggregate_log_probs(draws.z, q)
    assert joint.shape == dimensions.shape == (6, 2)
    mu, sigma = q.mu.double(), (0.5 * q.log_var).exp().double()
    for i in range(6):
        for k in range(2):
            z = draws.z[i, k].double()
            total, of_dimension = 0.0, [0.0] * 3
            for j in range(6):
                densities = [
                    float(Normal(mu[j, d], sigma[j, d]).log_prob(z[d]).exp()) for d in range(3)
                ]
                total += math.prod(densities)
                of_dimension = [a + b for a, b in zip(of_dimension, densities, strict=True)]
            assert joint[i, k].item() == pytest.approx(math.log(total / (700 * 6)), abs=1e-4)
            expected = sum(math.log(value / (700 * 6)) for value in of_dimension)
            assert dimensions[i, k].item() == pytest.approx(expected, abs=1e-4)


def test_estimate_from_all_images_is_the_aggregate_posterior_over_n():
    """With the whole data set as the batch, M = N, the estimate is q(z) / N and not q(z).

    Minibatch-weighted sampling divides the sum over the batch, of which one image is the one that
    z is from, by N M. With M = N this is 1 / N^2 times the sum, while q(z) is 1 / N times it: log N
    too little for log q(z), and L log N for the sum over the dimensions, which moves no gradient.
    """
    q, draws = gaussians(images=20, size=3, draws=1)
    joint, dimensions = model(num_train=20).aggregate_log_probs(draws.z, q)
    even = Categorical(torch.ones(20).double())
    mu, sigma = q.mu.double(), (0.5 * q.log_var).exp().double()
    exact = MixtureSameFamily(even, Independent(Normal(mu, sigma), 1))
    z = draws.z.double()
    expected = exact.log_prob(z) - math.log(20)
    torch.testing.assert_close(joint.double(), expected, rtol=1e-5, atol=1e-5)
    marginals = [
        MixtureSameFamily(even, Normal(mu[:, d], sigma[:, d])).log_prob(z[..., d]) for d in range(3)
    ]
    expected = sum(marginals) - 3 * math.log(20)
    torch.testing.assert_close(dimensions.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prior", ["StandardNormal", "MixtureOfGaussians"])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_three_parts_are_the_sampled_kl(batch, prior, conditional):
    """log q(z|x) - log p(z), exactly: what is estimated cancels."""
    kwargs = {"prior": MixtureOfGaussians} if prior == "MixtureOfGaussians" else {}
    tc = model(num_samples=3, num_classes=4, conditional=conditional, **kwargs)
    condition = tc.encode_labels(batch.y if conditional else None, 16)
    terms = tc.terms(batch.x, condition, Noise(batch.indices, "test"))
    draws = tc.posterior(batch.x, condition).rsample(Noise(batch.indices, "test"), 3)
    parts = terms.mutual_information + terms.total_correlation + terms.dimension_kl
    expected = -tc.log_ratio(draws, condition).mean(1)
    torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-4)
    assert terms.mutual_information.std() > 0.01
    assert terms.total_correlation.std() > 0.01


def test_weights_of_one_give_the_sampled_elbo(batch):
    tc = model(alpha=1.0, beta=1.0, gamma=1.0, num_samples=2)
    terms = tc.terms(batch.x, None, Noise(batch.indices, "test"))
    draws = tc.posterior(batch.x).rsample(Noise(batch.indices, "test"), 2)
    log_joint = tc.log_likelihood(batch.x, draws.z) + tc.log_ratio(draws)
    torch.testing.assert_close(tc.objective(terms), -log_joint.mean(1), rtol=1e-5, atol=1e-3)


def test_each_part_has_its_weight(batch):
    tc = model(alpha=2.0, beta=5.0, gamma=0.5)
    terms = tc.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(
        tc.objective(terms),
        terms.reconstruction
        + 2 * terms.mutual_information
        + 5 * terms.total_correlation
        + 0.5 * terms.dimension_kl,
    )


def test_reported_bound_is_that_of_the_plain_vae(batch):
    tc, vae = model(), VAE(image_shape=(1, 8, 8), latent_dim=3)
    vae.load_state_dict(tc.state_dict())
    ours, theirs = (
        m.terms(batch.x, None, Noise(batch.indices, "test")).as_dict()["negative_elbo"]
        for m in (tc, vae)
    )
    assert ours.equal(theirs)


def test_total_correlation_is_small_of_independent_and_large_of_dependent_dimensions():
    """TC of Gaussians with correlation r is -log(1 - r^2) / 2; with M = N, (L - 1) log N more."""
    n = 2000
    tc = model(latent_dim=2, num_train=n)
    for r in (0.0, 0.9):
        mu = torch.randn(n, 2)
        mu[:, 1] = r * mu[:, 0] + math.sqrt(1 - r**2) * mu[:, 1]
        q = DiagonalGaussian(mu, torch.full((n, 2), math.log(0.05)))
        draws = q.rsample(Noise(torch.arange(n), "test"))
        joint, dimensions = tc.aggregate_log_probs(draws.z, q)
        found = (joint - dimensions).mean().item() - math.log(n)
        covariance = torch.tensor([[1.0, r], [r, 1.0]]).double() + 0.05 * torch.eye(2)
        expected = -0.5 * math.log(1 - float(covariance[0, 1] / covariance[0, 0]) ** 2)
        assert found == pytest.approx(expected, abs=0.06)


def test_gradients_are_those_of_autograd_in_float64(batch):
    """Through the densities of the other images' posteriors, too."""
    tc = model()
    features = tc.encoder(batch.x).detach()
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = features.to(dtype).requires_grad_()
        q = DiagonalGaussian(*leaf.chunk(2, 1))
        z = q.rsample(Noise(batch.indices, "test")).z
        if dtype == torch.float32:
            joint, dimensions = tc.aggregate_log_probs(z, q)
        else:
            log_q = Normal(q.mu, (0.5 * q.log_var).exp()).log_prob(z)  # (B, 1, L) with (M, L)
            joint, dimensions = log_q.sum(2).logsumexp(1), log_q.logsumexp(1).sum(1)
        gradients.append(torch.autograd.grad((joint - 2 * dimensions).mean(), leaf)[0].double())
    assert gradients[1].abs().min() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_terms_that_depend_on_the_batch_are_named(batch):
    """All others of an image are the same whatever the batch."""
    tc = model()
    whole = tc.terms(batch.x, None, Noise(batch.indices, "test"))
    part = tc.terms(batch.x[:5], None, Noise(batch.indices[:5], "test")).as_dict()
    for name, value in whole.as_dict().items():
        same = torch.allclose(value[:5], part[name], rtol=1e-5, atol=1e-4)
        assert same == (name not in whole.batch_dependent), name


@pytest.mark.parametrize("posterior", [DeterministicPosterior, PlanarFlowPosterior])
def test_posteriors_that_are_not_gaussian_are_refused_at_once(posterior):
    with pytest.raises(ValueError, match=r"BetaTCVAE (needs|has) .* GaussianPosterior"):
        BetaTCVAE(image_shape=(1, 8, 8), posterior=posterior)


class OwnGaussian(GaussianPosterior):
    """A family of somebody else's."""


def test_other_gaussian_families_are_accepted(batch):
    tc = BetaTCVAE(image_shape=(1, 8, 8), posterior=OwnGaussian)
    assert tc.terms(batch.x, None, Noise(batch.indices)).total_correlation.shape == (16,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": -1.0}, "beta must not be negative"),
        ({"alpha": math.nan}, "alpha must not be negative"),
        ({"gamma": -0.1}, "gamma must not be negative"),
        ({"num_train": 0}, "num_train must be positive"),
        ({"estimator": "mss"}, "estimator must be weighted or stratified, got 'mss'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        functools.partial(BetaTCVAE, image_shape=(1, 8, 8))(**kwargs)


# The stratified estimator


def exact_log_probs(q, z, weights):
    """Log q(z) and sum_j log q(z_j) of a mixture of the posteriors, in float64, (B, n)."""
    mu, sigma = q.mu.double(), (0.5 * q.log_var.double()).exp()
    log_q = Normal(mu, sigma).log_prob(z.double()[:, :, None])  # (B, n, M, L)
    log_w = weights.double().log()
    return (log_q.sum(3) + log_w).logsumexp(2), (log_q + log_w[:, None]).logsumexp(2).sum(2)


def test_stratified_estimate_from_all_images_is_exact():
    """With the whole data set as the batch, it is q(z), and the terms are what their names say."""
    q, draws = gaussians(images=20, size=3, draws=2)
    found = model(num_train=20, estimator="stratified").aggregate_log_probs(draws.z, q)
    expected = exact_log_probs(q, draws.z, torch.full((20,), 1 / 20))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_stratified_densities_have_no_bias():
    """The mean over all batches of 3 of 6 images that contain the one that z is from is q(z)."""
    n, size = 6, 3
    q, draws = gaussians(images=n, size=2, draws=1)
    tc = model(latent_dim=2, num_train=n, estimator="stratified")
    totals = torch.zeros(2).double()
    marginals = torch.zeros(2, 2).double()
    batches = [(0, *others) for others in itertools.combinations(range(1, n), size - 1)]
    for chosen in batches:
        part = DiagonalGaussian(q.mu[list(chosen)], q.log_var[list(chosen)])
        joint, _ = tc.aggregate_log_probs(draws.z[list(chosen)], part)
        totals[0] += joint[0, 0].double().exp() / len(batches)
        for d in range(2):  # a dimension at a time: the density of one is a marginal
            one = DiagonalGaussian(part.mu[:, d : d + 1], part.log_var[:, d : d + 1])
            z = draws.z[list(chosen)][..., d : d + 1]
            _, of_dimension = tc.aggregate_log_probs(z, one)
            marginals[0, d] += of_dimension[0, 0].double().exp() / len(batches)
    joint, _ = exact_log_probs(q, draws.z, torch.full((n,), 1 / n))
    assert totals[0].item() == pytest.approx(joint[0, 0].exp().item(), rel=1e-5)
    for d in range(2):
        one = DiagonalGaussian(q.mu[:, d : d + 1], q.log_var[:, d : d + 1])
        joint, _ = exact_log_probs(one, draws.z[..., d : d + 1], torch.full((n,), 1 / n))
        assert marginals[0, d].item() == pytest.approx(joint[0, 0].exp().item(), rel=1e-5)


def test_stratified_weights_are_those_of_the_paper_on_average():
    """Appendix C.2: 1/N for the image, 1/M for M - 1 others, (N - M) / (N M) for the last."""
    n, m = 700, 5  # M others
    log_weights = model(num_train=n, estimator="stratified")._log_weights(torch.zeros(m + 1, 1), 6)
    paper = torch.tensor([1 / n, *[1 / m] * (m - 1), (n - m) / (n * m)])
    weights = log_weights.exp()
    torch.testing.assert_close(weights.sum(1), torch.ones(m + 1))
    torch.testing.assert_close(weights.diagonal(), torch.full((m + 1,), 1 / n))
    others = weights[0, 1:]
    torch.testing.assert_close(others, paper[1:].mean().expand(m))


def test_stratified_total_correlation_is_that_of_gaussians():
    """Without an offset: -log(1 - r^2) / 2 for a correlation r, with M = N."""
    n = 2000
    tc = model(latent_dim=2, num_train=n, estimator="stratified")
    for r in (0.0, 0.9):
        mu = torch.randn(n, 2)
        mu[:, 1] = r * mu[:, 0] + math.sqrt(1 - r**2) * mu[:, 1]
        q = DiagonalGaussian(mu, torch.full((n, 2), math.log(0.05)))
        joint, dimensions = tc.aggregate_log_probs(q.rsample(Noise(torch.arange(n), "test")).z, q)
        expected = -0.5 * math.log(1 - (r / 1.05) ** 2)
        assert (joint - dimensions).mean().item() == pytest.approx(expected, abs=0.06)


def test_stratified_parts_are_the_sampled_kl(batch):
    tc = model(estimator="stratified", num_samples=2)
    terms = tc.terms(batch.x, None, Noise(batch.indices, "test"))
    draws = tc.posterior(batch.x).rsample(Noise(batch.indices, "test"), 2)
    parts = terms.mutual_information + terms.total_correlation + terms.dimension_kl
    torch.testing.assert_close(parts, -tc.log_ratio(draws).mean(1), rtol=1e-5, atol=1e-4)
    assert (terms.mutual_information <= math.log(700) + 1e-4).all()


def test_a_single_image_is_its_own_aggregate(batch):
    tc = model(estimator="stratified")
    terms = tc.terms(batch.x[:1], None, Noise(batch.indices[:1]))
    assert terms.mutual_information.item() == pytest.approx(0, abs=1e-5)


def test_units_tell_of_the_offset(batch):
    for estimator, offset in (("weighted", True), ("stratified", False)):
        terms = model(estimator=estimator).terms(batch.x, None, Noise(batch.indices))
        assert ("offset" in terms.unit("total_correlation")) == offset
        assert "offset" not in terms.unit("kl")
