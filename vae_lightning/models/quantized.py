"""What autoencoders with quantizers share: terms, codes and their vectors."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vae_lightning.models.base import BaseVAE, Terms
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.discrete import DiscreteModel, one_or_all
from vae_lightning.nets.quantizers import Quantized, Quantizer
from vae_lightning.nets.quantizers.base import total_of
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS

_NO_PRIOR = (
    "train a prior over its codes with vae fit --config vq_prior --model.autoencoder CKPT, or "
    "decode code maps of your own with decode_indices(indices)"
)


@dataclass(frozen=True)
class VQTerms(Terms):
    """The terms of the VQ-VAE's objective, (B,). None where a quantizer has no such term.

    Attributes:
        reconstruction: -log p(x|z_q) in nats, summed over the pixels.
        codebook: ||sg[z_e] - e||^2, summed over the map.
        commitment: ||z_e - sg[e]||^2, summed over the map.
        regularizer: Additional terms of the quantizers, already weighted, (B,) or ().
        indices: Chosen codes, int64, by codebook; not logged.
    """

    codebook: Tensor | None
    commitment: Tensor | None
    regularizer: Tensor | None
    indices: dict[str, Tensor]

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


class QuantizedModel(DiscreteModel, BaseVAE, ABC):
    """Autoencoder whose codes are chosen by quantizers, one for each level of its latent.

    Args:
        embedding_dim: Size of a code.
        commitment_weight: Weight of the term that ties the *encoder* to its codes (beta in the
            paper). The codebook's own term has weight 1.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If ``embedding_dim`` is not positive or ``commitment_weight`` is negative.
    """

    def __init__(
        self, embedding_dim: int = 64, commitment_weight: float = 0.25, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be positive, got {embedding_dim}")
        if not commitment_weight >= 0:
            raise ValueError(f"commitment_weight must not be negative, got {commitment_weight}")
        self.commitment_weight = commitment_weight

    # What a model implements

    @property
    @abstractmethod
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizers by the name of their level, the uppermost first; "" for a single one."""

    @abstractmethod
    def quantize(self, x: Tensor, condition: Tensor | None = None) -> tuple[Quantized, ...]:
        """Encode images (B, C, H, W) and quantize them, level by level."""

    # Training

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> VQTerms:
        """See `BaseVAE.terms`; the terms of all levels are added up."""
        levels = self.quantize(x, condition)
        vectors = tuple(level.z_q for level in levels)
        params = self.likelihood_params(one_or_all(vectors), condition)
        return VQTerms(
            -self.likelihood.log_prob(params, x),
            total_of([level.codebook_loss for level in levels]),
            total_of([level.commitment_loss for level in levels]),
            total_of([level.regularizer for level in levels]),
            self.by_codebook(tuple(level.indices for level in levels)),
        )

    def objective(self, terms: VQTerms) -> Tensor:
        """Return reconstruction + codebook + commitment_weight commitment + regularizer, (B,)."""
        loss = terms.reconstruction
        if terms.codebook is not None:
            loss = loss + terms.codebook
        if terms.commitment is not None:
            loss = loss + self.commitment_weight * terms.commitment
        return loss if terms.regularizer is None else loss + terms.regularizer

    def unsharded_parameters(self) -> list[nn.Parameter]:
        """See `ImageModel.unsharded_parameters`; quantizers change codes in place."""
        own = [p for one in self.quantizers.values() for p in one.parameters()]
        return [*super().unsharded_parameters(), *own]

    # Codes

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `ImageModel.capabilities`."""
        condition = {Capability.CONDITIONAL} if self.conditional else set()
        return frozenset({Capability.CODEBOOK, *condition})

    def instead_of(self, capability: Capability) -> str:
        """See `ImageModel.instead_of`."""
        return _NO_PRIOR if capability is Capability.SAMPLES else super().instead_of(capability)

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `ImageModel.codebooks`."""
        return {name: quantizer.codebooks[key] for name, quantizer, key in self._named_codebooks()}

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """See `ImageModel.codebook_sizes`."""
        return {
            name: quantizer.codebook_sizes[key] for name, quantizer, key in self._named_codebooks()
        }

    def _named_codebooks(self) -> Iterator[tuple[str, Quantizer, str]]:
        """Yield the name of each codebook, its quantizer, and its name there."""
        for level, quantizer in self.quantizers.items():
            for name in quantizer.codebook_sizes:
                yield "_".join(filter(None, (level, name))), quantizer, name

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """See `DiscreteModel.level_sizes`."""
        return tuple(quantizer.codebook_size for quantizer in self.quantizers.values())

    @property
    def level_names(self) -> tuple[str, ...]:
        """See `DiscreteModel.level_names`."""
        return tuple(self.quantizers)

    def codes(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """See `DiscreteModel.codes`."""
        return tuple(level.indices for level in self.quantize(x, condition))

    def lookup(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `DiscreteModel.lookup`."""
        pairs = zip(self.quantizers.values(), codes, strict=False)
        return tuple(quantizer.lookup(level) for quantizer, level in pairs)
