"""The adversarial autoencoder, and how models with a critic are trained."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from vae_lightning import AdversarialAutoencoder, FactorVAE, load
from vae_lightning.distributions.posteriors import GaussianPosterior
from vae_lightning.metrics import METRICS
from vae_lightning.models.capabilities import Capability
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE


def model(cls=AdversarialAutoencoder, **kwargs):
    options = {"image_shape": (1, 8, 8), "latent_dim": 3, "num_classes": 4, "critic_hidden": (16,)}
    return cls(**{**options, **kwargs})


@pytest.mark.parametrize("conditional", [False, True])
def test_terms_are_those_of_the_paper(batch, conditional):
    """Binary cross-entropies in float64; the critic sees the class of a conditional model."""
    aae = model(conditional=conditional, adversarial_weight=7.0)
    condition = aae.encode_labels(batch.y if conditional else None, 16)
    terms = aae.terms(batch.x, condition, Noise(batch.indices, "test"))
    z = aae.encoder(batch.x, condition)
    prior = torch.randn(16, 3, generator=Noise(batch.indices, "test").generator("prior"))
    given = [v if condition is None else torch.cat([v, condition], 1) for v in (z, prior)]
    d_z, d_prior = (aae.critic(v)[:, 0].double().sigmoid() for v in given)
    torch.testing.assert_close(terms.adversarial.double(), -d_z.log(), rtol=1e-5, atol=1e-6)
    expected = -0.5 * (d_prior.log() + (1 - d_z).log())
    torch.testing.assert_close(terms.critic.double(), expected, rtol=1e-5, atol=1e-6)
    expected = -aae.likelihood.log_prob(aae.decoder(z, condition), batch.x)
    torch.testing.assert_close(terms.reconstruction, expected)
    torch.testing.assert_close(aae.objective(terms), expected + 7 * terms.adversarial)
    assert aae.critic_objective(terms).equal(terms.critic)


def gradients(owner, loss):
    named = dict(owner.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, grads, strict=True))


@pytest.mark.parametrize("posterior", [None, GaussianPosterior])
def test_gradients_are_separate(batch, posterior):
    aae = model(**({"posterior": posterior} if posterior else {}))
    terms = aae.terms(batch.x, None, Noise(batch.indices))
    of_objective = gradients(aae, aae.objective(terms).mean())
    of_critic = gradients(aae, aae.critic_objective(terms).mean())
    for name in of_objective:
        mine, other = of_objective[name], of_critic[name]
        if name.startswith("critic"):
            mine, other = other, mine
        assert mine.abs().sum() > 0, name
        assert other is None, name


def test_adversarial_term_trains_the_encoder_against_the_critic(batch):
    aae = model()
    terms = aae.terms(batch.x, None, Noise(batch.indices))
    found = gradients(aae, terms.adversarial.mean())
    expected = gradients(aae, -nn.functional.logsigmoid(aae.critic(aae.encoder(batch.x))).mean())
    for name, gradient in found.items():
        if name.startswith("encoder"):
            torch.testing.assert_close(gradient, expected[name])
        else:
            assert gradient is None, name


def test_latents_are_pulled_to_the_prior():
    """Latents that start far away end with about its mean and standard deviation."""
    aae = AdversarialAutoencoder(
        image_shape=(1, 1, 2), latent_dim=2, encoder=Shifted, decoder=Blind, critic_hidden=(32,)
    )
    x = torch.rand(128, 1, 1, 2)
    model_optimizer = Adam(aae.encoder.parameters(), lr=0.02, betas=(0.5, 0.9))
    critic_optimizer = Adam(aae.critic.parameters(), lr=0.02, betas=(0.5, 0.9))
    for step in range(250):
        terms = aae.terms(x, None, Noise(torch.arange(128), step))
        loss = aae.objective(terms).mean() + aae.critic_objective(terms).mean()
        for optimizer in (model_optimizer, critic_optimizer):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (model_optimizer, critic_optimizer):
            optimizer.step()
    z = aae.embed(x)
    assert z.mean(0).abs().max() < 0.6
    assert z.std(0).min() > 0.5
    assert z.std(0).max() < 1.6


class Shifted(nn.Module):
    def __init__(self, image_shape, out_features, cond_features=0) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.full((2,), 0.3)),
            nn.Parameter(torch.ones(2) * 2),
        )

    def forward(self, x, condition=None):
        standardized = (x.flatten(1) - 0.5) * math.sqrt(12)  # of uniform pixels
        return standardized * self.scale + self.shift


class Blind(nn.Module):
    """A decoder that says the same whatever the latent is."""

    def __init__(self, image_shape, in_features, cond_features=0) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.zeros(image_shape))

    def forward(self, z, condition=None):
        return self.out.expand(len(z), -1, -1, -1)


# Training with Lightning, of every model with a critic


WITH_CRITIC = [AdversarialAutoencoder, FactorVAE]


def trainer(folder, **kwargs) -> pl.Trainer:
    return pl.Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **kwargs,
        }
    )


def losses(lit, data, folder):
    """Reconstruction and loss of the critic over the validation images."""
    lit.evaluation_seed = 1
    tested = trainer(folder).validate(lit, datamodule=data, verbose=False)[0]
    return tested["val/reconstruction"], tested["val/critic"]


@pytest.mark.parametrize("cls", WITH_CRITIC)
def test_training_lowers_both_losses(blobs, tmp_path, cls):
    """The critic's, too, while the model does not act against it."""
    weight = {"adversarial_weight": 0.0} if cls is AdversarialAutoencoder else {"gamma": 0.0}
    lit = LitVAE(
        model(cls, **weight),
        optimizer=functools.partial(Adam, lr=3e-3),
        critic_optimizer=functools.partial(Adam, lr=0.02),
    )
    if cls is AdversarialAutoencoder:  # latents that are easily told from the prior
        lit.model.encoder.head.bias.data += 4
    before = losses(lit, blobs(), tmp_path)
    trainer(tmp_path, max_epochs=15, limit_val_batches=0).fit(lit, datamodule=blobs())
    after = losses(lit, blobs(), tmp_path)
    assert after[0] < before[0] - 5
    # Independent dimensions leave the critic of a FactorVAE little to learn.
    assert after[1] < before[1] - (0.1 if cls is AdversarialAutoencoder else 0.0)


