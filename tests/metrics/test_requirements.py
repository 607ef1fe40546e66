"""Every metric and every figure with every variant: it applies, or the model lacks a capability."""

import math

import numpy as np
import pytest
import torch
from contract_checks import build, implementations

import vae_lightning
from vae_lightning import plotting
from vae_lightning.figures import FIGURES, Figure
from vae_lightning.metrics import METRICS, Metric
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.training.module import LitVAE

import lightning.pytorch as pl  # isort: skip

VARIANTS = implementations(GenerativeModel)

SMALL = {
    "log_likelihood": {"num_samples": 3},
    "classification": {"num_samples": 2},
    "disentanglement": {"votes": 6, "per_vote": 4},
}
"""Options of metrics that take long."""


@pytest.fixture(params=VARIANTS, ids=lambda cls: cls.__name__)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Checkpoint of a classifier of the digits, not trained."""
    data = vae_lightning.Digits(train_size=20, val_size=10, test_size=10)
    folder = tmp_path_factory.mktemp("classifier")
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LitVAE(vae_lightning.Classifier(features=8, num_classes=10)), datamodule=data)
    trainer.save_checkpoint(folder / "classifier.ckpt")
    return str(folder / "classifier.ckpt")


def numbers(value):
    """Every number in a result."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def test_every_metric_and_figure_is_found():
    assert set(METRICS.values()) == set(implementations(Metric))
    assert set(FIGURES.values()) == set(implementations(Figure))
    assert all(cls.name == name for name, cls in {**METRICS, **FIGURES}.items())


@pytest.mark.slow_except("VAE", "CVAE", "FactorVAE", "VQVAE", "HierarchicalVAE")
def test_metrics_apply_or_the_model_lacks_what_they_require(variant, classifier):
    """On data that have all that a metric may ask for: labels and factors."""
    model = build(variant, image_shape=(1, 28, 28), num_classes=10)
    data = vae_lightning.Digits(train_size=20, val_size=10, test_size=40, binarization="threshold")
    metrics = {name: cls(**SMALL.get(name, {})) for name, cls in METRICS.items()}
    metrics["frechet"].classifier = classifier
    reported = {}

    def watched(name, compute):
        def wrapper(module):
            reported[name] = compute(module)
            return reported[name]

        return wrapper

    for name, metric in metrics.items():
        metric.compute = watched(name, metric.compute)
    lit = LitVAE(model)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(metrics.values()),
    )
    trainer.test(lit, datamodule=data, verbose=False)
    for name, metric in metrics.items():
        applies = metric.applies_to(model, data)
        assert (name in reported) == applies, name
        # A classifier of a model stands for the one by Bayes' theorem.
        assert applies == model.has(*metric.requires) or model.has(Capability.CLASSIFIER), name
    for name, results in reported.items():
        assert results, name
        for key, result in results.items():
            assert all(math.isfinite(number) for number in numbers(result.value)), key
            assert lit.results[f"test/{key}"] is result
    assert all(math.isfinite(n) for r in lit.results.values() for n in numbers(r.value))


def shapes_of(variant):
    """Models of a variant that a figure may ask for: with two latent dimensions, and with more."""
    yield build(variant)
    if issubclass(variant, LatentVariableModel):
        try:
            yield build(variant, latent_dim=2)
        except TypeError:  # it computes the size of its latent itself
            return


@pytest.mark.slow_except("VAE", "CVAE", "FactorVAE", "VQVAE", "HierarchicalVAE")
def test_figures_are_drawn_or_the_model_lacks_what_they_require(variant, batch):
    for model in shapes_of(variant):
        for name, cls in FIGURES.items():
            figure = cls()
            if not model.has(*cls.requires):
                assert not figure.applies_to(model), name
                continue
            if not figure.applies_to(model):
                # A figure of its own kind of latent space: it says so itself.
                assert "applies_to" in vars(cls), name
                assert cls.needs, name
                continue
            mode = torch.get_rng_state()
            drawn = plotting.to_array(figure.draw(model, batch.x, batch.y, None))
            assert drawn.dtype == np.uint8
            assert drawn.std() > 0, name
            assert torch.get_rng_state().equal(mode), name
            assert model.training


def test_every_figure_and_metric_applies_to_some_model():
    models = [model for variant in VARIANTS for model in shapes_of(variant)]
    for name, cls in FIGURES.items():
        assert any(cls().applies_to(model) for model in models), name
    for name, cls in METRICS.items():
        assert any(model.has(*cls.requires) for model in models), name
