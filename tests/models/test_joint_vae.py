"""JointVAE: two capacities, and bounds of the model with discrete latents."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.distributions import Normal, OneHotCategorical, kl_divergence

from vae_lightning import JointVAE, load
from vae_lightning.models.joint_vae import JointTerms
from vae_lightning.randomness import Noise
from vae_lightning.schedules import ExponentialDecay, LinearWarmup
from vae_lightning.training.module import LitVAE


def model(**kwargs) -> JointVAE:
    options = {"image_shape": (1, 8, 8), "num_continuous": 3, "categories": (4, 2)}
    return JointVAE(**{**options, **kwargs})


def terms_of(vae, batch, *keys):
    return vae.terms(batch.x, None, Noise(batch.indices, "test", *keys))


def test_kl_of_both_kinds_by_torch(batch):
    vae = model()
    features = vae.encoder(batch.x)
    mu, log_var = features[:, :3], features[:, 3:6]
    continuous = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(1)
    discrete = sum(
        kl_divergence(OneHotCategorical(logits=x), OneHotCategorical(logits=torch.zeros(k)))
        for x, k in ((features[:, 6:10], 4), (features[:, 10:], 2))
    )
    for mode in (True, False):
        terms = terms_of(vae.train(mode), batch)
        torch.testing.assert_close(terms.kl_continuous, continuous, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms.kl_discrete, discrete, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms.kl, continuous + discrete, rtol=1e-4, atol=1e-6)
    assert vae.latent_kl(batch.x).shape == (16, 3 + 2)


def given(continuous, discrete):
    values = (torch.tensor([float(x)]) for x in (100, continuous + discrete, continuous, discrete))
    return JointTerms(*values)


def test_objective_holds_each_kl_at_its_capacity():
    vae = model(gamma=10.0, continuous_capacity=5.0, discrete_capacity=1.5).eval()
    for continuous, discrete, expected in (
        (5, 1.5, 100),
        (7, 1.5, 120),
        (3, 1.5, 120),
        (5, 0.5, 110),
        (5, 2.0, 105),
        (4, 2.5, 120),  # their sum is right, and each is not
    ):
        assert vae.objective(given(continuous, discrete)).item() == pytest.approx(expected)
    assert given(3, 2).negative_elbo.item() == 105  # weight 1, whatever is trained on


def test_capacities_grow_in_training_only():
    vae = model(
        gamma=1.0,
        continuous_capacity=4.0,
        discrete_capacity=2.0,
        schedule=functools.partial(LinearWarmup, steps=10),
    )
    for step, expected in ((0, 100), (5, 103), (20, 106)):
        vae.step = step
        assert vae.train().objective(given(0, 0)).item() == pytest.approx(expected)
        assert vae.eval().objective(given(0, 0)).item() == pytest.approx(106)


def test_the_discrete_capacity_is_at_most_what_the_categories_hold():
    assert model().discrete_capacity == pytest.approx(math.log(8))
    vae = model(
        gamma=1.0,
        continuous_capacity=0.0,
        discrete_capacity=5.0,
        schedule=functools.partial(LinearWarmup, steps=10),
    )
    for step, capacity in ((2, 1.0), (4, 2.0), (5, math.log(8)), (20, math.log(8))):
        vae.step = step
        loss = vae.train().objective(given(0, 0)).item()
        assert loss == pytest.approx(100 + capacity, abs=1e-4)
    assert vae.eval().objective(given(0, math.log(8))).item() == pytest.approx(100, abs=1e-4)


def test_evaluation_draws_one_hot_vectors_and_training_relaxes_them(batch):
    vae, seen = model(), []
    vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    terms_of(vae.train(), batch)
    terms_of(vae.eval(), batch)
    relaxed, exact = seen
    assert relaxed[:, :3].equal(exact[:, :3])  # the same noise
    for z in (relaxed, exact):
        torch.testing.assert_close(z[:, 3:7].sum(1), torch.ones(16))
        torch.testing.assert_close(z[:, 7:].sum(1), torch.ones(16))
    assert ((exact[:, 3:] == 0) | (exact[:, 3:] == 1)).all()
    assert relaxed[:, 3:].max() < 1


def test_the_evaluated_bound_is_that_of_the_discrete_model(batch):
    """By a sum over all categories, and many draws of the continuous latents."""
    vae, n = model(categories=(3, 2), num_continuous=2, num_samples=4000).eval(), 4000
    x = batch.x[:2].round()
    with torch.no_grad():
        found = vae.terms(x, None, Noise(torch.arange(2), "test"))
        features = vae.encoder(x).double()
        z = features[:, None, :2] + (0.5 * features[:, None, 2:4]).exp() * torch.randn(2, n, 2)
        p = [features[:, 4:7].softmax(1), features[:, 7:].softmax(1)]
        expected = torch.zeros(2).double()
        for i in range(3):
            for j in range(2):
                codes = torch.cat([torch.eye(3)[i], torch.eye(2)[j]]).expand(2, n, 5)
                log_likelihood = vae.log_likelihood(x, torch.cat([z.float(), codes], 2))
                expected -= p[0][:, i] * p[1][:, j] * log_likelihood.double().mean(1)
        spread = vae.log_likelihood(x, torch.cat([z.float(), codes], 2)).std(1)
    assert ((found.reconstruction - expected).abs() < 6 * spread / n**0.5 + 0.05).all()


def test_temperature_and_capacity_have_schedules_of_their_own():
    vae = model(temperature=0.5, temperature_schedule=functools.partial(ExponentialDecay, rate=1.0))
    for module in (vae, *vae.posterior_family.parts[1:]):
        module.step = 10
    features = torch.randn(2, vae.posterior_family.in_features)
    q = vae.train().posterior_family(features)
    assert [part.temperature for part in q.parts[1:]] == [0.25, 0.25]


def test_is_saved_and_loaded(blobs, batch, tmp_path):
    vae = model(schedule=functools.partial(LinearWarmup, steps=7), temperature=0.8)
    run = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    run.fit(LitVAE(vae), datamodule=blobs())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load(tmp_path / "a.ckpt")
    assert isinstance(loaded, JointVAE)
    assert loaded.schedule.steps == 7
    assert loaded.posterior_family.parts[1].temperature == 0.8
    assert loaded.posterior_family.parts[1].step == loaded.step == 4
    assert loaded.log_prob(batch.x).equal(vae.log_prob(batch.x))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_continuous": 0}, "num_continuous must be positive"),
        ({"categories": ()}, "categories numbers of at least 2"),
        ({"categories": (1,)}, "categories numbers of at least 2"),
        ({"gamma": -1.0}, "gamma must not be negative"),
        ({"continuous_capacity": -1.0}, "continuous_capacity must not be negative"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
