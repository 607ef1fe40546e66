"""VQ-VAE (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.models.base import BaseVAE, Terms
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.discrete import DiscreteModel
from vae_lightning.models.image_model import Labels
from vae_lightning.nets import Decoder, Encoder, ImageShape, ResidualDecoder, ResidualEncoder
from vae_lightning.nets.quantizers import Quantized, Quantizer, VectorQuantizer
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS

NO_PRIOR = (
    "train a prior over its codes with vae fit --config vq_prior --model.autoencoder CKPT, or "
    "decode code maps of your own with decode_indices(indices)"
)
"""What to do about a model without a prior over its codes."""


@dataclass(frozen=True)
class VQTerms(Terms):
    """The terms of the VQ-VAE's objective, each (B,). None where a quantizer has no such term.

    Attributes:
        reconstruction: -log p(x|z_q) in nats, summed over the pixels.
        codebook: ||sg[z_e] - e||^2, summed over the map.
        commitment: ||z_e - sg[e]||^2, summed over the map.
        regularizer: Weighted terms of the quantizer's own, (B,) or ().
        indices: Chosen codes, int64, by codebook; not logged.
    """

    codebook: Tensor | None
    commitment: Tensor | None
    regularizer: Tensor | None
    indices: dict[str, Tensor]

    def as_dict(self) -> dict[str, Tensor]:
        """Return the terms that the quantizer has."""
        held = super().as_dict()
        return {
            name: value for name, value in held.items() if name != "indices" and value is not None
        }

    @property
    def batch_dependent(self) -> frozenset[str]:  # type: ignore[override]
        """See `ObjectiveTerms.batch_dependent`: an entropy is that of the whole batch."""
        return frozenset() if self.regularizer is None else frozenset({"regularizer"})

    def code_indices(self) -> dict[str, Tensor]:
        """See `Terms.code_indices`."""
        return self.indices

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        if name == "regularizer":
            return "as weighted"
        return NATS if name == "reconstruction" else "squared distance"


class VQVAE(DiscreteModel, BaseVAE):
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
        ValueError: If ``commitment_weight`` is negative or the encoder returns no map.
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
        """See `ImageModel.codebooks`."""
        return self.quantizer.codebooks

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """See `ImageModel.codebook_sizes`."""
        return self.quantizer.codebook_sizes

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """See `DiscreteModel.level_sizes`."""
        return (self.quantizer.codebook_size,)

    def quantize(self, x: Tensor, condition: Tensor | None = None) -> Quantized:
        """Encode images (B, C, H, W) and replace each position of the map by a code."""
        quantized: Quantized = self.quantizer(self.encoder(self.to_device_dtype(x), condition))
        return quantized

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> VQTerms:
        """See `BaseVAE.terms`; nothing here is random."""
        quantized = self.quantize(x, condition)
        params = self.likelihood_params(quantized.z_q, condition)
        return VQTerms(
            -self.likelihood.log_prob(params, x),
            quantized.codebook,
            quantized.commitment,
            quantized.regularizer,
            self.by_codebook((quantized.indices,)),
        )

    def objective(self, terms: VQTerms) -> Tensor:
        """Return reconstruction + codebook + commitment_weight commitment + regularizer, (B,)."""
        return vq_objective(terms, self.commitment_weight)

    def unsharded_parameters(self) -> list[nn.Parameter]:
        """All of the quantizer: it changes codes in place, which copies of shards would forget."""
        return [*super().unsharded_parameters(), *self.quantizer.parameters()]

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Return ``codes``: indices into the codebook, int64, (B, h, w) or (B, h, w, depth)."""
        return {"codes": self.quantize(x, condition).indices}

    def codes(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """See `DiscreteModel.codes`."""
        return (self.quantize(x, condition).indices,)

    def lookup(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `DiscreteModel.lookup`."""
        return (self.quantizer.lookup(codes[0]),)

    def sample(
        self, n: int, label: Labels = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Not possible: a VQ-VAE has no prior over its codes; `CodePrior` is one.

        Raises:
            MissingCapabilityError: Always.
        """
        raise MissingCapabilityError(type(self).__name__, Capability.SAMPLES, NO_PRIOR)


def vq_objective(terms: VQTerms, commitment_weight: float) -> Tensor:
    """Return reconstruction + codebook + commitment_weight commitment + regularizer, (B,)."""
    loss = terms.reconstruction
    if terms.codebook is not None:
        loss = loss + terms.codebook
    if terms.commitment is not None:
        loss = loss + commitment_weight * terms.commitment
    return loss if terms.regularizer is None else loss + terms.regularizer
