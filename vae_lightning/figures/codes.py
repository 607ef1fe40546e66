"""Usage of the codes of a codebook, and maps of the codes of images."""

import math
from collections.abc import Sequence

import matplotlib.figure
import torch
from torch import Tensor

from vae_lightning import plotting
from vae_lightning.figures.base import Figure
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.discrete import DiscreteModel
from vae_lightning.models.inference import GenerativeModel


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
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        # One histogram, in which the codes of each codebook have bars of their own.
        counts = [
            torch.bincount(codes.flatten(), minlength=model.codebook_sizes[name])
            for name, codes in _maps(model, x, label).items()
        ]
        title = f"Code usage over {len(x):,} {self.images_of}{self.title_end}"
        return plotting.code_usage(torch.cat(counts), title=title)


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
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        codes = _maps(model, x, label)
        reconstructed = model.reconstruct(x, model.used_labels(label))
        title = f"Codes of {self.images_of}{self.title_end}"
        pictures = model.to_picture(x), model.to_picture(reconstructed)
        return plotting.code_maps(*pictures, codes, model.codebooks, title=title)


class CodeGallery(Figure):
    """What codes look like: where they are used in images, and what they decode to.

    The first row shows the mean patch of validation images at the positions of each code, and the
    second the mean of the same patches of their reconstructions. The codes shown are those whose
    mean patch differs most from that of all codes, by the squared difference times their number.
    For a model with several maps, they are codes of the finest one; with several codebooks, of the
    first.

    Args:
        every_n_epochs: See `Figure`.
        n: Number of images.
        codes: Number of codes.
    """

    name = "code_gallery"
    requires = (Capability.CODEBOOK,)

    def __init__(self, every_n_epochs: int = 5, n: int = 1000, codes: int = 64) -> None:
        super().__init__(every_n_epochs, n=n, codes=codes)
        self.images = n
        self.codes = codes

    def draw(
        self,
        model: GenerativeModel,
        x: Tensor,
        label: Tensor | None,
        class_names: Sequence[str] | None,
    ) -> matplotlib.figure.Figure:
        """See `Figure.draw`."""
        assert isinstance(model, DiscreteModel)
        label = model.used_labels(label)
        indices = model.encode_indices(x, label)
        levels = [indices] if isinstance(indices, Tensor) else list(indices)
        has_depth = levels[-1].ndim > 3
        finest = levels[-1][..., 0] if has_depth else levels[-1]
        counts = torch.bincount(finest.flatten())
        rows = [
            _mean_parts(model.to_picture(images).to(finest.device), finest, counts)
            for images in (x, model.reconstruct(x, label))
        ]
        used = counts.nonzero()[:, 0]
        mean = (counts / counts.sum()).view(-1, 1, 1, 1).mul(rows[0]).sum(0)
        told = counts[used] * (rows[0][used] - mean).square().flatten(1).sum(1)
        chosen = used[told.argsort(descending=True, stable=True)[: self.codes]]
        seen, decoded = (row[chosen].cpu() for row in rows)
        several = len(chosen) > 1
        which = f"{len(chosen)} code{'s' * several}" + " of the first codebook" * has_depth
        which += " of the finest map" * (len(levels) > 1)
        look = "look" if several else "looks"
        title = f"What {which} {look} like in {self.images_of}{self.title_end}"
        return plotting.code_gallery(seen, decoded, counts[chosen].cpu(), title=title)


def _mean_parts(x: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the parts of images (N, C, H, W) that have each code, (K, C, p, q).

    What lies outside an image does not count. A pixel that is never inside has
    the mean of the rest.
    """
    sums = []
    for images in (x, torch.ones_like(x)):
        parts = _patches(images, codes.shape[1:]).flatten(0, 2)
        empty = parts.new_zeros(len(counts), *parts.shape[1:])
        sums.append(empty.index_add_(0, codes.flatten(), parts))
    rest = sums[0].sum((2, 3), keepdim=True) / sums[1].sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1), rest)


def _maps(model: GenerativeModel, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
    """Return the maps of the codes of images, (N, h, w), by codebook, on the CPU."""
    assert isinstance(model, DiscreteModel)
    indices = model.encode_indices(x, model.used_labels(label))
    levels = (indices,) if isinstance(indices, Tensor) else indices
    return {name: codes.cpu() for name, codes in model.by_codebook(levels).items()}


def _patches(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the part of each image around each position of a map, (N, h, w, C, p, q).

    A part is twice as large as the share of the image that a position stands for.
    """
    steps = [math.ceil(length / n) for length, n in zip(x.shape[2:], size, strict=True)]
    sides = [step + 2 * (step // 2) for step in steps]
    rows, columns = size[0] * steps[0] - x.shape[2], size[1] * steps[1] - x.shape[3]
    margins = steps[1] // 2, steps[1] // 2 + columns, steps[0] // 2, steps[0] // 2 + rows
    padded = torch.nn.functional.pad(x, margins)
    parts = padded.unfold(2, sides[0], steps[0]).unfold(3, sides[1], steps[1])
    return parts.permute(0, 2, 3, 1, 4, 5)
