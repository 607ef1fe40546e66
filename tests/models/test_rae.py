"""The penalties of the regularized autoencoder, against finite differences in float64."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch

import vae_lightning
from vae_lightning import RAE
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.models.capabilities import MissingCapabilityError
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE

NETWORKS = {
    "encoder": functools.partial(MLPEncoder, hidden=(8,)),
    "decoder": functools.partial(MLPDecoder, hidden=(8,)),
}


def model(**kwargs) -> RAE:
    return RAE(**{"image_shape": (1, 8, 8), "latent_dim": 3, "num_classes": 4, **kwargs})


def curved(**kwargs) -> RAE:
    """A model whose decoder is not nearly linear at the latents."""
    made = model(regularizer="gradient", **NETWORKS, **kwargs)
    for parameter in made.parameters():
        parameter.data.mul_(3)
    return made


def jacobians(rae: RAE, z: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """The derivatives of the mean image by central differences in float64, (B, D, L)."""
    double = rae.decoder.double()
    columns = []
    for d in range(z.shape[1]):
        shift = torch.zeros(z.shape[1]).double()
        shift[d] = step
        high, low = (double(z.double() + s * shift).sigmoid().flatten(1) for s in (1, -1))
        columns.append((high - low) / (2 * step))
    rae.decoder.float()
    return torch.stack(columns, 2).detach()


def test_terms_and_objective(batch):
    rae = model(beta=0.3, lambd=0.02)
    terms = rae.terms(batch.x, None, Noise(batch.indices))
    z = rae.encoder(batch.x).detach()
    half_norms = [sum(v * v for v in row) / 2 for row in z.double().tolist()]
    torch.testing.assert_close(terms.latent_norm, torch.tensor(half_norms))
    squares = sum(float(p.detach().double().square().sum()) for p in rae.decoder.parameters())
    assert terms.decoder_norm.shape == ()
    assert terms.decoder_norm.item() == pytest.approx(squares, rel=1e-5)
    assert terms.jacobian_norm is None
    expected = -rae.likelihood.log_prob(rae.decoder(z), batch.x)
    torch.testing.assert_close(terms.reconstruction, expected)
    torch.testing.assert_close(
        rae.objective(terms), expected + 0.3 * terms.latent_norm + 0.02 * squares
    )


def test_l2_is_the_weight_decay_of_the_decoder(batch):
    """The gradient that it adds to a parameter is 2 lambda times the parameter."""
    rae = model(beta=0.0, lambd=0.5)
    terms = rae.terms(batch.x, None, Noise(batch.indices))
    parts = [
        torch.autograd.grad(loss.mean(), list(rae.decoder.parameters()), retain_graph=True)
        for loss in (rae.objective(terms), terms.reconstruction)
    ]
    for with_penalty, without, parameter in zip(*parts, rae.decoder.parameters(), strict=True):
        torch.testing.assert_close(with_penalty - without, parameter, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("conditional", [False, True])
def test_gradient_penalty_is_that_of_finite_differences(batch, conditional):
    """|J^T v|^2 for the signs v of each image, which the noise determines."""
    rae = curved(conditional=conditional)
    condition = rae.encode_labels(batch.y if conditional else None, 16)
    found = rae.terms(batch.x, condition, Noise(batch.indices, "test")).jacobian_norm
    z = rae.encoder(batch.x, condition).detach()
    v = (Noise(batch.indices, "test").uniform(64) - 0.5).sign().double()
    if conditional:
        columns = []
        for d in range(3):
            shift = torch.zeros(3).double()
            shift[d] = 1e-5
            high, low = (
                rae.decoder.double()(z.double() + s * shift, condition.double()).sigmoid()
                for s in (1, -1)
            )
            columns.append((high - low).flatten(1) / 2e-5)
        jacobian = torch.stack(columns, 2)
    else:
        jacobian = jacobians(rae, z)
    expected = torch.einsum("bd,bdl->bl", v, jacobian).square().sum(1)
    assert expected.std() > 0.1 * expected.mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


def test_gradient_penalty_has_no_bias(batch):
    """Its mean over draws is the squared Frobenius norm, to 4 standard errors."""
    rae = curved().eval()
    draws = torch.stack(
        [
            rae.terms(batch.x, None, Noise(batch.indices, "test", i)).jacobian_norm
            for i in range(200)
        ]
    ).double()
    expected = jacobians(rae, rae.embed(batch.x)).square().sum((1, 2))
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error < 0.15 * expected).all()
    assert ((draws.mean(0) - expected).abs() < 4 * error).all()


def test_gradient_penalty_moves_both_networks(batch):
    """The derivative of the penalty along a random direction, by differences of it."""
    rae = curved()

    def penalty() -> torch.Tensor:
        return rae.terms(batch.x, None, Noise(batch.indices, "test")).jacobian_norm.mean()

    rae.double()
    batch = batch._replace(x=batch.x.double())
    for network in (rae.encoder, rae.decoder):
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
        direction = [torch.randn_like(p) for p in parameters]
        expected = sum(
            float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None
        )
        values = []
        for sign in (1, -2):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.data.add_(sign * 1e-3 * d)
            values.append(penalty().item())
        assert abs(expected) > 1e-3
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(expected, rel=0.02)
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data.add_(1e-3 * d)


def test_gradient_penalty_is_that_of_the_mean_image(batch):
    """Not of the logits, nor of the likelihood: a Gaussian's mean is the output itself."""
    rae = curved(likelihood=functools.partial(Gaussian, sigma=0.2))
    found = rae.terms(batch.x, None, Noise(batch.indices, "test")).jacobian_norm
    z = rae.encoder(batch.x).detach()
    v = (Noise(batch.indices, "test").uniform(64) - 0.5).sign()
    expected = []
    for i in range(16):
        jacobian = torch.autograd.functional.jacobian(
            lambda one: rae.decoder(one[None]).flatten(), z[i]
        )
        expected.append((v[i] @ jacobian).square().sum())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradient_penalty_is_reported_without_autograd(batch, off):
    """As in validation, and as in training; nothing of a graph is kept."""
    rae = curved(conditional=True)
    condition = rae.encode_labels(batch.y, 16)
    expected = rae.terms(batch.x, condition, Noise(batch.indices, "test"))
    with off():
        copies = batch.x.clone(), condition.clone(), Noise(batch.indices.clone(), "test")
        terms = rae.terms(*copies)
    for name, value in terms.as_dict().items():
        torch.testing.assert_close(value, expected.as_dict()[name])
        assert not value.requires_grad, name


