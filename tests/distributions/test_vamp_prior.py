"""The VampPrior against the explicit mixture of the encoder's posteriors."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from vae_lightning import VAE, HierarchicalVAE, load
from vae_lightning.distributions.planar_flow import PlanarFlowPosterior
from vae_lightning.distributions.posteriors import DeterministicPosterior
from vae_lightning.distributions.vamp_prior import VampPrior
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE

NETS = {
    "encoder": functools.partial(MLPEncoder, hidden=(8,), activation="tanh"),
    "decoder": functools.partial(MLPDecoder, hidden=(8,), activation="tanh"),
}


class Images:
    """Training images, which remember what was asked for."""

    def __init__(self, images) -> None:
        self.images = images

    def mean_image(self):
        return self.images.mean(0)

    def random_images(self, n, seed):
        self.asked = n, seed
        return self.images[:n]


def vamp(components=5, image_shape=(1, 8, 8), latent_dim=2, **kwargs) -> VAE:
    prior = functools.partial(VampPrior, components=components, seed=7)
    options = {**NETS, "image_shape": image_shape, "latent_dim": latent_dim, "prior": prior}
    return VAE(**{**options, **kwargs})


def spread(model, scale=1.5) -> None:
    """Make weights large, so that posteriors are far from one another and from N(0, I)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
        model.prior.pseudo_input_logits.normal_(0, 3)


def mixture(model) -> MixtureSameFamily:
    """The explicit mixture of the posteriors of the pseudo-inputs, in float64."""
    u = torch.sigmoid(model.prior.pseudo_input_logits)
    mu, log_var = model.encoder(u).double().chunk(2, dim=1)
    components = Independent(Normal(mu, (0.5 * log_var).exp()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(u)).double()), components)


def test_density_is_that_of_the_mixture_of_posteriors():
    model = vamp()
    spread(model)
    z = torch.randn(6, 3, 2)
    expected = mixture(model).log_prob(z.double())
    assert expected.std() > 0.2
    torch.testing.assert_close(model.log_prior(z).double(), expected, rtol=1e-5, atol=1e-5)


def test_samples_are_draws_of_the_mixture():
    """Moments to 5 standard errors, and E_p[p'(z) / p(z)] = 1 for the mixture sharpened."""
    model, n = vamp(components=3), 50_000
    spread(model)
    with torch.no_grad():
        z = model.prior.sample(n, generator=torch.Generator().manual_seed(1)).double()
        p = mixture(model)
        error = z.std(0) / math.sqrt(n)
        assert ((z.mean(0) - p.mean).abs() < 5 * error).all()
        torch.testing.assert_close(z.var(0), p.variance, rtol=0.05, atol=0)
        parts = p.component_distribution.base_dist
        sharp = MixtureSameFamily(
            p.mixture_distribution, Independent(Normal(parts.loc, 0.7 * parts.scale), 1)
        )
        ratio = (sharp.log_prob(z) - model.log_prior(z.float()[None])[0]).exp()
    error = ratio.std() / math.sqrt(n)
    assert error < 0.01
    assert (ratio.mean() - 1).abs() < 4 * error


def test_pseudo_inputs_start_at_training_images(batch):
    model = vamp(components=4)
    images = Images(torch.cat([batch.x, torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])[-4:])
    model.init_from_data(images)
    assert images.asked == (4, 7)
    u = model.prior.pseudo_inputs
    torch.testing.assert_close(u, images.images.clamp(0.02, 0.98))
    # A pixel that is black or white can still move.
    u.sum().backward()
    assert model.prior.pseudo_input_logits.grad.min() > 0.01


