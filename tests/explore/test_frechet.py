"""Fréchet distance, against closed forms and SciPy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from vae_lightning import Classifier
from vae_lightning.explore.frechet import features, frechet_distance


def reference(a, b):
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    return mean + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)


def test_equals_the_formula():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12))
    b = np.exp(rng.normal(size=(300, 12)))
    found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(reference(a, b), rel=1e-9)
    # In float32 too, because the arithmetic is in float64.
    found = frechet_distance(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert found == pytest.approx(reference(a, b), rel=1e-5)


def test_of_normal_distributions_with_diagonal_covariances():
    made = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 2, generator=made, dtype=torch.float64)
    a, b = noise, torch.tensor([3.0, 1.0]) * noise.flip(0) + torch.tensor([0.0, 4.0])
    assert frechet_distance(a, b) == pytest.approx(16 + (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.rand(5, 2), torch.rand(5, 3), "expected features"),
        (torch.rand(5, 2, 1), torch.rand(5, 2, 1), "expected features"),
        (torch.rand(1, 2), torch.rand(5, 2), "at least two images"),
    ],
)
def test_wrong_arguments(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_features_are_what_the_last_layer_sees():
    torch.manual_seed(0)
    model = Classifier(features=6, num_classes=3, image_shape=(1, 8, 8))
    x = torch.rand(7, 1, 8, 8)
    found = features(model, x, batch_size=3)
    assert found.dtype == torch.float64
    assert found.min() >= 0
    probabilities = model.head(found.float()).softmax(1)
    assert model.classify(x).allclose(probabilities, atol=1e-6)
    assert model.classify(x).sum(1).allclose(torch.ones(7))
