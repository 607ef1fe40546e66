"""The covariances of DIP-VAE, against loops, numpy and closed forms in float64."""

import math

import numpy as np
import pytest
import torch

from vae_lightning import DIPVAE, VAE
from vae_lightning.distributions.planar_flow import PlanarFlowPosterior
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.models.dip_vae import covariance_of
from vae_lightning.randomness import Noise


def model(**kwargs) -> DIPVAE:
    made = DIPVAE(**{"image_shape": (1, 8, 8), "latent_dim": 3, **kwargs})
    with torch.no_grad():  # posteriors that differ from one another
        made.encoder.head.weight[:3].mul_(60)
    return made


def covariance(vae, x) -> np.ndarray:
    """The covariance that the type penalizes, in float64."""
    q = vae.posterior(x)
    mu, variances = (v.detach().double().numpy() for v in (q.mu, q.log_var.exp()))
    found = np.cov(mu.T, bias=True)
    return found + np.diag(variances.mean(0)) if vae.kind == "ii" else found


@pytest.mark.parametrize("kind", ["i", "ii"])
def test_terms_and_objective(batch, kind):
    vae = model(kind=kind, lambda_od=3.0, lambda_d=0.5)
    terms = vae.terms(batch.x, None, Noise(batch.indices, "test"))
    c = covariance(vae, batch.x)
    off = sum(c[i, j] ** 2 for i in range(3) for j in range(3) if i != j)
    diagonal = sum((c[i, i] - 1) ** 2 for i in range(3))
    assert terms.off_diagonal.shape == terms.diagonal.shape == ()
    assert terms.off_diagonal.item() == pytest.approx(off, rel=1e-4)
    assert terms.diagonal.item() == pytest.approx(diagonal, rel=1e-4)
    assert off > 1e-3
    expected = terms.negative_elbo + 3 * off + 0.5 * diagonal
    torch.testing.assert_close(vae.objective(terms), expected)


def test_weights_of_the_diagonal_are_those_of_the_paper():
    assert model(kind="i", lambda_od=2.0).lambda_d == 20.0
    assert model(kind="ii", lambda_od=2.0).lambda_d == 2.0
    assert model(kind="i", lambda_od=2.0, lambda_d=0.0).lambda_d == 0.0


def test_covariance_of_an_orthogonal_design_is_exact():
    """Four points (+-a, +-b), and one dimension that is the sum of both."""
    a, b = 2.0, 0.5
    points = torch.tensor([[s * a, t * b, s * a + t * b] for s in (1, -1) for t in (1, -1)]) + 7
    expected = torch.tensor([[4.0, 0.0, 4.0], [0.0, 0.25, 0.25], [4.0, 0.25, 4.25]])
    torch.testing.assert_close(covariance_of(points), expected)


def test_covariance_is_computed_in_float32_under_autocast():
    x = 30 + torch.randn(64, 3)
    exact = covariance_of(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert covariance_of(x).equal(exact)


def test_type_ii_is_the_covariance_of_draws(batch):
    """By the law of total covariance; type i is that of the means only."""
    vae = model(kind="ii")
    q = vae.posterior(batch.x)
    z = q.rsample(Noise(batch.indices, "draws"), 20_000).z.detach().flatten(0, 1)
    torch.testing.assert_close(
        torch.from_numpy(covariance(vae, batch.x)).float(), covariance_of(z), rtol=0.03, atol=0.05
    )
    terms = vae.terms(batch.x, None, Noise(batch.indices))
    diagonal = (covariance_of(z).diagonal() - 1).square().sum()
    torch.testing.assert_close(terms.diagonal, diagonal, rtol=0.05, atol=0.02)
    vae.kind = "i"
    assert not vae.terms(batch.x, None, Noise(batch.indices)).diagonal.allclose(diagonal, rtol=0.05)


def test_the_identity_has_no_penalty():
    """Means on the corners of a square for type i; half of the variance in each for type ii."""

    class Fixed(DIPVAE):
        def posterior(self, x, condition=None):
            corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
            variance = 0.75 if self.kind == "ii" else 0.3
            scale = 0.5 if self.kind == "ii" else 1.0
            return DiagonalGaussian(scale * corners, torch.full((4, 2), math.log(variance)))

    for kind in ("i", "ii"):
        vae = Fixed(image_shape=(1, 8, 8), latent_dim=2, kind=kind)
        terms = vae.terms(torch.rand(4, 1, 8, 8), None, Noise(torch.arange(4)))
        assert terms.off_diagonal.item() == pytest.approx(0, abs=1e-10)
        assert terms.diagonal.item() == pytest.approx(0, abs=1e-10)


def test_a_single_image_has_a_finite_penalty(batch):
    for kind in ("i", "ii"):
        vae = model(kind=kind)
        terms = vae.terms(batch.x[:1], None, Noise(batch.indices[:1]))
        vae.objective(terms).mean().backward()
        assert terms.off_diagonal.item() == 0
        assert all(p.grad.isfinite().all() for p in vae.parameters())


def test_the_reported_bound_is_that_of_the_plain_vae(batch):
    dip, vae = model(num_samples=2), VAE(image_shape=(1, 8, 8), latent_dim=3, num_samples=2)
    vae.load_state_dict(dip.state_dict())
    ours, theirs = (m.terms(batch.x, None, Noise(batch.indices)) for m in (dip, vae))
    assert ours.negative_elbo.equal(theirs.negative_elbo)


def test_a_posterior_that_is_not_gaussian_is_refused():
    with pytest.raises(ValueError, match="DIPVAE needs a GaussianPosterior, not a PlanarFlow"):
        model(posterior=PlanarFlowPosterior)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "iii"}, "kind must be i or ii, got 'iii'"),
        ({"lambda_od": -1.0}, "lambda_od must not be negative"),
        ({"lambda_d": math.nan}, "lambda_d must not be negative"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
