"""The squared MMD against loops in float64, and a model without a density."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from vae_lightning import WAE
from vae_lightning.discrepancies import squared_mmd
from vae_lightning.distributions.mixture_prior import MixtureOfGaussians
from vae_lightning.distributions.posteriors import GaussianPosterior
from vae_lightning.metrics import METRICS
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.randomness import Noise
from vae_lightning.training.module import LitVAE

SCALES = (0.1, 0.2, 0.5, 1, 2, 5, 10)


def model(**kwargs) -> WAE:
    return WAE(**{"image_shape": (1, 8, 8), "latent_dim": 3, "num_classes": 4, **kwargs})


def kernel_value(a, b, kernel) -> float:
    """The sum over the scales, in float64."""
    d = float((a.double() - b.double()).square().sum())
    constants = [2 * len(a) * s for s in SCALES]
    return sum(c / (c + d) if kernel == "imq" else math.exp(-d / c) for c in constants)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize(("n", "size"), [(2, 1), (7, 3)])
def test_mmd_is_that_of_loops(kernel, n, size):
    x, y = torch.randn(n, size), 0.5 + torch.randn(n, size)
    k = functools.partial(kernel_value, kernel=kernel)
    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j)
    between = sum(k(x[i], y[j]) for i in range(n) for j in range(n))
    expected = within / (n * (n - 1)) - 2 * between / n**2
    assert squared_mmd(x, y, kernel).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_of_equal_distributions_is_zero_on_average(kernel):
    """It has no bias: zero over 1500 pairs of samples of 5, to 4 standard errors."""
    values = torch.stack(
        [squared_mmd(torch.randn(5, 2), torch.randn(5, 2), kernel) for _ in range(1500)]
    ).double()
    error = values.std() / math.sqrt(len(values))
    assert values.mean().abs() < 4 * error
    assert error < 0.02
    assert (values < 0).any()


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_grows_with_the_distance_of_the_distributions(kernel):
    x, y = torch.randn(2, 400, 2)
    near, shifted, far = (squared_mmd(x + shift, y, kernel) for shift in (0.0, 0.7, 3.0))
    wide = squared_mmd(3 * x, y, kernel)
    assert abs(near) < 0.05
    assert 0.1 < shifted < far
    assert wide > 0.1


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_of_two_gaussians_is_the_integral(kernel):
    """For the Gaussian kernel in closed form; the estimate from 1500 draws, to a tenth."""
    shift, n = 1.5, 1500
    x, y = shift + torch.randn(n, 1), torch.randn(n, 1)
    found = squared_mmd(x, y, kernel).item()
    expected = 0.0
    for s in SCALES:
        c = 2.0 * s
        if (
            kernel == "rbf"
        ):  # E exp(-d^2 / c) for d from N(m, 2) is sqrt(c / (c + 4)) exp(-m^2 / (c + 4))
            mean = [math.sqrt(c / (c + 4)) * math.exp(-(m**2) / (c + 4)) for m in (0, shift)]
        else:
            d = torch.linspace(-20, 20, 40_001).double()
            mean = [
                float((c / (c + d**2) * torch.exp(-((d - m) ** 2) / 4)).sum() * 1e-3)
                / math.sqrt(4 * math.pi)
                for m in (0, shift)
            ]
        expected += 2 * mean[0] - 2 * mean[1]
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_gradient_of_the_mmd_is_that_of_autograd_in_float64(kernel):
    """Also where two points coincide."""
    x, y = torch.randn(2, 6, 2)
    x[1] = x[0]
    y[2] = x[0]
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    squared_mmd(ours, y, kernel).backward()
    total = 0.0
    for s in SCALES:
        c = 4.0 * s

        def k(a, b, c=c):
            d = (a[:, None] - b).square().sum(2)
            return c / (c + d) if kernel == "imq" else (-d / c).exp()

        xx = k(theirs, theirs)
        total = total + (xx.sum() - xx.diagonal().sum()) / 30 - 2 * k(theirs, y.double()).mean()
    total.backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_mmd_of_a_single_point_is_zero():
    """The last batch of an epoch may have one image, from which nothing can be estimated."""
    x, y = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2)
    value = squared_mmd(x, y)
    assert value.item() == 0
    value.backward()
    assert x.grad.eq(0).all()


def test_terms_are_those_of_one_latent_and_one_draw_of_the_prior_per_image(batch):
    wae = model(mmd_weight=20.0)
    terms = wae.terms(batch.x, None, Noise(batch.indices, "test"))
    z = wae.encoder(batch.x)
    prior = torch.randn(16, 3, generator=Noise(batch.indices, "test").generator("prior"))
    torch.testing.assert_close(terms.mmd, squared_mmd(z, prior))
    expected = -wae.likelihood.log_prob(wae.decoder(z), batch.x)
    torch.testing.assert_close(terms.reconstruction, expected)
    torch.testing.assert_close(wae.objective(terms), expected + 20 * terms.mmd)
    assert terms.mmd.shape == ()


def test_objective_pulls_latents_to_the_prior():
    """Latents far away and too narrow, which start to follow the prior, a mixture of two."""
    wae = WAE(image_shape=(1, 1, 2), latent_dim=2, prior=Two, encoder=Shifted, decoder=Blind)
    wae.mmd_weight = 1000.0
    x = torch.rand(128, 1, 1, 2)
    optimizer = torch.optim.Adam(wae.encoder.parameters(), lr=0.1)
    for step in range(100):
        optimizer.zero_grad()
        wae.objective(wae.terms(x, None, Noise(torch.arange(128), step))).mean().backward()
        optimizer.step()
    z = wae.embed(x)
    assert z.mean(0).abs().max() < 0.4
    torch.testing.assert_close(z.std(0), torch.tensor([2.2, 1.0]), rtol=0.25, atol=0)


class Two(MixtureOfGaussians):
    """Two unit Gaussians at (2, 0) and (-2, 0): the standard deviations are 2.2 and 1."""

    def __init__(self, latent_dim, cond_features=0) -> None:
        super().__init__(latent_dim, cond_features, components=2)
        self.mu.data = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
        self.requires_grad_(False)


class Shifted(nn.Module):
    def __init__(self, image_shape, out_features, cond_features=0) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.full((2,), 0.2)),
            nn.Parameter(torch.ones(2) * 3),
        )

    def forward(self, x, condition=None):
        standardized = (x.flatten(1) - 0.5) * math.sqrt(12)  # of uniform pixels
        return standardized * self.scale + self.shift


class Blind(nn.Module):
    """A decoder that says the same whatever the latent is."""

    def __init__(self, image_shape, in_features, cond_features=0) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.zeros(image_shape))

    def forward(self, z, condition=None):
        return self.out.expand(len(z), -1, -1, -1)


def test_classes_of_a_conditional_model_reach_the_prior(batch):
    """The prior of each image is that of its class."""

    class OfClass(nn.Module):
        support, has_density = "real vectors", True

        def __init__(self, latent_dim, cond_features) -> None:
            super().__init__()

        def sample(self, n, condition, generator):
            return 10 * condition[:, :3] + 0 * torch.randn(n, 3, generator=generator)

        def attach(self, posterior, image_shape):
            pass

        def kl(self, q, condition=None):
            return None

    wae = model(conditional=True)
    wae.prior = OfClass(3, 4)
    condition = wae.encode_labels(batch.y, 16)
    terms = wae.terms(batch.x, condition, Noise(batch.indices, "test"))
    expected = squared_mmd(wae.embed(batch.x, batch.y), 10 * condition[:, :3])
    torch.testing.assert_close(terms.mmd, expected)


# Reports


def evaluate(wae, data, folder):
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[metric() for metric in METRICS.values()],
    )
    return trainer.test(LitVAE(wae), datamodule=data, verbose=False)[0]


def test_a_deterministic_encoder_reports_no_density(blobs, batch, tmp_path):
    wae = model()
    assert not wae.has(Capability.DENSITY)
    assert not wae.has(Capability.KL_PER_DIMENSION)
    assert wae.has(Capability.SAMPLES, Capability.LATENT_VECTOR, Capability.CONTINUOUS_LATENT)
    tested = evaluate(wae, blobs(), tmp_path)
    assert {"test/loss", "test/reconstruction", "test/mmd", "test/active_units"} <= set(tested)
    for name in tested:
        assert "likelihood" not in name, name
        assert "importance" not in name, name
        assert "kl" not in name, name
        assert "elbo" not in name, name
    with pytest.raises(MissingCapabilityError):
        wae.log_prob(batch.x)


def test_a_gaussian_encoder_reports_its_density(blobs, batch, tmp_path):
    wae = model(posterior=GaussianPosterior)
    assert wae.has(Capability.DENSITY, Capability.KL_PER_DIMENSION)
    tested = evaluate(wae, blobs(binarization="threshold"), tmp_path)
    assert tested["test/negative_log_likelihood"] > 0
    assert tested["test/importance_samples"] == 64
    tested = evaluate(wae, blobs(), tmp_path)  # gray pixels
    assert "test/importance_weighted_cross_entropy" in tested
    assert wae.log_prob(batch.x).shape == (16,)


def test_reported_mmd_is_the_mean_over_the_batches(blobs, tmp_path):
    wae = model().eval()
    data = blobs()
    tested = evaluate(wae, data, tmp_path)
    data.setup("test")
    values = []
    for i, raw in enumerate(data.test_dataloader()):
        with torch.no_grad():
            z = wae.encoder(raw.x / 255)
        prior = torch.randn(
            16, 3, generator=Noise(raw.indices, 0, "test", 0, batch=i).generator("prior")
        )
        values.append(squared_mmd(z, prior))
    assert tested["test/mmd"] == pytest.approx(torch.stack(values).mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mmd_weight": -1.0}, "mmd_weight must not be negative"),
        ({"mmd_weight": math.nan}, "mmd_weight must not be negative"),
        ({"kernel": "linear"}, "kernel must be imq or rbf, got 'linear'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
