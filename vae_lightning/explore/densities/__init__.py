"""Densities fitted to the latents of a finished model, to sample from them afterwards.

The prior of a VAE differs from the distribution of the latents that its decoder was trained on, and
an autoencoder without a prior has only the latter. A density that is fitted to it in a second step
often gives better samples (Ghosh et al., 2020, https://arxiv.org/abs/1903.12436).
"""

from vae_lightning.explore.densities.base import LatentDensity
from vae_lightning.explore.densities.fitting import draw_latents, fit_density
from vae_lightning.explore.densities.flow import FlowDensity
from vae_lightning.explore.densities.gaussian_mixture import GaussianMixtureDensity
from vae_lightning.explore.densities.second_stage import SecondStageVAE
from vae_lightning.explore.densities.storage import (
    DENSITIES,
    load_density,
    save_density,
    weights_digest,
)

__all__ = [
    "DENSITIES",
    "FlowDensity",
    "GaussianMixtureDensity",
    "LatentDensity",
    "SecondStageVAE",
    "draw_latents",
    "fit_density",
    "load_density",
    "save_density",
    "weights_digest",
]
