"""Every class in the same styles."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting, randomness
from vae_lightning.callbacks.figure import Figure
from vae_lightning.models import BaseVAE


class ClassGrid(Figure):
    """A row per class, a column per latent: what a conditional model keeps apart from the class.

    Args:
        every_n_epochs: See `Figure`.
        styles: Number of latents, drawn from N(0, I).
        seed: Of the latents.
    """

    name = "classes"

    def __init__(self, every_n_epochs: int = 5, styles: int = 12, seed: int = 0) -> None:
        super().__init__(every_n_epochs, styles=styles)
        self.styles = styles
        self.seed = seed

    def applies_to(self, model: BaseVAE) -> bool:
        """Conditional models whose latent is a vector."""
        return model.conditional and model.latent_dim is not None

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        assert model.latent_dim is not None
        generator = randomness.generator(self.seed, self.name)
        z = torch.randn(self.styles, model.latent_dim, generator=generator)
        classes = torch.arange(model.num_classes)
        images = model.decode(
            z.repeat(model.num_classes, 1), classes.repeat_interleave(self.styles)
        )
        return plotting.class_grid(
            images.unflatten(0, (model.num_classes, self.styles)),
            class_names or [str(number) for number in classes.tolist()],
            title=f"Every class in the same styles{self.title_end}",
        )
