"""Data modules, one file per family of data sets.

Every module of this package is imported here, so that the command line finds new classes by name.
"""

from importlib import import_module
from pkgutil import iter_modules

from vae_lightning.batch import Batch
from vae_lightning.data.base import ImageData

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Batch", "ImageData"]
