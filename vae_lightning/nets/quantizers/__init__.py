"""Quantizers: maps of vectors to maps of codes, and how both learn."""

from vae_lightning.nets.quantizers.base import Quantized, Quantizer
from vae_lightning.nets.quantizers.codebook import VectorQuantizer
from vae_lightning.nets.quantizers.finite_scalar import FSQ
from vae_lightning.nets.quantizers.lookup_free import LFQ
from vae_lightning.nets.quantizers.residual import ResidualQuantizer
from vae_lightning.nets.quantizers.sim_vq import SimVQ

__all__ = [
    "FSQ",
    "LFQ",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "SimVQ",
    "VectorQuantizer",
]
