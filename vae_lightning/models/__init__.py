"""The variants: one LightningModule each.

Every module of this folder is imported here, so that a new file is found by its class's name on
the command line and by the tests without being entered anywhere.
"""

from importlib import import_module
from pkgutil import iter_modules

from vae_lightning.models.base import BaseVAE

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["BaseVAE"]
