"""Data: one LightningDataModule per family of data sets.

Every module of this folder is imported here, so that the command line finds a new class by name.
"""

from importlib import import_module
from pkgutil import iter_modules

from vae_lightning.data.base import ImageData
from vae_lightning.data.batch import Batch

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Batch", "ImageData"]
