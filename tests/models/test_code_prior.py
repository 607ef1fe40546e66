"""Prior over codes: its likelihood, its samples, what it is made from, and what it refuses."""

import copy
import functools

import lightning.pytorch as pl
import pytest
import torch
from contract_checks import build as build_small
from torch.nn import functional

import vae_lightning
from vae_lightning import DVAE, VAE, VQVAE, VQVAE2, CodePrior
from vae_lightning.errors import UserError
from vae_lightning.explore import sample
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.loading import build
from vae_lightning.nets.code_networks import CausalTransformer
from vae_lightning.nets.quantizers import FSQ, LFQ, ResidualQuantizer, SimVQ, VectorQuantizer
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE
from vae_lightning.truncation import Truncation

SMALL = functools.partial(CausalTransformer, dim=16, layers=2, heads=2)
SIZE = {"image_shape": (1, 8, 8), "num_classes": 4}


def vq(**kwargs):
    return build_small(VQVAE, **kwargs)


def quantized_by(cls, **kwargs):
    return vq(quantizer=functools.partial(cls, **kwargs))


AUTOENCODERS = {
    "vq": functools.partial(quantized_by, VectorQuantizer, codebook_size=16),
    "cosine": functools.partial(
        quantized_by, VectorQuantizer, codebook_size=16, similarity="cosine"
    ),
    "fsq": functools.partial(quantized_by, FSQ, levels=(4, 4)),
    "lfq": functools.partial(quantized_by, LFQ, bits=4),
    "sim": functools.partial(quantized_by, SimVQ, codebook_size=16),
    "residual": functools.partial(
        quantized_by,
        ResidualQuantizer,
        num_quantizers=2,
        quantizer=functools.partial(VectorQuantizer, codebook_size=8),
    ),
    "conditional": functools.partial(vq, conditional=True),
    "vq2": functools.partial(
        build_small, VQVAE2, quantizer=functools.partial(VectorQuantizer, codebook_size=8)
    ),
    "dvae": functools.partial(build_small, DVAE),
}


def autoencoder(name):
    """An autoencoder whose codes differ between images."""
    torch.manual_seed(0)
    model = AUTOENCODERS[name]()
    x = torch.rand(16, 1, 8, 8)
    model.train()
    for _ in range(2):  # codebooks start from data
        model.terms(x, model.encode_labels(torch.arange(16) % 4 if model.conditional else None, 16),
                    Noise(torch.arange(16)))  # fmt: skip
    model.initialized = True
    return model.eval()


def prior_of(model, conditional=None, **kwargs):
    torch.manual_seed(1)
    conditional = model.conditional if conditional is None else conditional
    made = CodePrior(model, SMALL, conditional=conditional, **SIZE, **kwargs)
    for parameter in made.networks_by_level.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made.eval()


@pytest.fixture(params=AUTOENCODERS)
def prior(request):
    return prior_of(autoencoder(request.param))


def images(n=6):
    torch.manual_seed(2)
    return torch.rand(n, 1, 8, 8)


def label_of(model, n=6):
    return torch.arange(n) % 4 if model.conditional else None


def terms_of(model, x, n=6):
    return model.terms(x, model.encode_labels(label_of(model, n), n), Noise(torch.arange(n)))


def levels_of(codes):
    return (codes,) if isinstance(codes, torch.Tensor) else codes


# Likelihood


def test_the_likelihood_is_a_sum_over_positions(prior):
    """Each code on its own, given only the codes before it: the others are replaced by zeros."""
    x = images()
    label = label_of(prior)
    condition = prior.encode_labels(label, 6)
    levels = levels_of(prior.encode_indices(x, label))
    total = torch.zeros(6)
    for i, level in enumerate(levels):
        flat = level.flatten(1)
        for j in range(flat.shape[1]):
            seen = flat.clone()
            seen[:, j:] = 0
            given = (*levels[:i], seen.view_as(level))
            logits = prior.logits(i, given, condition)[:, j]
            total += functional.cross_entropy(logits, flat[:, j], reduction="none")
    terms = terms_of(prior, x)
    torch.testing.assert_close(terms.code_nll, total)
    torch.testing.assert_close(sum(terms.levels.values()), total)
    expected = terms.as_dict()["reconstruction"] + total
    torch.testing.assert_close(terms.as_dict()["negative_elbo"], expected)
    torch.testing.assert_close(prior.log_prob(x, label), -expected.double(), rtol=1e-5, atol=1e-4)


def test_the_reconstruction_is_that_of_the_codes(prior):
    x, label = images(), label_of(prior)
    mean = prior.decode_indices(prior.encode_indices(x, label), label)
    expected = functional.binary_cross_entropy(mean, x, reduction="none").flatten(1).sum(1)
    found = terms_of(prior, x).reconstruction
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    label = label if prior.autoencoder.conditional else None
    assert prior.reconstruct(x, label_of(prior)).equal(prior.autoencoder.reconstruct(x, label))


