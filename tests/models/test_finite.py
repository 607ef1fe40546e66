"""Losses that are NaN or infinite end a training, or the update is left out."""

import math

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning import VAE, VQVAE
from vae_lightning.__main__ import main
from vae_lightning.errors import NonFinite
from vae_lightning.models.finite import FiniteWatch


def bad_at(cls, step, gradient=False, **kwargs):
    """A model whose KL, or gradient alone, is infinite in one batch."""

    class Bad(cls):
        def objective(self, terms):
            loss = super().objective(terms)
            if self.training and self.step == step:
                # d/dx sqrt(x - x) is infinite where the value is 0.
                zero = terms.reconstruction - terms.reconstruction.detach()
                loss = loss + (zero.sqrt() if gradient else math.inf)
            return loss

    torch.manual_seed(0)
    return Bad(image_shape=(1, 8, 8), num_classes=4, **kwargs)


class Weights(pl.Callback):
    """Keeps the state before and after each update."""

    def __init__(self) -> None:
        self.states = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})


def train(model, data, callbacks=(), **kwargs):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        callbacks=list(callbacks),
        log_every_n_steps=1,
        **kwargs,
    )
    trainer.fit(model, datamodule=data)
    return trainer


@pytest.mark.parametrize("updates", [1, 4])
def test_a_training_ends_at_the_step_and_names_the_term(blobs, updates):
    class Infinite(VAE):
        def terms(self, x, condition, noise):
            terms = super().terms(x, condition, noise)
            if self.training and self.step == 5:
                terms.kl.data[3] = math.nan
            return terms

    model = Infinite(image_shape=(1, 8, 8), updates_per_call=updates)
    with pytest.raises(NonFinite, match=r"the loss \(kl.*\) is not finite at step 5") as error:
        train(model, blobs())
    assert error.value.step == 5
    assert error.value.terms[0] == "kl"
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("updates", [1, 4])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("cls", [VAE, VQVAE])
def test_one_bad_update_is_left_out_and_counted(blobs, cls, gradient, updates):
    kwargs = {"code_dim": 8} if cls is VQVAE else {}
    model = bad_at(cls, 2, gradient, skip_non_finite=True, updates_per_call=updates, **kwargs)
    weights = Weights()
    trainer = train(model, blobs(), [weights] if updates == 1 else [])
    assert model.skipped == 1
    assert trainer.global_step == 8
    assert all(value.isfinite().all() for value in model.state_dict().values())
    if updates == 1:
        before, after, later = weights.states[2:5]
        for name, value in before.items():
            assert value.equal(after[name]), name
        assert any(not value.equal(later[name]) for name, value in after.items())


def test_nothing_is_left_out_of_a_good_training(blobs):
    states = []
    for skip in (False, True):
        model = bad_at(VQVAE, -1, skip_non_finite=skip, code_dim=8)
        train(model, blobs())
        assert model.skipped == 0
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert value.equal(states[1][name]), name


def test_a_whole_update_of_accumulated_batches_is_left_out(blobs):
    model = bad_at(VAE, 2, skip_non_finite=True)
    train(model, blobs(), accumulate_grad_batches=2)
    assert model.skipped == 1
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_the_first_of_several_is_found_later(monkeypatch):
    """As on a GPU, and with several processes."""
    monkeypatch.setattr("vae_lightning.models.finite.several_processes", lambda: True)
    watch = FiniteWatch()
    for step in range(5):
        kl = torch.tensor([1.0, math.inf if step >= 3 else 2.0])
        terms = {"reconstruction": torch.ones(2), "kl": kl}
        watch.look(step, torch.stack(list(terms.values())).sum(0).mean(), terms)
        if step == 2:
            watch.find()
    with pytest.raises(NonFinite, match=r"the loss \(kl\) is not finite at step 3"):
        watch.find()


def test_losses_are_looked_at_even_if_nobody_asks(monkeypatch):
    monkeypatch.setattr("vae_lightning.models.finite.several_processes", lambda: True)
    monkeypatch.setattr("vae_lightning.models.finite._KEPT", 3)
    watch, one = FiniteWatch(), torch.ones(2)
    for step in range(5):
        watch.look(step, torch.tensor(math.nan if step == 4 else 1.0), {"kl": one})
    with pytest.raises(NonFinite, match="the loss is not finite at step 4"):
        watch.look(5, torch.tensor(1.0), {"kl": one})


def test_the_last_good_checkpoint_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [
        *("fit", "--data.train_size=64", "--data.val_size=16", "--data.test_size=8"),
        *("--data.batch_size=16", "--trainer.enable_progress_bar=false", "--model.latent_dim=2"),
        *("--model.encoder.channels=[4,8]", "--model.decoder.channels=[8,4]"),
        *("--trainer.callbacks+=test_finite.Blow", "--trainer.accelerator=cpu"),
    ]
    with pytest.raises(SystemExit, match="1"):
        main(options)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    last = "runs/vae/version_0/checkpoints/last.ckpt"
    assert "is not finite at step 4; the last good checkpoint is" in message
    assert f"{last}: continue from it with a smaller --model.optimizer.lr" in message
    saved = torch.load(last, weights_only=True)
    assert saved["step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


class Blow(pl.Callback):
    """Makes the weights infinite in the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if pl_module.step == 4:
            next(pl_module.decoder.parameters()).data.fill_(math.inf)
