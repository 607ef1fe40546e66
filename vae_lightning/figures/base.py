"""Base class of the figures: what they need, and how they are drawn."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import matplotlib.figure
from torch import Tensor

from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel


class Figure(ABC):
    """A figure of a model and of images.

    ``vae fit`` draws it after validations, through `vae_lightning.training.figures.FigureCallback`,
    and ``vae figure`` from a finished checkpoint. A figure works with any model that has the
    capabilities in `requires`, through its inference API.

    Args:
        every_n_epochs: Number of epochs between two figures of a training. The last epoch is always
            drawn.
        **sizes: Further options that must be positive, such as numbers of images, by name.

    Attributes:
        epoch: Number of the epoch from 0 that the title names, None for a finished model.
        images_of: What the images are, for titles.

    Raises:
        ValueError: If an option is not positive.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Capability, ...]] = ()
    """Capabilities that a model must have."""
    needs: ClassVar[str] = ""
    """What `applies_to` asks for besides, as the end of the sentence "it needs ..."."""
    images: int = 0
    """Number of images that the figure needs."""

    def __init__(self, every_n_epochs: int = 5, **sizes: int) -> None:
        for option, size in {"every_n_epochs": every_n_epochs, **sizes}.items():
            if size < 1:
                raise ValueError(
                    f"figures.{self.name}.{option} must be at least 1, got {size}; "
                    f"--figures.{self.name} null disables the figure"
                )
        self.every_n_epochs = every_n_epochs
        self.epoch: int | None = None
        self.images_of = "validation images"

    def applies_to(self, model: GenerativeModel) -> bool:
        """Return whether the figure can be drawn for a model."""
        return model.has(*self.requires)

    @abstractmethod
    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """Draw the figure.

        Args:
            model: A model that the figure applies to.
            x: At most ``images`` images in [0, 1], on the CPU, (N, C, H, W).
            label: Their classes, (N,), or None without labels.
            class_names: Names of the classes, or None if the data have none.

        Returns:
            The figure.
        """

    @property
    def title_end(self) -> str:
        """End of the title: the number of the epoch, counted from 1."""
        return "" if self.epoch is None else f" \N{EN DASH} epoch {self.epoch + 1}"
