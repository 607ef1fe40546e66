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

PLAIN = {"updates_per_call": 1, "fused": False}
FASTER = {"updates_per_call": None, "fused": None}


def losses(make, data, folder, fused, **kwargs) -> torch.Tensor:
    """The loss of every step of a training, (steps,), and that of the validation at its end."""
    torch.manual_seed(3)
    optimizer = partial(torch.optim.Adam, lr=1e-2, fused=fused)
    model = make(image_shape=(1, 8, 8), optimizer=optimizer, **kwargs)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version="log"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        max_epochs=10,
    )
    trainer.fit(model, datamodule=data(pixels="dynamic"))
    with (folder / "log" / "metrics.csv").open() as file:
        steps = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return torch.tensor([*steps, model.results["val/loss"].value])


def compare(make, data, folder, tolerance, **options) -> None:
    plain = losses(make, data, folder / "plain", **PLAIN)
    fast = losses(make, data, folder / "fast", **{**PLAIN, **options})
    assert len(plain) > 40
    assert plain[-6:].mean() < 0.95 * plain[:5].mean()  # it learns
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=0)


def test_fused_and_several_updates_per_call(blobs, tmp_path):
    compare(VAE, partial(blobs, 70), tmp_path, 1e-4, **FASTER)


def test_the_same_of_a_codebook(blobs, tmp_path):
    """By a rounding, a vector between two codes takes the other one, and its image another path."""
    compare(partial(VQVAE, code_dim=8), partial(blobs, 70), tmp_path, 0.05, **FASTER)


# A warning of torch's own making, which is not shown outside of the tests.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs g++")
def test_compiled_too(blobs, tmp_path):
    small = {
        "encoder": partial(MLPEncoder, hidden=(16,)),
        "decoder": partial(MLPDecoder, hidden=(16,)),
    }
    compare(partial(VAE, **small), blobs, tmp_path, 1e-4, **FASTER, compile=True)
