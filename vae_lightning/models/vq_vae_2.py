"""VQ-VAE-2 (Razavi et al., 2019), https://arxiv.org/abs/1906.00446."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import Latents
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.discrete import DiscreteModel
from vae_lightning.models.image_model import Labels
from vae_lightning.models.vq_vae import NO_PRIOR, VQTerms, vq_objective
from vae_lightning.nets import Decoder, Encoder, ImageShape, ResidualDecoder, ResidualEncoder
from vae_lightning.nets.quantizers import Quantized, Quantizer, VectorQuantizer
from vae_lightning.nets.quantizers.base import total_of
from vae_lightning.randomness import Noise

LEVELS = ("top", "bottom")


class VQVAE2(DiscreteModel, BaseVAE):
    """Autoencoder with two maps of codes: a coarse one for the whole, and a fine one for details.

    The top codes are computed first, from the features of the bottom level at half their size. The
    bottom codes are computed from these features and the decoded top codes, so they need not repeat
    what the top codes say. The image is decoded from both.

    Args:
        embedding_dim: Size of a code of either level.
        commitment_weight: Weight of the commitment terms, see `VQVAE`.
        hidden: Channels of the features between the levels.
        encoder: Network from images to the map of features of the bottom level, and from this map
            to that of the top level with ``downsamplings=1``.
        decoder: Network from both maps of codes to the parameters of the likelihood, and from the
            top codes to the size of the bottom level.
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
        super().__init__(**kwargs)
        if not commitment_weight >= 0:
            raise ValueError(f"commitment_weight must not be negative, got {commitment_weight}")
        if min(embedding_dim, hidden) < 1:
            raise ValueError(
                f"embedding_dim and hidden must be positive, got {embedding_dim} and {hidden}"
            )
        self.commitment_weight = commitment_weight
        features = self.cond_features
        self.encoder = encoder(self.image_shape, hidden, features)
        self.decoder = decoder(self.params_shape, 2 * embedding_dim, features)
        self.check_networks(features=(hidden, 0, 0), latent=(2 * embedding_dim, 0, 0))
        _, height, width = self._bottom_shape()
        if min(height, width) < 2:
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
    def capabilities(self) -> frozenset[Capability]:
        """See `ImageModel.capabilities`."""
        condition = {Capability.CONDITIONAL} if self.conditional else set()
        return frozenset({Capability.CODEBOOK, *condition})

    @property
    def quantizers(self) -> tuple[Quantizer, Quantizer]:
        """The quantizers by level."""
        return self.top_quantizer, self.bottom_quantizer

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `ImageModel.codebooks`."""
        return {
            f"{level}{name and f'_{name}'}": vectors
            for level, quantizer in zip(LEVELS, self.quantizers, strict=True)
            for name, vectors in quantizer.codebooks.items()
        }

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """See `ImageModel.codebook_sizes`."""
        return {
            f"{level}{name and f'_{name}'}": size
            for level, quantizer in zip(LEVELS, self.quantizers, strict=True)
            for name, size in quantizer.codebook_sizes.items()
        }

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """See `DiscreteModel.level_sizes`."""
        return tuple(quantizer.codebook_size for quantizer in self.quantizers)

    @property
    def level_names(self) -> tuple[str, ...]:
        """See `DiscreteModel.level_names`."""
        return LEVELS

    def quantize(self, x: Tensor, condition: Tensor | None = None) -> tuple[Quantized, Quantized]:
        """Encode images (B, C, H, W), and quantize the top and then the bottom level."""
        features = self.encoder(self.to_device_dtype(x), condition)
        top: Quantized = self.top_quantizer(self.top_encoder(features, condition))
        above = self.top_decoder(top.z_q.to(features.dtype), condition)
        bottom: Quantized = self.bottom_quantizer(self.to_bottom(torch.cat([features, above], 1)))
        return top, bottom

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> VQTerms:
        """See `BaseVAE.terms`; the terms of both levels are added up."""
        levels = self.quantize(x, condition)
        params = self.likelihood_params(tuple(level.z_q for level in levels), condition)
        return VQTerms(
            -self.likelihood.log_prob(params, x),
            total_of([level.codebook for level in levels]),
            total_of([level.commitment for level in levels]),
            total_of([level.regularizer for level in levels]),
            self.by_codebook(tuple(level.indices for level in levels)),
        )

    def objective(self, terms: VQTerms) -> Tensor:
        """Return reconstruction + codebook + commitment_weight commitment + regularizer, (B,)."""
        return vq_objective(terms, self.commitment_weight)

    def unsharded_parameters(self) -> list[nn.Parameter]:
        """See `VQVAE.unsharded_parameters`."""
        held = super().unsharded_parameters()
        return [*held, *(p for quantizer in self.quantizers for p in quantizer.parameters())]

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """Return the parameters of p(x|z) for the vectors of both levels, (B, D, h, w) each."""
        top, bottom = z
        enlarged = nn.functional.interpolate(top, bottom.shape[2:], mode="nearest")
        params: Tensor = self.decoder(
            self.to_device_dtype(torch.cat([enlarged, bottom], 1)), condition
        )
        return params

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Return the indices of both levels as ``codes_top`` and ``codes_bottom``, int64."""
        codes = self.codes(x, condition)
        return {f"codes_{name}": level for name, level in zip(LEVELS, codes, strict=True)}

    def codes(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """See `DiscreteModel.codes`."""
        return tuple(level.indices for level in self.quantize(x, condition))

    def lookup(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `DiscreteModel.lookup`."""
        pairs = zip(self.quantizers, codes, strict=False)
        return tuple(quantizer.lookup(level) for quantizer, level in pairs)

    def sample(
        self, n: int, label: Labels = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Not possible: it has no prior over its codes; `CodePrior` is one.

        Raises:
            MissingCapabilityError: Always.
        """
        raise MissingCapabilityError(type(self).__name__, Capability.SAMPLES, NO_PRIOR)
