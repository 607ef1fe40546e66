"""VQ-VAE (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import Latents
from vae_lightning.models.base import BaseVAE, Terms
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.image_model import Labels
from vae_lightning.nets import Decoder, Encoder, ImageShape, ResidualDecoder, ResidualEncoder
from vae_lightning.nets.quantizers import Quantized, VectorQuantizer
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS


@dataclass(frozen=True)
class VQTerms(Terms):
    """The three terms of the VQ-VAE's objective, each (B,).

    Attributes:
        reconstruction: -log p(x|z_q) in nats, summed over the pixels.
        codebook: ||sg[z_e] - e||^2, summed over the map; 0 where the codebook is a moving average.
        commitment: ||z_e - sg[e]||^2, summed over the map.
        indices: Chosen codes, int64, (B, h, w); not logged.
    """

    codebook: Tensor
    commitment: Tensor
    indices: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """Return the three terms."""
        return {name: value for name, value in super().as_dict().items() if name != "indices"}

    def code_indices(self) -> dict[str, Tensor]:
        """See `Terms.code_indices`."""
        return {"": self.indices}

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return NATS if name == "reconstruction" else "squared distance"


class VQVAE(BaseVAE):
    """Autoencoder with a discrete latent: -log p(x|z_q) + codebook + commitment_weight commitment.

    Each position of the encoder's map is replaced by the nearest code of a learned codebook.

    Args:
        embedding_dim: Size of a code.
        commitment_weight: Weight of the term that ties the *encoder* to its codes (beta in the
            paper). The codebook's own term has weight 1.
        encoder: Network from images to a map of ``embedding_dim`` channels.
        decoder: Network from that map to the parameters of the likelihood.
        quantizer: The codebook and how it learns.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If ``commitment_weight`` is negative or the encoder returns no map.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        commitment_weight: float = 0.25,
        encoder: Callable[[ImageShape, int, int], Encoder] = ResidualEncoder,
        decoder: Callable[[ImageShape, int, int], Decoder] = ResidualDecoder,
        quantizer: Callable[[int], VectorQuantizer] = VectorQuantizer,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not commitment_weight >= 0:
            raise ValueError(f"commitment_weight must not be negative, got {commitment_weight}")
        self.commitment_weight = commitment_weight
        self.encoder = encoder(self.image_shape, embedding_dim, self.cond_features)
        self.decoder = decoder(self.params_shape, embedding_dim, self.cond_features)
        self.check_networks(features=(embedding_dim, 0, 0), latent=(embedding_dim, 0, 0))
        self.quantizer = quantizer(embedding_dim)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `GenerativeModel.capabilities`."""
        condition = {Capability.CONDITIONAL} if self.conditional else set()
        return frozenset({Capability.CODEBOOK, *condition})

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `GenerativeModel.codebooks`."""
        return {"": self.quantizer.codebook.detach()}

    def quantize(self, x: Tensor, condition: Tensor | None = None) -> Quantized:
        """Encode images (B, C, H, W) and replace each position of the map by its nearest code."""
        quantized: Quantized = self.quantizer(self.encoder(self.to_device_dtype(x), condition))
        return quantized

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> VQTerms:
        """See `BaseVAE.terms`; nothing here is random."""
        quantized = self.quantize(x, condition)
        params = self.likelihood_params(quantized.z_q, condition)
        codebook = quantized.codebook
        if self.quantizer.codebook_update == "ema":
            codebook = torch.zeros_like(codebook)
        return VQTerms(
            -self.likelihood.log_prob(params, x),
            codebook,
            quantized.commitment,
            quantized.indices,
        )

    def objective(self, terms: VQTerms) -> Tensor:
        """Return reconstruction + codebook + commitment_weight commitment, (B,)."""
        return terms.reconstruction + terms.codebook + self.commitment_weight * terms.commitment

    def unsharded_parameters(self) -> list[nn.Parameter]:
        """All of the quantizer: it changes codes in place, which copies of shards would forget."""
        return [*super().unsharded_parameters(), *self.quantizer.parameters()]

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Return ``codes``: indices into the codebook, int64, (B, h, w)."""
        return {"codes": self.quantize(x, condition).indices}

    def encode_indices(self, x: Tensor, label: Labels = None) -> Tensor:
        """Return the map of code indices of images (B, C, H, W): int64, (B, h, w)."""
        self.check_images(x)
        with self.inference():
            return self.quantize(x, self.encode_labels(label, len(x))).indices

    def embed(self, x: Tensor, label: Labels = None) -> Latents:
        """Return the chosen codes, (B, embedding_dim, h, w)."""
        with self.inference():
            return self.quantizer.lookup(self.encode_indices(x, label))

    def decode_indices(self, indices: Tensor, label: Labels = None) -> Tensor:
        """Decode a map of code indices, (B, h, w), to images, (B, C, H, W)."""
        with self.inference():
            z_q = self.quantizer.lookup(indices.to(self.device))
        return self.decode(z_q, label)

    def sample(
        self, n: int, label: Labels = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Not possible: a VQ-VAE learns no prior over its codes.

        Raises:
            MissingCapabilityError: Always.
        """
        raise MissingCapabilityError(
            type(self).__name__,
            Capability.SAMPLES,
            "look at reconstruct(x), or decode code maps of your own with decode_indices(indices)",
        )
