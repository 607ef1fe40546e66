"""Draw images from a model."""

import torch
from torch import Tensor

from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.explore.densities.base import LatentDensity
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.randomness import generator


def sample(
    model: BaseVAE,
    n: int,
    label: Labels = None,
    *,
    temperature: float = 1.0,
    draw: bool = False,
    density: LatentDensity | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Draw images from a model.

    The same seed gives the same images, whatever ``batch_size`` is. The model's mode
    and torch's global generators are left alone.

    Args:
        model: The model.
        n: Number of images.
        label: For conditional models: the class of all images or of each, (n,); by default the
            classes in turn.
        temperature: Factor of the standard deviation of a N(0, I) prior; below 1 for images that
            are more typical and less diverse.
        density: Density of the latents to use instead of the prior, see `densities`.
        draw: Whether to draw the pixels from p(x|z), rather than to return its means.
        seed: Seed of the latents and the pixels.
        batch_size: Number of images decoded at once.

    Returns:
        Images in [0, 1], float32, (n, C, H, W), on the CPU.

    Raises:
        MissingCapabilityError: If the model has no prior to sample from, or with a density no
            continuous latent vector.
        ValueError: If an argument is out of range, or the prior has no temperature.

    Example:
        >>> from vae_lightning import VAE
        >>> sample(VAE(latent_dim=2), 3).shape
        torch.Size([3, 1, 28, 28])
    """
    if n < 1:
        raise ValueError(f"the number of samples must be positive, got {n}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    model.require(Capability.SAMPLES if density is None else Capability.CONTINUOUS_LATENT)
    label = model.cycle_labels(n) if label is None else label
    with model.inference():
        condition = model.encode_labels(label, n)
        latents = generator(seed, "sample")
        if density is None:
            z = model.sample_latents(n, condition, latents)
        else:
            z = density.sample(n, _classes(label, n) if density.num_classes else None, latents)
        levels = [z] if isinstance(z, Tensor) else list(z)
        if temperature != 1:
            prior = getattr(model, "prior", None)
            is_normal = isinstance(prior, StandardNormal) and density is None
            if not isinstance(z, Tensor) or not is_normal:
                raise ValueError(
                    "a temperature is defined for samples from a N(0, I) prior, which this "
                    f"{type(model).__name__} or the density does not have: leave it out"
                )
            levels = [temperature * z]
        images = []
        for part in torch.arange(n).split(batch_size):
            here = slice(int(part[0]), int(part[-1]) + 1)
            given = tuple(level[here] for level in levels)
            params = model.likelihood_params(
                given[0] if isinstance(z, Tensor) else given,
                None if condition is None else condition[here],
            )
            kind = model.likelihood
            if draw:
                drawn = [
                    kind.sample(params[i : i + 1], generator(seed, "pixels", int(number)))
                    for i, number in enumerate(part)
                ]
            made = torch.cat(drawn) if draw else kind.mean(params)
            images.append(made.clamp(0, 1).cpu())
    return torch.cat(images)


def _classes(label: Labels, n: int) -> Tensor:
    """Return one class per image, (n,)."""
    return torch.as_tensor(label).cpu().expand(n)
