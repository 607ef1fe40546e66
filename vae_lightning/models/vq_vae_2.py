"""VQ-VAE-2 (Razavi et al., 2019), https://arxiv.org/abs/1906.00446."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import Latents
from vae_lightning.models.quantized import QuantizedModel
from vae_lightning.nets import Decoder, Encoder, ImageShape, ResidualDecoder, ResidualEncoder
from vae_lightning.nets.quantizers import Quantized, Quantizer, VectorQuantizer


class VQVAE2(QuantizedModel):
    """Autoencoder with two maps of codes: a coarse one of global structure, a fine one of details.

    The top codes are computed first, from the features of the bottom level at half their size. The
    bottom codes are computed from these features and the decoded top codes, so they need not repeat
    what the top codes say. The image is decoded from both.

    Args:
        embedding_dim: Size of a code of either level.
        commitment_weight: Weight of the commitment terms, see `VQVAE`.
        hidden: Channels of the features between the levels.
        encoder: Network from images to the map of features of the bottom level. The networks
            between the levels are residual ones.
        decoder: Network from both maps of codes to the parameters of the likelihood.
        quantizer: Quantizer of each level.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If a number is out of range, or a network returns no map.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        commitment_weight: float = 0.25,
        hidden: int = 64,
        encoder: Callable[[ImageShape, int, int], Encoder] = ResidualEncoder,
        decoder: Callable[[ImageShape, int, int], Decoder] = ResidualDecoder,
        quantizer: Callable[[int], Quantizer] = VectorQuantizer,
        **kwargs: Any,
    ) -> None:
        super().__init__(embedding_dim, commitment_weight, **kwargs)
        if hidden < 1:
            raise ValueError(f"hidden must be positive, got {hidden}")
        features = self.cond_features
        self.encoder = encoder(self.image_shape, hidden, features)
        self.decoder = decoder(self.params_shape, 2 * embedding_dim, features)
        self.check_networks(features=(hidden, 0, 0), latent=(2 * embedding_dim, 0, 0))
        _, height, width = self._bottom_shape()
        if min(height, width) < 2 and (height > 1 or self.image_shape[1] > 1 or width < 2):
            raise ValueError(
                f"the map of {type(self.encoder).__name__} is {height}x{width}, too small for a "
                "coarser one above: use larger images or fewer downsamplings"
            )
        between = hidden, height, width
        self.top_encoder = ResidualEncoder(between, embedding_dim, features, hidden, 1)
        self.top_decoder = ResidualDecoder(between, embedding_dim, features, hidden, 1)
        self.to_bottom = nn.Conv2d(2 * hidden, embedding_dim, kernel_size=1)
        self.top_quantizer = quantizer(embedding_dim)
        self.bottom_quantizer = quantizer(embedding_dim)

    def _bottom_shape(self) -> tuple[int, ...]:
        """Return the shape of the features of the bottom level."""
        with self.inference():
            condition = self.encode_labels(0 if self.conditional else None, 1)
            return tuple(self.encoder(torch.zeros(1, *self.image_shape), condition).shape[1:])

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """See `QuantizedModel.quantizers`."""
        return {"top": self.top_quantizer, "bottom": self.bottom_quantizer}

    def quantize(self, x: Tensor, condition: Tensor | None = None) -> tuple[Quantized, ...]:
        """Encode images (B, C, H, W), and quantize the top and then the bottom level."""
        features = self.encoder(self.to_device_dtype(x), condition)
        top: Quantized = self.top_quantizer(self.top_encoder(features, condition))
        above = self.top_decoder(top.z_q.to(features.dtype), condition)
        bottom: Quantized = self.bottom_quantizer(self.to_bottom(torch.cat([features, above], 1)))
        return top, bottom

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """Return the parameters of p(x|z) for the vectors of both levels, (B, D, h, w) each."""
        top, bottom = z
        enlarged = nn.functional.interpolate(top, bottom.shape[2:], mode="nearest")
        params: Tensor = self.decoder(
            self.to_device_dtype(torch.cat([enlarged, bottom], 1)), condition
        )
        return params
