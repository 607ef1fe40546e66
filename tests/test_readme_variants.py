"""The variants in the README are found, train, and keep the promises of the contract."""

import re
import sys
import types
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.vae import VAE
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = {
    re.findall(r"^class (\w+)", block, re.MULTILINE)[-1]: block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "\nclass " in block
}


def classes_of(name):
    """Execute a block of the README as a module of its own."""
    module = types.ModuleType(f"readme_{name.lower()}")
    sys.modules[module.__name__] = module
    exec(BLOCKS[name], module.__dict__)
    return module


def build(name, **kwargs) -> BaseVAE:
    module = classes_of(name)
    if name == "LaplacePrior":
        return VAE(prior=module.LaplacePrior, **kwargs)
    if name == "Laplace":
        return VAE(posterior=module.LaplacePosterior, **kwargs)
    return getattr(module, name)(**kwargs)


def test_there_is_an_example_of_each_kind():
    assert set(BLOCKS) == {"CapacityVAE", "LaplacePrior", "Laplace", "DIPVAE", "AggregateVAE"}


@pytest.mark.parametrize("name", BLOCKS)
def test_trains_and_is_measured(name, blobs, tmp_path):
    model = build(name, image_shape=(1, 8, 8), num_classes=4, latent_dim=3)
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = [parameter.clone() for parameter in model.parameters()]
    data = blobs(binarization="threshold")
    trainer.fit(LitVAE(model), datamodule=data)
    assert all(not old.equal(new) for old, new in zip(before, model.parameters(), strict=True))
    x = data.random_images(16, 0)
    noise = Noise(torch.arange(len(x)), "test")
    negative_elbo = model.eval().terms(x, None, noise).as_dict()["negative_elbo"].mean()
    assert model.has(Capability.DENSITY, Capability.SAMPLES)
    assert -model.log_prob(x, num_samples=200).mean() < negative_elbo + 0.5
    assert model.sample(4, generator=torch.Generator().manual_seed(0)).shape == (4, 1, 8, 8)


@pytest.mark.parametrize("name", ["LaplacePrior", "Laplace"])
def test_densities_agree_with_torch(name):
    model = build(name, image_shape=(1, 8, 8), latent_dim=3)
    if name == "LaplacePrior":
        z = torch.randn(5, 2, 3)
        expected = torch.distributions.Laplace(torch.zeros(3), torch.ones(3)).log_prob(z).sum(-1)
        torch.testing.assert_close(model.log_prior(z), expected)
        return
    q = model.posterior(torch.rand(5, 1, 8, 8))
    draws = q.rsample(Noise(torch.arange(5), "test"), 7)
    reference = torch.distributions.Laplace(q.loc[:, None], q.log_scale.exp()[:, None])
    torch.testing.assert_close(draws.log_prob, reference.log_prob(draws.z).sum(-1))
