"""Move one latent dimension at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel


@dataclass(frozen=True)
class Traversal:
    """Images along latent dimensions.

    Attributes:
        images: Images in [0, 1], one row per dimension, (D, S, C, H, W).
        dimensions: The dimensions of the rows.
        values: Values of the columns: those of the dimension under a N(0, I) prior, else the ones
            that N(0, 1) has at the same quantiles, (S,).
        own: Value of the unmoved latent in each row on the scale of ``values``, (D,).
        decoded: The unmoved latent as an image, (C, H, W).
        same_scale: Whether ``values`` are those of the dimension.
    """

    images: Tensor
    dimensions: list[int]
    values: Tensor
    own: Tensor
    decoded: Tensor
    same_scale: bool

    @property
    def axis_label(self) -> str:
        """What the values are, for the axis of a figure."""
        if self.same_scale:
            return "value of the latent dimension"
        return "quantile of the prior, by the value that N(0, 1) has there"


def traverse(
    model: GenerativeModel,
    z: Tensor,
    dimensions: Sequence[int],
    label: Labels = None,
    *,
    steps: int = 11,
    limit: float = 3.0,
) -> Traversal:
    """Decode a latent with one dimension at a time moved through the quantiles of the prior.

    Args:
        model: A model with a continuous latent vector.
        z: The latent, (L,).
        dimensions: The D dimensions to move.
        label: Class of the images, for conditional models.
        steps: Number of values S.
        limit: The values go from ``-limit`` to ``limit``, in standard deviations of N(0, 1).

    Returns:
        The images and the values.

    Raises:
        MissingCapabilityError: If the latent is not a continuous vector.
        ValueError: If a dimension does not exist, or a number is out of range.

    Example:
        >>> from vae_lightning import VAE
        >>> traverse(VAE(latent_dim=4), torch.zeros(4), [0, 3], steps=5).images.shape
        torch.Size([2, 5, 1, 28, 28])
    """
    model.require(Capability.CONTINUOUS_LATENT)
    size = len(z)
    for dimension in dimensions:
        if not 0 <= dimension < size:
            raise ValueError(f"there is no latent dimension {dimension}: give 0..{size - 1}")
    if steps < 2 or not limit > 0:
        raise ValueError(f"steps must be at least 2 and limit positive, got {steps} and {limit}")
    # In float64, because float32 would lose digits in ndtr and its inverse.
    values = torch.linspace(-limit, limit, steps, dtype=torch.float64)
    # Quantiles of the prior at the levels that the values have under N(0, 1), below 1.
    levels = torch.special.ndtr(values).clamp(1e-15, 1 - 1e-15)
    quantiles = model.latent_quantiles(levels)  # (S, L)
    z = z.cpu().float()
    moved = z.repeat(len(dimensions), steps, 1)  # (D, S, L)
    for row, dimension in enumerate(dimensions):
        moved[row, :, dimension] = quantiles[:, dimension]
    same_scale = quantiles.allclose(values[:, None].to(quantiles))
    own = [
        z[d].item() if same_scale else _interpolated(z[d].item(), quantiles[:, d], values)
        for d in dimensions
    ]
    decoded = model.decode(torch.cat([moved.flatten(0, 1), z[None]]), label).cpu()
    return Traversal(
        decoded[:-1].unflatten(0, moved.shape[:2]),
        list(dimensions),
        values.float(),
        torch.tensor(own),
        decoded[-1],
        same_scale,
    )


def _interpolated(value: float, quantiles: Tensor, values: Tensor) -> float:
    """Return the value at which a quantile is, by linear interpolation between the given ones."""
    right = int((quantiles < value).sum().clamp(1, len(quantiles) - 1))
    low, high = quantiles[right - 1].item(), quantiles[right].item()
    share = (value - low) / (high - low) if high > low else 0.0
    step = (values[right] - values[right - 1]).item()
    return values[right - 1].item() + share * step


def dimension_use(model: GenerativeModel, x: Tensor, label: Labels = None) -> tuple[Tensor, str]:
    """Measure how much a model uses each latent dimension.

    Args:
        model: A model with a latent vector.
        x: Images in [0, 1], (B, C, H, W).
        label: Their classes, for conditional models.

    Returns:
        The mean KL of each dimension in nats, or the variance of the latents where it has no closed
        form or is one of variables with several dimensions, (L,), and which of the two it is.
    """
    if model.has(Capability.KL_PER_DIMENSION):
        kl = model.latent_kl(x, label).mean(0).cpu()
        if len(kl) == model.latent_size:
            return kl, "KL"
    return model.latent_vectors(x, label).var(0, correction=0).cpu(), "variance"