def test_a_level_does_not_change_the_levels_above():
    prior = prior_of(autoencoder("vq2"))
    top, bottom = prior.encode_indices(images())
    before = prior.level_nll((top, bottom), None)
    other = prior.level_nll((top, (bottom + 1) % 8), None)
    assert other[0].equal(before[0])
    assert not other[1].equal(before[1])
    above = prior.level_nll(((top + 1) % 8, bottom), None)
    assert (above[1] != before[1]).all()  # the upper level conditions the lower one


def test_frozen_features_give_the_same_terms(prior):
    x = images()
    condition = prior.encode_labels(label_of(prior), 6)
    features = prior.frozen_features(x, condition)
    assert features.dtype == torch.int16
    assert features.shape == (6, sum(one.length for one in prior.code_maps))
    prior.check_inputs(features)
    with pytest.raises(ValueError, match="takes float images"):
        prior.reconstruct(features)
    from_features, from_images = terms_of(prior, features), terms_of(prior, x)
    assert from_features.code_nll.equal(from_images.code_nll)
    assert from_features.reconstruction is None
    assert terms_of(prior.train(), x).reconstruction is None


# What learns


def test_only_the_networks_learn(prior):
    prior.train()
    before = copy.deepcopy(prior.autoencoder.state_dict())
    trained = [p for p in prior.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-2)
    first = None
    for _ in range(30):
        loss = prior.objective(terms_of(prior, images())).mean()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * first
    for name, value in prior.autoencoder.state_dict().items():
        assert value.equal(before[name]), name
    assert {id(p) for p in trained} == {id(p) for p in prior.networks_by_level.parameters()}


@pytest.mark.parametrize("how", ["autocast", "converted"])
def test_half_precision(prior, how):
    x, condition = images(), prior.encode_labels(label_of(prior), 6)
    exact = terms_of(prior, x)
    if how == "converted":
        # Codes may differ, because the encoder is less precise: measure the same ones.
        levels = prior.codes(x, condition)
        prior = prior.to(torch.bfloat16)
        condition = prior.encode_labels(label_of(prior), 6)
        found = torch.stack(prior.level_nll(levels, condition)).sum(0)
        assert prior.sample(3, 0 if prior.conditional else None).isfinite().all()
    else:
        with torch.autocast("cpu", torch.bfloat16):
            levels = prior.codes(x, condition)
            found = torch.stack(prior.level_nll(prior.codes(x, condition), condition)).sum(0)
        exact = torch.stack(prior.level_nll(levels, condition)).sum(0)
    expected = exact if isinstance(exact, torch.Tensor) else exact.code_nll
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.5)


# Samples


