"""VQ-VAE-2 against a pass through its networks, level by level."""

import functools

import pytest
import torch
from contract_checks import build

from vae_lightning import VQVAE2
from vae_lightning.nets.quantizers import VectorQuantizer
from vae_lightning.randomness import Noise


@pytest.fixture
def model():
    quantizer = functools.partial(
        VectorQuantizer, codebook_size=8, codebook_update="gradient", codebook_init="uniform"
    )
    made = build(VQVAE2, quantizer=quantizer, conditional=True).eval()
    for one in made.quantizers.values():
        one.codebook.data.normal_()
    return made


def condition_of(model, batch):
    return model.encode_labels(batch.y, len(batch.x))


def test_the_bottom_codes_see_the_top_codes_and_the_image_both(model, batch):
    condition = condition_of(model, batch)
    features = model.encoder(batch.x, condition)
    top = model.top_quantizer(model.top_encoder(features, condition))
    above = model.top_decoder(top.z_q, condition)
    bottom = model.bottom_quantizer(model.to_bottom(torch.cat([features, above], 1)))
    height, width = bottom.z_q.shape[2:]
    enlarged = top.z_q.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]
    params = model.decoder(torch.cat([enlarged, bottom.z_q], 1), condition)
    terms = model.terms(batch.x, condition, Noise(batch.indices))
    expected = -model.likelihood.log_prob(params, batch.x)
    torch.testing.assert_close(terms.reconstruction, expected)
    for name in ("codebook", "commitment"):
        both = getattr(top, f"{name}_loss") + getattr(bottom, f"{name}_loss")
        torch.testing.assert_close(getattr(terms, name), both)
    torch.testing.assert_close(
        model.objective(terms), expected + terms.codebook + 0.25 * terms.commitment
    )
    for found, level in zip(model.codes(batch.x, condition), (top, bottom), strict=True):
        assert found.equal(level.indices)


def test_gradients_of_the_bottom_level_pass_through_the_top_codes(model, batch):
    _, bottom = model.quantize(batch.x, condition_of(model, batch))
    gradients = torch.autograd.grad(
        bottom.commitment_loss.sum(), list(model.top_encoder.parameters()), allow_unused=True
    )
    assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_each_level_has_a_codebook_of_its_own(model):
    top, bottom = model.quantizers.values()
    assert top.codebook is not bottom.codebook
    assert not top.codebook.equal(bottom.codebook)


def test_regularizers_of_both_levels_are_added_up(batch):
    quantizer = functools.partial(
        VectorQuantizer, codebook_size=8, codebook_update="gradient", codebook_init="uniform",
        orthogonality=10.0,
    )  # fmt: skip
    model = build(VQVAE2, quantizer=quantizer).eval()
    terms = model.terms(batch.x, None, Noise(batch.indices))
    expected = 0.0
    for one in model.quantizers.values():
        cosines = torch.nn.functional.cosine_similarity(one.codebook[:, None], one.codebook, dim=2)
        expected += 10 * (cosines - torch.eye(8)).square().mean()
    torch.testing.assert_close(terms.regularizer, expected)
    latent = terms.codebook + 0.25 * terms.commitment
    torch.testing.assert_close(model.objective(terms), terms.reconstruction + latent + expected)
