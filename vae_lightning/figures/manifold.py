"""Decoded plane of a two-dimensional latent space."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.figures.base import Figure
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel


class Manifold(Figure):
    """Images decoded from a grid in a 2-D latent space, spaced by the quantiles of the prior.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images per side.

    References:
        Kingma and Welling (2014), figure 4, https://arxiv.org/abs/1312.6114
    """

    name = "manifold"
    requires = (Capability.CONTINUOUS_LATENT, Capability.SAMPLES)
    needs = "a model with latent_dim 2 that is not conditional"

    def __init__(self, every_n_epochs: int = 5, n: int = 20) -> None:
        super().__init__(every_n_epochs, n=n)
        self.n = n

    def applies_to(self, model: GenerativeModel) -> bool:
        """Return whether the model is unconditional and its latent has two dimensions."""
        return super().applies_to(model) and model.latent_size == 2 and not model.conditional

    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        quantiles = model.latent_quantiles((torch.arange(self.n) + 0.5) / self.n)  # (n, 2)
        z_1, z_0 = torch.meshgrid(quantiles[:, 1], quantiles[:, 0], indexing="ij")
        where = "at even quantiles of the prior"
        images = model.decode(torch.stack([z_0, z_1], dim=-1).flatten(0, 1))
        return plotting.manifold(
            model.to_picture(images).unflatten(0, (self.n, self.n)),
            quantiles[:, 0].tolist(),
            axis_labels=(f"$z_0$, {where}", f"$z_1$, {where}"),
            title=f"Decoded latent plane{self.title_end}",
        )
