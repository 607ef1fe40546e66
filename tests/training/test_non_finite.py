"""Losses that are NaN or infinite end a training, or the update is skipped."""

import math

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning import VAE, VQVAE, checkpoint
from vae_lightning.__main__ import main
from vae_lightning.errors import NonFinite
from vae_lightning.training.module import LitVAE
from vae_lightning.training.non_finite import NonFiniteDetector


def bad_at(cls, step, gradient=False, skip_non_finite=False, steps_per_call=None, **kwargs):
    """A module with a model whose KL, or gradient alone, is infinite in one batch."""

    class Bad(cls):
        def objective(self, terms):
            loss = super().objective(terms)
            if self.training and self.step == step:
                # d/dx sqrt(x - x) is infinite where the value is 0.
                zero = terms.reconstruction - terms.reconstruction.detach()
                loss = loss + (zero.sqrt() if gradient else math.inf)
            return loss

    torch.manual_seed(0)
    model = Bad(image_shape=(1, 8, 8), num_classes=4, **kwargs)
    return LitVAE(model, skip_non_finite=skip_non_finite, steps_per_call=steps_per_call)


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


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_training_ends_at_the_step_and_names_the_term(blobs, steps_per_call):
    class Infinite(VAE):
        def terms(self, x, condition, noise):
            terms = super().terms(x, condition, noise)
            if self.training and self.step == 5:
                terms.kl.data[3] = math.nan
            return terms

    lit = LitVAE(Infinite(image_shape=(1, 8, 8)), steps_per_call=steps_per_call)
    with pytest.raises(NonFinite, match=r"the loss \(kl.*\) is not finite at step 5") as error:
        train(lit, blobs())
    assert error.value.step == 5
    assert error.value.terms[0] == "kl"
    assert all(value.isfinite().all() for value in lit.state_dict().values())


@pytest.mark.parametrize("steps_per_call", [1, 4])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("cls", [VAE, VQVAE])
def test_one_bad_update_is_skipped_and_counted(blobs, cls, gradient, steps_per_call):
    kwargs = {"embedding_dim": 8} if cls is VQVAE else {}
    lit = bad_at(cls, 2, gradient, skip_non_finite=True, steps_per_call=steps_per_call, **kwargs)
    weights = Weights()
    trainer = train(lit, blobs(), [weights] if steps_per_call == 1 else [])
    assert lit.skipped == 1
    assert trainer.global_step == 8
    assert all(value.isfinite().all() for value in lit.state_dict().values())
    if steps_per_call == 1:
        before, after, later = weights.states[2:5]
        for name, value in before.items():
            assert value.equal(after[name]), name
        assert any(not value.equal(later[name]) for name, value in after.items())


def test_nothing_is_skipped_in_a_good_training(blobs):
    states = []
    for skip in (False, True):
        lit = bad_at(VQVAE, -1, skip_non_finite=skip, embedding_dim=8)
        train(lit, blobs())
        assert lit.skipped == 0
        states.append(lit.state_dict())
    for name, value in states[0].items():
        assert value.equal(states[1][name]), name


def test_a_whole_update_of_accumulated_batches_is_skipped(blobs):
    lit = bad_at(VAE, 2, skip_non_finite=True)
    train(lit, blobs(), accumulate_grad_batches=2)
    assert lit.skipped == 1
    assert all(value.isfinite().all() for value in lit.state_dict().values())


def test_the_first_of_several_is_found_later(monkeypatch):
    """As on a GPU, and with several processes."""
    monkeypatch.setattr("vae_lightning.training.non_finite.several_processes", lambda: True)
    detector = NonFiniteDetector()
    for step in range(5):
        kl = torch.tensor([1.0, math.inf if step >= 3 else 2.0])
        terms = {"reconstruction": torch.ones(2), "kl": kl}
        detector.check(step, torch.stack(list(terms.values())).sum(0).mean(), terms)
        if step == 2:
            detector.flush()
    with pytest.raises(NonFinite, match=r"the loss \(kl\) is not finite at step 3"):
        detector.flush()


def test_losses_are_checked_even_without_flush(monkeypatch):
    monkeypatch.setattr("vae_lightning.training.non_finite.several_processes", lambda: True)
    monkeypatch.setattr("vae_lightning.training.non_finite._KEPT", 3)
    detector, one = NonFiniteDetector(), torch.ones(2)
    for step in range(5):
        detector.check(step, torch.tensor(math.nan if step == 4 else 1.0), {"kl": one})
    with pytest.raises(NonFinite, match="the loss is not finite at step 4"):
        detector.check(5, torch.tensor(1.0), {"kl": one})


def test_the_last_good_checkpoint_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [
        *("fit", "--data.train_size=64", "--data.val_size=16", "--data.test_size=8"),
        *("--data.batch_size=16", "--trainer.enable_progress_bar=false", "--model.latent_dim=2"),
        *("--model.encoder.channels=[4,8]", "--model.decoder.channels=[8,4]"),
        *("--trainer.callbacks+=test_non_finite.Blow", "--trainer.accelerator=cpu"),
    ]
    with pytest.raises(SystemExit, match="1"):
        main(options)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    last = "runs/vae/version_0/checkpoints/last.ckpt"
    assert "is not finite at step 4; the last good checkpoint is" in message
    assert f"{last}: continue from it with a smaller --optimizer.lr" in message
    saved = checkpoint.read(last)
    assert saved.record.step == 3
    assert all(value.isfinite().all() for value in saved.weights.values())


class Blow(pl.Callback):
    """Makes the weights infinite in the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if pl_module.step == 4:
            next(pl_module.model.decoder.parameters()).data.fill_(math.inf)
