"""What makes a training faster does not change what it learns: every run follows the plain one."""

import csv
import shutil
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from vae_lightning import VAE, VQVAE
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.training.module import LitVAE

PLAIN = {"steps_per_call": 1, "fused": False}
FASTER = {"steps_per_call": None, "fused": None}


def losses(make, data, folder, fused, seed=3, **kwargs) -> torch.Tensor:
    """The loss of every step of a training, (steps,), and that of the validation at its end."""
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.Adam, lr=1e-2, fused=fused)
    lit = LitVAE(make(image_shape=(1, 8, 8)), optimizer=optimizer, **kwargs)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version="log"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        max_epochs=10,
    )
    trainer.fit(lit, datamodule=data(binarization="dynamic"))
    with (folder / "log" / "metrics.csv").open() as file:
        steps = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return torch.tensor([*steps, lit.results["val/loss"].value])


def compare(make, data, folder, tolerance, seed=3, **options) -> None:
    plain = losses(make, data, folder / "plain", seed=seed, **PLAIN)
    fast = losses(make, data, folder / "fast", seed=seed, **{**PLAIN, **options})
    assert len(plain) > 40
    assert plain[-6:].mean() < 0.95 * plain[:5].mean()  # it learns
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=0)


def test_fused_and_several_steps_per_call(blobs, tmp_path):
    compare(VAE, partial(blobs, 70), tmp_path, 1e-4, **FASTER)


@pytest.mark.slow
@pytest.mark.parametrize("make", [VAE, partial(VQVAE, embedding_dim=8)], ids=["VAE", "VQVAE"])
def test_several_steps_per_call_change_no_bit(make, blobs, tmp_path):
    compare(make, partial(blobs, 70), tmp_path, 0, steps_per_call=None)


@pytest.mark.slow
def test_the_same_of_a_codebook(blobs, tmp_path):
    """By a rounding, a vector between two codes takes the other one, and its image another path.

    With this seed, none does so early that the paths part.
    """
    vq_vae = partial(VQVAE, embedding_dim=8)
    compare(vq_vae, partial(blobs, 70), tmp_path, 0.05, seed=5, **FASTER)


@pytest.mark.slow
# A warning of torch's own making, which is not shown outside of the tests.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs g++")
def test_compiled_too(blobs, tmp_path):
    small = {
        "encoder": partial(MLPEncoder, hidden=(16,)),
        "decoder": partial(MLPDecoder, hidden=(16,)),
    }
    compare(partial(VAE, **small), blobs, tmp_path, 1e-4, **FASTER, compile=True)
