"""Where images lie in the latent space."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.callbacks.figure import Figure, condition_of
from vae_lightning.models import BaseVAE

_CHUNK = 250
"""Images embedded at once, so that memory stays small for large images too."""


class LatentScatter(Figure):
    """Validation images in the latent space, coloured by class.

    Two dimensions are shown as they are, more by their first two principal components. A latent
    that is a map of vectors is averaged over its places first.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
    """

    name = "latents"

    def __init__(self, every_n_epochs: int = 5, n: int = 2000) -> None:
        super().__init__(every_n_epochs, n=n)
        self.images = n

    def applies_to(self, model: BaseVAE) -> bool:
        """Models with two latent dimensions or more."""
        return model.latent_dim is None or model.latent_dim >= 2

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        parts = []
        for start in range(0, len(x), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            z = model.embed(x[chunk], condition_of(model, None if label is None else label[chunk]))
            parts.append(z.flatten(2).mean(2).cpu() if z.ndim > 2 else z.cpu())
        points = torch.cat(parts)
        axis_labels = ("$z_0$", "$z_1$")
        if points.shape[1] > 2:
            points, explained = plotting.principal_components(points)
            axis_labels = (
                f"first principal component ({explained[0]:.0%} of the variance)",
                f"second principal component ({explained[1]:.0%})",
            )
        return plotting.latent_scatter(
            points,
            label,
            axis_labels=axis_labels,
            class_names=class_names,
            title=f"Latents of {len(x):,} validation images{self.title_end}",
        )
