"""What every variant promises. A new one is found here by itself."""

import functools
import inspect

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import vae_lightning
from vae_lightning.likelihoods import Gaussian
from vae_lightning.models import BaseVAE
from vae_lightning.nets import ConvDecoder, ConvEncoder
from vae_lightning.quantizers import VectorQuantizer
from vae_lightning.randomness import Noise


def _subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


VARIANTS = [
    cls
    for cls in _subclasses(BaseVAE)
    if not inspect.isabstract(cls) and cls.__module__.startswith("vae_lightning.")
]


@pytest.fixture(params=VARIANTS, ids=lambda cls: cls.__name__)
def variant(request):
    return request.param


@pytest.fixture
def model(variant) -> BaseVAE:
    return variant(image_shape=(1, 8, 8), num_classes=4)


def terms_of(model, batch, *keys):
    condition = model.condition(batch.y if model.conditional else None, len(batch.x))
    return model.terms(batch.x, condition, Noise(batch.indices, *keys))


def label_of(model, batch):
    return batch.y if model.conditional else None


def trainer(tmp_path, **kwargs):
    return pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **kwargs,
    )


def test_every_variant_is_here():
    assert {"VAE", "BetaVAE", "CVAE", "IWAE", "VQVAE"} <= {cls.__name__ for cls in VARIANTS}


def test_objective_and_terms_have_one_value_per_image(model, batch):
    terms = terms_of(model, batch)
    for name, value in {"objective": model.objective(terms), **terms.named()}.items():
        assert value.shape == (16,), name
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name


def test_terms_do_not_depend_on_the_batch_size(model, batch):
    model.eval()
    whole = terms_of(model, batch).named()
    part = terms_of(model, type(batch)(*(value[:5] for value in batch))).named()
    for name, value in part.items():
        torch.testing.assert_close(value, whole[name][:5], rtol=1e-4, atol=1e-4)


def test_reconstruction_is_in_nats_per_image(model, batch):
    """A decoder that says 1/2 everywhere costs log 2 per pixel, summed, not averaged."""
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)
    expected = torch.full((16,), 64 * torch.tensor(2.0).log())
    torch.testing.assert_close(terms_of(model, batch).reconstruction, expected)


def test_every_parameter_gets_a_gradient(variant, batch):
    kwargs = {}
    if "quantizer" in inspect.signature(variant).parameters:  # codes learnt by gradient
        kwargs["quantizer"] = functools.partial(
            VectorQuantizer, learning="gradient", start="uniform"
        )
    model = variant(image_shape=(1, 8, 8), num_classes=4, **kwargs)
    model.objective(terms_of(model, batch)).mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_noise_is_a_function_of_its_keys(model, batch):
    model.eval()
    first, again = (model.objective(terms_of(model, batch, 1)) for _ in range(2))
    assert first.equal(again)


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian"])
def test_losses_are_computed_in_float32_under_autocast(variant, batch, likelihood):
    cls = getattr(vae_lightning.likelihoods, likelihood)
    model = variant(image_shape=(1, 8, 8), num_classes=4, likelihood=cls).eval()
    exact = terms_of(model, batch).named()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = terms_of(model, batch).named()
    for name, value in mixed.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=2.0)


def test_verbs(model, batch):
    label = label_of(model, batch)
    z = model.embed(batch.x, label)
    assert len(z) == 16
    for images in (model.decode(z, label), model.reconstruct(batch.x, label)):
        assert images.shape == batch.x.shape
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        assert not images.requires_grad
    assert model.decode(z, label).equal(model.reconstruct(batch.x, label))
    if model.can_sample:
        samples = model.sample(7, generator=torch.Generator().manual_seed(1))
        assert samples.shape == (7, 1, 8, 8)
        assert samples.equal(model.sample(7, generator=torch.Generator().manual_seed(1)))
        assert not samples.equal(model.sample(7, generator=torch.Generator().manual_seed(2)))
    else:
        with pytest.raises(RuntimeError, match="cannot sample"):
            model.sample(7)


@pytest.mark.parametrize(
    "x",
    [torch.rand(2, 1, 9, 8), torch.rand(1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)],
    ids=["size", "no batch", "bytes"],
)
def test_images_are_checked(model, x):
    label = 0 if model.conditional else None
    with pytest.raises(ValueError, match=r"takes float images \(B, 1, 8, 8\)"):
        model.reconstruct(x, label)


def test_labels_are_checked(model, batch):
    if not model.conditional:
        with pytest.raises(ValueError, match="takes no label"):
            model.reconstruct(batch.x, batch.y)
        return
    with pytest.raises(ValueError, match=r"give a label in 0\.\.3"):
        model.reconstruct(batch.x)
    with pytest.raises(ValueError, match=r"integers in 0\.\.3"):
        model.reconstruct(batch.x, 4)
    with pytest.raises(ValueError, match=r"integers in 0\.\.3"):
        model.reconstruct(batch.x, batch.y - 1)
    with pytest.raises(ValueError, match="16 images need 16 labels"):
        model.reconstruct(batch.x, batch.y[:3])


