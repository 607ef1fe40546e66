"""Checkpoints: plain data in, plain data out, never pickled code."""

import functools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vae_lightning.errors import UserError

if TYPE_CHECKING:
    from vae_lightning.models.base import BaseVAE

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
    if isinstance(value, type):
        return {"class_path": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, functools.partial) and isinstance(value.func, type) and not value.args:
        return {**portable(value.func), "init_args": portable(value.keywords)}
    raise TypeError(
        f"a hyperparameter must be plain data, a class, or functools.partial(class, name=value) so "
        f"that a checkpoint can hold it without pickled code; got {value!r}"
    )


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote, tensors mapped from the file, onto the CPU.

    Raises:
        UserError: If there is no such file, or it is no checkpoint, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give the path of a .ckpt file")
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

    checkpoint = read(path)
    class_path = checkpoint.get("hyper_parameters", {}).get("_class_path")
    if class_path is None:
        raise UserError(f"{path} does not say which model it holds: it has no '_class_path'")
    try:
        model = vae_lightning.models.BaseVAE.load_from_checkpoint(
            path, map_location=map_location, weights_only=True
        )
    except ValueError as error:
        raise UserError(
            f"{path} holds a {class_path}, which could not be built: "
            f"{' '.join(str(error).split())}"
        ) from error
    return model.eval()