@pytest.mark.filterwarnings("default")
def test_gradient_penalty_trains_with_compiled_networks(blobs, tmp_path, monkeypatch):
    compile = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        lit = LitVAE(model(regularizer="gradient", **NETWORKS), compile=compiled)
        run = trainer(tmp_path)
        run.fit(lit, datamodule=blobs(size=32))
        losses.append(run.callback_metrics["val/loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def trainer(folder) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_spectral_norms_of_the_decoder_are_one(batch, blobs, tmp_path):
    """After training, and in a loaded checkpoint."""
    rae = model(regularizer="spectral")
    assert rae.terms(batch.x, None, Noise(batch.indices)).decoder_norm is None
    run = trainer(tmp_path)
    run.fit_loop.max_epochs = 5
    run.fit(LitVAE(rae), datamodule=blobs())
    assert rae.decoder.head.weight.ndim > 1
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = vae_lightning.load(tmp_path / "a.ckpt")
    for made in (rae.eval(), loaded):
        found = [
            torch.linalg.matrix_norm(as_matrix(module), 2).item()
            for module in made.decoder.modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d)
        ]
        assert len(found) >= 3
        assert found == pytest.approx([1.0] * len(found), abs=0.1)
        assert not any("parametrizations" in name for name, _ in made.encoder.named_parameters())
    assert loaded.reconstruct(batch.x).equal(rae.reconstruct(batch.x))


def as_matrix(module) -> torch.Tensor:
    """The weight, with its output channels as rows."""
    weight = module.weight.detach()
    if isinstance(module, torch.nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    return weight.flatten(1)


def test_none_penalizes_the_latents_only(batch):
    rae = model(regularizer="none", beta=2.0)
    terms = rae.terms(batch.x, None, Noise(batch.indices))
    assert set(terms.as_dict()) == {"reconstruction", "latent_norm"}
    expected = terms.reconstruction + 2 * terms.latent_norm
    torch.testing.assert_close(rae.objective(terms), expected)


def test_weights_of_the_regularizers_by_default():
    for regularizer, lambd in {"l2": 1e-3, "gradient": 1.0, "spectral": 0.0, "none": 0.0}.items():
        assert RAE(regularizer=regularizer, latent_dim=2).lambd == lambd


def test_there_is_no_prior():
    with pytest.raises(MissingCapabilityError, match=r"this RAE has no prior .* vae density fit"):
        model().sample(2)


def test_units_name_what_is_not_in_nats(batch):
    terms = model().terms(batch.x, None, Noise(batch.indices))
    assert "norm" in terms.unit("latent_norm")
    assert "Jacobian" in terms.unit("jacobian_norm")
    assert terms.unit("reconstruction").startswith("nats")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": -1.0}, "beta must not be negative"),
        ({"lambd": math.nan}, "lambd must not be negative"),
        ({"regularizer": "gp"}, "regularizer must be l2, gradient, spectral, none, got 'gp'"),
        ({"regularizer": "none", "lambd": 1.0}, "lambd has no effect with the regularizer none"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
