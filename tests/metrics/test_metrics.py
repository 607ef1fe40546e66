"""What `vae test` reports, against computations of another kind."""

import functools
import inspect
import math
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributions as td
from torch import nn

import vae_lightning
from vae_lightning import explore
from vae_lightning.data import Batch
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.distributions.posteriors import GaussianPosterior
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.explore.frechet import features, frechet_distance
from vae_lightning.metrics import METRICS
from vae_lightning.metrics.classification import Classification
from vae_lightning.metrics.codes import Codes
from vae_lightning.metrics.factors import Disentanglement
from vae_lightning.metrics.frechet import FrechetDistance
from vae_lightning.metrics.latents import Latents
from vae_lightning.metrics.likelihood import LogLikelihood
from vae_lightning.metrics.reconstruction import Reconstruction
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.nets.code_networks import CausalTransformer
from vae_lightning.randomness import Noise
from vae_lightning.results import Mean
from vae_lightning.training.module import LitVAE

SMALL = {
    "image_shape": (1, 8, 8),
    "num_classes": 4,
    "encoder": functools.partial(MLPEncoder, hidden=(16,)),
    "decoder": functools.partial(MLPDecoder, hidden=(16,)),
}


def subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def is_gaussian(cls):
    """Whether a variant has a density, one Gaussian posterior and N(0, I) as its prior."""
    if not issubclass(cls, vae_lightning.VAE) or inspect.isabstract(cls):
        return False
    model = cls(image_shape=(1, 8, 8), num_classes=4)
    return (
        cls.__module__.startswith("vae_lightning.")
        and model.has(Capability.DENSITY, Capability.LATENT_VECTOR)
        and isinstance(model.prior, StandardNormal)
        and isinstance(model.posterior_family, GaussianPosterior)
    )


GAUSSIAN = [cls for cls in subclasses(BaseVAE) if is_gaussian(cls)]


def test_the_gaussian_variants_are_here():
    assert {"VAE", "BetaVAE", "CVAE", "IWAE"} <= {cls.__name__ for cls in GAUSSIAN}


def evaluate(model, data, *metrics):
    lit = LitVAE(model)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(metrics),
    )
    trainer.test(lit, datamodule=data, verbose=False)
    return {name.removeprefix("test/"): result for name, result in lit.results.items()}


def binary(batch):
    return Batch(batch.x.round(), batch.y, batch.indices)


def log_marginal(model, batch, num_samples, rows):
    """Estimate log p(x) with the noise that `LogLikelihood` draws from."""
    lit = LitVAE(model)
    noise = lit.evaluation_noise(batch, "importance")
    return model.log_marginal(batch.x, lit.condition(batch), noise, num_samples, rows)


@pytest.mark.parametrize("variant", GAUSSIAN, ids=lambda cls: cls.__name__)
def test_log_likelihood_agrees_with_an_independent_estimate(variant, batch):
    torch.manual_seed(1)
    model = variant(latent_dim=3, **SMALL).eval()
    if model.has(Capability.CLASSIFIER):
        pytest.skip("the class is a latent as well: its own test sums over the classes")
    for parameter in model.parameters():
        parameter.data *= 2  # an untrained posterior is the prior, and would hide a wrong sign
    batch = binary(batch)
    ours = log_marginal(model, batch, 2000, rows=512)

    samples = 2000
    with torch.no_grad():
        condition = nn.functional.one_hot(batch.y, 4).float() if model.conditional else None
        mu, log_var = model.encoder(batch.x, condition).double().chunk(2, 1)
        q = td.Normal(mu, (log_var / 2).exp())
        z = q.sample((samples,))
        tiled = None if condition is None else condition.repeat(samples, 1)
        logits = (
            model.decoder(z.flatten(0, 1).float(), tiled).double().view(samples, *batch.x.shape)
        )
        weights = (
            td.Bernoulli(logits=logits).log_prob(batch.x.double()).sum((2, 3, 4))
            + td.Normal(0, 1).log_prob(z).sum(2)
            - q.log_prob(z).sum(2)
        )
    ratio = (weights - weights.max(0).values).exp()
    theirs = ratio.mean(0).log() + weights.max(0).values
    # Delta method: the standard error of the log of a mean; both estimates have it.
    error = ratio.std(0) / ratio.mean(0) / math.sqrt(samples)
    z_scores = (ours - theirs) / (math.sqrt(2) * error)
    assert error.max() < 0.2
    assert z_scores.abs().max() < 4
    assert abs(z_scores.mean()) < 4 / math.sqrt(len(z_scores))