def test_pseudo_inputs_are_set_before_the_first_update(blobs, tmp_path):
    model = vamp(components=6)
    lit = LitVAE(model, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    data = blobs()
    _trainer(tmp_path, limit_train_batches=1).fit(lit, datamodule=data)
    train = torch.stack([data.datasets["train"].__getitems__([i]).x[0] / 255 for i in range(64)])
    distances = (model.prior.pseudo_inputs[:, None] - train.clamp(0.02, 0.98)).abs().amax((2, 3, 4))
    assert (distances.amin(1) < 1e-5).all()
    assert len(distances.argmin(1).unique()) == 6


def test_gradients_reach_pseudo_inputs_and_encoder():
    """And are those of the explicit mixture."""
    model = vamp()
    spread(model)
    z = torch.randn(6, 3, 2)
    wanted = [model.prior.pseudo_input_logits, *model.encoder.parameters()]
    ours = torch.autograd.grad(model.log_prior(z).sum(), wanted)
    theirs = torch.autograd.grad(mixture(model).log_prob(z.double()).sum(), wanted)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.abs().sum() > 0
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_a_training_step_moves_the_pseudo_inputs(batch):
    model = vamp()
    model.objective(model.terms(batch.x, None, Noise(batch.indices))).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_log_marginal_is_the_integral_over_the_mixture():
    """log of the integral of p(z) p(x|z) over z in R^2 in float64, by a sum over a fine grid."""
    model = vamp(image_shape=(1, 2, 2)).eval()
    spread(model)
    with torch.no_grad():  # about equal variances, else a few draws have most of the weight
        model.encoder.layers[-1].weight[2:] *= 0.1
        model.encoder.layers[-1].bias[2:] = 0.3
    x = torch.rand(3, 1, 2, 2).round()
    axis = torch.linspace(-8, 8, 201, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prior = mixture(model).log_prob(z)
        logits = model.decoder(z.float()).double().flatten(1)
        log_likelihood = Bernoulli(logits=logits[:, None]).log_prob(x.flatten(1).double()).sum(2)
        cell = 2 * math.log(16 / 200)
        assert (log_prior.logsumexp(0) + cell).abs() < 1e-3  # the grid holds all of the prior
        expected = (log_prior[:, None] + log_likelihood).logsumexp(0) + cell
        assert expected.std() > 0.05
        draws = model.posterior(x).rsample(Noise(torch.arange(3), "test"), 5000)
        log_weights = (model.log_likelihood(x, draws.z) + model.log_ratio(draws)).double()
        weights = (log_weights - expected[:, None]).exp()  # relative to p(x)
        error = weights.std(1) / math.sqrt(5000)
        assert (error < 0.15).all()
        assert ((weights.mean(1) - 1).abs() < 4.5 * error).all()
        found = model.log_marginal(x, None, Noise(torch.arange(3), "test"), 5000, rows=6000)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, log_weights.logsumexp(1) - math.log(5000))


def test_kl_is_estimated_from_the_draws(batch):
    model = vamp(num_samples=3)
    terms = model.terms(batch.x, None, Noise(batch.indices, "test"))
    draws = model.posterior(batch.x).rsample(Noise(batch.indices, "test"), 3)
    expected = (draws.log_prob.double() - mixture(model).log_prob(draws.z.double())).mean(1)
    torch.testing.assert_close(terms.kl.double(), expected, rtol=1e-4, atol=1e-4)


def test_conditional_models_are_refused():
    with pytest.raises(ValueError, match=r"VampPrior has no classes .* choose another prior"):
        vamp(conditional=True, num_classes=3)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (functools.partial(vamp, posterior=DeterministicPosterior), "Point"),
        (functools.partial(vamp, posterior=PlanarFlowPosterior), "TransformedGaussian"),
    ],
)
def test_posteriors_that_are_not_gaussian_are_refused(build, name, batch):
    def use():
        model = build()
        model.terms(batch.x, None, Noise(batch.indices))
        model.sample(2)

    with pytest.raises(ValueError, match=f"needs a Gaussian posterior, not a {name}: choose"):
        use()


def test_models_with_two_layers_are_refused(batch):
    prior = functools.partial(VampPrior, components=3)
    with pytest.raises(ValueError, match="needs a Gaussian posterior"):
        HierarchicalVAE(image_shape=(1, 8, 8), prior=prior).sample(2)


def test_components_must_be_positive():
    with pytest.raises(ValueError, match="components must be positive, got 0"):
        vamp(components=0)


def _trainer(folder, **kwargs) -> pl.Trainer:
    return pl.Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **kwargs,
        }
    )


def test_is_saved_and_loaded(blobs, batch, tmp_path):
    model = vamp(components=4)
    trainer = _trainer(tmp_path)
    trainer.fit(LitVAE(model), datamodule=blobs())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load(tmp_path / "a.ckpt")
    assert isinstance(loaded.prior, VampPrior)
    assert loaded.prior.components == 4
    assert loaded.prior.seed == 7
    assert loaded.prior.pseudo_inputs.equal(model.prior.pseudo_inputs)
    assert loaded.log_prob(batch.x).equal(model.log_prob(batch.x))
    samples = [m.sample(5, generator=torch.Generator().manual_seed(1)) for m in (model, loaded)]
    assert samples[0].equal(samples[1])
