"""Which classes a file may name: importing a module, or calling what is in it, runs code.

A checkpoint, and the config.yaml beside it, may be from anybody. They may name classes of the kinds
that options take, and only such as are imported already: those of this project and its libraries,
and those of the user's own that the user has imported, or named on the command line.
"""

import functools
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse
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
from vae_lightning.likelihoods import Likelihood
from vae_lightning.models import BaseVAE
from vae_lightning.nets import Decoder, Encoder
from vae_lightning.quantizers import VectorQuantizer
from vae_lightning.schedules import Schedule

OURS: tuple[type, ...] = (
    BaseVAE,
    ImageData,
    Encoder,
    Decoder,
    Likelihood,
    Schedule,
    VectorQuantizer,
)
PARTS: tuple[type, ...] = (*OURS, pl.LightningDataModule, Optimizer, LRScheduler)
"""What a model and its data are made of."""

KINDS: tuple[type, ...] = (
    *PARTS,
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
"""What options take."""

_NEVER = {*sys.stdlib_module_names, "jsonargparse", "pip", "pkg_resources", "setuptools"}
"""Packages with no class of these kinds, but with much that is dangerous to call."""

_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


def known_class(
    path: str | Path, class_path: object, kinds: type | tuple[type, ...] = PARTS
) -> Any:
    """The class that a file names, if it is imported already.

    Args:
        path: The file, for the message.
        class_path: What it names.
        kinds: Of which the class has to be a subclass.

    Raises:
        UserError: If it is not, or is abstract.
    """
    cls = _imported(class_path)
    if isinstance(cls, type) and issubclass(cls, kinds) and not inspect.isabstract(cls):
        return cls
    kind = kinds.__name__ if isinstance(kinds, type) else "class that is"
    raise UserError(
        f"{path} names {class_path!r}, which is no {kind} known here: if it is a class of your "
        "own, name it as an option, or give the run's config.yaml as --config, or import it "
        "before; otherwise do not trust the file"
    )


def check_class(
    path: str | Path,
    class_path: object,
    named: Collection[str],
    kinds: type | tuple[type, ...] = PARTS,
) -> None:
    """Check that a class is known or one of those that the user has ``named``: see `known_class`.

    Raises:
        UserError: If it is neither.
    """
    if not (isinstance(class_path, str) and class_path in named):
        known_class(path, class_path, kinds)


def check_classes(
    path: str | Path, content: Any, named: Collection[str], kinds: tuple[type, ...] = PARTS
) -> None:
    """As `check_class`, for all classes in the options, dictionaries and lists, that a file holds.

    Raises:
        UserError: If one is neither known nor named.
    """
    if isinstance(content, Mapping):
        if "class_path" in content:
            check_class(path, content["class_path"], named, kinds)
        content = list(content.values())
    if isinstance(content, list | tuple):
        for item in content:
            check_classes(path, item, named, kinds)


def built(path: str | Path, value: Any) -> Any:
    """The inverse of `vae_lightning.checkpoint.portable`, with nothing imported.

    Raises:
        UserError: If a class is not known.
    """
    if isinstance(value, Mapping):
        if "class_path" not in value:
            return {key: built(path, item) for key, item in value.items()}
        cls = known_class(path, value["class_path"])
        if "init_args" not in value:
            return cls
        return functools.partial(cls, **built(path, value["init_args"]))
    if isinstance(value, list | tuple):
        return [built(path, item) for item in value]
    return value


def names_others(config: str) -> bool:
    """Whether a configuration (the text of a YAML file) names classes from outside of this project.

    To continue its run they have to be named once more.
    """
    packages = set(re.findall(r"class_path: *['\"]?(\w+)", config))
    return not packages <= {"vae_lightning", "lightning", "torch"}


def names_in(texts: Iterable[str]) -> set[str]:
    """Everything in texts that looks like the path of a class."""
    return {name for text in texts for name in _PATH.findall(text)}


@contextmanager
def importing_only(named: Iterable[str]) -> Iterator[None]:
    """Within it, options import what is known and what the user has named, and nothing else.

    A second line behind `check_classes`: there are other ways to name a class than those that this
    project writes into its files, such as a file of options in the place of a class.

    Args:
        named: Classes that the user has named.
    """
    known = {path for kind in KINDS for cls in subclasses(kind) for path in _paths(cls)}
    for name in named:
        package, found = name.partition(".")[0], _imported(name)
        if found is None and package not in _NEVER:  # it is imported from anywhere in its package
            known.add(package)
        elif isinstance(found, type) and package not in _NEVER:
            known |= {name, f"{found.__module__}.{found.__qualname__}"}
    # There is no public way to take a setting back.
    settings = getattr(getattr(jsonargparse, "_common", None), "parsing_settings", {})
    before = dict(settings)
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=sorted(p for p in known if p.replace(".", "_").isidentifier()),
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    finally:
        settings.update(before)


def check_callables(config: Any) -> None:
    """Check that what parsed options will call are classes, not functions.

    Raises:
        UserError: If one is something else.
    """
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, Mapping):
        if "class_path" in config and not isinstance(_imported(config["class_path"]), type):
            raise UserError(f"{config['class_path']} is no class, and options take classes only")
        config = list(config.values())
    if isinstance(config, list | tuple):
        for item in config:
            check_callables(item)


def subclasses(cls: type) -> Iterator[type]:
    """A class, and all that are derived from it."""
    yield cls
    subclass: type
    for subclass in cls.__subclasses__():
        yield from subclasses(subclass)


def _imported(path: object) -> Any:
    """The object at an import path, without importing anything."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    if module in sys.modules:
        return getattr(sys.modules[module], name, None)
    outer = _imported(module) if module else None
    return getattr(outer, name, None) if isinstance(outer, type) else None


def _paths(cls: type) -> Iterator[str]:
    """Import paths of a class: that of its module, and of the packages that hand it on."""
    parts = cls.__module__.split(".")
    for n in range(1, len(parts) + 1):
        path = ".".join([*parts[:n], cls.__qualname__])
        if _imported(path) is cls:
            yield path
