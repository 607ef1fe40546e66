"""How well a model explains images: scores for finding anomalies."""

import io
import math
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.randomness import Noise


def score(
    model: GenerativeModel,
    x: Tensor,
    label: Labels = None,
    *,
    num_samples: int = 64,
    seed: int = 0,
    batch_size: int = 128,
    indices: Tensor | None = None,
) -> dict[str, Tensor]:
    """Score images; higher values are more surprising.

    Args:
        model: The model.
        x: Images in [0, 1], (N, C, H, W).
        label: The class of all images or of each, (N,), for conditional models.
        num_samples: Number of importance samples K of -log p(x).
        seed: Seed of the noise. The noise of an image depends on the seed and its index only.
        batch_size: Number of images at once.
        indices: Index of each image, (N,); by default 0, 1, 2, ...

    Returns:
        One value per image by name, each (N,): the terms of the model, among them
        ``reconstruction`` and, where it has them, ``kl`` and ``negative_elbo``, in nats;
        ``negative_log_likelihood`` in nats where the model has a density, with a likelihood that is
        one and not another loss; and ``squared_error``,
        the mean over the pixels between an image and its reconstruction without noise.

    Raises:
        ValueError: If the images are not ones that the model takes, or labels are wrong.

    Example:
        >>> from vae_lightning import VAE
        >>> sorted(score(VAE(latent_dim=2), torch.rand(3, 1, 28, 28), num_samples=2))
        ['kl', 'negative_elbo', 'negative_log_likelihood', 'reconstruction', 'squared_error']
    """
    model.check_images(x)
    if not len(x):
        raise ValueError("there are no images to score")
    model.encode_labels(label, len(x))  # refuses wrong ones at once
    indices = torch.arange(len(x)) if indices is None else indices
    parts: dict[str, list[Tensor]] = {}
    for here in _parts(len(x), batch_size):
        part = x[here].to(model.device)
        classes = label[here] if isinstance(label, Tensor) and label.ndim else label
        index = indices[here].to(model.device)
        values = {}
        with model.inference():
            condition = model.encode_labels(classes, len(part))
            terms = model.terms(part, condition, Noise(index, seed, "score"))
            for name, value in terms.as_dict().items():
                if value.ndim and name not in terms.batch_dependent:
                    values[name] = value
            if model.has(Capability.DENSITY) and model.likelihood.normalized:
                noise = Noise(index, seed, "score likelihood")
                log_prob = model.log_marginal(part, condition, noise, num_samples)
                values["negative_log_likelihood"] = -log_prob
        error = (model.reconstruct(part, classes) - part).square().flatten(1).mean(1)
        values["squared_error"] = error
        for name, value in values.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(value) for name, value in parts.items()}


def _parts(n: int, size: int) -> Iterator[slice]:
    for first in range(0, n, size):
        yield slice(first, min(first + size, n))


def complexity(x: Tensor) -> Tensor:
    """Return the length of images as lossless PNG files.

    -log p(x) less this length tells images that are unlikely from those that are merely complex
    (Serra et al., 2020, https://openreview.net/forum?id=SyxIWpVYvr): smooth images have a high
    likelihood under most models, whatever they show.

    Args:
        x: Images in [0, 1] with one or three channels, (N, C, H, W).

    Returns:
        Nats, (N,).

    Example:
        >>> flat, noisy = torch.zeros(1, 1, 28, 28), torch.rand(1, 1, 28, 28)
        >>> bool(complexity(flat) < complexity(noisy))
        True
    """
    lengths = []
    for image in x.mul(255).round().clamp(0, 255).byte().cpu():
        pixels = image[0] if len(image) == 1 else image.movedim(0, -1)
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
        lengths.append(file.tell() * 8 * math.log(2))
    return torch.tensor(lengths)