@pytest.mark.parametrize("frozen", ["model", "critic"])
@pytest.mark.parametrize("cls", WITH_CRITIC)
def test_learning_rates_are_separate(blobs, tmp_path, cls, frozen):
    rates = {"model": 0.0, "critic": 1e-3} if frozen == "model" else {"model": 1e-3, "critic": 0.0}
    lit = LitVAE(
        model(cls),
        optimizer=functools.partial(SGD, lr=rates["model"]),
        critic_optimizer=functools.partial(Adam, lr=rates["critic"]),
    )
    before = {name: value.clone() for name, value in lit.model.state_dict().items()}
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(lit, datamodule=blobs())
    for name, value in lit.model.state_dict().items():
        assert value.equal(before[name]) == (name.startswith("critic") == (frozen == "critic")), (
            name
        )


def test_critic_has_the_same_optimizer_by_default_and_a_schedule_reaches_both(blobs, tmp_path):
    lit = LitVAE(model(), optimizer=functools.partial(Adam, lr=1e-3), lr_scheduler=Halving)
    run = trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    run.fit(lit, datamodule=blobs())
    (optimizer,) = run.optimizers
    assert [group["lr"] for group in optimizer.param_groups] == [2.5e-4, 2.5e-4]
    of_critic = {id(p) for p in lit.model.critic.parameters()}
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == of_critic
    assert not of_critic & {id(p) for p in optimizer.param_groups[0]["params"]}


