"""What a training says at its end."""

from types import SimpleNamespace

import pytest
import torch

from vae_lightning import VAE, VQVAE, CodePrior
from vae_lightning.cli.training_run import TrainingRun
from vae_lightning.results import Result
from vae_lightning.training.best_checkpoint import BestCheckpoint

SMALL = {"image_shape": (1, 8, 8)}


def run_of(folder, model, results, score=None):
    best = BestCheckpoint(monitor="val/loss")
    best.best_model_score = None if score is None else torch.tensor(score)
    trainer = SimpleNamespace(callbacks=[best])
    module = SimpleNamespace(model=model, results=results)
    return TrainingRun(trainer, module, SimpleNamespace(path=folder))


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([100, 90, 95, 99, 100], True),
        ([100, 90, 91, 93, 98], False),  # by less than a tenth
        ([100, 50, 30, 90], False),  # once only
        ([100, 80, 60], False),
        ([-10, -20, -19, -18, -17], True),
        ([100, float("nan"), 90, 95, 99, 100], True),
        ([], False),
    ],
)
def test_a_validation_loss_that_has_risen_for_long(tmp_path, losses, said):
    rows = [f"{step},{loss}" for step, loss in enumerate(losses)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,val/loss", *rows]), "utf-8")
    lowest = min((loss for loss in losses if loss == loss), default=None)
    found = run_of(tmp_path, VAE(**SMALL), {}, lowest)._earlier_best()
    assert bool(found) == said
    if said:
        assert found.startswith(f"best.ckpt has a validation loss of {lowest:.4f}, which has risen")
    if losses:  # a checkpoint that is saved less often
        found = run_of(tmp_path, VAE(**SMALL), {}, lowest + 0.25)._earlier_best()
        assert bool(found) == said
        assert f"of {lowest + 0.25:.4f}" in found or not said


@pytest.mark.parametrize(
    ("share", "images", "said"), [(3 / 512, 1000, True), (0.5, 1000, False), (3 / 512, 10, False)]
)
def test_few_codes_in_use(tmp_path, share, images, said):
    model = VQVAE(**SMALL)
    results = {
        "val/loss": Result(3.0, "nats per image", images=images),
        "val/codes_used": Result(share, "of the codes"),
        "val/code_bits": Result(4 * 9.0, "bits per image"),
    }
    found = run_of(tmp_path, model, results)._unused_codes()
    assert found.startswith("only 3 of 512 codes are used") == said
    assert bool(found) == said
    with torch.no_grad():
        prior = CodePrior(model, **SMALL)
    assert run_of(tmp_path, prior, results)._unused_codes() == ""  # they are not its own
