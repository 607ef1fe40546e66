"""Callbacks: one file per thing to look at, and the writer of predictions."""

from importlib import import_module
from pkgutil import iter_modules

from vae_lightning.callbacks.figure import Figure
from vae_lightning.callbacks.predictions import PredictionWriter

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

FIGURES: dict[str, type[Figure]] = {cls.name: cls for cls in Figure.__subclasses__()}
"""Every figure of this folder by its name, which is its option and its folder in a run."""

__all__ = ["FIGURES", "Figure", "PredictionWriter"]
