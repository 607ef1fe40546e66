"""Mistakes in parts and models of users, each named before or in the first step of a training."""

from functools import partial

import pytest
import torch

from vae_lightning import CVAE, VAE, LitVAE, StandardNormal
from vae_lightning.batch import Batch
from vae_lightning.distributions.likelihoods import Bernoulli
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import DiagonalGaussian, Draws, GaussianPosterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.distributions.von_mises_fisher import UniformSphere, VonMisesFisherPosterior
from vae_lightning.models.beta_tcvae import BetaTCVAE
from vae_lightning.models.capabilities import MissingCapabilityError
from vae_lightning.models.dreg import DReG
from vae_lightning.models.factor_vae import FactorVAE
from vae_lightning.models.free_bits_vae import FreeBitsVAE
from vae_lightning.models.hierarchical_vae import HierarchicalVAE
from vae_lightning.models.iwae import IWAE
from vae_lightning.models.vae_gan import VAEGAN
from vae_lightning.nets import MLPDecoder, MLPEncoder

SMALL = {
    "image_shape": (1, 8, 8),
    "latent_dim": 4,
    "encoder": partial(MLPEncoder, hidden=(8,)),
    "decoder": partial(MLPDecoder, hidden=(8,)),
}
X = torch.rand(5, 1, 8, 8)


class BatchMean(StandardNormal):
    def log_prob(self, z, condition=None):
        return super().log_prob(z, condition).mean(0, keepdim=True)


class NotSummed(StandardNormal):
    def log_prob(self, z, condition=None):
        return -0.5 * z.square()


class OneSample(StandardNormal):
    def sample(self, n, condition=None, generator=None):
        return super().sample(n, condition, generator)[0]


class NoGenerator(StandardNormal):
    def sample(self, n):
        return torch.randn(n, self.latent_dim)


class Scaled(Prior):
    """Takes its own argument where a model passes the number of classes."""

    def __init__(self, latent_dim, scale=1.0):
        super().__init__(latent_dim)
        self.scale = scale

    def log_prob(self, z, condition=None):
        return -(z / self.scale).abs().sum(2)

    def sample(self, n, condition=None, generator=None):
        return self.scale * torch.randn(n, self.latent_dim, generator=generator)


class SameDraws(DiagonalGaussian):
    """Starts with the first draw, whichever is asked for."""

    def rsample(self, noise, n=1, first=0):
        return super().rsample(noise, n, 0)


class OwnNoise(DiagonalGaussian):
    def rsample(self, noise, n=1, first=0):
        z = self.mu[:, None] + torch.randn(len(self.mu), n, self.mu.shape[1])
        return Draws(z, lambda: self.log_prob(z))


class DensityOfDimensions(DiagonalGaussian):
    def rsample(self, noise, n=1, first=0):
        draws = super().rsample(noise, n, first)
        return Draws(draws.z, lambda: torch.zeros_like(draws.z))


def family(distribution) -> type[GaussianPosterior]:
    class Family(GaussianPosterior):
        def forward(self, features):
            return distribution(*features.chunk(2, 1))

    return Family


class MeanOfImages(Bernoulli):
    def log_prob(self, params, x):
        return super().log_prob(params, x).mean(0, keepdim=True)


class OnePixel(Bernoulli):
    def mean(self, params):
        return super().mean(params).mean()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"prior": BatchMean},
            r"BatchMean.log_prob has to return \(B, n\), here \(2, 3\), not \(1",
        ),
        ({"prior": NotSummed}, r"NotSummed.log_prob has to .* not \(2, 3, 4\)"),
        (
            {"prior": OneSample},
            r"OneSample.sample has to return \(n, L\), here \(2, 4\), not \(4,\)",
        ),
        ({"prior": NoGenerator}, "NoGenerator.sample fails: TypeError: .* takes 2 positional"),
        ({"prior": Scaled}, "Scaled takes scale where a model passes the number of classes"),
        ({"posterior": family(SameDraws)}, "SameDraws.rsample has to take all randomness from"),
        ({"posterior": family(OwnNoise)}, "OwnNoise.rsample has to take all randomness from"),
        ({"posterior": family(DensityOfDimensions)}, r"rsample has .* log_prob \(B, n\)"),
        ({"likelihood": MeanOfImages}, r"MeanOfImages.log_prob has to return one number"),
        ({"likelihood": OnePixel}, r"OnePixel.mean has to return images .* not \(\)"),
    ],
)
@pytest.mark.parametrize("variant", [VAE, IWAE, HierarchicalVAE])
def test_wrong_parts_are_named_when_the_model_is_built(variant, parts, message):
    if variant is HierarchicalVAE:
        if "posterior" in parts:
            pytest.skip("a hierarchy has its own")
        parts = {**parts, "top_dim": 4}
    with pytest.raises(ValueError, match=message):
        variant(**SMALL, **parts)


def test_conditional_priors_are_tried_with_a_class():
    class NeedsClass(StandardNormal):
        def log_prob(self, z, condition=None):
            return super().log_prob(z) + condition[:, :1]

    assert CVAE(**SMALL, num_classes=3, prior=NeedsClass).cond_features == 3


class PassesAllOn(StandardNormal):
    def __init__(self, *args, scale=1.0, **kwargs):
        super().__init__(*args, **kwargs)


class PassesTheRestOn(StandardNormal):
    def __init__(self, latent_dim, *rest):
        super().__init__(latent_dim, *rest)


@pytest.mark.parametrize("prior", [PassesAllOn, PassesTheRestOn])
def test_priors_may_pass_their_arguments_on(prior):
    assert CVAE(**SMALL, num_classes=3, prior=prior).prior.cond_features == 3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda loss: loss.mean(), r"\(\)"),
        (lambda loss: loss[:3], r"\(3,\)"),
        (lambda loss: loss[:, None], r"\(5, 1\)"),
        (lambda loss: None, "NoneType"),
    ],
)
def test_an_objective_of_another_shape_is_refused(change, found):
    class Wrong(VAE):
        def objective(self, terms):
            return change(super().objective(terms))

    with pytest.raises(ValueError, match=rf"Wrong.objective has .* here \(5,\), not {found}"):
        LitVAE(Wrong(**SMALL)).evaluate_terms(Batch.of(X), "train", 0, 0)


def test_bases_that_do_not_work_together_are_named():
    class Both(BetaTCVAE, HierarchicalVAE):
        pass

    with pytest.raises(ValueError, match="Both combines BetaTCVAE and HierarchicalVAE, which do"):
        LitVAE(Both(**SMALL)).evaluate_terms(Batch.of(X), "train", 0, 0)


def test_refusals_do_not_recommend_what_was_given():
    class TwoLayerDReG(DReG, HierarchicalVAE):
        pass

    class TwoLayerFreeBits(FreeBitsVAE, HierarchicalVAE):
        pass

    with pytest.raises(MissingCapabilityError, match="more than a GaussianPosterior, or choose"):
        TwoLayerDReG(**SMALL)
    with pytest.raises(ValueError, match=r"several levels .* combine it with another"):
        TwoLayerFreeBits(**SMALL)
    with pytest.raises(ValueError, match=r"permutes the dimensions .* choose GaussianPosterior"):
        FactorVAE(**SMALL, prior=UniformSphere, posterior=VonMisesFisherPosterior)


def test_a_model_without_a_density_estimates_its_kl():
    model = VAEGAN(**SMALL, prior=partial(MixtureOfGaussians, components=2))
    terms, _ = LitVAE(model).evaluate_terms(Batch.of(X), "train", 0, 0)
    assert terms.kl.isfinite().all()