def test_log_likelihood_is_exact_where_it_is_known(batch):
    """A linear decoder with Gaussian noise: p(x) = N(b, W W' + sigma^2 I)."""
    sigma = 0.7
    model = vae_lightning.VAE(
        image_shape=(1, 8, 8),
        latent_dim=2,
        encoder=functools.partial(MLPEncoder, hidden=(4,)),
        decoder=functools.partial(MLPDecoder, hidden=(4,)),
        likelihood=functools.partial(Gaussian, sigma=sigma),
    )
    model.decoder.layers = nn.Linear(2, 64)
    w, b = (p.detach().double() for p in model.decoder.layers.parameters())
    covariance = w @ w.T + sigma**2 * torch.eye(64, dtype=torch.float64)
    exact = td.MultivariateNormal(b, covariance).log_prob(batch.x.flatten(1).double())
    estimate = log_marginal(model, batch, 20_000, rows=4096)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("samples", [1, 5, 13])
def test_log_likelihood_uses_exactly_k_draws_in_bounded_memory(batch, samples):
    model = vae_lightning.CVAE(**SMALL).eval()
    batch = binary(batch)
    decoded = []
    model.decoder.register_forward_hook(lambda module, args, out: decoded.append(len(args[0])))
    whole = log_marginal(model, batch, samples, rows=10_000)
    assert decoded == [16 * samples]
    for rows in (1, 40):
        decoded.clear()
        torch.testing.assert_close(log_marginal(model, batch, samples, rows), whole)
        assert sum(decoded) == 16 * samples
        assert max(decoded) <= max(rows, 16)
    parts = [
        log_marginal(model, Batch(*(v[i : i + 5] for v in batch)), samples, 7) for i in (0, 5, 10)
    ]
    torch.testing.assert_close(torch.cat(parts), whole[:15])


def test_log_likelihood_rises_with_k_from_the_elbo(batch):
    model = vae_lightning.VAE(latent_dim=3, **SMALL).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    batch = binary(batch)
    q = model.posterior(batch.x)
    ones = torch.stack(
        [
            log_marginal(model, batch._replace(indices=batch.indices + 16 * i), 1, 64)
            for i in range(300)
        ]
    )
    with torch.no_grad():
        z = q.rsample(Noise(batch.indices, 0, "elbo"), 300).z
        elbo = model.log_likelihood(batch.x, z).mean(1) - model.prior.kl(q).sum(1)
    # The mean of bounds with one draw is the ELBO, whose KL term is in closed form.
    error = ones.std(0) / math.sqrt(300)
    assert ((ones.mean(0) - elbo).abs() < 6 * error).all()
    means = [log_marginal(model, batch, k, 4096).mean().item() for k in (10, 100, 1000)]
    assert elbo.mean().item() < means[0] < means[1] < means[2]


def all_metrics():
    made = {name: cls() for name, cls in METRICS.items()}
    made["log_likelihood"] = LogLikelihood(num_samples=5)
    return made.values()


@pytest.mark.parametrize("variant", ["VAE", "CVAE", "IWAE", "VQVAE"])
def test_reports_do_not_depend_on_the_batch_size(variant, blobs):
    model = getattr(vae_lightning, variant)(image_shape=(1, 8, 8), num_classes=4)
    first, *others = (
        evaluate(model, blobs(batch_size=size, size=50, binarization="threshold"), *all_metrics())
        for size in (16, 7, 50)
    )
    assert first["loss"].images == 50
    for other in others:
        assert set(other) == set(first)
        for name, result in first.items():
            if name == "collapsed":
                assert other[name].value == result.value
            else:
                assert other[name].value == pytest.approx(result.value, rel=1e-6, abs=1e-7), name
            if result.error is not None:
                assert other[name].error == pytest.approx(result.error, rel=1e-4, abs=1e-7), name


