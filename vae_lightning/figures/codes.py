"""Usage of the codes of a codebook, and maps of the codes of images."""

from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.figures.base import Figure
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability


class CodeUsage(Figure):
    """Fraction of assignments of each code over validation images.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
    """

    name = "code_usage"
    requires = (Capability.CODEBOOK,)

    def __init__(self, every_n_epochs: int = 5, n: int = 1000) -> None:
        super().__init__(every_n_epochs, n=n)
        self.images = n

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        codes = model.encode_indices(x, model.used_labels(label))
        counts = torch.bincount(codes.flatten().cpu(), minlength=_codebook_size(model))
        title = f"Code usage over {len(x):,} {self.images_of}{self.title_end}"
        return plotting.code_usage(counts, title=title)


class CodeMaps(Figure):
    """Validation images, the maps of their codes, and their reconstructions.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
    """

    name = "code_maps"
    requires = (Capability.CODEBOOK,)

    def __init__(self, every_n_epochs: int = 5, n: int = 12) -> None:
        super().__init__(every_n_epochs, n=n)
        self.images = n

    def draw(
        self, model: BaseVAE, x: Tensor, label: Tensor | None, class_names: Sequence[str] | None
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        label = model.used_labels(label)
        codes = model.encode_indices(x, label)
        reconstructed = model.reconstruct(x, label)
        title = f"Codes of {self.images_of}{self.title_end}"
        vectors = next(iter(model.codebooks.values()), None)
        size = _codebook_size(model)
        return plotting.code_maps(x, reconstructed, codes, size, vectors=vectors, title=title)


def _codebook_size(model: BaseVAE) -> int:
    """Return the size of the codebook of `BaseVAE.encode_indices`."""
    return next(iter(model.codebook_sizes.values()))
