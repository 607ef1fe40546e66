"""Conditional VAE (Sohn et al., 2015), https://papers.nips.cc/paper/5775."""

from typing import Any

from vae_lightning.models.vae import VAE


class CVAE(VAE):
    """VAE of images given their class: encoder and decoder see it, one-hot, and p(z) is N(0, I).

    Args:
        conditional: Whether the class is seen; without it this is a `VAE`.
        **kwargs: See `VAE`.
    """

    def __init__(self, conditional: bool = True, **kwargs: Any) -> None:
        super().__init__(conditional=conditional, **kwargs)
