"""Reconstructions next to their originals."""

from collections.abc import Sequence

import matplotlib.figure
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.figures.base import Figure
from vae_lightning.models.inference import GenerativeModel


class Reconstructions(Figure):
    """Validation images above their noise-free reconstructions.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
    """

    name = "reconstructions"

    def __init__(self, every_n_epochs: int = 5, n: int = 32) -> None:
        super().__init__(every_n_epochs, n=n)
        self.images = n

    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        reconstructed = model.reconstruct(x, model.used_labels(label))
        title = f"Reconstructions of {self.images_of}{self.title_end}"
        pictures = model.to_picture(x), model.to_picture(reconstructed)
        return plotting.reconstructions(*pictures, title=title)
