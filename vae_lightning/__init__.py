"""Train, measure, sample and explore variational autoencoders with PyTorch Lightning.

The public names are imported on first use, so that ``import vae_lightning`` (and with it
``vae --help``) does not wait for torch. They are `load`, `LitVAE`, and every model, data module,
prior, posterior and likelihood by the name of its class.
"""

from functools import cache
from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_FUNCTIONS = {"load": "vae_lightning.models.loading", "LitVAE": "vae_lightning.training.module"}
_PACKAGES = "vae_lightning.models", "vae_lightning.distributions", "vae_lightning.data"
"""Packages whose classes are public, in the order in which they are searched."""


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    if name[:1].isupper():  # `from vae_lightning import randomness` asks here before it imports
        for package in _PACKAGES:
            if name in (found := _classes(package)):
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    classes = (_classes(package) for package in _PACKAGES)
    return sorted({"__version__", *_FUNCTIONS, *(name for found in classes for name in found)})


@cache
def _classes(package: str) -> dict[str, type]:
    """Return the public classes that the modules of a package define, by name."""
    import sys

    import_module(package)
    modules = [m for name, m in sys.modules.items() if name.startswith(f"{package}.")]
    return {
        name: item
        for module in modules
        for name, item in vars(module).items()
        if isinstance(item, type) and item.__module__ == module.__name__ and name[0] != "_"
    }
