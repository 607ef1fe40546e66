"""Go from one image to another through the latent space."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vae_lightning.functional import slerp
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.hierarchy import Hierarchy
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.latent_variable_model import LatentVariableModel

Path = Literal["linear", "spherical", "geodesic"]


@dataclass(frozen=True)
class Interpolation:
    """Images between pairs of images.

    Attributes:
        images: Images in [0, 1], one row per pair, (P, S, C, H, W).
        latents: The latents, (P, S, L), as `path_vectors` returns them.
    """

    images: Tensor
    latents: Tensor


def path_vectors(model: GenerativeModel, x: Tensor, label: Labels = None) -> Tensor:
    """Return the latents of images as vectors between which `interpolate` goes.

    Those of a hierarchy are the noise that its levels are made of, see `Hierarchy.to_noise`: the
    levels of a mixture of two images would not fit each other.

    Args:
        model: A model with a latent vector, or a hierarchy.
        x: Images in [0, 1], (B, C, H, W).
        label: The class of all images or of each, (B,), for conditional models.

    Returns:
        (B, L).

    Example:
        >>> from vae_lightning import HierarchicalVAE
        >>> vae = HierarchicalVAE(latent_dim=8, top_dim=4)
        >>> path_vectors(vae, torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 12])
    """
    if not isinstance(model, Hierarchy):
        return model.latent_vectors(x, label)
    z = model.embed(x, label)
    with model.inference():
        return model.to_noise(z, model.encode_labels(label, len(x)))


def paths_of(model: GenerativeModel) -> tuple[Path, ...]:
    """Return the kinds of paths that the latent space of a model has.

    Example:
        >>> from vae_lightning import VAE
        >>> paths_of(VAE(latent_dim=2))
        ('linear', 'spherical')
    """
    if isinstance(model, LatentVariableModel):
        z = torch.zeros(1, model.prior_dim)
        if model.prior.geodesic(z, z, torch.zeros(1)) is not None:
            return ("geodesic",)
    return "linear", "spherical"


def project(model: GenerativeModel, z: Tensor) -> Tensor:
    """Return the latents nearest to vectors (..., L), such as means, see `Prior.project`.

    Example:
        >>> from vae_lightning import VAE
        >>> project(VAE(latent_dim=2), torch.tensor([3.0, 4.0]))
        tensor([3., 4.])
    """
    return model.prior.project(z) if isinstance(model, LatentVariableModel) else z


def check_path(model: GenerativeModel) -> None:
    """Check that a model has latents between which `interpolate` can go.

    Raises:
        MissingCapabilityError: If it has not.
    """
    if not isinstance(model, Hierarchy):
        model.require(Capability.LATENT_VECTOR)


def interpolate(
    model: GenerativeModel,
    start: Tensor,
    end: Tensor,
    label: Labels = None,
    *,
    steps: int = 11,
    path: Path | None = None,
) -> Interpolation:
    """Decode latents on a path between pairs of latents.

    A linear path passes closer to the origin than both of its ends, where latents of a N(0, I)
    prior are rare in many dimensions. A spherical path (White, 2016,
    https://arxiv.org/abs/1609.04468) changes angle and length evenly. A latent space that is not
    flat, such as a sphere, has one path: the shortest one that stays in it, a geodesic.

    Args:
        model: A model with a latent vector, or a hierarchy.
        start: Latents, (P, L), as `path_vectors` returns them.
        end: Latents, (P, L).
        label: Class of all images or of each pair, (P,), for conditional models.
        steps: Number of images S in a row, with both ends.
        path: One of `paths_of` the model; by default its first: ``linear`` or ``geodesic``.

    Returns:
        The images and their latents.

    Raises:
        MissingCapabilityError: If the model has no latent vector.
        ValueError: If the shapes differ, ``steps`` is less than 2, or the path is not one of the
            latent space.

    Example:
        >>> from vae_lightning import VAE
        >>> z = torch.eye(2)
        >>> interpolate(VAE(latent_dim=2), z[:1], z[1:], steps=3).latents[0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    check_path(model)
    if start.shape != end.shape or start.ndim != 2:
        raise ValueError(
            f"start and end must be latents (P, L), got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    start, end = start.cpu().float(), end.cpu().float()
    t = torch.linspace(0, 1, steps)[None, :, None]
    z = _path(model, start[:, None], end[:, None], t, path or paths_of(model)[0])
    pairs = len(start)
    if isinstance(label, Tensor) and label.ndim:
        label = label.repeat_interleave(steps)
    images = _decode(model, z.flatten(0, 1), label).cpu()
    return Interpolation(images.unflatten(0, (pairs, steps)), z)


def _path(model: GenerativeModel, start: Tensor, end: Tensor, t: Tensor, path: Path) -> Tensor:
    """Return latents on a path, (P, S, L)."""
    if path not in (paths := paths_of(model)):
        raise ValueError(
            f"the latent space of this {type(model).__name__} has no {path} path: choose "
            f"{' or '.join(paths)}"
        )
    if path == "geodesic":
        assert isinstance(model, LatentVariableModel)
        found = model.prior.geodesic(start, end, t)
        assert found is not None
        return found
    return slerp(start, end, t) if path == "spherical" else torch.lerp(start, end, t)


def _decode(model: GenerativeModel, vectors: Tensor, label: Labels) -> Tensor:
    """Decode vectors as `path_vectors` returns them."""
    if not isinstance(model, Hierarchy):
        return model.decode(vectors, label)
    with model.inference():
        condition = model.encode_labels(label, len(vectors))
        params = model.decode_noise(vectors.to(model.device), condition)
        return model.mean_image(params)
