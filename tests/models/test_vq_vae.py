import functools

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning import VQVAE
from vae_lightning.functional import perplexity
from vae_lightning.nets import ConvEncoder
from vae_lightning.nets.quantizers import LFQ, VectorQuantizer
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE


def vq_vae(**quantizer) -> VQVAE:
    arguments = {"codebook_size": 16, "codebook_init": "uniform", **quantizer}
    return VQVAE(
        image_shape=(1, 8, 8),
        num_classes=4,
        embedding_dim=6,
        quantizer=functools.partial(VectorQuantizer, **arguments),
    )


def test_objective_has_the_weights_of_the_paper(batch):
    """||sg[z_e] - e||^2 with weight 1 and ||z_e - sg[e]||^2 with weight 0.25: not exchanged."""
    model = vq_vae(codebook_update="gradient").eval()
    terms = model.terms(batch.x, None, Noise(batch.indices))
    z_e = model.encoder(batch.x)
    e = model.quantizer.codebook[model.encode_indices(batch.x)].movedim(-1, 1)
    distance = (z_e - e).square().sum((1, 2, 3))
    torch.testing.assert_close(terms.codebook, distance)
    torch.testing.assert_close(
        model.objective(terms), terms.reconstruction + distance + 0.25 * distance
    )
    # The encoder's gradient of the latent terms is a quarter of the codes'.
    latent = (model.objective(terms) - terms.reconstruction).sum()
    by_e, by_z = torch.autograd.grad(
        latent, [model.quantizer.codebook, model.encoder.layers[-1].bias]
    )
    chosen = (z_e - e).detach()
    torch.testing.assert_close(by_z, 0.25 * 2 * chosen.sum((0, 2, 3)))
    torch.testing.assert_close(by_e.sum(0), -2 * chosen.sum((0, 2, 3)))


def test_the_regularizer_counts_as_it_is_weighted(batch):
    model = vq_vae(codebook_update="gradient", orthogonality=10.0).eval()
    terms = model.terms(batch.x, None, Noise(batch.indices))
    assert terms.regularizer > 0.1
    latent = terms.codebook + 0.25 * terms.commitment
    torch.testing.assert_close(
        model.objective(terms), terms.reconstruction + latent + terms.regularizer
    )


def test_an_entropy_is_said_to_depend_on_the_batch(batch):
    model = VQVAE(image_shape=(1, 8, 8), quantizer=functools.partial(LFQ, bits=4)).eval()
    whole, part = (model.terms(batch.x[:n], None, Noise(batch.indices[:n])) for n in (16, 4))
    for name, value in whole.as_dict().items():
        same = torch.allclose(value[:4], part.as_dict()[name], rtol=1e-4, atol=1e-4)
        assert same == (name not in whole.batch_dependent), name


def test_moving_average_replaces_the_codebook_term(batch):
    model = vq_vae(codebook_update="ema").eval()
    terms = model.terms(batch.x, None, Noise(batch.indices))
    assert terms.codebook is None
    assert "codebook" not in terms.as_dict()
    assert terms.commitment.min() > 0


def test_terms_are_computed_in_evaluation_too(batch):
    model = vq_vae(codebook_update="gradient").eval()
    terms = model.terms(batch.x, None, Noise(batch.indices))
    assert terms.codebook.min() > 0
    assert terms.commitment.min() > 0


def test_codes_decode_to_the_reconstruction(batch):
    model = vq_vae()
    codes = model.encode_indices(batch.x)
    assert codes.shape == (16, 2, 2)
    assert codes.dtype == torch.int64
    torch.testing.assert_close(model.decode_indices(codes), model.reconstruct(batch.x))
    for wrong in (codes[:, :-1], codes.float(), codes[..., None], (codes, codes)):
        with pytest.raises(ValueError, match=r"are integer tensors of shape \(B, 2, 2\)"):
            model.decode_indices(wrong)


def test_perplexity_is_that_of_the_epoch(blobs, tmp_path):
    """Not the mean of the batches' perplexities, which is smaller."""
    model = vq_vae()
    lit = LitVAE(model)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    data = blobs(batch_size=3)
    data.setup("test")
    x = data.datasets["test"].images.x / 255
    # Codes that are used: the vectors of some images.
    model.quantizer.codebook.data = model.encoder(x[:4]).detach().movedim(1, -1).reshape(16, 6)
    for _ in range(2):  # and not what is left of an epoch before
        result = trainer.test(lit, datamodule=data, verbose=False)[0]
    codes = model.encode_indices(x)
    counts = torch.bincount(codes.flatten(), minlength=16)
    assert result["test/perplexity"] == pytest.approx(perplexity(counts).item(), rel=1e-5)
    assert result["test/codes_used"] == pytest.approx((counts > 0).float().mean().item())
    by_batch = [perplexity(torch.bincount(part.flatten(), minlength=16)) for part in codes.split(3)]
    assert torch.stack(by_batch).mean() < 0.99 * result["test/perplexity"]


def test_encoder_must_keep_a_map():
    with pytest.raises(ValueError, match=r"ConvEncoder and ResidualDecoder do not fit a VQVAE"):
        VQVAE(image_shape=(1, 8, 8), encoder=ConvEncoder)


def test_bad_arguments():
    with pytest.raises(ValueError, match="commitment_weight must not be negative"):
        VQVAE(commitment_weight=-1)
