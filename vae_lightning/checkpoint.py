"""Checkpoints: plain data in, plain data out, never pickled code."""

import functools
import inspect
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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


_FIELDS: dict[str, tuple[type, bool]] = {
    "state_dict": (Mapping, True),
    "pytorch-lightning_version": (str, True),
    "epoch": (int, True),
    "global_step": (int, True),
    "loops": (Mapping, False),
    "optimizer_states": (list, False),
    "lr_schedulers": (list, False),
    "callbacks": (Mapping, False),
    "hyper_parameters": (Mapping, False),
    "datamodule_hyper_parameters": (Mapping, False),
    "noise_seed": (int, False),
    "step": (int, False),
    "updates": (int, False),
}
"""Fields of a checkpoint: their type, and whether they have to be there."""

_GET_ANOTHER = "use another one from the same folder, or get the file again"


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that Lightning wrote, tensors mapped from the file, onto the CPU.

    Raises:
        UserError: If there is no such file, or it is no checkpoint of a model of this project, or
            is damaged, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        what = "which is a folder" if path.is_dir() else "where no file is"
        raise UserError(f"no checkpoint at {path}, {what}: give the path of a .ckpt file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a checkpoint, or only a part of one: {_GET_ANOTHER}")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not compare the checksums, and would go on with other weights.
            altered = archive.testzip()
    except Exception as error:  # whatever bytes that nobody wrote so lead to
        raise UserError(f"{path} is damaged ({_reason(error)}): {_GET_ANOTHER}") from error
    if altered is not None:
        raise UserError(f"{path} is damaged: {altered} in it has been altered; {_GET_ANOTHER}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not loaded: it is damaged, or holds Python objects other than weights and "
            "plain data, which could run code; train again or get the file again"
        ) from error
    except Exception as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read ({_reason(error)}): {_GET_ANOTHER}"
        ) from error
    _check_fields(path, checkpoint)
    return checkpoint


def check_fits(path: str | Path, weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Check that the weights of a checkpoint can be put into a module.

    Args:
        path: The checkpoint, for the message.
        weights: Those that it holds.
        module: The module.

    Raises:
        UserError: If they cannot.
    """
    held = {name: tuple(value.shape) for name, value in weights.items()}
    asked = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = sorted(name for name in held.keys() | asked.keys() if held.get(name) != asked.get(name))
    if wrong:
        what = "has another size" if wrong[0] in held.keys() & asked.keys() else "is missing"
        raise UserError(
            f"the weights of {path} do not fit the model that the options describe ({wrong[0]} "
            f"{what}): leave out options that change its size or the images' shape"
        )


def _check_fields(path: Path, content: Any) -> None:
    """Check that a file holds what Lightning writes, and says which model it is of."""
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is not a checkpoint of this project: it has no 'state_dict'")
    for name, (kind, needed) in _FIELDS.items():
        if needed and name not in content:
            raise UserError(f"{path} is not a checkpoint of this project: it has no '{name}'")
        if name in content and not isinstance(content[name], kind):
            found = type(content[name]).__name__
            raise UserError(f"{path} is damaged: its '{name}' is of type {found}; {_GET_ANOTHER}")
    version = content["pytorch-lightning_version"]
    if not re.match(r"\d+\.\d+", version):
        raise UserError(f"{path} is damaged: it is of version {version!r} of Lightning")
    for name, value in content["state_dict"].items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path} is damaged: the weight '{name}' is no tensor; {_GET_ANOTHER}")
    if "_class_path" not in content.get("hyper_parameters", {}):
        raise UserError(
            f"{path} does not say which model it is of (it has no '_class_path'): give a "
            "checkpoint of a model of this project"
        )


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")


def load(path: str | Path, map_location: str | torch.device = "cpu") -> "BaseVAE":
    """Load a trained model of whatever class the checkpoint says, ready for use.

    Args:
        path: A checkpoint written by ``vae fit`` or ``Trainer.fit``.
        map_location: Device of the model.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: If the file is missing, damaged, or not a checkpoint of a model known here. A
            model class of your own, and other classes of your own that the model was made with,
            have to be imported before.
    """
    from vae_lightning import models, trust  # they import this

    content = read(path)
    arguments = dict(content["hyper_parameters"])
    cls = trust.known_class(path, arguments.pop("_class_path"), models.BaseVAE)
    given = {k: v for k, v in arguments.items() if not str(k).startswith("_")}
    try:
        model: BaseVAE = cls(**trust.built(path, given))
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the {cls.__name__} of {path} could not be built, so the file is damaged or from "
            f"another version of the class ({' '.join(str(error).split())})"
        ) from error
    model.on_load_checkpoint(content)
    try:
        model.load_state_dict(content["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        raise UserError(
            f"the weights of {path} do not fit the {cls.__name__} that it describes "
            f"({misfit(str(error))}): {_GET_ANOTHER}"
        ) from error
    return model.to(map_location).eval()


def misfit(message: str) -> str:
    """The first of the reasons that torch gives for not taking weights."""
    return next((line.strip() for line in message.splitlines()[1:]), "").rstrip(".")


def is_inside_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether a training that goes on from a checkpoint has batches of its epoch before it."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return not progress["is_last_batch"]