def test_one_image_has_no_standard_error(blobs):
    results = evaluate(vae_lightning.VAE(**SMALL), blobs(size=1), LogLikelihood(2), Latents())
    assert results["negative_elbo"].error is None
    assert results["loss"].images == 1


def test_a_conditional_likelihood_says_that_it_is_one(blobs):
    binary = blobs(binarization="threshold")
    results = evaluate(vae_lightning.CVAE(**SMALL), binary, LogLikelihood(2))
    for name in ("negative_log_likelihood", "negative_elbo"):
        assert results[name].unit == "nats per image given its class"
        assert results[name].normalized
    assert not results["kl"].normalized
    assert evaluate(vae_lightning.VAE(**SMALL), binary)["negative_elbo"].unit == "nats per image"


@pytest.mark.parametrize(("size", "weight"), [(1, 1.0), (30, float("nan"))])
def test_disentanglement_of_what_has_none(size, weight):
    """A single image, or a model that has diverged: the other numbers are still reported."""
    model = vae_lightning.VAE(encoder=MLPEncoder)
    model.encoder.layers[0].weight.data *= weight
    data = vae_lightning.Digits(train_size=60, val_size=10, test_size=size)
    results = evaluate(model, data, Disentanglement(votes=4))
    assert "mig" not in results
    assert results["loss"].images == size


def test_mean_and_standard_error():
    values = 100 + torch.randn(57)
    mean = Mean()
    mean.update(values[:50])
    mean.update(values[50:])
    result = mean.result()
    assert result.value == pytest.approx(values.double().mean().item(), rel=1e-12)
    expected = np.std(values.double().numpy(), ddof=1) / math.sqrt(57)
    assert result.error == pytest.approx(expected, rel=1e-6)
    assert result.images == 57


class KnownEncoder(MLPEncoder):
    """mu = (mean pixel * 10, 0, mean pixel * 0.1), log_var = (-2, 0, 1)."""

    def forward(self, x, condition=None):
        mean = x.mean((1, 2, 3))
        mu = torch.stack([10 * mean, 0 * mean, 0.1 * mean], 1)
        return torch.cat([mu, torch.tensor([-2.0, 0, 1]).expand_as(mu)], 1)


def test_active_units_and_kl_per_dimension(blobs):
    model = vae_lightning.VAE(**{**SMALL, "encoder": KnownEncoder}, latent_dim=3)
    data = blobs(size=40)
    results = evaluate(model, data, Latents())
    mean = data.datasets["test"].images.x.double().mean((1, 2, 3)) / 255
    assert (10 * mean).var() > 0.01 > (0.1 * mean).var()
    assert results["active_units"].value == 1
    assert results["collapsed"].value == ["z1", "z2"]
    expected = []
    for scale, log_var in (10, -2), (0, 0), (0.1, 1):
        q = td.Normal(scale * mean, math.exp(log_var / 2))
        expected.append(td.kl_divergence(q, td.Normal(0, 1)).mean().item())
    assert results["kl_per_dimension"].value == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert sum(expected) == pytest.approx(results["kl"].value, rel=1e-6)


