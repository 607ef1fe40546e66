"""What a trained model is used for: samples, traversals, interpolations, latents and scores.

Functions of a model and tensors, which need no Lightning. ``vae sample`` and its kin call them.
"""

from vae_lightning.explore.explorer import explorer
from vae_lightning.explore.interpolation import Interpolation, interpolate
from vae_lightning.explore.latents import encode
from vae_lightning.explore.sampling import sample, sample_codes
from vae_lightning.explore.scores import complexity, score
from vae_lightning.explore.traversal import Traversal, traverse
from vae_lightning.explore.udr import udr

__all__ = [
    "Interpolation",
    "Traversal",
    "complexity",
    "encode",
    "explorer",
    "interpolate",
    "sample",
    "sample_codes",
    "score",
    "traverse",
    "udr",
]