class Halving(torch.optim.lr_scheduler.StepLR):
    """A class, so that a checkpoint can hold it."""

    def __init__(self, optimizer) -> None:
        super().__init__(optimizer, step_size=1, gamma=0.5)


class SaveInside(pl.Callback):
    """Writes a checkpoint in the middle of an epoch."""

    def __init__(self, path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("steps_per_call", [1, 2])
@pytest.mark.parametrize("cls", WITH_CRITIC)
def test_resume_in_the_middle_of_an_epoch_is_exact(blobs, tmp_path, cls, steps_per_call):
    """Bit for bit: both networks and the states of both optimizers."""

    def lit():
        torch.manual_seed(3)
        return LitVAE(
            model(cls),
            optimizer=functools.partial(Adam, lr=1e-3),
            critic_optimizer=functools.partial(Adam, lr=3e-3, betas=(0.5, 0.9)),
            lr_scheduler=Halving,
            steps_per_call=steps_per_call,
        )

    def data():
        return blobs(70, binarization="dynamic")  # 5 batches, the last one of 6 images

    whole = trainer(tmp_path, max_epochs=3, callbacks=[SaveInside(tmp_path / "a.ckpt")])
    whole.fit(lit(), datamodule=data())
    again = lit()
    torch.manual_seed(99)  # another process is in another random state
    resumed = trainer(tmp_path, max_epochs=3)
    resumed.fit(again, datamodule=data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert resumed.global_step == whole.global_step == again.step == 15
    for name, value in whole.lightning_module.state_dict().items():
        assert value.equal(again.state_dict()[name]), name
    states = [run.optimizers[0].state_dict() for run in (whole, resumed)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert len(states[0]["parts"]) == 2


@pytest.mark.parametrize("cls", WITH_CRITIC)
def test_steps_in_one_call_are_the_same(blobs, tmp_path, cls):
    weights = []
    for steps_per_call in (1, 3):
        torch.manual_seed(3)
        lit = LitVAE(model(cls), steps_per_call=steps_per_call)
        trainer(tmp_path, max_epochs=2).fit(lit, datamodule=blobs(70))
        weights.append(lit.state_dict())
    for name, value in weights[0].items():
        assert value.equal(weights[1][name]), name


@pytest.mark.parametrize("cls", WITH_CRITIC)
def test_is_saved_and_loaded(blobs, batch, tmp_path, cls):
    kwargs = {"critic_hidden": (16, 8)}
    lit = LitVAE(model(cls, **kwargs))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(lit, datamodule=blobs())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load(tmp_path / "a.ckpt")
    assert type(loaded) is cls
    for name, value in lit.model.state_dict().items():
        assert value.equal(loaded.state_dict()[name]), name
    assert loaded.reconstruct(batch.x).equal(lit.model.reconstruct(batch.x))


# Reports


def test_a_deterministic_encoder_reports_no_density(blobs, tmp_path):
    aae = model()
    assert not aae.has(Capability.DENSITY)
    run = trainer(tmp_path, callbacks=[metric() for metric in METRICS.values()])
    tested = run.test(LitVAE(aae), datamodule=blobs(), verbose=False)[0]
    assert {"test/reconstruction", "test/adversarial", "test/critic"} <= set(tested)
    assert not any(part in name for name in tested for part in ("likelihood", "importance", "kl"))


def test_terms_that_depend_on_the_batch_are_named(batch):
    aae = model()
    whole = aae.terms(batch.x, None, Noise(batch.indices, "test"))
    part = aae.terms(batch.x[3:8], None, Noise(batch.indices[3:8], "test")).as_dict()
    for name, value in whole.as_dict().items():
        same = torch.allclose(value[3:8], part[name], rtol=1e-5, atol=1e-5)
        assert same == (name not in whole.batch_dependent), name


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_weight_must_not_be_negative(weight):
    with pytest.raises(ValueError, match="adversarial_weight must not be negative"):
        model(adversarial_weight=weight)