class ClassDecoder(MLPDecoder):
    """Bright where `Blobs` have the square of the class given, whatever z is."""

    shift = 0

    def forward(self, z, condition=None):
        logits = torch.full((len(z), 1, 8, 8), -2.0)
        for i, label in enumerate((condition.argmax(1) + self.shift).tolist()):
            row, column = divmod(label % 4, 2)
            logits[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 2.0
        return logits


class ShiftedClassDecoder(ClassDecoder):
    shift = 1


@pytest.mark.parametrize(("decoder", "accuracy"), [(ClassDecoder, 1.0), (ShiftedClassDecoder, 0.0)])
def test_classification_by_likelihood(decoder, accuracy, blobs):
    model = vae_lightning.CVAE(**{**SMALL, "decoder": decoder})
    # The same posterior for every class: the likelihood alone decides.
    model.encoder.layers[0].weight.data[:, -4:] = 0
    results = evaluate(model, blobs(), Classification())
    assert results["accuracy"].value == accuracy


def test_squared_error_per_pixel(blobs):
    model = vae_lightning.VAE(**SMALL)
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)  # every pixel is one half
    data = blobs()
    results = evaluate(model, data, Reconstruction())
    x = data.datasets["test"].images.x.double() / 255
    assert results["mse"].value == pytest.approx((x - 0.5).square().mean().item(), rel=1e-6)


def test_code_bits(blobs):
    model = vae_lightning.VQVAE(image_shape=(1, 8, 8))
    data = blobs()
    results = evaluate(model, data)
    codes = model.encode_indices(data.datasets["test"].images.x / 255)
    counts = np.bincount(codes.flatten().numpy(), minlength=512)
    p = counts[counts > 0] / counts.sum()
    places = codes[0].numel()
    assert results["code_bits"].value == places * 9
    assert results["code_entropy_bits"].value == pytest.approx(-places * (p * np.log2(p)).sum())
    assert results["perplexity"].value == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_nats_of_codes_on_several_levels(blobs):
    """A uniform code of each needs log K nats, and one of its frequency, the entropy of those."""
    autoencoder = vae_lightning.VQVAE2(image_shape=(1, 8, 8))
    network = functools.partial(CausalTransformer, dim=8, layers=1, heads=2)
    prior = vae_lightning.CodePrior(autoencoder, network, image_shape=(1, 8, 8))
    data = blobs()
    results = evaluate(prior, data, Codes())
    codes = prior.encode_indices(data.datasets["test"].images.x / 255)
    places = [level[0].numel() for level in codes]
    entropies = [td.Categorical(level.flatten().bincount().double()).entropy() for level in codes]
    independent = sum(n * entropy.item() for n, entropy in zip(places, entropies, strict=True))
    assert results["uniform_code_nll"].value == pytest.approx(sum(places) * math.log(512))
    assert results["independent_code_nll"].value == pytest.approx(independent, rel=1e-6)
    whole, per_code = results["code_nll"], results["code_nll_per_code"]
    assert per_code.value == pytest.approx(whole.value / sum(places))
    assert per_code.error == pytest.approx(whole.error / sum(places))


