"""The weights of the terms of InfoVAE; the MMD itself is tested with the WAE."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vae_lightning import VAE, InfoVAE
from vae_lightning.discrepancies import squared_mmd
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.randomness import Noise


def model(**kwargs) -> InfoVAE:
    return InfoVAE(**{"image_shape": (1, 8, 8), "latent_dim": 3, "num_classes": 4, **kwargs})


def mmd_by_loops(x, y) -> float:
    """The unbiased estimate with the inverse multiquadratic kernel, in float64."""
    n, size = x.shape

    def k(a, b) -> float:
        d = float((a.double() - b.double()).square().sum())
        return sum(2 * size * s / (2 * size * s + d) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(k(s[i], s[j]) for s in (x, y) for i, j in pairs if i != j)
    return within / (n * (n - 1)) - 2 * sum(k(x[i], y[j]) for i, j in pairs) / n**2


@pytest.mark.parametrize(("alpha", "lambd"), [(0.0, 1.0), (0.25, 3.0), (1.0, 2.0), (-2.0, 10.0)])
def test_objective_is_that_of_the_paper(batch, alpha, lambd):
    info = model(alpha=alpha, lambd=lambd, num_samples=2)
    terms = info.terms(batch.x, None, Noise(batch.indices, "test"))
    q = info.posterior(batch.x)
    z = q.rsample(Noise(batch.indices, "test"), 2).z.detach()
    prior = torch.randn(16, 3, generator=Noise(batch.indices, "test").generator("prior"))
    mmd = mmd_by_loops(z[:, 0], prior)
    exact = Normal(q.mu.double(), (0.5 * q.log_var.double()).exp())
    kl = kl_divergence(exact, Normal(torch.zeros(3).double(), 1)).sum(1)
    reconstruction = -info.log_likelihood(batch.x, z).double().mean(1)
    assert terms.mmd.shape == ()
    assert terms.mmd.item() == pytest.approx(mmd, rel=1e-4, abs=1e-5)
    expected = reconstruction + (1 - alpha) * kl + (alpha + lambd - 1) * mmd
    torch.testing.assert_close(info.objective(terms).double(), expected, rtol=1e-5, atol=1e-4)


def test_the_kernel_is_an_option(batch):
    info = model(kernel="rbf")
    terms = info.terms(batch.x, None, Noise(batch.indices, "test"))
    z = info.posterior(batch.x).rsample(Noise(batch.indices, "test"), 1).z[:, 0]
    prior = torch.randn(16, 3, generator=Noise(batch.indices, "test").generator("prior"))
    torch.testing.assert_close(terms.mmd, squared_mmd(z, prior, "rbf"))
    assert not terms.mmd.allclose(squared_mmd(z, prior))


def test_the_reported_bound_is_that_of_the_plain_vae(batch):
    info, vae = model(alpha=0.7, lambd=50.0), VAE(image_shape=(1, 8, 8), latent_dim=3)
    vae.load_state_dict(info.state_dict())
    ours, theirs = (m.terms(batch.x, None, Noise(batch.indices, "test")) for m in (info, vae))
    assert ours.negative_elbo.equal(theirs.negative_elbo)
    assert not info.objective(ours).allclose(vae.objective(theirs))


def test_mutual_information_is_kept(batch):
    """alpha = 1 has no gradient of the KL term, and only MMD pulls on the variances."""
    info = model(alpha=1.0, lambd=0.0)
    terms = info.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(info.objective(terms), terms.reconstruction)


def test_latents_are_those_of_the_prior_of_the_model(batch):
    info = model(prior=MixtureOfGaussians, num_samples=1)
    terms = info.terms(batch.x, None, Noise(batch.indices, "test"))
    z = info.posterior(batch.x).rsample(Noise(batch.indices, "test"), 1).z[:, 0].detach()
    generator = Noise(batch.indices, "test").generator("prior")
    prior = info.prior.sample(16, None, generator).detach()
    assert terms.mmd.item() == pytest.approx(mmd_by_loops(z, prior), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha": 1.5}, "alpha must be at most 1"),
        ({"alpha": math.nan}, "alpha must be at most 1"),
        ({"alpha": 0.5, "lambd": 0.25}, r"alpha \+ lambd must be at least 1, got 0.5 and 0.25"),
        ({"lambd": math.nan}, r"alpha \+ lambd must be at least 1"),
        ({"kernel": "linear"}, "kernel must be imq or rbf"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)


def test_without_a_kl_term_a_prior_cannot_be_learned():
    with pytest.raises(ValueError, match="InfoVAE does not train its prior"):
        InfoVAE(alpha=1.0, prior=MixtureOfGaussians, image_shape=(1, 8, 8), latent_dim=2)
    InfoVAE(alpha=0.9, prior=MixtureOfGaussians, image_shape=(1, 8, 8), latent_dim=2)
