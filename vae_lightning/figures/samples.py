"""Samples from the prior."""

from collections.abc import Sequence

import matplotlib.figure
from torch import Tensor

from vae_lightning import plotting, randomness
from vae_lightning.figures.base import Figure
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel


class Samples(Figure):
    """Grid of samples from the prior, decoded from the same noise at every epoch.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of samples.
        seed: Seed of the latents.
    """

    name = "samples"
    requires = (Capability.SAMPLES,)

    def __init__(self, every_n_epochs: int = 5, n: int = 100, seed: int = 0) -> None:
        super().__init__(every_n_epochs, n=n)
        self.n = n
        self.seed = seed

    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        generator = randomness.generator(self.seed, self.name)
        samples = model.to_picture(model.sample(self.n, generator=generator))
        order = ", classes in turn" if model.conditional else ""
        return plotting.image_grid(samples, title=f"Samples from the prior{order}{self.title_end}")
