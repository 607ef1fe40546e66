"""What every variant promises. A new one is found here by itself."""

import copy
import functools
import inspect
import pickle
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from contract_checks import (
    FewImages,
    build,
    check_batch_independence,
    check_bound,
    check_gradients,
    check_sampling,
    check_terms,
    depends_on_batch,
    implementations,
    labels_of,
    objective_depends_on_batch,
    terms_of,
    train,
)
from torch import nn

import vae_lightning
from vae_lightning import VAE
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.distributions.posteriors import REAL
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.models.loading import build as build_from_settings
from vae_lightning.nets import ConvDecoder, ConvEncoder
from vae_lightning.nets.quantizers import VectorQuantizer
from vae_lightning.training.module import LitVAE

VARIANTS = implementations(BaseVAE)


@pytest.fixture(params=VARIANTS, ids=lambda cls: cls.__name__)
def variant(request):
    return request.param


@pytest.fixture
def model(variant) -> BaseVAE:
    return build(variant)


def accepts(variant, name):
    """Whether a variant, or a class that it hands its options on to, has an option."""
    own = (vars(cls).get("__init__") for cls in variant.__mro__)
    return any(init and name in inspect.signature(init).parameters for init in own)


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


# Terms and objective


def test_objective_and_terms_have_one_value_per_image(model, batch):
    check_terms(model, batch)
    check_terms(model.eval(), batch)


def test_terms_do_not_depend_on_the_batch_size(model, batch):
    check_batch_independence(model, batch)


def test_reconstruction_is_in_nats_per_image(model, batch):
    """A decoder that says 1/2 everywhere costs log 2 per pixel, summed, not averaged."""
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)
    expected = torch.full((16,), 64 * torch.tensor(2.0).log())
    torch.testing.assert_close(terms_of(model, batch).reconstruction, expected)


def test_every_parameter_gets_a_gradient_and_only_its_own(variant, batch):
    """The critic learns from the critic's objective, and everything else from the model's."""
    kwargs = {}
    if accepts(variant, "quantizer"):  # codes learned by gradient
        kwargs["quantizer"] = functools.partial(
            VectorQuantizer, codebook_update="gradient", codebook_init="uniform"
        )
    check_gradients(build(variant, **kwargs), batch)


def test_noise_is_a_function_of_its_keys(model, batch):
    model.eval()
    first, again = (model.objective(terms_of(model, batch, 1)) for _ in range(2))
    assert first.equal(again)


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian"])
def test_losses_are_computed_in_float32_under_autocast(variant, batch, likelihood):
    cls = getattr(vae_lightning.distributions.likelihoods, likelihood)
    model = build(variant, likelihood=cls).eval()
    exact = terms_of(model, batch).as_dict()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = terms_of(model, batch).as_dict()
    for name, value in mixed.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=2.0)


def test_validation_and_training_weigh_alike(model, batch):
    """The loss by which the checkpoint is chosen is the one that is trained on."""
    terms = terms_of(model.eval(), batch, 1)
    in_evaluation = model.objective(terms)
    assert model.train().objective(terms).equal(in_evaluation)


# Prior and posterior: one pair of them, in the bound, in the likelihood and in sampling


@pytest.mark.slow_except("VAE", "CVAE", "FactorVAE", "VQVAE", "HierarchicalVAE", "IWAE")
@pytest.mark.parametrize("steps", [0, 60])
def test_likelihood_is_not_below_the_bound(variant, batch, steps):
    """After some training, too: before, many posteriors are close to many priors."""
    model = build(variant)
    if not model.has(Capability.DENSITY) or "negative_elbo" not in terms_of(model, batch).as_dict():
        assert steps or not model.has(Capability.DENSITY)
        pytest.skip("no density, or no ELBO")
    train(model, batch, steps)
    check_bound(model, batch)


class OtherPrior(StandardNormal):
    """Half of the mass at 0, and half of it where the test wants it."""

    center = 0.0

    def log_prob(self, z, condition=None):
        other = super().log_prob(z - self.center)
        return torch.logaddexp(super().log_prob(z), other) - torch.tensor(2.0).log()

    def sample(self, n, condition=None, generator=None):
        moved = torch.randint(2, (n, 1), generator=generator)
        return super().sample(n, condition, generator) + self.center * moved

    def kl(self, q, condition=None):
        return None


