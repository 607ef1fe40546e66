"""Fit a density to the latents of a model."""

from typing import Any

import torch
from torch import Tensor

from vae_lightning.errors import UserError
from vae_lightning.explore.densities.base import LatentDensity
from vae_lightning.explore.densities.storage import DENSITIES
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import Noise, derive_seed


def draw_latents(
    model: GenerativeModel,
    x: Tensor,
    label: Labels = None,
    *,
    indices: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Draw one latent from q(z|x) for each image: what the decoder was trained on.

    Args:
        model: A model with a continuous latent vector.
        x: Images in [0, 1], (B, C, H, W).
        label: The class of all images or of each, (B,), for conditional models.
        indices: Indices of the images, on which the noise depends, (B,); by default 0, 1, 2, ...
        seed: Seed of the noise.

    Returns:
        (B, L), on the CPU.

    Raises:
        MissingCapabilityError: If the model has no continuous latent vector.
        UserError: If its latents are not one vector per image.
    """
    model.require(Capability.CONTINUOUS_LATENT)
    if not isinstance(model, LatentVariableModel) or model.latent_size is None:
        raise UserError(
            f"a density is fitted to one latent vector per image, which a {type(model).__name__} "
            "does not have"
        )
    model.check_images(x)
    indices = torch.arange(len(x)) if indices is None else indices
    with model.inference():
        q = model.posterior(x, model.encode_labels(label, len(x)))
        draws = q.rsample(Noise(indices.to(model.device), seed, "density"), 1)
    assert isinstance(draws.z, Tensor)
    return draws.z[:, 0].float().cpu()


def fit_density(
    name: str,
    z: Tensor,
    label: Tensor | None = None,
    *,
    num_classes: int = 0,
    seed: int = 0,
    **settings: Any,
) -> LatentDensity:
    """Build a density and fit it to latents.

    Args:
        name: ``gmm``, ``flow`` or ``vae``.
        z: Latents, (N, L), see `draw_latents`.
        label: Their classes, (N,), for a density of latents given the class.
        num_classes: Number of classes, 0 for a density that does not depend on the class.
        seed: Seed of all random numbers.
        **settings: Arguments of the class in `DENSITIES`.

    Raises:
        UserError: If there is no such density.
        ValueError: If an argument is out of range, or there are too few latents.

    Example:
        >>> density = fit_density("gmm", torch.randn(50, 2), components=3)
        >>> density.sample(4).shape
        torch.Size([4, 2])
    """
    if name not in DENSITIES:
        raise UserError(f"there is no density '{name}': use one of {', '.join(DENSITIES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "density weights"))
        density = DENSITIES[name](z.shape[1], num_classes, **settings)
    density.fit(z, label, seed)
    return density
