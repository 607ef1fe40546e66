"""Move one latent variable at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning.distributions.variables import Kind, Variable
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.randomness import generator


@dataclass(frozen=True)
class Traversal:
    """Images along latent variables.

    Attributes:
        images: Images in [0, 1], one row per variable, (D, S, C, H, W). The last category is
            repeated in rows of variables with fewer than S categories.
        counts: Numbers of different images in the rows.
        dimensions: Numbers of the variables.
        names: Short names of the variables: the number, after a z for a number or a c for a
            category.
        values: Values of the columns: those of the dimension under a N(0, I) prior, else the ones
            that N(0, 1) has at the same quantiles, (S,). Categories are in their order.
        own: Value of the unmoved latent in each row on the scale of ``values``, (D,).
        decoded: The unmoved latent as an image, (C, H, W).
        axis_label: What the values are, for the axis of a figure.
    """

    images: Tensor
    counts: list[int]
    dimensions: list[int]
    names: list[str]
    values: Tensor
    own: Tensor
    decoded: Tensor
    axis_label: str


def traverse(
    model: GenerativeModel,
    z: Tensor,
    dimensions: Sequence[int],
    label: Labels = None,
    *,
    steps: int = 11,
    limit: float = 3.0,
) -> Traversal:
    """Decode a latent with one of its variables at a time moved.

    A number goes through the quantiles of the prior, a categorical variable through its categories.

    Args:
        model: A model with latent variables that can be moved.
        z: The latent, (L,).
        dimensions: Numbers of the D variables to move. If all variables are numbers, these are
            dimensions of the latent.
        label: Class of the images, for conditional models.
        steps: Number of values of a number. It is raised to the largest number of categories.
        limit: The values go from ``-limit`` to ``limit``, in standard deviations of N(0, 1).

    Returns:
        The images and the values.

    Raises:
        MissingCapabilityError: If no latent variable can be moved.
        ValueError: If a variable does not exist or cannot be moved, or a number is out of range.

    Example:
        >>> from vae_lightning import VAE
        >>> traverse(VAE(latent_dim=4), torch.zeros(4), [0, 3], steps=5).images.shape
        torch.Size([2, 5, 1, 28, 28])
    """
    model.require(Capability.TRAVERSABLE)
    known = model.latent_variables
    for number in dimensions:
        if not 0 <= number < len(known):
            raise ValueError(f"there is no latent dimension {number}: give 0..{len(known) - 1}")
        if not known[number].is_movable:
            raise ValueError(f"latent dimension {number} is a point in a space without directions")
    if steps < 2 or not limit > 0:
        raise ValueError(f"steps must be at least 2 and limit positive, got {steps} and {limit}")
    moved = [known[number] for number in dimensions]
    categories = [len(v.dimensions) for v in moved if v.kind is Kind.CATEGORY]
    only_categories = len(categories) == len(moved)
    steps = max([0 if only_categories else steps, *categories])
    z = z.cpu().float()
    if only_categories:
        values = torch.arange(steps, dtype=torch.float64)
        quantiles = torch.zeros(steps, len(z))
    else:
        # In float64, because float32 would lose digits in ndtr and its inverse.
        values = torch.linspace(-limit, limit, steps, dtype=torch.float64)
        # Quantiles of the prior at the levels that the values have under N(0, 1), below 1.
        levels = torch.special.ndtr(values).clamp(1e-15, 1 - 1e-15)
        quantiles = model.latent_quantiles(levels).float()  # (S, L)
    rows = [_row(z, variable, quantiles, values) for variable in moved]
    decoded = model.decode(torch.cat([*(row.latents for row in rows), z[None]]), label).cpu()
    same_scale = all(row.same_scale for row in rows)
    return Traversal(
        images=decoded[:-1].unflatten(0, (len(rows), steps)),
        counts=[row.images for row in rows],
        dimensions=list(dimensions),
        names=[_name(number, known[number]) for number in dimensions],
        values=values.float(),
        own=torch.tensor([row.own for row in rows]),
        decoded=decoded[-1],
        axis_label=_axis_label(bool(categories), only_categories, same_scale),
    )


class _Row(NamedTuple):
    """A row of a traversal.

    Attributes:
        latents: The latents, (S, L).
        own: See `Traversal.own`.
        images: Number of different latents, and so of images.
        same_scale: Whether the variable takes the values of the columns, not only their quantiles.
    """

    latents: Tensor
    own: float
    images: int
    same_scale: bool


def _row(z: Tensor, variable: Variable, quantiles: Tensor, values: Tensor) -> _Row:
    """Move one variable of a latent (L,) through quantiles (S, L), or through its categories."""
    steps, size, first = len(values), len(variable.dimensions), variable.dimensions.start
    latents = z.repeat(steps, 1)
    if variable.kind is Kind.CATEGORY:
        here = slice(first, first + size)
        latents[:, here] = torch.eye(size)[torch.arange(steps).clamp(max=size - 1)]
        return _Row(latents, values[z[here].argmax()].item(), size, same_scale=True)
    column, value = quantiles[:, first], z[first].item()
    latents[:, first] = column
    if column.allclose(values.float()):
        return _Row(latents, value, steps, same_scale=True)
    return _Row(latents, _interpolated(value, column, values), steps, same_scale=False)


def _name(number: int, variable: Variable) -> str:
    return f"{'c' if variable.kind is Kind.CATEGORY else 'z'}{number}"


def _axis_label(categories: bool, only_categories: bool, same_scale: bool) -> str:
    if only_categories:
        return "category"
    if same_scale:
        label = "value of the latent dimension"
    else:
        label = "prior quantile, in standard deviations of N(0, 1)"
    return f"{label}; categories in their order" if categories else label


def middle(model: GenerativeModel, label: int | None = None) -> Tensor:
    """Return a latent in the middle of the prior, (L,): medians, and a draw of what has none.

    Args:
        model: A model with latent variables that can be moved.
        label: Class of the draw, for conditional models.
    """
    model.require(Capability.TRAVERSABLE)
    medians = model.latent_quantiles(torch.tensor([0.5]))[0].float()
    numbers = [v.dimensions[0] for v in model.latent_variables if v.kind is Kind.NUMBER]
    if len(numbers) == len(medians):
        return medians
    condition = model.encode_labels(label, 1)
    drawn = model.sample_latents(1, condition, generator(0, "middle of the prior"))
    assert isinstance(drawn, Tensor)
    z = drawn[0].detach().cpu().float()
    z[numbers] = medians[numbers]
    return z


def _interpolated(value: float, quantiles: Tensor, values: Tensor) -> float:
    """Return the value at which a quantile is, by linear interpolation between the given ones."""
    right = int((quantiles < value).sum().clamp(1, len(quantiles) - 1))
    low, high = quantiles[right - 1].item(), quantiles[right].item()
    share = (value - low) / (high - low) if high > low else 0.0
    step = (values[right] - values[right - 1]).item()
    return values[right - 1].item() + share * step


def dimension_use(model: GenerativeModel, x: Tensor, label: Labels = None) -> tuple[Tensor, str]:
    """Measure how much a model uses each latent variable.

    Args:
        model: A model with a latent vector.
        x: Images in [0, 1], (B, C, H, W).
        label: Their classes, for conditional models.

    Returns:
        The mean KL of each variable in nats, or the variance of the latents, summed over its
        dimensions, where the KL has no closed form for each; (V,), and which of the two it is. If
        all variables are numbers, they are the dimensions.
    """
    variables = model.latent_variables
    if model.has(Capability.KL_PER_DIMENSION):
        kl = model.latent_kl(x, label).mean(0).cpu()
        if len(kl) == len(variables):
            return kl, "KL"
    variance = model.latent_vectors(x, label).var(0, correction=0).cpu()
    return torch.stack([variance[list(v.dimensions)].sum() for v in variables]), "variance"


def most_used(model: GenerativeModel, use: Tensor | None, rows: int) -> list[int]:
    """Return the numbers of the variables that can be moved and are used most.

    Args:
        model: A model with latent variables.
        use: Their use, (V,), see `dimension_use`; None if it is not known.
        rows: How many at most.
    """
    variables = model.latent_variables
    order = range(len(variables)) if use is None else use.argsort(descending=True).tolist()
    return [number for number in order if variables[number].is_movable][:rows]
