"""What the encoder says about images."""

import torch
from torch import Tensor

from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel


def encode(
    model: GenerativeModel, x: Tensor, label: Labels = None, *, batch_size: int = 256
) -> dict[str, Tensor]:
    """Encode images.

    Args:
        model: The model.
        x: Images in [0, 1], (N, C, H, W).
        label: The class of all images or of each, (N,), for conditional models.
        batch_size: Number of images encoded at once.

    Returns:
        The parameters of the posterior by name, such as ``mu`` and ``log_var``, or ``codes``, each
        (N, ...), on the CPU.

    Raises:
        ValueError: If the images are not ones that the model takes, or labels are wrong.

    Example:
        >>> from vae_lightning import VAE
        >>> {name: tuple(value.shape) for name, value in
        ...     encode(VAE(latent_dim=2), torch.rand(3, 1, 28, 28)).items()}
        {'mu': (3, 2), 'log_var': (3, 2)}
    """
    model.check_images(x)
    if not len(x):
        raise ValueError("there are no images to encode")
    condition = model.encode_labels(label, len(x))
    parts: dict[str, list[Tensor]] = {}
    with model.inference():
        for first in range(0, len(x), batch_size):
            here = slice(first, first + batch_size)
            given = None if condition is None else condition[here]
            for name, value in model.encode(x[here].to(model.device), given).items():
                parts.setdefault(name, []).append(value.detach().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}
