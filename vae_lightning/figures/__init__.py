"""Figures of models and images, one file each, drawn without Lightning.

Every module of this package is imported here, so that new figures are found by their names.
"""

from importlib import import_module
from pkgutil import iter_modules

from vae_lightning.figures.base import Figure

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

FIGURES: dict[str, type[Figure]] = {cls.name: cls for cls in Figure.__subclasses__()}
"""Figures of this package by name. The name is the option of a figure and its folder in a run."""

__all__ = ["FIGURES", "Figure"]
