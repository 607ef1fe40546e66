"""Encoders and decoders: plain modules that are built from an image shape."""

from vae_lightning.nets.base import Decoder, Encoder, ImageShape
from vae_lightning.nets.conv import ConvDecoder, ConvEncoder
from vae_lightning.nets.gyroplane import GyroplaneDecoder
from vae_lightning.nets.mlp import MLPDecoder, MLPEncoder
from vae_lightning.nets.residual import ResidualDecoder, ResidualEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "GyroplaneDecoder",
    "ImageShape",
    "MLPDecoder",
    "MLPEncoder",
    "ResidualDecoder",
    "ResidualEncoder",
]
