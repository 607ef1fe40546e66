"""Models with a critic: one backward pass, two optimizers, and everything else as without."""

import copy
import csv
import math
from dataclasses import dataclass
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from vae_lightning import VAE, checkpoint
from vae_lightning.errors import NonFinite, UserError
from vae_lightning.functional import softplus
from vae_lightning.models.vae import ELBOTerms
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE
from vae_lightning.training.optimizers import JointOptimizer, parts_of


@dataclass(frozen=True)
class ToyTerms(ELBOTerms):
    adversarial: Tensor
    critic: Tensor


class Toy(VAE):
    """A VAE whose critic tells latents from draws of N(0, I)."""

    bad_step = -1

    def __init__(self, **kwargs) -> None:
        encoder, decoder = partial(MLPEncoder, hidden=(16,)), partial(MLPDecoder, hidden=(16,))
        super().__init__(latent_dim=3, encoder=encoder, decoder=decoder, **kwargs)
        self.critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def terms(self, x, condition, noise):
        q = self.posterior(x, condition)
        draws = q.rsample(noise)
        z, prior = draws.z[:, 0], noise.normal(3)
        real, fake = self.critic(prior)[:, 0], self.critic(z.detach())[:, 0]
        return ToyTerms(
            -self.log_likelihood(x, draws.z, condition).mean(1),
            self.kl(q, draws, condition),
            softplus(-self.frozen_critic(z)[:, 0]),
            softplus(-real) + softplus(fake),
        )

    def objective(self, terms):
        return terms.negative_elbo + 5 * terms.adversarial

    def critic_objective(self, terms):
        bad = self.training and self.step == self.bad_step
        return terms.critic * (math.inf if bad else 1)


MODEL = partial(torch.optim.Adam, lr=3e-3)
CRITIC = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class StepLR(torch.optim.lr_scheduler.StepLR):
    def __init__(self, optimizer) -> None:
        super().__init__(optimizer, step_size=1, gamma=0.5)


def toy(**kwargs) -> LitVAE:
    torch.manual_seed(3)
    options = {"optimizer": MODEL, "critic_optimizer": CRITIC, **kwargs}
    return LitVAE(Toy(image_shape=(1, 8, 8)), **options)


