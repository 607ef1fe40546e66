"""Files of fitted densities: plain data, never pickled code."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vae_lightning.errors import UserError
from vae_lightning.explore.densities.base import LatentDensity
from vae_lightning.explore.densities.flow import FlowDensity
from vae_lightning.explore.densities.gaussian_mixture import GaussianMixtureDensity
from vae_lightning.explore.densities.second_stage import SecondStageVAE
from vae_lightning.files import expand

_KEY = "vae_lightning_density"
_VERSION = 1

DENSITIES: dict[str, type[LatentDensity]] = {
    cls.name: cls for cls in (GaussianMixtureDensity, FlowDensity, SecondStageVAE)
}
"""Densities by name."""


def weights_digest(model: nn.Module) -> str:
    """Return a digest of the weights of a model, by which a density is known to belong to it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_density(density: LatentDensity, path: str | Path, model: nn.Module) -> None:
    """Write a density to a file.

    Args:
        density: The fitted density.
        path: The file, which is replaced at once if it exists.
        model: The model to whose latents it was fitted.
    """
    path = expand(path)
    content = {
        _KEY: {
            "version": _VERSION,
            "name": density.name,
            "settings": density.settings,
            "model": weights_digest(model),
        },
        "state_dict": density.state_dict(),
    }
    partial = path.with_name(f"{path.name}.part")
    torch.save(content, partial)
    os.replace(partial, path)


def load_density(path: str | Path, model: nn.Module) -> LatentDensity:
    """Read a density that was fitted to the latents of a model.

    Args:
        path: The file.
        model: The model.

    Returns:
        The density on the CPU, in evaluation mode.

    Raises:
        UserError: If the file is missing, damaged, of another kind, or was fitted to the latents of
            another model or of other weights.
    """
    path = expand(path)
    again = "fit it again with vae density fit"
    if not path.is_file():
        raise UserError(f"no density at {path}: fit one with vae density fit")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        held = content[_KEY]
        version, cls = held["version"], DENSITIES.get(held["name"])
    except Exception as error:  # any error that bytes which nobody wrote so may lead to
        raise UserError(f"{path} is no density, or is damaged: {again}") from error
    if version != _VERSION or cls is None:
        raise UserError(f"{path} is of another version of the project: {again}")
    if held["model"] != weights_digest(model):
        raise UserError(
            f"{path} was fitted to the latents of another model, or before it was trained further: "
            f"{again}"
        )
    try:
        density = cls(**held["settings"])
        density.load_state_dict(content["state_dict"])
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {again}") from error
    return density.eval()
