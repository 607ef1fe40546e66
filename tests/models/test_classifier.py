"""The classifier: its terms, its training, and what it refuses."""

import pytest
import torch

import vae_lightning
from vae_lightning import VAE, Classifier
from vae_lightning.errors import UserError
from vae_lightning.models.loading import load_classifier
from vae_lightning.nets import ResidualEncoder
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE

import lightning.pytorch as pl  # isort: skip


def test_terms_are_cross_entropy_and_accuracy():
    torch.manual_seed(0)
    model = Classifier(features=5, num_classes=4, image_shape=(1, 8, 8))
    x, y = torch.rand(9, 1, 8, 8), torch.arange(9) % 4
    terms = model.terms(x, model.encode_labels(y, 9), Noise(torch.arange(9), 0))
    log_probs = model.classify(x).log()
    assert terms.cross_entropy.allclose(-log_probs[torch.arange(9), y], atol=1e-6)
    assert terms.accuracy.equal(log_probs.argmax(1).eq(y).float())
    assert model.objective(terms) is terms.cross_entropy


def trainer(folder, **kwargs):
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def test_learns_from_labels_and_is_loaded_again(blobs, tmp_path):
    torch.manual_seed(0)
    lit = LitVAE(Classifier(features=8, num_classes=4, image_shape=(1, 8, 8)))
    run = trainer(tmp_path, max_epochs=20)
    run.fit(lit, datamodule=blobs())
    run.test(lit, datamodule=blobs(), verbose=False)
    accuracy = lit.results["test/accuracy"]
    assert accuracy.value > 0.9
    assert accuracy.error is not None
    assert accuracy.unit == "of the images"
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = load_classifier(tmp_path / "a.ckpt")
    x = torch.rand(3, 1, 8, 8)
    assert again.classify(x).equal(lit.model.classify(x))
    with pytest.raises(UserError, match="is of a Classifier, which neither encodes nor makes"):
        vae_lightning.load(tmp_path / "a.ckpt")


def test_a_checkpoint_of_a_vae_is_no_classifier(blobs, tmp_path):
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(LitVAE(VAE(image_shape=(1, 8, 8))), datamodule=blobs())
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="is of a VAE: give a checkpoint of a Classifier"):
        load_classifier(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 0}, "needs labeled images"),
        ({"num_classes": 3, "features": 0}, "features must be positive"),
        ({"num_classes": 3, "encoder": ResidualEncoder}, "choose an encoder of vectors"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**kwargs)
