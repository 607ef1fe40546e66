"""Priors, posteriors and likelihoods.

Every module of this package is imported here, so that a new distribution is found by its name.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
