"""Plotting functions: tensors in, matplotlib figures out.

The functions read and write no files, never import ``pyplot``, restore matplotlib's global settings
and draw no numbers from torch's generators. They are safe to call in the middle of a training run.

Images are float tensors in [0, 1], channels first, on any device. Values outside [0, 1] are
clipped. NaN pixels are drawn in magenta, so that a diverged model is visible. Figures are laid out
in whole pixels: images are enlarged, or shrunk if they do not fit, by an integer factor and shown
with one array element per pixel, which keeps them sharp. `to_array` returns exactly the pixels that
``Figure.savefig`` writes.

What is drawn of an image (C, H, W) depends on its shape:

- One channel is gray and three are RGB.
- Two channels are magenta and green, which add up to gray. Four to six, as of fluorescence
  microscopes, add up cyan, yellow, magenta, red, green and blue, in this order. Of more, as of
  hyperspectral cameras, three are shown: those at 5/6, 1/2 and 1/6 of the range in red, green and
  blue. Four channels are never RGB with opacity.
- H = 1 is a signal or a spectrum of W values, drawn as a curve on a common vertical scale with
  white lines at 0 and 1; what is up to about 0.07 outside is shown. Two to four channels are curves
  of different colors on one scale, more are drawn one above the other. With more than 256 values,
  tiles are wider. However long a signal is, none of its peaks is lost.
- H = 1 with one channel and up to 32 values, such as a row of a table, is drawn as bars from 0 up.
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
from vae_lightning.plotting.rate_distortion import RatePoint, rate_distortion
from vae_lightning.plotting.scales import pictures

__all__ = [
    "RatePoint",
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
    "pictures",
    "principal_components",
    "rate_distortion",
    "reconstructions",
    "to_array",
    "traversals",
]
