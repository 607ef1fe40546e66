"""Conditional VAE (Sohn et al., 2015), https://papers.nips.cc/paper/5775."""

from typing import Any

from vae_lightning.models.vae import VAE


class CVAE(VAE):
    """VAE of images given their class: encoder and decoder see the class as a one-hot vector.

    Args:
        conditional: Always true. A model that does not see the class is a `VAE`.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``conditional`` is false.
    """

    def __init__(self, conditional: bool = True, **kwargs: Any) -> None:
        if not conditional:
            raise ValueError("a CVAE is always conditional: use VAE for a model without classes")
        super().__init__(conditional=conditional, **kwargs)
