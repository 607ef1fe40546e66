"""Which codes of a codebook are used, and where in the images."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.callbacks.figure import Figure, condition_of
from vae_lightning.models import BaseVAE


class CodeUsage(Figure):
    """How often each code is chosen for the validation images.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
    """

    name = "code_usage"

    def __init__(self, every_n_epochs: int = 5, n: int = 1000) -> None:
        super().__init__(every_n_epochs, n=n)
        self.images = n

    def applies_to(self, model: BaseVAE) -> bool:
        """Models with a codebook."""
        return model.n_codes is not None

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        assert model.n_codes is not None
        codes = model.codes(x, condition_of(model, label))
        counts = torch.bincount(codes.flatten().cpu(), minlength=model.n_codes)
        title = f"Use of the codes in {len(x):,} validation images{self.title_end}"
        return plotting.code_usage(counts, title=title)


class CodeMaps(Figure):
    """Validation images, the maps of their codes, and what is decoded from these.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
    """

    name = "code_maps"

    def __init__(self, every_n_epochs: int = 5, n: int = 12) -> None:
        super().__init__(every_n_epochs, n=n)
        self.images = n

    def applies_to(self, model: BaseVAE) -> bool:
        """Models with a codebook."""
        return model.n_codes is not None

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        assert model.n_codes is not None
        label = condition_of(model, label)
        codes = model.codes(x, label)
        reconstructed = model.reconstruct(x, label)
        title = f"Codes of validation images{self.title_end}"
        return plotting.code_maps(x, reconstructed, codes, model.n_codes, title=title)
