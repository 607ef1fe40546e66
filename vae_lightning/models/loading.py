"""Load a trained model from a checkpoint, without Lightning."""

import functools
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vae_lightning import checkpoint
from vae_lightning.distributions.likelihoods import Likelihood
from vae_lightning.distributions.posteriors import Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.models.classifier import Classifier
from vae_lightning.models.image_model import ImageModel
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.nets import Decoder, Encoder
from vae_lightning.nets.code_networks import CodeNetwork
from vae_lightning.nets.quantizers import Quantizer
from vae_lightning.schedules import Schedule, Scheduled

PARTS: tuple[type, ...] = (
    ImageModel,
    Encoder,
    Decoder,
    Likelihood,
    Posterior,
    Prior,
    Schedule,
    Quantizer,
    CodeNetwork,
)
"""Base classes of what a model is made of; a checkpoint may name their subclasses."""


def load(path: str | Path, map_location: str | torch.device = "cpu") -> GenerativeModel:
    """Load a trained autoencoder of the class that the checkpoint names.

    Args:
        path: A checkpoint written by ``vae fit`` or ``Trainer.fit``.
        map_location: Device of the model.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: If the file is missing, damaged, or not a checkpoint of an autoencoder known
            here. Import a model class of your own, and other classes of your own that the model
            uses, before.
    """
    model = load_model(path, map_location)
    if not isinstance(model, GenerativeModel):
        raise UserError(
            f"{path} is of a {type(model).__name__}, which neither encodes nor makes images: give "
            "a checkpoint of a VAE or another autoencoder"
        )
    return model


def load_classifier(path: str | Path, map_location: str | torch.device = "cpu") -> Classifier:
    """Load a trained classifier; see `load`.

    Raises:
        UserError: If the file is missing, damaged, or not a checkpoint of a classifier.
    """
    model = load_model(path, map_location)
    if not isinstance(model, Classifier):
        raise UserError(
            f"{path} is of a {type(model).__name__}: give a checkpoint of a Classifier, as "
            "vae fit --config classifier trains it on the same data"
        )
    return model


def load_model(path: str | Path, map_location: str | torch.device = "cpu") -> ImageModel:
    """Load a trained model of any kind; see `load`.

    Raises:
        UserError: If the file is missing, damaged, or not a checkpoint of a model known here.
    """
    path = expand(path)
    held = checkpoint.read(path)
    model = build(held.record.model, path)
    weights = held.weights
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights of {path} do not fit the {type(model).__name__} that it describes "
            f"({first_mismatch(str(error))}): use another one from the same folder, or get the "
            "file again"
        ) from error
    for module in model.modules():
        if isinstance(module, Scheduled):
            module.step = held.record.step
    model.record = held.record.known_data
    return model.to(map_location).eval()


def build(description: Mapping[str, Any], path: str | Path = "the settings") -> ImageModel:
    """Build an untrained model from what `Configurable.describe` returned, importing nothing.

    Args:
        description: ``{"class_path": ..., "init_args": ...}``.
        path: Where it is from, for messages.

    Raises:
        UserError: If a class is not known, or the model cannot be built.
    """
    cls = imported_class(path, description["class_path"], (ImageModel,))
    try:
        model: ImageModel = cls(**instantiate(path, dict(description["init_args"])))
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the {cls.__name__} of {path} could not be built: it is from another version "
            f"of the class ({' '.join(str(error).split())})"
        ) from error
    return model


def instantiate(path: str | Path, value: Any) -> Any:
    """Invert `to_plain_data` without importing anything.

    Raises:
        UserError: If a class is not known.
    """
    if isinstance(value, Mapping):
        if "class_path" not in value:
            return {key: instantiate(path, item) for key, item in value.items()}
        cls = imported_class(path, value["class_path"], PARTS)
        if "init_args" not in value:
            return cls
        return functools.partial(cls, **instantiate(path, value["init_args"]))
    if isinstance(value, list | tuple):
        return [instantiate(path, item) for item in value]
    return value


def imported_class(path: str | Path, name: object, bases: tuple[type, ...]) -> Any:
    """Return the class that a file names, if it is already imported.

    Args:
        path: The file, for the message.
        name: Import path of the class.
        bases: The class has to be derived from one of them.

    Raises:
        UserError: If it is not, or is abstract.
    """
    cls = find_imported(name)
    if isinstance(cls, type) and issubclass(cls, bases) and not inspect.isabstract(cls):
        return cls
    kind = bases[0].__name__ if len(bases) == 1 else "class that is"
    raise UserError(
        f"{path} names {name!r}, which is no {kind} known here: if it is a class of your own, add "
        "--import MODULE, or import it before; otherwise do not trust the file"
    )


def find_imported(path: object) -> Any:
    """Return the object at an import path, None if its module is not imported."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    if module in sys.modules:
        return getattr(sys.modules[module], name, None)
    outer = find_imported(module) if module else None
    return getattr(outer, name, None) if isinstance(outer, type) else None


def first_mismatch(message: str) -> str:
    """Return the first of the reasons that torch gives for refusing weights."""
    return next((line.strip() for line in message.splitlines()[1:]), "").rstrip(".")
