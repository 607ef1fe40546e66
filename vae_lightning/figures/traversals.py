"""Effect of each latent variable on an image."""

from collections.abc import Sequence

import matplotlib.figure
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.explore.traversal import dimension_use, most_used, traverse
from vae_lightning.figures.base import Figure
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel


class Traversals(Figure):
    """Latent traversals of one image, with one row per latent variable.

    Rows are in decreasing order of the variable's mean KL over validation images (or of the
    variance of the latents for models without a closed-form KL), so collapsed ones come last. A
    categorical variable goes through its categories.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images over which the KL is averaged.
        image: Index of the image that is decoded.
        steps: Number of values per variable that is a number.
        limit: Values go from ``-limit`` to ``limit``. For priors other than N(0, I), they are
            mapped to the corresponding quantiles of the prior.
        rows: Largest number of variables shown.

    Raises:
        ValueError: If ``image`` is not one of the ``n`` images.
    """

    name = "traversals"
    requires = (Capability.TRAVERSABLE, Capability.SAMPLES)

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

    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        label = model.labels_for(x, label)
        use, unit = dimension_use(model, x, label)
        dimensions = most_used(model, use, self.rows)
        image = min(self.image, len(x) - 1)
        one = slice(image, image + 1)
        z = model.embed(x[one], None if label is None else label[one])
        assert isinstance(z, Tensor)  # models with TRAVERSABLE have one latent vector
        same = None if label is None else label[image]
        made = traverse(model, z[0], dimensions, same, steps=self.steps, limit=self.limit)
        return plotting.traversals(
            model.to_picture(made.images),
            [
                f"{name}  {unit} {use[number]:.2f}"
                for name, number in zip(made.names, dimensions, strict=True)
            ],
            made.values.tolist(),
            x_label=made.axis_label,
            counts=made.counts,
            title=f"Latent traversals of one image{', KL in nats' * (unit == 'KL')}"
            f"{self.title_end}",
        )
