"""Draw images from a model."""

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import Latents
from vae_lightning.explore.densities.base import LatentDensity
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.discrete import CodeModel, one_or_all
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import generator
from vae_lightning.truncation import Truncation


def sample(
    model: GenerativeModel,
    n: int,
    label: Labels = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
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
        temperature: Factor of the standard deviation of a N(0, I) prior (of every level of a
            hierarchy), or divisor of the logits of a `CodeModel`; below 1 for images that are more
            typical and less diverse.
        top_k: For a `CodeModel`: number of most probable codes to draw each code from.
        top_p: For a `CodeModel`: draw each code from the most probable ones that together have this
            probability.
        density: Density of the latents to use instead of the prior, see `densities`.
        draw: Whether to draw the pixels from p(x|z), rather than to return its means.
        seed: Seed of the latents and the pixels.
        batch_size: Number of images decoded at once.

    Returns:
        Images, float32, (n, C, H, W), on the CPU; in [0, 1] unless the data are unbounded.

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
    if top_k is not None or top_p is not None:
        model.require(Capability.CODE_PRIOR)
    model.require(Capability.SAMPLES if density is None else Capability.CONTINUOUS_LATENT)
    label = model.cycle_labels(n) if label is None else label
    with model.inference():
        condition = model.encode_labels(label, n)
        if isinstance(model, CodeModel):
            truncation = Truncation(temperature, top_k, top_p)
            codes = model.sample_codes(n, condition, generator(seed, "sample"), truncation)
            return _decode(model, codes, condition, draw, seed, batch_size)
        z = _latents(model, n, label, condition, temperature, density, seed)
        return _decode(model, z, condition, draw, seed, batch_size)


def sample_codes(
    model: GenerativeModel,
    n: int,
    label: Labels = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    draw: bool = False,
    seed: int = 0,
    batch_size: int = 256,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Draw images from a `CodeModel` as `sample` does, and return their codes as well.

    Args:
        model: The prior.
        n: Number of images.
        label: See `sample`.
        temperature: See `sample`.
        top_k: See `sample`.
        top_p: See `sample`.
        draw: See `sample`.
        seed: See `sample`.
        batch_size: See `sample`.

    Returns:
        The images, (n, C, H, W); their codes by level, int64, (n, h, w) or (n, h, w, depth); and
        -log p of all codes of an image under the prior, without truncation, in nats, (n,). All are
        on the CPU.

    Raises:
        MissingCapabilityError: If the model is no prior over codes.
        ValueError: If an argument is out of range.
    """
    model.require(Capability.CODE_PRIOR)
    assert isinstance(model, CodeModel)
    if n < 1:
        raise ValueError(f"the number of samples must be positive, got {n}")
    label = model.cycle_labels(n) if label is None else label
    with model.inference():
        condition = model.encode_labels(label, n)
        truncation = Truncation(temperature, top_k, top_p)
        codes = model.sample_codes(n, condition, generator(seed, "sample"), truncation)
        images = _decode(model, codes, condition, draw, seed, batch_size)
        found = []
        for part in torch.arange(n, device=model.device).split(batch_size):
            here = None if condition is None else condition[part]
            found.append(model.code_nll(tuple(c[part] for c in codes), here))
    return images, tuple(level.cpu() for level in codes), torch.cat(found).cpu()


def _decode(
    model: GenerativeModel,
    z: Latents,
    condition: Tensor | None,
    draw: bool,
    seed: int,
    batch_size: int,
) -> Tensor:
    """Decode latents (n, ...), or the codes of a prior, to images, (n, C, H, W), on the CPU."""
    levels = (z,) if isinstance(z, Tensor) else tuple(z)
    images = []
    for part in torch.arange(len(levels[0])).split(batch_size):
        here = slice(int(part[0]), int(part[-1]) + 1)
        rows = tuple(level[here] for level in levels)
        if isinstance(model, CodeModel):
            given: Latents = one_or_all(model.lookup(rows))
        else:
            given = rows[0] if isinstance(z, Tensor) else rows
        params = model.likelihood_params(given, None if condition is None else condition[here])
        kind = model.likelihood
        if draw:
            drawn = [
                kind.sample(params[i : i + 1], generator(seed, "pixels", int(number)))
                for i, number in enumerate(part)
            ]
        made = torch.cat(drawn) if draw else kind.mean(params)
        images.append(model.clipped(made).cpu())
    return torch.cat(images)


def _latents(
    model: GenerativeModel,
    n: int,
    label: Labels,
    condition: Tensor | None,
    temperature: float,
    density: LatentDensity | None,
    seed: int,
) -> Latents:
    """Draw latents from the prior or from a density."""
    latents = generator(seed, "sample")
    if density is not None:
        if temperature != 1:
            raise ValueError(
                "a temperature is defined for samples from a normal prior or a prior over codes, "
                f"not from a {type(density).__name__}: leave it out"
            )
        return density.sample(n, _classes(label, n) if density.num_classes else None, latents)
    z = model.sample_latents(n, condition, latents)
    if temperature == 1:
        return z
    if not isinstance(model, LatentVariableModel):
        raise ValueError(
            "a temperature is defined for samples from a normal prior or a prior over codes, "
            f"which this {type(model).__name__} does not have: leave it out"
        )
    return model.tempered(z, temperature, condition)


def _classes(label: Labels, n: int) -> Tensor:
    """Return one class per image, (n,)."""
    return torch.as_tensor(label).cpu().expand(n)
