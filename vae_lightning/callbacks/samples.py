"""Samples from the prior."""

from collections.abc import Sequence

import matplotlib.figure
from torch import Tensor

from vae_lightning import plotting, randomness
from vae_lightning.callbacks.figure import Figure
from vae_lightning.models import BaseVAE


class Samples(Figure):
    """A grid of samples from the prior, from the same latents each time.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of samples.
        seed: Of the latents.
    """

    name = "samples"

    def __init__(self, every_n_epochs: int = 5, n: int = 100, seed: int = 0) -> None:
        super().__init__(every_n_epochs, n=n)
        self.n = n
        self.seed = seed

    def applies_to(self, model: BaseVAE) -> bool:
        """Models with a prior."""
        return model.can_sample

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        generator = randomness.generator(self.seed, self.name)
        samples = model.sample(self.n, generator=generator)
        return plotting.image_grid(samples, title=f"Samples from the prior{self.title_end}")
