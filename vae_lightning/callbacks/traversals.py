"""What each latent dimension changes in an image."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.callbacks.figure import Figure, condition_of
from vae_lightning.models import BaseVAE


class Traversals(Figure):
    """One image decoded with one latent dimension moved at a time, a row per dimension.

    The rows are ordered by the dimension's mean KL over the validation images: what the model
    uses most stands first, and collapsed dimensions, which change nothing, stand last.

    Args:
        every_n_epochs: See `Figure`.
        n: Images over which the KL is averaged.
        image: Which of them is decoded.
        steps: Values per dimension.
        limit: They go from -limit to limit.
        rows: Dimensions shown at most.
    """

    name = "traversals"

    def __init__(
        self,
        every_n_epochs: int = 5,
        n: int = 500,
        image: int = 0,
        steps: int = 11,
        limit: float = 3.0,
        rows: int = 20,
    ) -> None:
        super().__init__(every_n_epochs, n=n, steps=steps, rows=rows)
        if not 0 <= image < n:
            raise ValueError(f"figures.traversals.image must be in 0..{n - 1}, got {image}")
        self.images = n
        self.image = image
        self.steps = steps
        self.limit = limit
        self.rows = rows

    def applies_to(self, model: BaseVAE) -> bool:
        """Models whose latent is a vector."""
        return model.latent_dim is not None

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        label = condition_of(model, label)
        kl = model.latent_kl(x, label).mean(0).cpu()  # (L,)
        dimensions = kl.argsort(descending=True)[: self.rows].tolist()
        image = min(self.image, len(x) - 1)
        one = slice(image, image + 1)
        z = model.embed(x[one], None if label is None else label[one]).cpu()
        values = torch.linspace(-self.limit, self.limit, self.steps)
        moved = z.repeat(len(dimensions), self.steps, 1)  # (D, S, L)
        for row, dimension in enumerate(dimensions):
            moved[row, :, dimension] = values
        same = None if label is None else label[image]
        decoded = model.decode(moved.flatten(0, 1), same)
        return plotting.traversals(
            decoded.unflatten(0, moved.shape[:2]),
            [f"z{dimension}  KL {kl[dimension]:.2f}" for dimension in dimensions],
            values.tolist(),
            title=f"Latent traversals of one image, KL in nats{self.title_end}",
        )
