"""Classes that a file may name: importing a module, or calling what is in it, runs code.

A checkpoint, and the ``config.yaml`` beside it, may come from anybody. They may only name classes
of the kinds that options take, and only classes that are already imported: those of this project
and its libraries, and the user's own classes that are imported or named on the command line.
"""

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins import Precision as FabricPrecision
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae_lightning.data import ImageData
from vae_lightning.errors import UserError
from vae_lightning.figures import Figure
from vae_lightning.models.loading import PARTS, find_imported, imported_class
from vae_lightning.training import compat

PROJECT_BASES: tuple[type, ...] = (*PARTS, ImageData)
"""Base classes that this project defines."""

RECORD_BASES: tuple[type, ...] = (
    *PROJECT_BASES,
    pl.LightningDataModule,
    Optimizer,
    LRScheduler,
)
"""Base classes of what the record of a checkpoint describes."""

OPTION_BASES: tuple[type, ...] = (
    *RECORD_BASES,
    Figure,
    Logger,
    pl.Callback,
    Strategy,
    Accelerator,
    Profiler,
    FabricPrecision,
    CheckpointIO,
    ClusterEnvironment,
    LayerSync,
)
"""Base classes of everything that options take."""

_REFUSED_PACKAGES = {
    *sys.stdlib_module_names,
    "jsonargparse",
    "pip",
    "pkg_resources",
    "setuptools",
}
"""Packages that define no class of these kinds, but much that is dangerous to call."""

_DOTTED_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


def check_classes(
    path: str | Path, content: Any, named: Collection[str], bases: tuple[type, ...]
) -> None:
    """Check every class in the options, dictionaries and lists that a file holds.

    Args:
        path: The file, for the message.
        content: Content of the file.
        named: Import paths that the user has named.
        bases: Every other class has to be imported and derived from one of these.

    Raises:
        UserError: If a class is neither named nor allowed.
    """
    if isinstance(content, Mapping):
        if "class_path" in content:
            check_class(path, content["class_path"], named, bases)
        content = list(content.values())
    if isinstance(content, list | tuple):
        for item in content:
            check_classes(path, item, named, bases)


def check_class(
    path: str | Path, name: object, named: Collection[str], bases: tuple[type, ...]
) -> None:
    """Check one class: see `check_classes`.

    Raises:
        UserError: If it is neither named nor allowed.
    """
    if not (isinstance(name, str) and name in named):
        imported_class(path, name, bases)


def check_callables(config: Any) -> None:
    """Check that whatever parsed options will call is a class, not a function.

    Raises:
        UserError: If it is something else.
    """
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, Mapping):
        if "class_path" in config and not isinstance(find_imported(config["class_path"]), type):
            raise UserError(f"{config['class_path']} is not a class, and options take only classes")
        config = list(config.values())
    if isinstance(config, list | tuple):
        for item in config:
            check_callables(item)


def foreign_modules(config: str) -> list[str]:
    """Return the modules of classes that are not from this project or its libraries.

    They have to be imported again when a checkpoint of the run is used.

    Args:
        config: Text of a YAML file.

    Example:
        >>> foreign_modules("{model: {class_path: my_models.MyVAE}}")
        ['my_models']
    """
    modules = re.findall(r"class_path: *['\"]?([\w.]+)\.\w+", config)
    known = {"vae_lightning", "lightning", "torch"}
    return sorted({module for module in modules if module.partition(".")[0] not in known})


def import_paths_in(texts: Iterable[str]) -> set[str]:
    """Return everything in texts that looks like the import path of a class."""
    return {name for text in texts for name in _DOTTED_PATH.findall(text)}


@contextmanager
def imports_restricted(named: Iterable[str]) -> Iterator[None]:
    """Let options import only known classes and those that the user has named, within a block.

    This is a second line of defense behind `check_classes`, because there are more ways to name a
    class than those that this project writes into its files, such as a file of options in place of
    a class.

    Args:
        named: Import paths that the user has named.
    """
    allowed = {path for base in OPTION_BASES for cls in subclasses(base) for path in _paths(cls)}
    for name in named:
        package, found = name.partition(".")[0], find_imported(name)
        if package in _REFUSED_PACKAGES:
            continue
        if found is None:  # it may be imported from anywhere in its package
            allowed.add(package)
        elif isinstance(found, type):
            allowed |= {name, f"{found.__module__}.{found.__qualname__}"}
    with compat.parsing_settings_restored():
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=sorted(p for p in allowed if p.replace(".", "_").isidentifier()),
            instantiate_subclass_spec_in_any=False,
        )
        yield


def subclasses(cls: type) -> Iterator[type]:
    """Yield a class and every class derived from it."""
    yield cls
    subclass: type
    for subclass in cls.__subclasses__():
        yield from subclasses(subclass)


def _paths(cls: type) -> Iterator[str]:
    """Yield the import paths of a class: that of its module, and of packages that re-export it."""
    parts = cls.__module__.split(".")
    for n in range(1, len(parts) + 1):
        path = ".".join([*parts[:n], cls.__qualname__])
        if find_imported(path) is cls:
            yield path
