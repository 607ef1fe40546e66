"""What training and testing report beyond averages over images."""

from vae_lightning.metrics.codebook import CodeCounts

__all__ = ["CodeCounts"]
