import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae_lightning import CVAE, VAE, BetaVAE
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise
from vae_lightning.schedules import Constant, LinearWarmup
from vae_lightning.training.module import LitVAE


def test_negative_elbo_is_that_of_torch_distributions(batch):
    model = VAE(image_shape=(1, 8, 8), latent_dim=3)
    terms = model.terms(batch.x, None, Noise(batch.indices, "test"))
    mu, log_var = model.encoder(batch.x).chunk(2, dim=1)
    q = Independent(Normal(mu, (log_var / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    z = mu + (log_var / 2).exp() * Noise(batch.indices, "test").normal(3)
    p = Independent(Bernoulli(logits=model.decoder(z), validate_args=False), 3)
    torch.testing.assert_close(terms.reconstruction, -p.log_prob(batch.x))
    torch.testing.assert_close(terms.kl, kl_divergence(q, prior))
    torch.testing.assert_close(model.objective(terms), terms.reconstruction + terms.kl)


@pytest.mark.parametrize("conditional", [False, True])
def test_terms_are_means_over_the_draws(batch, conditional):
    model = VAE(image_shape=(1, 8, 8), num_classes=4, conditional=conditional, num_samples=3)
    condition = model.encode_labels(batch.y if conditional else None, 16)
    terms = model.terms(batch.x, condition, Noise(batch.indices, "test"))
    q, draws = model.posterior(batch.x, condition), []
    for k in range(3):
        z = q.rsample(Noise(batch.indices, "test"), first=k).z[:, 0]
        draws.append(-model.likelihood.log_prob(model.decoder(z, condition), batch.x))
    assert (draws[0] - draws[1]).abs().min() > 0
    torch.testing.assert_close(terms.reconstruction, torch.stack(draws).mean(0))
    assert terms.kl.equal(model.prior.kl(q).sum(1))


def test_bound_is_below_the_exact_likelihood():
    """A linear Gaussian model has a log p(x) in closed form; the ELBO must not exceed it."""
    model = VAE(
        image_shape=(1, 2, 2),
        latent_dim=2,
        encoder=MLPEncoder,
        decoder=MLPDecoder,
        likelihood=functools.partial(Gaussian, sigma=0.5),
    ).double()
    weight, bias = torch.randn(4, 2).double(), torch.rand(4).double()
    model.decoder = Linear(weight, bias)
    covariance = weight @ weight.T + 0.25 * torch.eye(4).double()
    x = torch.rand(500, 1, 2, 2).double()
    exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x.flatten(1))
    # The exact posterior as the encoder: the bound is tight on average over the noise.
    precision = torch.eye(2).double() + weight.T @ weight / 0.25
    mean = (x.flatten(1) - bias) @ weight @ torch.linalg.inv(precision) / 0.25
    model.encoder = FixedPosterior(mean, -precision.diagonal().log())
    bounds = torch.stack(
        [
            -model.terms(x, None, Noise(torch.arange(500), draw)).negative_elbo.double()
            for draw in range(200)
        ]
    ).mean(0)
    gap = (exact - bounds).mean()
    # KL(q || p) between the factorized q and the exact, correlated posterior.
    expected = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap.item() == pytest.approx(expected.item(), abs=0.03)
    assert gap > 0


class Linear(nn.Module):
    def __init__(self, weight, bias) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, z, condition=None):
        return (z @ self.weight.T + self.bias).view(-1, 1, 2, 2)


class FixedPosterior(nn.Module):
    def __init__(self, mean, log_var) -> None:
        super().__init__()
        self.out = torch.cat([mean, log_var.expand_as(mean)], dim=1)

    def forward(self, x, condition=None):
        return self.out


def test_beta_weighs_the_kl_and_the_reported_bound_does_not(batch):
    model = BetaVAE(image_shape=(1, 8, 8), beta=4.0)
    terms = model.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(model.objective(terms), terms.reconstruction + 4 * terms.kl)
    torch.testing.assert_close(terms.as_dict()["negative_elbo"], terms.reconstruction + terms.kl)


def test_beta_of_one_is_the_plain_vae(batch):
    model = BetaVAE(image_shape=(1, 8, 8), beta=1.0)
    terms = model.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(model.objective(terms), terms.negative_elbo)


def _fit(model, data, tmp_path, ckpt_path=None, **kwargs):
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(LitVAE(model), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, model.schedule.asked


def warmup_vae(**kwargs):
    torch.manual_seed(1)
    return BetaVAE(image_shape=(1, 8, 8), num_classes=4, schedule=Warmup16, **kwargs)


class Warmup16(LinearWarmup):
    """Keeps the steps at which it was asked."""

    def __init__(self) -> None:
        super().__init__(16)
        self.asked = []

    def __call__(self, step):
        self.asked.append(step)
        return super().__call__(step)


@pytest.mark.parametrize("optimizer_steps_per_batch", [1, 2])
def test_schedule_counts_training_batches_only(blobs, tmp_path, optimizer_steps_per_batch):
    """Not validation batches, and not the optimizer's steps, of which accumulation makes fewer."""
    _, steps = _fit(
        warmup_vae(),
        blobs(),
        tmp_path,
        max_epochs=3,
        accumulate_grad_batches=optimizer_steps_per_batch,
    )
    assert steps == list(range(12))


def test_schedule_and_noise_survive_a_resume(blobs, tmp_path):
    whole, _ = _fit(warmup_vae(), blobs(), tmp_path, max_epochs=3)
    first, _ = _fit(warmup_vae(), blobs(), tmp_path, max_epochs=2)
    first.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(77)  # another process is in another random state
    model = BetaVAE(image_shape=(1, 8, 8), num_classes=4, schedule=Warmup16)
    resumed, steps = _fit(model, blobs(), tmp_path, tmp_path / "a.ckpt", max_epochs=3)
    assert steps == list(range(8, 12))
    for name, value in whole.lightning_module.state_dict().items():
        assert value.equal(resumed.lightning_module.state_dict()[name]), name


def test_schedule_is_not_applied_in_evaluation(batch):
    model = BetaVAE(image_shape=(1, 8, 8), schedule=Warmup16)
    terms = model.terms(batch.x, None, Noise(batch.indices))
    torch.testing.assert_close(model.train().objective(terms), terms.reconstruction)
    torch.testing.assert_close(model.eval().objective(terms), terms.reconstruction + 4 * terms.kl)
    assert isinstance(BetaVAE().schedule, Constant)


def test_collapsed_posterior_costs_nothing(batch):
    model = VAE(image_shape=(1, 8, 8))
    for parameter in model.encoder.head.parameters():
        nn.init.zeros_(parameter)
    assert model.latent_kl(batch.x).abs().max() == 0


def test_cvae_sees_the_class_in_encoder_and_decoder(batch):
    model = CVAE(image_shape=(1, 8, 8), num_classes=4)
    same = batch.x[:1].expand(4, -1, -1, -1)
    z = model.embed(same, torch.arange(4))
    assert len(z.unique(dim=0)) == 4
    images = model.decode(z[:1].expand(4, -1), torch.arange(4))
    assert len(images.unique(dim=0)) == 4


def test_cvae_samples_the_class_asked_for():
    model = CVAE(image_shape=(1, 8, 8), num_classes=4)
    seeds = [torch.Generator().manual_seed(0) for _ in range(3)]
    turns = model.sample(8, generator=seeds[0])
    threes = model.sample(8, label=3, generator=seeds[1])
    torch.testing.assert_close(turns[3::4], threes[3::4])
    assert not turns[0].equal(threes[0])
    mixed = model.sample(8, label=torch.tensor([3] * 7 + [1]), generator=seeds[2])
    torch.testing.assert_close(mixed[:7], threes[:7])


def test_other_variants_can_be_conditional(batch):
    model = BetaVAE(image_shape=(1, 8, 8), num_classes=4, conditional=True)
    assert model.sample(4, label=2).shape == (4, 1, 8, 8)


def test_no_images_have_no_log_probs():
    assert VAE().log_prob(torch.zeros(0, 1, 28, 28)).shape == (0,)


def test_conditional_models_need_classes():
    with pytest.raises(ValueError, match="the data have no classes"):
        CVAE(num_classes=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VAE(latent_dim=0), "latent_dim must be positive"),
        (lambda: VAE(num_samples=0), "num_samples must be positive"),
        (lambda: CVAE(num_classes=4, conditional=False), "always conditional"),
        (lambda: VAE().sample(0), "number of samples must be positive"),
        (lambda: VAE().log_prob(torch.zeros(1, 1, 28, 28), num_samples=0), "num_samples must be"),
        (lambda: CVAE(num_classes=4).sample(2, label="3"), "a label must be an integer"),
        (lambda: BetaVAE(beta=-1), "beta must not be negative"),
        (lambda: BetaVAE(beta=math.nan), "beta must not be negative"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
