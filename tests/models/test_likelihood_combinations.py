"""Variants with likelihoods of all kinds: terms, reconstructions and units."""

import itertools

import pytest
import torch
from contract_checks import build, check_terms, implementations, labels_of, small, terms_of

from vae_lightning import IWAE, VAE, VQVAE
from vae_lightning.distributions.likelihoods import Likelihood
from vae_lightning.models.base import BaseVAE

VARIANTS, LIKELIHOODS = implementations(BaseVAE), implementations(Likelihood)


def is_unusual(likelihood):
    """Whether it is a loss, or its number of parameters is one of its own."""
    made = small(likelihood)()
    return not made.normalized or "n_params" in vars(made)


PAIRS = [
    (variant, likelihood)
    for variant, likelihood in itertools.product(VARIANTS, LIKELIHOODS)
    if variant in (VAE, IWAE, VQVAE) or is_unusual(likelihood)
]


def names(value):
    return value.__name__


@pytest.mark.parametrize(("variant", "likelihood"), PAIRS, ids=names)
def test_variants_take_likelihoods(variant, likelihood, batch):
    model = build(variant, likelihood=small(likelihood))
    check_terms(model, batch)
    again = model.reconstruct(batch.x, labels_of(model, batch))
    assert again.shape == batch.x.shape
    assert again.min() >= 0
    assert again.max() <= 1
    terms = terms_of(model, batch)
    in_nats = model.unit_of(terms, "reconstruction").startswith("nats")
    assert in_nats == model.likelihood.normalized
    assert model.is_normalized(binary=False) == (in_nats and not model.likelihood.binary)
    for name in terms.as_dict():
        if name not in ("reconstruction", "negative_elbo"):
            assert model.unit_of(terms, name) == terms.unit(name)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=names)
def test_the_loss_falls_and_bfloat16_is_enough(likelihood, batch):
    model = build(VAE, likelihood=small(likelihood))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.objective(terms_of(model, batch, step)).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
