"""The plane of a two-dimensional latent space, decoded."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.callbacks.figure import Figure
from vae_lightning.models import BaseVAE


class Manifold(Figure):
    """Decoded grid over a 2-D latent, spaced by the quantiles of N(0, 1): equal prior mass a tile.

    Args:
        every_n_epochs: See `Figure`.
        n: Tiles per side.

    References:
        Kingma and Welling (2014), figure 4, https://arxiv.org/abs/1312.6114
    """

    name = "manifold"

    def __init__(self, every_n_epochs: int = 5, n: int = 20) -> None:
        super().__init__(every_n_epochs, n=n)
        self.n = n

    def applies_to(self, model: BaseVAE) -> bool:
        """Models with a two-dimensional latent that does not depend on a class."""
        return model.latent_dim == 2 and not model.conditional

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        values = torch.special.ndtri((torch.arange(self.n) + 0.5) / self.n)
        z_1, z_0 = torch.meshgrid(values, values, indexing="ij")
        images = model.decode(torch.stack([z_0, z_1], dim=-1).flatten(0, 1))
        return plotting.manifold(
            images.unflatten(0, (self.n, self.n)),
            values.tolist(),
            title=f"Decoded latent plane{self.title_end}",
        )