class MixtureInTermsOnly(VAE):
    """A mistake: the KL term is that of a mixture, everything else that of N(0, I)."""

    def kl(self, q, draws, condition=None, log_ratio=None):
        right, self.prior = self.prior, self.other
        try:
            return super().kl(q, draws, condition)
        finally:
            self.prior = right

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.other = OtherPrior(self.latent_dim)
        self.other.center = 6.0


class NormalInTermsOnly(VAE):
    """The same mistake the other way round: the KL term is that of N(0, I)."""

    def __init__(self, **kwargs) -> None:
        super().__init__(prior=OtherPrior, **kwargs)
        self.prior.center = 6.0

    def kl(self, q, draws, condition=None, log_ratio=None):
        return StandardNormal(self.latent_dim).kl(q).sum(1)


class Consistent(VAE):
    """The same mixture, everywhere."""

    def __init__(self, **kwargs) -> None:
        super().__init__(prior=OtherPrior, **kwargs)
        self.prior.center = 6.0


def at_the_other_mode(model, share):
    """Let the posterior of every image have its mean at a share of the way to the other mode."""
    model.encoder.head.bias.data[: model.latent_dim] = 6.0 * share
    return model


@pytest.mark.parametrize(("broken", "share"), [(MixtureInTermsOnly, 1), (NormalInTermsOnly, 0)])
def test_a_prior_in_the_terms_only_is_rejected(broken, share, batch):
    model = at_the_other_mode(broken(image_shape=(1, 8, 8), latent_dim=2), share)
    with pytest.raises(AssertionError, match="do not use the same prior and posterior"):
        check_bound(model, batch)


def test_a_mixture_in_the_terms_only_is_rejected_after_training(batch):
    """Training leaves the posterior where the two priors differ."""
    model = MixtureInTermsOnly(image_shape=(1, 8, 8), latent_dim=2)
    at_the_other_mode(model, 1)
    train(model, batch, 60)
    with pytest.raises(AssertionError, match="do not use the same prior and posterior"):
        check_bound(model, batch)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_mixture_everywhere_is_accepted(share, batch):
    check_bound(at_the_other_mode(Consistent(image_shape=(1, 8, 8), latent_dim=2), share), batch)


def few_latents(variant):
    """A model with two or four latent dimensions, the prior of which is not that of the start."""
    sizes = {
        **{"latent_dim": 2, "top_dim": 2, "num_variables": 2, "num_categories": 3},
        **{"latent_dims": (2, 1), "widths": (16, 8)},
        **{"num_continuous": 2, "categories": (3,)},
        **{"groups_per_resolution": (0, 0, 2), "latent_channels": 2},
    }
    if accepts(variant, "codebook_size"):  # whose variables are the positions of a map
        sizes = {"codebook_size": 2}
    model = build(variant, **{k: v for k, v in sizes.items() if fits_option(variant, k)})
    for parameter in model.prior.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def fits_option(variant, name):
    """Whether a user may choose an option: some models compute their latent_dim themselves."""
    others = "num_variables", "latent_dims", "groups_per_resolution", "num_continuous"
    if name == "latent_dim" and any(accepts(variant, other) for other in others):
        return False
    return accepts(variant, name)


def test_samples_follow_the_prior(variant):
    model = build(variant)
    if not model.has(Capability.SAMPLES) or not model.prior.has_density:
        pytest.skip("no prior to sample from, or one without a density")
    model = few_latents(variant)
    for label in range(2) if model.conditional else [None]:
        check_sampling(model, label)


class Unused(OtherPrior):
    """A mistake: the samples are those of N(0, I)."""

    center = 1.0

    def sample(self, n, condition=None, generator=None):
        return StandardNormal.sample(self, n, condition, generator)


class Unnormalized(StandardNormal):
    """A mistake: a constant is missing."""

    def log_prob(self, z, condition=None):
        return super().log_prob(z) + 0.1


class Wider(StandardNormal):
    """A mistake: the standard deviation of the samples is too large by a twentieth."""

    def sample(self, n, condition=None, generator=None):
        return 1.05 * super().sample(n, condition, generator)


