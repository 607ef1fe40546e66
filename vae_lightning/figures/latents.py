"""Images in the latent space."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.figures.base import Figure
from vae_lightning.models.inference import GenerativeModel

_CHUNK = 250
"""Number of images embedded at once, which limits memory for large images."""


class LatentScatter(Figure):
    """Scatter plot of the latents of validation images, colored by class.

    Latents of more than two dimensions are projected onto their first two principal components.
    Latents that are maps of vectors are averaged over positions first.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
    """

    name = "latents"
    needs = "a latent of at least two dimensions"

    def __init__(self, every_n_epochs: int = 5, n: int = 2000) -> None:
        super().__init__(every_n_epochs, n=n)
        self.images = n

    def applies_to(self, model: GenerativeModel) -> bool:
        """Return whether there are at least two latent dimensions."""
        return model.latent_size is None or model.latent_size >= 2

    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        parts = []
        for start in range(0, len(x), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            chosen = None if label is None else label[chunk]
            parts.append(model.latent_vectors(x[chunk], model.used_labels(chosen)).cpu())
        points = torch.cat(parts)
        axis_labels, radius = ("$z_0$", "$z_1$"), model.latent_radius
        if points.shape[1] > 2:
            radius = None
            points, explained = plotting.principal_components(points)
            axis_labels = (
                f"first principal component ({explained[0]:.0%} of the variance)",
                f"second principal component ({explained[1]:.0%})",
            )
        maps = ", averaged over each map" if model.has_latent_maps else ""
        return plotting.latent_scatter(
            points,
            label,
            axis_labels=axis_labels,
            class_names=class_names,
            radius=radius,
            title=f"Latents of {len(x):,} {self.images_of}{maps}{self.title_end}",
        )