class DecoderWithBatchNorm(ConvDecoder):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.norm = nn.BatchNorm2d(self.layers[0].in_channels)
        self.head = nn.Sequential(self.head, self.norm)


def test_verbs_leave_no_trace(batch):
    """In training mode too: statistics of BatchNorm, modes, gradients, and torch's generator."""
    model = vae_lightning.VAE(image_shape=(1, 8, 8), decoder=DecoderWithBatchNorm)
    model.train()
    model.encoder.eval()  # frozen by the user
    generator_before = torch.get_rng_state()
    state_before = {name: value.clone() for name, value in model.state_dict().items()}
    z = torch.randn(4, model.latent_dim, generator=torch.Generator().manual_seed(0))
    a = model.decode(z)
    model.sample(4, generator=torch.Generator().manual_seed(0))
    model.reconstruct(batch.x)
    model.embed(batch.x)
    assert torch.get_rng_state().equal(generator_before)
    for name, value in model.state_dict().items():
        assert value.equal(state_before[name]), name
    assert model.training
    assert model.decoder.norm.training
    assert not model.encoder.training
    # In evaluation mode an image does not depend on its neighbours in the batch.
    torch.testing.assert_close(model.decode(z[:2]), a[:2])


@pytest.mark.parametrize("size", [(3, 16, 16), (1, 9, 7)])
def test_other_image_shapes(variant, size):
    model = variant(image_shape=size, num_classes=2)
    x = torch.rand(2, *size)
    label = torch.tensor([0, 1]) if model.conditional else None
    assert model.reconstruct(x, label).shape == x.shape


def test_trains_and_logs(model, blobs, tmp_path):
    run = trainer(tmp_path, limit_train_batches=4)
    run.fit(model, datamodule=blobs())
    logged = run.callback_metrics
    for stage in ("train", "val"):
        for name in ("loss", "reconstruction"):
            assert f"{stage}/{name}" in logged
    tested = run.test(model, datamodule=blobs(), verbose=False)[0]
    assert set(tested) == {
        name.replace("val/", "test/") for name in logged if name.startswith("val/")
    }


def test_validation_and_training_weigh_alike(model, batch):
    """The loss by which the checkpoint is chosen is the one that is trained on."""
    terms = terms_of(model.eval(), batch, 1)
    in_evaluation = model.objective(terms)
    assert model.train().objective(terms).equal(in_evaluation)


def test_evaluation_does_not_depend_on_the_batch_size(model, blobs, tmp_path):
    results = []
    for batch_size in (16, 7, 64):
        run = trainer(tmp_path)
        data = blobs(batch_size=batch_size)
        results.append(run.validate(model, datamodule=data, verbose=False)[0])
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_checkpoint_brings_back_class_and_arguments(variant, batch, tmp_path, blobs):
    kwargs = {"image_shape": (1, 8, 8), "num_classes": 4}
    kwargs["likelihood"] = functools.partial(Gaussian, sigma=0.3)
    kwargs["optimizer"] = functools.partial(torch.optim.AdamW, lr=0.01)
    if issubclass(variant, vae_lightning.VAE):
        kwargs["encoder"] = functools.partial(ConvEncoder, channels=(4, 8))
    model = variant(**kwargs)
    run = trainer(tmp_path, limit_train_batches=2)
    run.fit(model, datamodule=blobs())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = vae_lightning.load(tmp_path / "a.ckpt")
    assert type(loaded) is variant
    assert not loaded.training
    assert loaded.likelihood.sigma == pytest.approx(0.3)
    assert loaded.configure_optimizers().defaults["lr"] == 0.01
    for name, value in model.state_dict().items():
        assert value.equal(loaded.state_dict()[name]), name
    label = label_of(model, batch)
    assert loaded.reconstruct(batch.x, label).equal(model.reconstruct(batch.x, label))


@pytest.mark.filterwarnings("default")  # dynamo's own, while it traces
def test_compiled_training_is_the_same(variant, blobs, tmp_path, monkeypatch):
    """Traced and differentiated as always, but without half a minute of generating code."""
    monkeypatch.setattr(
        nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager")
    )
    losses = []
    for compile in (False, True):
        torch.manual_seed(3)
        model = variant(image_shape=(1, 8, 8), num_classes=4, compile=compile)
        run = trainer(tmp_path, limit_train_batches=3, limit_val_batches=1)
        run.fit(model, datamodule=blobs())
        losses.append(run.callback_metrics["val/loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_hyperparameters_must_be_plain():
    with pytest.raises(TypeError, match="without pickled code"):
        vae_lightning.VAE(optimizer=lambda parameters: torch.optim.Adam(parameters))