@pytest.mark.parametrize(
    ("prior", "message"),
    [(Unused, "means"), (Unnormalized, "integral"), (Wider, "second moments")],
)
def test_samples_of_another_prior_are_rejected(prior, message):
    with pytest.raises(AssertionError, match=message):
        check_sampling(VAE(image_shape=(1, 8, 8), latent_dim=2, prior=prior))


class OtherSamples(VAE):
    """A mistake: `sample` decodes latents of its own."""

    def sample(self, n, label=None, generator=None):
        return self.decode(2 * torch.randn(n, self.latent_dim, generator=generator), label)


def test_images_of_other_latents_are_rejected():
    with pytest.raises(AssertionError):
        check_sampling(OtherSamples(image_shape=(1, 8, 8), latent_dim=2))


def test_a_mixture_is_accepted_by_the_check_of_samples():
    model = Consistent(image_shape=(1, 8, 8), latent_dim=2)
    model.prior.center = 2.0
    check_sampling(model)


# The inference API


def levels(z):
    return (z,) if isinstance(z, torch.Tensor) else z


def test_inference(model, batch):
    label = model.labels_for(batch.x, batch.y)
    z = model.embed(batch.x, label)
    assert all(len(level) == 16 for level in levels(z))
    for images in (model.decode(z, label), model.reconstruct(batch.x, label)):
        assert images.shape == batch.x.shape
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        assert not images.requires_grad
    assert model.decode(z, label).equal(model.reconstruct(batch.x, label))
    vectors = model.latent_vectors(batch.x, label)
    assert len(vectors) == 16
    assert vectors.ndim == 2
    assert vectors.isfinite().all()
    written = model.encode(batch.x, model.encode_labels(label, 16))
    assert written
    assert all(len(value) == 16 for value in written.values())


def calls(model, batch):
    """What needs a capability, and the shape of what it returns."""
    label = labels_of(model, batch)
    one = None if label is None else 2
    return {
        Capability.SAMPLES: (lambda: model.sample(7, one), (7, 1, 8, 8)),
        Capability.DENSITY: (lambda: model.log_prob(batch.x, label, 5), (16,)),
        Capability.KL_PER_DIMENSION: (lambda: model.latent_kl(batch.x, label), (16, None)),
        Capability.CODEBOOK: (
            lambda: levels(model.encode_indices(batch.x, label))[0],
            (16, None, None),
        ),
        Capability.TRAVERSABLE: (
            lambda: model.latent_quantiles(torch.tensor([0.1, 0.5, 0.9])),
            (3, model.latent_size),
        ),
    }


def test_capabilities_are_declared(model, batch):
    """What a model has, it does; what it lacks, it refuses with one sentence that names it."""
    assert model.capabilities <= set(Capability)
    assert model.has(Capability.CONDITIONAL) == model.conditional
    assert model.has(Capability.LATENT_VECTOR) == (model.latent_size is not None)
    assert model.has(Capability.CODEBOOK) == bool(model.codebook_sizes)
    for capability, (call, shape) in calls(model, batch).items():
        if model.has(capability):
            found = call()
            assert len(found.shape) == len(shape)
            assert all(a in (b, None) for a, b in zip(shape, found.shape, strict=True)), capability
            assert found.isfinite().all(), capability
        else:
            with pytest.raises(MissingCapabilityError) as error:
                call()
            message = str(error.value)
            assert error.value.capability is capability
            assert f"{type(model).__name__} has no {capability}" in message
            assert "\n" not in message


