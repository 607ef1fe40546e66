"""Metrics of ``vae test`` and ``vae validate``, one file each.

Every module of this package is imported here, so that new metrics are found by their names.
"""

from importlib import import_module
from pkgutil import iter_modules

from vae_lightning.metrics.base import Metric

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

METRICS: dict[str, type[Metric]] = {cls.name: cls for cls in Metric.__subclasses__()}
"""Metrics of this package by name. The name is the option of a metric."""

__all__ = ["METRICS", "Metric"]
