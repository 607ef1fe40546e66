"""MS-SSIM against an independent float64 computation, and a loss that says that it is one."""

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract_checks import check_terms

from vae_lightning import IWAE, VAE, LitVAE
from vae_lightning.__main__ import main
from vae_lightning.batch import Batch
from vae_lightning.checkpoint import TrainingRecord
from vae_lightning.cli.explore import compare
from vae_lightning.distributions.likelihoods import Bernoulli, Gaussian
from vae_lightning.distributions.ms_ssim import MSSSIM
from vae_lightning.distributions.pixel_likelihoods import Categorical256, MixtureOfLogistics
from vae_lightning.distributions.real_likelihoods import Laplace
from vae_lightning.explore.model_card import model_card

WEIGHTS = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]


def window_of(n, largest=11):
    """The longest odd window of at most half of the axis."""
    return max(w for w in range(1, largest + 1, 2) if w == 1 or w <= n / 2)


def weights_of(length):
    i = np.arange(length) - (length - 1) / 2
    w = np.exp(-(i**2) / (2 * (1.5 * length / 11) ** 2))
    return w / w.sum()


def reference(x, y):
    """MS-SSIM of two images (H, W) of float64, with the moments around the mean of each window."""
    rows, columns = (weights_of(window_of(n)) for n in x.shape)
    used = [(n, window_of(n)) for n in x.shape if window_of(n) > 1]
    scales = 1
    while scales < 5 and all(n // 2**scales >= w for n, w in used):
        scales += 1
    kernel, value = np.outer(rows, columns), 1.0
    for j in range(scales):
        u, v = (np.lib.stride_tricks.sliding_window_view(i, kernel.shape) for i in (x, y))

        def average(values, kernel=kernel):
            return (kernel * values).sum((-2, -1), keepdims=True)

        du, dv = u - average(u), v - average(v)
        mean_u, mean_v = average(u), average(v)
        luminance = (2 * mean_u * mean_v + 1e-4) / (mean_u**2 + mean_v**2 + 1e-4)
        cs = (2 * average(du * dv) + 9e-4) / (average(du**2) + average(dv**2) + 9e-4)
        term = (luminance * cs if j == scales - 1 else cs).mean()
        value *= term ** (WEIGHTS[j] / sum(WEIGHTS[:scales]))
        by = [2 if len(w) > 1 else 1 for w in (rows, columns)]
        h, w = (n // k for n, k in zip(x.shape, by, strict=True))
        x, y = (
            i[: h * by[0], : w * by[1]].reshape(h, by[0], w, by[1]).mean((1, 3)) for i in (x, y)
        )
    return value, scales


def pair(*shape, noise=0.1, seed=0):
    """A smooth image in [0, 1] and a distorted one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator)
    wave = torch.linspace(0, 6, shape[-1]).sin() * torch.linspace(1, 5, shape[-2]).cos()[:, None]
    x = (0.5 + 0.4 * wave + 0.1 * (x - 0.5)).clamp(0, 1)
    y = (0.9 * x + noise * torch.randn(*shape, generator=generator)).clamp(0.01, 0.99)
    return x, y


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((8, 8), 2),
        ((28, 28), 2),
        ((23, 44), 2),
        ((64, 64), 3),
        ((178, 181), 5),
        ((1, 40), 2),
        ((1, 100), 4),
        ((300, 1), 5),
        ((6, 6), 2),
        ((2, 30), 2),
    ],
    ids=str,
)
def test_is_that_of_a_float64_computation(shape, scales):
    x, y = pair(1, 1, *shape)
    expected, used = reference(*(i[0, 0].double().numpy() for i in (x, y)))
    assert used == scales
    assert 0.1 < expected < 0.999
    assert MSSSIM().similarity(x, y).item() == pytest.approx(expected, abs=1e-5)
    log_prob = MSSSIM(weight=3.0).log_prob(y.logit(), x)
    loss = 3 * math.prod(shape) * (1 - expected)
    assert log_prob.item() == pytest.approx(-loss, rel=2e-4)


def test_largest_image_is_compared_at_five_scales_with_the_weights_of_the_paper():
    """A known value: with constant images, only the luminance of the last scale is below 1."""
    x, y = torch.full((1, 1, 200, 200), 0.2), torch.full((1, 1, 200, 200), 0.6)
    luminance = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert MSSSIM().similarity(x, y).item() == pytest.approx(luminance**0.1333, abs=2e-4)
    small = MSSSIM().similarity(x[..., :28, :28], y[..., :28, :28]).item()
    assert small == pytest.approx(luminance ** (0.2856 / 0.3304), abs=2e-4)


def test_each_channel_and_image_counts_alone():
    x, y = pair(3, 2, 16, 16)
    whole = MSSSIM().log_prob(y.logit(), x)
    each = [[MSSSIM().log_prob(y[i, [c]].logit(), x[i, [c]]) for c in range(2)] for i in range(3)]
    torch.testing.assert_close(whole, torch.tensor(each).sum(1))


def test_is_largest_for_equal_images_and_symmetric():
    x, y = pair(4, 1, 28, 28)
    torch.testing.assert_close(MSSSIM().similarity(x, x), torch.ones(4, 1))
    assert (MSSSIM().similarity(x, y) < 1).all()
    torch.testing.assert_close(MSSSIM().similarity(x, y), MSSSIM().similarity(y, x))
    closer, farther = pair(4, 1, 28, 28, noise=0.05)[1], pair(4, 1, 28, 28, noise=0.3)[1]
    assert (MSSSIM().similarity(x, closer) > MSSSIM().similarity(x, farther)).all()


def test_opposite_images_have_a_positive_similarity_and_a_gradient():
    """Powers of negative similarities would be NaN, and zeros would stop the training."""
    x, _ = pair(2, 1, 28, 28)
    params = (1 - x).clamp(0.01, 0.99).logit().requires_grad_()
    similarity = MSSSIM().similarity(x, params.sigmoid())
    assert (similarity > 0).all()
    assert (similarity < 0.05).all()
    MSSSIM().log_prob(params, x).sum().backward()
    assert params.grad.isfinite().all()
    assert params.grad.abs().sum() > 1e-3


def test_gradient_is_the_limit_of_differences():
    x, y = pair(1, 1, 12, 13)
    params = y.logit().requires_grad_()
    MSSSIM().log_prob(params, x).sum().backward()
    for place in ((0, 0), (5, 7), (11, 12)):
        step = torch.zeros_like(params)
        step[0, 0, place[0], place[1]] = 0.05
        with torch.no_grad():
            ends = [MSSSIM().log_prob(params + sign * step, x).item() for sign in (1, -1)]
        found = params.grad[0, 0, place[0], place[1]].item()
        assert found == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.02, abs=1e-3)


def test_images_are_learned_from_noise():
    """From an image that resembles none, and with the borders."""
    x, _ = pair(1, 1, 28, 28)
    params = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(1)).requires_grad_()
    first = MSSSIM().similarity(x, params.sigmoid()).item()
    optimizer = torch.optim.Adam([params], lr=0.2)
    for _ in range(150):
        optimizer.zero_grad()
        (-MSSSIM().log_prob(params, x)).sum().backward()
        optimizer.step()
    assert first < 0.2
    assert MSSSIM().similarity(x, params.sigmoid()).item() > 0.98
    assert (params.sigmoid() - x).abs().max() < 0.25


def test_is_computed_in_float32_under_autocast():
    x, y = pair(2, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = MSSSIM().log_prob(y.logit(), x)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, MSSSIM().log_prob(y.logit(), x))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weight": 0}, "weight must be positive, got 0"),
        ({"window": 4}, "window must be odd and at least 3, got 4"),
        ({"window": 1}, "window must be odd"),
    ],
)
def test_refuses_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MSSSIM(**kwargs)


def test_refuses_images_without_windows_and_unbounded_data_when_the_model_is_built():
    with pytest.raises(ValueError, match="images of 1x5 are too small") as caught:
        VAE(image_shape=(1, 1, 5), likelihood=MSSSIM)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="MSSSIM is a loss of values in"):
        VAE(image_shape=(1, 8, 8), bounded=False, likelihood=MSSSIM)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 1, 40)])
@pytest.mark.parametrize("model", [VAE, IWAE])
def test_models_of_images_and_signals(model, shape):
    made = model(image_shape=shape, latent_dim=2, likelihood=MSSSIM)
    check_terms(made, Batch(torch.rand(5, *shape), None, torch.arange(5)))


def test_only_losses_are_not_normalized():
    models = {cls: VAE(image_shape=(1, 8, 8), likelihood=cls) for cls in (MSSSIM, Bernoulli)}
    assert not models[MSSSIM].is_normalized(binary=True)
    assert not models[MSSSIM].is_normalized(binary=False)
    assert models[Bernoulli].is_normalized(binary=True)
    assert not models[Bernoulli].is_normalized(binary=False)
    gaussian = VAE(image_shape=(1, 8, 8), likelihood=functools.partial(Gaussian, sigma=0.2))
    assert gaussian.is_normalized(binary=False)
    assert not LitVAE(models[MSSSIM]).is_normalized


def test_everything_printed_says_that_it_is_a_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    sizes = ["--data=Digits", "--data.train_size=96", "--data.val_size=32", "--data.test_size=24"]
    fit = ["fit", "--model=VAE", "--model.likelihood=MSSSIM", "--trainer.max_epochs=1"]
    no_figures = [f"--figures.{name}=null" for name in ("samples", "latents", "traversals")]
    main([*fit, *sizes, *quiet, *no_figures, "--figures.reconstructions=null"])
    ckpt = "runs/vae/version_0/checkpoints/best.ckpt"
    capsys.readouterr()
    main(["test", "--ckpt_path", ckpt, "--metrics.disentanglement=null", *quiet])
    printed = capsys.readouterr().out
    for line in ("  dissimilarity  ", "  dissimilarity + kl  ", "  importance-weighted  "):
        assert line in printed
    assert "MSSSIM is a loss without a density, not a log-likelihood." in printed
    assert "use --model.likelihood DiscretizedLogistic" in printed
    for word in ("bits per dimension", "cross-entropy", "negative", "Bernoulli"):
        assert word not in printed
    metrics = json.loads(Path("runs/vae/version_0/test/metrics.json").read_text())
    units = metrics["units"]
    assert not metrics["is_normalized"]
    assert units["kl"] == "nats per image"
    for name in ("reconstruction", "negative_elbo", "importance_weighted_dissimilarity"):
        assert units[name] == "loss per image"
    assert "negative_log_likelihood" not in units

    main(["score", "--ckpt_path", ckpt, "--split=test", "--out=scores.csv"])
    assert "of a dissimilarity (MSSSIM), not of a log-likelihood" in capsys.readouterr().out
    assert "negative_log_likelihood" not in Path("scores.csv").read_text()
    with pytest.raises(SystemExit, match="1"):
        main(["sample", "--ckpt_path", ckpt, "--draw", "--n=2"])
    error = capsys.readouterr().err
    assert "is a loss and not a distribution of pixels" in error
    assert "Traceback" not in error


def test_losses_of_other_settings_are_not_compared():
    def kind(likelihood, **kwargs):
        model = VAE(image_shape=(1, 8, 8), likelihood=functools.partial(likelihood, **kwargs))
        return compare.kind_of(SimpleNamespace(model=model, is_binary=False))

    assert kind(MSSSIM, weight=2.0) == "a dissimilarity by MSSSIM(weight=2.0)"
    assert kind(MSSSIM, weight=2.0) != kind(MSSSIM, weight=1.0)
    assert kind(Gaussian, sigma=0.1) == kind(Laplace, sigma=0.3) == "a density of images"
    assert kind(MixtureOfLogistics, components=2) == kind(Categorical256)
    assert kind(Categorical256) == "a probability of 256 values"


def test_model_card_says_that_it_is_a_loss():
    model = VAE(image_shape=(1, 8, 8), likelihood=MSSSIM)
    record = TrainingRecord(model.describe(), {"class_path": "Adam"}, noise_seed=0, step=1)
    card = model_card(model, record, {"is_normalized": False})
    assert "Trained with MSSSIM, a loss and not a likelihood: its bound is a dissimilarity" in card
    assert "Bernoulli" not in card
