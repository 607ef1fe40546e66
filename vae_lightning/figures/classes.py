"""Samples of every class in the same styles."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting, randomness
from vae_lightning.figures.base import Figure
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel


class ClassGrid(Figure):
    """Samples of a conditional model with one row per class and one column per latent.

    Columns show what the latent encodes independently of the class.

    Args:
        every_n_epochs: See `Figure`.
        styles: Number of latents, drawn from the prior.
        seed: Seed of the latents.
    """

    name = "classes"
    requires = Capability.CONDITIONAL, Capability.CONTINUOUS_LATENT, Capability.SAMPLES

    def __init__(self, every_n_epochs: int = 5, styles: int = 12, seed: int = 0) -> None:
        super().__init__(every_n_epochs, styles=styles)
        self.styles = styles
        self.seed = seed

    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        classes = torch.arange(model.num_classes)
        rows = []
        for label in classes.tolist():
            # With the same seed, all classes have the same styles unless the prior depends on y.
            generator = randomness.generator(self.seed, self.name)
            rows.append(model.sample(self.styles, label, generator))
        images = model.to_picture(torch.cat(rows))
        return plotting.class_grid(
            images.unflatten(0, (model.num_classes, self.styles)),
            class_names or [str(number) for number in classes.tolist()],
            title=f"All classes in the same styles{self.title_end}",
        )