def test_frechet_distance_of_a_decoder_that_knows_the_classes(blobs, monkeypatch):
    """Each class is sampled as often as it occurs; the floor is that of the training images."""
    torch.manual_seed(0)
    classifier = vae_lightning.Classifier(image_shape=(1, 8, 8), num_classes=4, features=3).eval()
    module = "vae_lightning.metrics.frechet"
    monkeypatch.setattr(f"{module}.load_classifier", lambda *_: classifier)
    monkeypatch.setattr(f"{module}._CHUNK", 4)
    seeds, sample = [], explore.sample

    def watched(*args, seed, **kwargs):
        seeds.append(seed)
        return sample(*args, seed=seed, **kwargs)

    monkeypatch.setattr(f"{module}.explore.sample", watched)

    class Unequal(blobs):
        def load(self, split):
            held = super().load(split)
            held.images.y[: self.size // 2] = 0
            return held

    model = vae_lightning.CVAE(**{**SMALL, "decoder": ClassDecoder})
    data = Unequal(size=10)
    results = evaluate(model, data, FrechetDistance("held"))
    images = {split: data.datasets[split].images for split in ("train", "test")}
    means = model.decode(torch.zeros(10, model.latent_dim), images["test"].y)
    test, train, drawn = (
        features(classifier, x) for x in (images["test"].x / 255, images["train"].x / 255, means)
    )
    expected, floor = frechet_distance(test, drawn), frechet_distance(test, train)
    assert results["frechet_distance"].value == pytest.approx(expected, rel=1e-4)
    assert results["frechet_distance_floor"].value == pytest.approx(floor, rel=1e-4)
    assert len(set(seeds)) == 3  # one for each four images


class FactorEncoder(MLPEncoder):
    """Looks the factors of an image up in `table`, keyed by the image's bytes."""

    table: ClassVar[dict] = {}

    def forward(self, x, condition=None):
        keys = [image.mul(255).round().byte().numpy().tobytes() for image in x]
        mu = torch.stack([self.table.get(key, torch.zeros(7)) for key in keys])
        return torch.cat([mu, torch.zeros_like(mu)], 1)


def test_disentanglement_of_an_encoder_that_knows_the_factors(monkeypatch):
    """Through images, data module and model: the factors reach the scores in the right order."""
    data = vae_lightning.Digits(train_size=60, val_size=10, test_size=1000)
    data.setup("test")
    drawn = []
    original = vae_lightning.data.strokes.render

    def remember(strokes, **kwargs):
        images = original(strokes, **kwargs)
        drawn.append((images, strokes.factors))
        return images

    monkeypatch.setattr("vae_lightning.data.strokes.render", remember)
    data.with_fixed_factor(torch.arange(45) % 7, 16, seed=0)  # what the metric will draw
    drawn.append((data.datasets["test"].images.x, data.factors["test"]))
    everything = torch.cat([factors for _, factors in drawn])
    scale = everything.std(0)
    FactorEncoder.table = {
        image.numpy().tobytes(): row / scale
        for images, factors in drawn
        for image, row in zip(images, factors, strict=True)
    }
    model = vae_lightning.VAE(latent_dim=7, encoder=FactorEncoder)

    metric = Disentanglement(votes=30, per_vote=16)
    fixed = []
    with_fixed_factor = data.with_fixed_factor

    def watched(factor, n, seed):
        fixed.append(factor)
        images = with_fixed_factor(factor, n, seed)
        FactorEncoder.table |= {
            image.numpy().tobytes(): row / scale for image, row in zip(*drawn[-1], strict=True)
        }
        return images

    monkeypatch.setattr(data, "with_fixed_factor", watched)
    results = evaluate(model, data, metric)
    assert len(fixed[0]) == 45
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness"):
        assert results[name].value > 0.75, name
    assert results["factor_vae_score"].value > 0.9
    for i, name in enumerate(data.factor_names):
        scores = results["predictability"].value[name]
        assert max(range(7), key=scores.__getitem__) == i, name


def test_with_fixed_factor_fixes_that_factor_only(monkeypatch):
    data = vae_lightning.Digits(train_size=60, val_size=10, test_size=10)
    seen = []
    monkeypatch.setattr(
        "vae_lightning.data.strokes.render",
        lambda strokes: (
            seen.append(strokes.factors) or torch.zeros(len(strokes.factors), 1, 28, 28)
        ),
    )
    _, y = data.with_fixed_factor(torch.tensor([2, 0, 6]), 20, seed=3)
    groups = seen[0].view(3, 20, 7)
    for group, factor in zip(groups, (2, 0, 6), strict=True):
        constant = (group == group[0]).all(0)
        assert constant.nonzero().flatten().tolist() == [factor]
    assert y.tolist() == seen[0][:, 0].tolist()
    data.with_fixed_factor(torch.tensor([2, 0, 6]), 20, seed=4)
    assert not seen[0].equal(seen[1])


@pytest.mark.parametrize("name", ["kl", "mse"])
def test_results_of_the_same_name_are_refused(blobs, name):
    class Own(Reconstruction):
        def compute(self, module):
            return {name: super().compute(module)["mse"]}

    with pytest.raises(ValueError, match=f"two results of this evaluation are named {name}"):
        evaluate(vae_lightning.VAE(latent_dim=2, **SMALL), blobs(), Reconstruction(), Own())