def test_samples_are_a_function_of_the_generator(model):
    if not model.has(Capability.SAMPLES):
        pytest.skip("no samples")
    first, again, other = (
        model.sample(7, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (7, 1, 8, 8)
    assert first.equal(again)
    assert not first.equal(other)


def test_log_prob_is_a_function_of_the_seed_and_of_the_image(model, batch):
    if not model.has(Capability.DENSITY):
        pytest.skip("no density")
    label = labels_of(model, batch)
    whole = model.log_prob(batch.x, label, 6, seed=1)
    assert whole.equal(model.log_prob(batch.x, label, 6, seed=1))
    assert not whole.equal(model.log_prob(batch.x, label, 6, seed=2))
    part = model.log_prob(batch.x[:5], None if label is None else label[:5], 6, seed=1)
    torch.testing.assert_close(part, whole[:5], rtol=1e-5, atol=1e-5)


def test_decoding_indices_gives_the_reconstruction(model, batch):
    if not model.has(Capability.CODEBOOK):
        pytest.skip("no codebook")
    label = labels_of(model, batch)
    indices = model.encode_indices(batch.x, label)
    assert all(level.dtype == torch.int64 for level in levels(indices))
    torch.testing.assert_close(
        model.decode_indices(indices, label), model.reconstruct(batch.x, label)
    )


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
    if model.needs_labels:
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


def test_inference_leaves_no_trace(batch):
    """In training mode too: statistics of BatchNorm, modes, gradients, and torch's generator."""
    model = VAE(image_shape=(1, 8, 8), decoder=DecoderWithBatchNorm)
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
    # In evaluation mode an image does not depend on its neighbors in the batch.
    torch.testing.assert_close(model.decode(z[:2]), a[:2])


@pytest.mark.parametrize("size", [(3, 16, 16), (1, 9, 7)])
def test_other_image_shapes(variant, size):
    model = build(variant, image_shape=size, num_classes=2)
    x = torch.rand(2, *size)
    label = torch.tensor([0, 1]) if model.conditional else None
    assert model.reconstruct(x, label).shape == x.shape


# Training


def test_trains_and_logs(model, blobs, tmp_path):
    run, lit = trainer(tmp_path, limit_train_batches=4), LitVAE(model)
    run.fit(lit, datamodule=blobs())
    assert run.global_step == 4
    logged = run.callback_metrics
    for stage in ("train", "val"):
        for name in ("loss", "reconstruction"):
            assert f"{stage}/{name}" in logged
    assert all(value.isfinite() for value in logged.values())
    tested = run.test(lit, datamodule=blobs(), verbose=False)[0]
    assert set(tested) == {
        name.replace("val/", "test/") for name in logged if name.startswith("val/")
    }


@pytest.mark.slow_except("VAE", "CVAE", "FactorVAE", "VQVAE", "HierarchicalVAE")
def test_training_lowers_the_loss(model, batch, blobs, tmp_path):
    """On images that are easy, within a second."""
    if not terms_of(model, batch).reconstruction.requires_grad:
        pytest.skip("the reconstruction is only reported")
    run, lit = trainer(tmp_path), LitVAE(model, optimizer=FastAdam)
    run.fit_loop.max_epochs = 10
    before = run.validate(lit, datamodule=blobs(), verbose=False)[0]
    run.fit(lit, datamodule=blobs())
    after = run.validate(lit, datamodule=blobs(), verbose=False)[0]
    assert after["val/reconstruction"] < before["val/reconstruction"] - 1


class FastAdam(torch.optim.Adam):
    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=3e-3)


def test_evaluation_does_not_depend_on_the_batch_size(variant, batch, blobs, tmp_path):
    """But for terms that are declared to depend on it, and for a loss that they are part of."""
    kwargs = {}
    if accepts(variant, "quantizer"):  # few codes, which are not closer to each other than rounding
        kwargs["quantizer"] = functools.partial(VectorQuantizer, codebook_size=8)
    model = build(variant, **kwargs)
    terms, lit = terms_of(model, batch), LitVAE(model)
    exempt = {f"val/{name}" for name in terms.as_dict() if depends_on_batch(terms, name)}
    if objective_depends_on_batch(terms):
        exempt.add("val/loss")
    results = []
    for batch_size in (16, 7, 64):
        run, data = trainer(tmp_path), blobs(batch_size=batch_size)
        found = run.validate(lit, datamodule=data, verbose=False)[0]
        results.append({name: value for name, value in found.items() if name not in exempt})
    assert results[0]
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


@pytest.mark.slow_except("VAE")
@pytest.mark.filterwarnings("default")  # dynamo's own, while it traces
def test_compiled_training_is_the_same(variant, blobs, tmp_path, monkeypatch):
    """Traced and differentiated as always, but without half a minute of generating code."""
    monkeypatch.setattr(
        nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager")
    )
    losses = []
    for compile in (False, True):
        torch.manual_seed(3)
        lit = LitVAE(build(variant), compile=compile)
        run = trainer(tmp_path, limit_train_batches=3, limit_val_batches=1)
        run.fit(lit, datamodule=blobs())
        losses.append(run.callback_metrics["val/loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# Settings and checkpoints


def settings_of_everything(variant):
    kwargs = {"image_shape": (1, 8, 8), "num_classes": 4}
    kwargs["likelihood"] = functools.partial(Gaussian, sigma=0.3)
    own_networks = accepts(variant, "codebook_size") or accepts(variant, "latent_channels")
    if issubclass(variant, LatentVariableModel) and not own_networks:
        kwargs["encoder"] = functools.partial(ConvEncoder, channels=(4, 8))
    return kwargs


def test_checkpoint_brings_back_class_and_arguments(variant, batch, tmp_path, blobs):
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
    model = variant(**settings_of_everything(variant))
    run = trainer(tmp_path, limit_train_batches=2)
    run.fit(LitVAE(model, optimizer=optimizer), datamodule=blobs())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = vae_lightning.load(tmp_path / "a.ckpt")
    assert type(loaded) is variant
    assert not loaded.training
    assert loaded.step == 2
    assert loaded.likelihood.sigma == pytest.approx(0.3)
    assert loaded.describe() == model.describe()
    record = vae_lightning.checkpoint.read(tmp_path / "a.ckpt").record
    assert record.optimizer["class_path"] == "torch.optim.adamw.AdamW"
    assert record.optimizer["init_args"]["lr"] == 0.01
    assert record.optimizer["init_args"]["weight_decay"] == 0.01  # the default of AdamW
    for name, value in model.state_dict().items():
        assert value.equal(loaded.state_dict()[name]), name
    label = labels_of(model, batch)
    assert loaded.reconstruct(batch.x, label).equal(model.reconstruct(batch.x, label))


def test_settings_build_an_equal_model(variant):
    kwargs = settings_of_everything(variant)
    torch.manual_seed(5)
    model = variant(**kwargs)
    assert plain(model.describe())
    torch.manual_seed(5)
    again = build_from_settings(model.describe())
    assert type(again) is variant
    assert again.describe() == model.describe()
    assert repr(again) == repr(model)
    for name, value in model.state_dict().items():
        assert value.equal(again.state_dict()[name]), name


def plain(value):
    """Whether a value is plain data, such as YAML or a checkpoint can hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return isinstance(value, str | int | float | bool | None)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_models_of_their_own(model, batch, copied):
    label = labels_of(model, batch)
    model.step = 7
    before = model.reconstruct(batch.x, label)
    other = copied(model)
    assert other.settings == model.settings
    assert other.step == 7
    assert other.reconstruct(batch.x, label).equal(before)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert model.reconstruct(batch.x, label).equal(before)
    assert not other.reconstruct(batch.x, label).equal(before)


@pytest.mark.slow
def test_checkpoints_are_used_without_lightning(tmp_path, blobs):
    """All in one process, because importing torch takes seconds."""
    uses = []
    for variant in VARIANTS:
        lit, run = LitVAE(build(variant)), trainer(tmp_path, limit_train_batches=1)
        run.fit(lit, datamodule=blobs())
        path = tmp_path / f"{variant.__name__}.ckpt"
        run.save_checkpoint(path)
        label = ", 0" if lit.model.conditional else ""
        samples = lit.model.has(Capability.SAMPLES)
        use = "sample(2)" if samples else f"reconstruct(torch.rand(2, 1, 8, 8){label})"
        uses.append(f"assert vae_lightning.load({str(path)!r}).{use}.shape == (2, 1, 8, 8)")
    program = [
        "import sys",
        "import vae_lightning",
        "assert 'torch' not in sys.modules",
        "import torch",
        *uses,
        "found = {name.partition('.')[0] for name in sys.modules}",
        "print(found & {'lightning', 'pytorch_lightning', 'jsonargparse', 'matplotlib'})",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "set()\n"


def test_settings_must_be_plain():
    with pytest.raises(TypeError, match="without pickled code"):
        VAE(encoder=lambda *sizes: ConvEncoder(*sizes))
    optimizer = lambda parameters: torch.optim.Adam(parameters)  # noqa: E731
    with pytest.raises(TypeError, match="without pickled code"):
        LitVAE(VAE(), optimizer=optimizer)


def test_initialization_from_data_is_offered_to_every_variant(model, batch):
    model.init_from_data(FewImages(batch.x))
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_real_latents_say_so(model):
    if isinstance(model, LatentVariableModel) and model.has(Capability.CONTINUOUS_LATENT):
        assert model.posterior_family.support == model.prior.support == REAL