def test_samples(prior):
    label = label_of(prior)
    assert prior.has(Capability.SAMPLES)
    first, again, other = (
        prior.sample(6, label, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (6, 1, 8, 8)
    assert first.equal(again)
    assert not first.equal(other)
    whole = sample(prior, 6, label, seed=3)
    assert whole.equal(sample(prior, 6, label, seed=3, batch_size=4))


@pytest.mark.parametrize("name", ["vq2", "conditional"])
def test_each_of_many_maps_is_drawn_with_its_own_numbers_and_class(name, monkeypatch):
    """However many are drawn at once."""
    prior = prior_of(autoencoder(name))
    condition = prior.encode_labels(label_of(prior, 10), 10)
    whole = prior.sample_codes(10, condition, torch.Generator().manual_seed(0))
    monkeypatch.setattr("vae_lightning.models.code_prior._ROWS", 3)
    parts = prior.sample_codes(10, condition, torch.Generator().manual_seed(0))
    for level, expected in zip(parts, whole, strict=True):
        assert level.equal(expected)


def test_samples_have_the_nats_that_the_prior_says(prior):
    """The mean of -log p over draws is the entropy; the estimate from halves of them agrees."""
    n = 400
    condition = prior.encode_labels(label_of(prior, n), n)
    with torch.no_grad():
        levels = prior.sample_codes(n, condition, torch.Generator().manual_seed(0))
        nats = torch.stack(prior.level_nll(levels, condition)).sum(0)
        # The entropy of each code given those before it, which needs no draw of this code.
        entropy = torch.zeros(n)
        for i in range(len(levels)):
            logits = prior.logits(i, levels, condition).log_softmax(2)
            entropy += -(logits.exp() * logits).sum((1, 2))
    difference = nats - entropy  # a martingale: 0 in the mean
    assert abs(difference.mean()) < 4 * difference.std() / n**0.5


def test_truncated_samples_are_more_probable(prior):
    n = 200
    condition = prior.encode_labels(label_of(prior, n), n)

    def nats(**kwargs):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            levels = prior.sample_codes(n, condition, generator, Truncation(**kwargs))
            return torch.stack(prior.level_nll(levels, condition)).sum(0).mean()

    plain = nats()
    for kwargs in ({"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.7}):
        assert nats(**kwargs) < plain - 0.1, kwargs
    assert nats(temperature=1.5) > plain + 0.1


def test_options_of_codes_are_refused_elsewhere():
    model = VAE(image_shape=(1, 8, 8), latent_dim=2)
    for options in ({"top_k": 3}, {"top_p": 0.5}):
        with pytest.raises(MissingCapabilityError, match="VAE has no learned prior over codes"):
            sample(model, 2, **options)


def test_the_class_matters_and_is_the_one_asked_for():
    """Codes that name the class: a prior given the class draws these codes."""
    prior = prior_of(autoencoder("vq"), conditional=True)
    label = torch.arange(64) % 4
    condition = prior.encode_labels(label, 64)
    codes = label[:, None, None].expand(64, *prior.code_maps[0].dims) * 3
    optimizer = torch.optim.Adam(prior.networks_by_level.parameters(), 1e-2)
    prior.train()
    for _ in range(60):
        loss = prior.level_nll((codes,), condition)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prior.eval()
    (drawn,) = prior.sample_codes(64, condition, torch.Generator().manual_seed(0))
    assert (drawn == codes).float().mean() > 0.95


@pytest.mark.parametrize("name", ["vq", "vq2"])
def test_codes_need_no_class_if_the_autoencoder_sees_none(name):
    made = autoencoder(name)
    prior = prior_of(made, conditional=True)
    x = torch.rand(3, 1, 8, 8)
    codes = made.encode_indices(x)
    for label in (None, 2):
        torch.testing.assert_close(prior.encode_indices(x, label), codes)
        torch.testing.assert_close(prior.embed(x, label), made.embed(x))
        assert prior.decode_indices(codes, label).equal(made.decode_indices(codes))
        assert prior.reconstruct(x, label).equal(made.reconstruct(x))
    for label in (9, [0, 1], "cat"):
        with pytest.raises(ValueError, match="label"):
            prior.reconstruct(x, label)
    with pytest.raises(ValueError, match="is not conditional"):
        prior_of(made).decode_indices(codes, 2)
    with pytest.raises(ValueError, match=r"is conditional: give the classes .* \(3, 4\), or use"):
        prior.sample_codes(3)


@pytest.mark.parametrize("name", ["vq", "vq2"])
def test_draws_are_the_same_under_autocast(name):
    prior = prior_of(autoencoder(name))
    exact = prior.sample_codes(200, None, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = prior.sample_codes(200, None, torch.Generator().manual_seed(0))
    for level, expected in zip(mixed, exact, strict=True):
        assert level.equal(expected)


# The autoencoder that it is made from


def test_the_given_autoencoder_stays_as_it_is_and_may_be_trained_further():
    model = autoencoder("vq")
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    prior = prior_of(model)
    assert not model.training
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learned
    x = images()
    before = prior.encode_indices(x)
    model.quantizer.codebook.data = model.quantizer.codebook.data.flip(0)
    assert prior.encode_indices(x).equal(before)


def checkpoint_of(model, data, path):
    """Train for a step, and return the path of the checkpoint."""
    trainer = pl.Trainer(
        default_root_dir=path.parent,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(LitVAE(model.train()), datamodule=data)
    trainer.save_checkpoint(path)
    return str(path)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_checkpoint_needs_nothing_else(name, tmp_path, blobs):
    model = autoencoder(name)
    path = checkpoint_of(model, blobs(), tmp_path / "autoencoder.ckpt")
    prior = CodePrior(path, SMALL, conditional=model.conditional, **SIZE)
    own = checkpoint_of(prior, blobs(), tmp_path / "prior.ckpt")
    (tmp_path / "autoencoder.ckpt").unlink()
    again = vae_lightning.load(own)
    assert isinstance(again, CodePrior)
    assert str(tmp_path) not in str(again.describe())
    assert again.describe() == prior.describe()
    first, second = (
        one.eval().sample(6, label_of(one), torch.Generator().manual_seed(0))
        for one in (prior, again)
    )
    assert first.equal(second)


def test_another_autoencoder_is_refused(tmp_path):
    first, second = autoencoder("vq"), autoencoder("vq")
    second.quantizer.codebook.data += 0.01
    held = prior_of(first).state_dict()
    other = prior_of(second)
    with pytest.raises(UserError, match="trained on the codes of another autoencoder"):
        other.load_state_dict(held)
    prior_of(first).load_state_dict(held)
    # One that was only described takes the weights, and keeps to them from then on.
    described = build(prior_of(first).describe())
    described.load_state_dict(held)
    with pytest.raises(UserError, match="another autoencoder"):
        described.load_state_dict(other.state_dict())


def test_weights_of_lower_precision_are_the_same_autoencoder():
    model = autoencoder("vq")
    held = {name: value.bfloat16() for name, value in prior_of(model).state_dict().items()}
    prior_of(model).load_state_dict(held)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CodePrior(**SIZE), "needs a trained autoencoder with codes"),
        (lambda: CodePrior(VAE(latent_dim=2, **SIZE), **SIZE), "a VAE has no codes"),
        (lambda: CodePrior(vq(), image_shape=(1, 9, 8)), r"of \(1, 8, 8\) images, but the data"),
        (lambda: CodePrior(vq(conditional=True), **SIZE), "its prior must see it"),
        (
            lambda: CodePrior(
                vq(conditional=True), image_shape=(1, 8, 8), num_classes=7, conditional=True
            ),
            "trained on 4 classes, but the data have 7",
        ),
        (
            lambda: CodePrior(prior_of(autoencoder("vq")), **SIZE),
            "a CodePrior cannot be the autoencoder of another",
        ),
        (lambda: CodePrior("nowhere.ckpt", **SIZE), "nowhere.ckpt does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises((ValueError, UserError), match=message):
        make()


def test_an_untrained_autoencoder_is_refused():
    prior = prior_of(autoencoder("vq"))
    described = build(prior.describe())
    terms_of(described.eval(), images())
    with pytest.raises(UserError, match="the autoencoder of this CodePrior is untrained"):
        terms_of(described.train(), images())
    described.load_state_dict(prior.state_dict())
    terms_of(described, images())
    with pytest.raises(UserError, match="the autoencoder of this CodePrior is untrained"):
        terms_of(prior_of(vq()).train(), images())


def test_codes_of_no_codebook_are_refused():
    prior = prior_of(autoencoder("vq"))
    with pytest.raises(ValueError, match=r"integers in 0\.\.15, got 0 to 16"):
        prior.decode_indices(torch.tensor([[[0, 16], [1, 1]]]))
    with pytest.raises(ValueError, match=r"integer tensors of shape \(B, 2, 2\), got list"):
        prior.decode_indices([[[0, 1], [1, 1]]])


@pytest.mark.parametrize("name", ["vq", "dvae"])
def test_integers_of_every_type_are_decoded(name):
    model = autoencoder(name)
    codes = model.encode_indices(images())
    for dtype in (torch.int16, torch.int32):
        assert model.decode_indices(codes.to(dtype)).equal(model.decode_indices(codes))


def test_levels_of_different_lengths_are_refused():
    model = autoencoder("vq2")
    top, bottom = model.encode_indices(images())
    with pytest.raises(
        ValueError, match=r"of shape \(B, 1, 1\) and \(B, 2, 2\), got .*\(5, 1, 1\)"
    ):
        model.decode_indices((top[:5], bottom))


def test_codes_are_found_in_full_precision(prior):
    """Codes that are cached in mixed precision are those that everything else computes."""
    x = images(64)
    condition = prior.encode_labels(label_of(prior, 64), 64)
    exact = prior.frozen_features(x, condition)
    with torch.autocast("cpu", torch.bfloat16):
        assert prior.frozen_features(x, condition).equal(exact)


def test_each_training_encodes_the_images_anew(blobs, tmp_path):
    """Whatever was trained on the same data module before."""
    data = blobs()
    checkpoint_of(prior_of(autoencoder("vq")), data, tmp_path / "first.ckpt")
    first = data.features.x.clone()
    other = autoencoder("vq")
    other.quantizer.codebook.data = other.quantizer.codebook.data.flip(0)
    checkpoint_of(prior_of(other), data, tmp_path / "second.ckpt")
    assert not data.features.x.equal(first)
    checkpoint_of(vq(), data, tmp_path / "third.ckpt")
    assert data.features is None


def test_a_dvae_counts_its_most_probable_codes():
    model = AUTOENCODERS["dvae"]().eval()
    x = torch.rand(3, *model.image_shape)
    terms = model.terms(x, None, Noise(torch.arange(3)))
    assert set(terms.as_dict()) == {"reconstruction", "kl", "negative_elbo"}
    assert torch.equal(terms.code_indices()[""], model.encode_indices(x))


def test_codes_of_a_dvae_are_the_largest_channels_of_each_position():
    """And the image is decoded from their vectors at the same positions."""
    model = build_small(DVAE, image_shape=(1, 9, 7)).eval()
    x = torch.rand(3, 1, 9, 7)
    codes = model.encode_indices(x)
    assert codes.equal(model.encoder.network(x).argmax(1))
    vectors = model.codebooks[""][codes].movedim(-1, 1)
    expected = model.likelihood.mean(model.decoder.network(vectors))
    torch.testing.assert_close(model.decode_indices(codes), expected)