def train(lit, data, folder, ckpt_path=None, callbacks=(), **kwargs):
    trainer = pl.Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "logger": CSVLogger(folder, name="", version="log"),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "max_epochs": 3,
            "callbacks": list(callbacks),
            **kwargs,
        }
    )
    trainer.fit(lit, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture
def seventy(blobs):
    """70 images in batches of 16, the last one of 6."""
    return lambda **kwargs: blobs(70, **kwargs)


def assert_same(one, other):
    for name, value in one.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


def by_hand(data, epochs, clip=None, accumulate=1):
    """Two optimizers, each with a loss of its own, as one would write it without Lightning."""
    lit = toy()
    model, seed = lit.model, lit.noise_seed
    critic = list(model.critic.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("critic.")]
    optimizers = MODEL(rest, fused=True), CRITIC(critic)
    data.setup("fit")
    step = 0
    for epoch in range(epochs):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for i, batch in enumerate(loader):
            model.step = step
            noise = Noise(batch.indices, seed, "train", step)
            terms = model.terms(batch.x / 255, None, noise)
            (model.objective(terms).mean() / accumulate).backward(retain_graph=True)
            others = [p.grad.clone() for p in rest]
            (model.critic_objective(terms).mean() / accumulate).backward()
            assert all(p.grad.equal(before) for p, before in zip(rest, others, strict=True))
            step += 1
            if (i + 1) % accumulate and i + 1 < len(loader):
                continue
            if clip:
                torch.nn.utils.clip_grad_norm_([*rest, *critic], clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return model


def test_training_is_that_of_a_loop_by_hand(seventy, tmp_path):
    lit = toy()
    trainer = train(lit, seventy(), tmp_path, enable_progress_bar=False)
    assert_same(by_hand(seventy(), 3), lit.model)
    assert trainer.global_step == lit.step == 15


def test_clipping_is_that_of_a_loop_by_hand(seventy, tmp_path):
    """By the norm of all gradients together."""
    lit, free = toy(), toy()
    train(lit, seventy(), tmp_path / "a", gradient_clip_val=0.5)
    train(free, seventy(), tmp_path / "b")
    expected = by_hand(seventy(), 3, clip=0.5)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(lit.model.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    assert not lit.model.critic[0].weight.equal(free.model.critic[0].weight)


def test_accumulation_is_that_of_a_loop_by_hand(seventy, tmp_path):
    lit = toy()
    trainer = train(lit, seventy(), tmp_path, accumulate_grad_batches=2)
    assert trainer.global_step == 9
    assert lit.step == 15
    expected = by_hand(seventy(), 3, accumulate=2)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(lit.model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps_per_call", [3, 5, None])
def test_several_steps_per_call_change_no_bit(seventy, tmp_path, steps_per_call):
    one, several = (toy(steps_per_call=n, lr_scheduler=StepLR) for n in (1, steps_per_call))
    trainers = [
        train(lit, seventy(), tmp_path / str(i), log_every_n_steps=2)
        for i, lit in enumerate((one, several))
    ]
    assert_same(one, several)
    states = [trainer.optimizers[0].state_dict() for trainer in trainers]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert [trainer.global_step for trainer in trainers] == [15, 15]
    logs = [rows(tmp_path / str(i)) for i in (0, 1)]
    assert logs[0] == logs[1]
    assert {"train/critic", "train/adversarial", "train/loss", "val/critic"} <= set(logs[0][0])


def rows(folder):
    with (folder / "log" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_max_steps_counts_batches(seventy, tmp_path):
    trainer = train(toy(), seventy(), tmp_path, max_epochs=-1, max_steps=7)
    assert trainer.global_step == 7


class SaveInside(pl.Callback):
    """Writes a checkpoint after a batch."""

    def __init__(self, path, epoch, batch_idx) -> None:
        self.path, self.when = path, (epoch, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == self.when:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("steps_per_call", [1, 2])
@pytest.mark.parametrize("batch_idx", [0, 1])
def test_resumes_bit_for_bit(seventy, tmp_path, steps_per_call, batch_idx):
    def make():
        return toy(steps_per_call=steps_per_call, lr_scheduler=StepLR)

    saver = SaveInside(tmp_path / "a.ckpt", 1, batch_idx)
    whole = train(make(), seventy(), tmp_path / "whole", callbacks=[saver])
    resumed_lit = make()
    for parameter in resumed_lit.parameters():
        parameter.data.zero_()
    resumed = train(resumed_lit, seventy(), tmp_path / "rest", ckpt_path=tmp_path / "a.ckpt")
    assert_same(whole.lightning_module, resumed.lightning_module)
    states = [trainer.optimizers[0].state_dict() for trainer in (whole, resumed)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert resumed.global_step == whole.global_step == 15
    record = checkpoint.read(tmp_path / "a.ckpt").record
    assert record.critic_optimizer["class_path"] == "torch.optim.sgd.SGD"
    arguments = record.critic_optimizer["init_args"]
    assert (arguments["lr"], arguments["momentum"], arguments["nesterov"]) == (0.1, 0.9, False)


def test_a_checkpoint_without_a_critic_is_refused(seventy, tmp_path):
    nets = {"encoder": partial(MLPEncoder, hidden=(16,)), "decoder": MLPDecoder}
    plain = LitVAE(VAE(image_shape=(1, 8, 8), latent_dim=3, **nets))
    train(plain, seventy(), tmp_path / "a", max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    joint = JointOptimizer([MODEL(plain.parameters()), CRITIC([nn.Parameter(torch.ones(1))])])
    state = checkpoint.read(tmp_path / "a.ckpt").content["optimizer_states"][0]
    with pytest.raises(UserError, match="not that of a model with a critic"):
        joint.load_state_dict(state)


def test_learning_rates_are_separate_and_scheduled_together(seventy, tmp_path):
    lit = toy(critic_optimizer=partial(torch.optim.SGD, lr=0.0), lr_scheduler=StepLR)
    before = {name: value.clone() for name, value in lit.model.state_dict().items()}
    trainer = train(lit, seventy(), tmp_path)
    for name, value in lit.model.state_dict().items():
        assert value.equal(before[name]) == name.startswith("critic."), name
    (joint,) = trainer.optimizers
    assert [group["lr"] for group in joint.param_groups] == [3e-3 / 8, 0.0]

    lit = toy(lr_scheduler=StepLR)
    (joint,) = train(lit, seventy(), tmp_path / "b").optimizers
    rates = [part.param_groups[0]["lr"] for part in parts_of(joint)]
    assert rates == [3e-3 / 8, 0.1 / 8]


def test_the_critic_has_the_optimizer_of_the_model_by_default():
    joint = toy(critic_optimizer=None).configure_optimizers()
    model, critic = parts_of(joint)
    assert type(critic) is type(model) is torch.optim.Adam
    assert critic.defaults["lr"] == 3e-3
    assert critic.param_groups[0] is joint.param_groups[1]


def test_each_parameter_is_in_one_optimizer():
    lit = toy()
    model, critic = parts_of(lit.configure_optimizers())
    held = [{id(p) for p in part.param_groups[0]["params"]} for part in (model, critic)]
    assert held[1] == {id(p) for p in lit.model.critic.parameters()}
    assert not held[0] & held[1]
    assert held[0] | held[1] == {id(p) for p in lit.parameters()}


class Weights(pl.Callback):
    """Keeps the state before each batch."""

    def __init__(self) -> None:
        self.states = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})


def test_an_infinite_loss_of_the_critic_skips_the_whole_update(seventy, tmp_path):
    lit, weights = toy(skip_non_finite=True), Weights()
    lit.model.bad_step = 4
    trainer = train(lit, seventy(), tmp_path, callbacks=[weights])
    assert lit.skipped == 1
    assert trainer.global_step == 15
    before, after, later = weights.states[4:7]
    for name, value in before.items():
        assert value.equal(after[name]), name
        assert not value.equal(later[name]), name
    assert all(value.isfinite().all() for value in lit.state_dict().values())


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_an_infinite_loss_of_the_critic_ends_the_training(seventy, tmp_path, steps_per_call):
    lit = toy(steps_per_call=steps_per_call)
    lit.model.bad_step = 4
    with pytest.raises(NonFinite, match="the loss is not finite at step 4"):
        train(lit, seventy(), tmp_path)
    assert all(value.isfinite().all() for value in lit.state_dict().values())


def test_the_reported_loss_is_that_of_the_model(seventy, tmp_path):
    """By which checkpoints are chosen; the critic's loss is a term of its own."""
    lit = toy()
    trainer = train(lit, seventy(), tmp_path)
    for stage in "train", "val":
        found = {
            name: trainer.callback_metrics[f"{stage}/{name}"].item()
            for name in ("loss", "negative_elbo", "adversarial")
        }
        expected = found["negative_elbo"] + 5 * found["adversarial"]
        assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_critic_without_a_loss_is_refused():
    class Half(VAE):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.critic = nn.Linear(self.latent_dim, 1)

    with pytest.raises(ValueError, match="Half has a critic but no loss for it: define critic_obj"):
        LitVAE(Half())


def test_models_without_a_critic_take_no_optimizer_for_it():
    with pytest.raises(ValueError, match="no effect on a VAE, which has no critic"):
        LitVAE(VAE(), critic_optimizer=CRITIC)


# The optimizer itself


def joint_of_two():
    torch.manual_seed(1)
    nets = nn.Linear(3, 2), nn.Linear(2, 4)
    return nets, JointOptimizer([MODEL(nets[0].parameters()), CRITIC(nets[1].parameters())])


def steps(nets, optimizer, n):
    for i in range(n):
        optimizer.zero_grad()
        x = torch.full((5, 3), i + 1.0)
        nets[1](nets[0](x).tanh()).square().mean().backward()
        optimizer.step()


def test_joint_steps_are_those_of_the_parts():
    nets, joint = joint_of_two()
    steps(nets, joint, 4)
    others, _ = joint_of_two()
    alone = MODEL(others[0].parameters()), CRITIC(others[1].parameters())
    for i in range(4):
        x = torch.full((5, 3), i + 1.0)
        for optimizer in alone:
            optimizer.zero_grad()
        others[1](others[0](x).tanh()).square().mean().backward()
        for optimizer in alone:
            optimizer.step()
    for net, other in zip(nets, others, strict=True):
        assert_same(net, other)


def test_joint_state_goes_there_and_back():
    nets, joint = joint_of_two()
    steps(nets, joint, 3)
    state = joint.state_dict()
    weights = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    steps(nets, joint, 3)
    others, other = joint_of_two()
    for net, saved in zip(others, weights, strict=True):
        net.load_state_dict(saved)
    other.load_state_dict(state)
    parts = parts_of(other)
    of_parts = [group for part in parts for group in part.param_groups]
    assert all(a is b for a, b in zip(other.param_groups, of_parts, strict=True))
    other.param_groups[1]["lr"] = 0.1  # a schedule reaches the part
    assert parts[1].param_groups[0]["lr"] == 0.1


def test_joint_state_continues_bit_for_bit():
    nets, joint = joint_of_two()
    steps(nets, joint, 3)
    state = copy.deepcopy(joint.state_dict())
    others, other = joint_of_two()
    for net, source in zip(others, nets, strict=True):
        net.load_state_dict(source.state_dict())
    other.load_state_dict(state)
    steps(nets, joint, 3)
    steps(others, other, 3)
    for net, source in zip(others, nets, strict=True):
        assert_same(net, source)


@pytest.mark.parametrize("state", [{}, {"parts": []}, {"parts": [{}]}, {"state": {}}])
def test_joint_state_of_something_else_is_refused(state):
    _, joint = joint_of_two()
    with pytest.raises(UserError, match="not that of a model with a critic"):
        joint.load_state_dict(state)


def test_joint_evaluates_a_closure_once():
    nets, joint = joint_of_two()
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = nets[1](nets[0](torch.ones(5, 3))).square().mean()
        loss.backward()
        return loss

    before = nets[0].weight.clone(), nets[1].weight.clone()
    with torch.no_grad():
        loss = joint.step(closure)
    assert calls == [True]
    assert loss > 0
    assert not nets[0].weight.equal(before[0])
    assert not nets[1].weight.equal(before[1])
