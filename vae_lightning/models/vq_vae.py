"""VQ-VAE (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vae_lightning.models.quantized import QuantizedModel
from vae_lightning.nets import Decoder, Encoder, ImageShape, ResidualDecoder, ResidualEncoder
from vae_lightning.nets.quantizers import Quantized, Quantizer, VectorQuantizer


class VQVAE(QuantizedModel):
    """Autoencoder with a discrete latent: -log p(x|z_q) + codebook + commitment_weight commitment.

    Each position of the encoder's map is replaced by the nearest code of a learned codebook.

    Args:
        embedding_dim: Size of a code.
        commitment_weight: Weight of the term that ties the *encoder* to its codes (beta in the
            paper). The codebook's own term has weight 1.
        encoder: Network from images to a map of ``embedding_dim`` channels.
        decoder: Network from that map to the parameters of the likelihood.
        quantizer: The codebook and how it learns, or another kind of quantizer.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If a number is out of range, or the encoder returns no map.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        commitment_weight: float = 0.25,
        encoder: Callable[[ImageShape, int, int], Encoder] = ResidualEncoder,
        decoder: Callable[[ImageShape, int, int], Decoder] = ResidualDecoder,
        quantizer: Callable[[int], Quantizer] = VectorQuantizer,
        **kwargs: Any,
    ) -> None:
        super().__init__(embedding_dim, commitment_weight, **kwargs)
        self.encoder = encoder(self.image_shape, embedding_dim, self.cond_features)
        self.decoder = decoder(self.params_shape, embedding_dim, self.cond_features)
        self.check_networks(features=(embedding_dim, 0, 0), latent=(embedding_dim, 0, 0))
        self.quantizer = quantizer(embedding_dim)

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """See `QuantizedModel.quantizers`."""
        return {"": self.quantizer}

    def quantize(self, x: Tensor, condition: Tensor | None = None) -> tuple[Quantized, ...]:
        """Encode images (B, C, H, W) and replace each position of the map by a code."""
        return (self.quantizer(self.encoder(self.to_device_dtype(x), condition)),)
