"""Go from one image to another through the latent space."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel

Path = Literal["linear", "spherical"]


@dataclass(frozen=True)
class Interpolation:
    """Images between pairs of images.

    Attributes:
        images: Images in [0, 1], one row per pair, (P, S, C, H, W).
        latents: The latents, (P, S, L).
    """

    images: Tensor
    latents: Tensor


def interpolate(
    model: GenerativeModel,
    start: Tensor,
    end: Tensor,
    label: Labels = None,
    *,
    steps: int = 11,
    path: Path = "linear",
) -> Interpolation:
    """Decode latents on a path between pairs of latents.

    A linear path passes closer to the origin than both of its ends, where latents of a N(0, I)
    prior are rare in many dimensions. A spherical path (White, 2016,
    https://arxiv.org/abs/1609.04468) changes angle and length evenly.

    Args:
        model: A model with a latent vector.
        start: Latents, (P, L).
        end: Latents, (P, L).
        label: Class of all images or of each pair, (P,), for conditional models.
        steps: Number of images S in a row, with both ends.
        path: ``linear`` or ``spherical``.

    Returns:
        The images and their latents.

    Raises:
        MissingCapabilityError: If the model has no latent vector.
        ValueError: If the shapes differ or ``steps`` is less than 2.

    Example:
        >>> from vae_lightning import VAE
        >>> z = torch.eye(2)
        >>> interpolate(VAE(latent_dim=2), z[:1], z[1:], steps=3).latents[0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    model.require(Capability.LATENT_VECTOR)
    if start.shape != end.shape or start.ndim != 2:
        raise ValueError(
            f"start and end must be latents (P, L), got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    start, end = start.cpu().float(), end.cpu().float()
    t = torch.linspace(0, 1, steps)[None, :, None]
    z = torch.lerp(start[:, None], end[:, None], t)
    if path == "spherical":
        z = _spherical(start, end, t)
    pairs = len(start)
    if isinstance(label, Tensor) and label.ndim:
        label = label.repeat_interleave(steps)
    images = model.decode(z.flatten(0, 1), label).cpu()
    return Interpolation(images.unflatten(0, (pairs, steps)), z)


def _spherical(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Return latents whose direction turns evenly and whose length changes evenly, (P, S, L)."""
    lengths = [v.norm(dim=1, keepdim=True).clamp(min=1e-12) for v in (start, end)]
    a, b = (v / length for v, length in zip((start, end), lengths, strict=True))
    angle = (a * b).sum(1, keepdim=True).clamp(-1, 1).acos()[:, None]
    sine = angle.sin()
    weights = ((1 - t) * angle).sin() / sine, (t * angle).sin() / sine
    turned = weights[0] * a[:, None] + weights[1] * b[:, None]
    # Equal directions have no angle; opposite ones do not say which way to turn: any way will do.
    direct = torch.lerp(a[:, None], b[:, None], t)
    half_turn = (math.pi * t).cos() * a[:, None] + (math.pi * t).sin() * _perpendicular(a)[:, None]
    turned = torch.where(sine < 1e-4, torch.where(angle > 1, half_turn, direct), turned)
    return turned * torch.lerp(lengths[0][:, None], lengths[1][:, None], t)


def _perpendicular(a: Tensor) -> Tensor:
    """Return a unit vector at a right angle to each unit vector, (P, L); 0 in one dimension."""
    axis = torch.zeros_like(a).scatter_(1, a.abs().argmin(1, keepdim=True), 1.0)
    rest = axis - (axis * a).sum(1, keepdim=True) * a
    return rest / rest.norm(dim=1, keepdim=True).clamp(min=1e-12)
