"""What training and testing report beyond averages over images."""

from importlib import import_module
from pkgutil import iter_modules

from vae_lightning.metrics.codebook import CodeCounts
from vae_lightning.metrics.measure import Measure
from vae_lightning.metrics.result import Result

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

MEASURES: dict[str, type[Measure]] = {cls.name: cls for cls in Measure.__subclasses__()}
"""Every measure of this folder by its name, which is its option."""

__all__ = ["MEASURES", "CodeCounts", "Measure", "Result"]
