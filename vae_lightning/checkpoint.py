"""Checkpoints: plain data in, plain data out, never pickled code."""

import functools
import inspect
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vae_lightning.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

    from vae_lightning.models.base import BaseVAE

RENAMED = r"(?s).*(JsonargparseDeprecationWarning|was deprecated in v4)"
"""Message of the warning that Lightning 2.6 calls what newer jsonargparse has renamed."""

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def portable(value: Any) -> Any:
    """A hyperparameter as plain data that a checkpoint or YAML file can hold.

    A class, or a `functools.partial` of one, becomes ``{"class_path": ..., "init_args": ...}``,
    the form in which the command line reads it back.

    Raises:
        TypeError: For anything else that is not plain data, such as a lambda.
    """
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): portable(item) for key, item in value.items()}
    if cls := class_of(value):
        plain: dict[str, Any] = {"class_path": f"{cls.__module__}.{cls.__qualname__}"}
        if isinstance(value, functools.partial):
            plain["init_args"] = portable(value.keywords)
        return plain
    raise TypeError(
        f"a hyperparameter must be plain data, a class, or functools.partial(class, name=value) so "
        f"that a checkpoint can hold it without pickled code; got {value!r}"
    )


def class_of(value: Any) -> type | None:
    """The class that a hyperparameter is, or is a `functools.partial` of; None for other things."""
    if isinstance(value, functools.partial):
        # jsonargparse, which builds what is loaded, puts functions of its own before the class.
        *_, value = value.func, *value.args
    return value if isinstance(value, type) else None


def remember_arguments(module: "HyperparametersMixin") -> None:
    """Save the arguments of ``__init__``, from which this is called, as hyperparameters.

    They are plain data and name the class, whether the command line or Python built the module,
    so that `load` and ``vae test`` can build it again.

    Raises:
        TypeError: If an argument cannot be written as plain data.
    """
    caller = inspect.currentframe().f_back  # type: ignore[union-attr]
    module.save_hyperparameters(frame=caller)
    class_path = f"{type(module).__module__}.{type(module).__qualname__}"
    plain = {"_class_path": class_path, "_instantiator": INSTANTIATOR, **portable(module.hparams)}
    module.hparams.clear()
    module.save_hyperparameters(plain, frame=caller)


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote, tensors mapped from the file, onto the CPU.

    Raises:
        UserError: If there is no such file, or it is no checkpoint, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give the path of a .ckpt file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a checkpoint, or only a part of one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not loaded: it is damaged, or holds Python objects other than weights and "
            "plain data, which could run code; train again or get the file again"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable checkpoint ({str(error).splitlines()[0]}); it may be "
            "truncated: use another one from the same folder"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of this project: it has no 'state_dict'")
    return checkpoint


def check_fits(path: str | Path, module: nn.Module) -> None:
    """Check that the weights of a checkpoint can be put into a module.

    Raises:
        UserError: If they cannot.
    """
    held = {name: tuple(value.shape) for name, value in read(path)["state_dict"].items()}
    asked = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = sorted(name for name in held.keys() | asked.keys() if held.get(name) != asked.get(name))
    if wrong:
        what = {True: "is missing", False: "has another size"}[
            not (wrong[0] in held and wrong[0] in asked)
        ]
        raise UserError(
            f"the weights of {path} do not fit the model that the options describe ({wrong[0]} "
            f"{what}): leave out options that change its size or the images' shape"
        )


def known_class(path: str | Path, class_path: str, base: type) -> Any:
    """The class that a checkpoint names, if it is imported already: importing runs code.

    Raises:
        UserError: If it is not, or is no subclass of ``base``.
    """
    module, _, name = class_path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(
            f"{path} names {class_path}, which is no {base.__name__} known here: if you trust it, "
            f"import {module} before loading, or give the class to the command line as an option"
        )
    return cls


def load(path: str | Path, map_location: str | torch.device = "cpu") -> "BaseVAE":
    """Load a trained model of whatever class the checkpoint says, ready for use.

    Args:
        path: A checkpoint written by ``vae fit`` or ``Trainer.fit``.
        map_location: Device of the model.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: If the file is missing, damaged, or not a checkpoint of a model known here. A
            model class of your own has to be imported before.
    """
    import vae_lightning.models  # the variants have to be imported to be found

    class_path = read(path).get("hyper_parameters", {}).get("_class_path")
    if class_path is None:
        raise UserError(f"{path} does not say which model it holds: it has no '_class_path'")
    cls = known_class(path, class_path, vae_lightning.models.BaseVAE)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", RENAMED)
            model = cls.load_from_checkpoint(path, map_location=map_location, weights_only=True)
    except ValueError as error:
        raise UserError(
            f"{path} holds a {class_path}, which could not be built: {' '.join(str(error).split())}"
        ) from error
    return model.eval()
