"""Plotting functions: tensors in, matplotlib figures out.

The functions read and write no files, never import ``pyplot``, restore matplotlib's global settings
and draw no numbers from torch's generators. They are safe to call in the middle of a training run.

Images are float tensors in [0, 1], channels first, with one (gray) or three (RGB) channels, on any
device. Values outside [0, 1] are clipped. NaN pixels are drawn in magenta, so that a diverged model
is visible. Figures are laid out in whole pixels: images are enlarged, or shrunk if they do not fit,
by an integer factor and shown with one array element per pixel, which keeps them sharp. `to_array`
returns exactly the pixels that ``Figure.savefig`` writes.
"""

from vae_lightning.plotting.codes import code_gallery, code_maps, code_usage
from vae_lightning.plotting.components import principal_components
from vae_lightning.plotting.curves import curves
from vae_lightning.plotting.differences import differences
from vae_lightning.plotting.images import (
    class_grid,
    image_grid,
    image_rows,
    manifold,
    reconstructions,
    traversals,
)
from vae_lightning.plotting.latents import latent_scatter
from vae_lightning.plotting.layout import to_array

__all__ = [
    "class_grid",
    "code_gallery",
    "code_maps",
    "code_usage",
    "curves",
    "differences",
    "image_grid",
    "image_rows",
    "latent_scatter",
    "manifold",
    "principal_components",
    "reconstructions",
    "to_array",
    "traversals",
]
