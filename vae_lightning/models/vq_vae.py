"""VQ-VAE (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vae_lightning.checkpoint import is_inside_epoch
from vae_lightning.distributed import total
from vae_lightning.functional import perplexity
from vae_lightning.metrics.codebook import CodeCounts
from vae_lightning.metrics.result import NATS, Result
from vae_lightning.models.base import BaseVAE, Labels, Terms
from vae_lightning.nets import Decoder, Encoder, ImageShape, ResidualDecoder, ResidualEncoder
from vae_lightning.quantizers import Quantized, VectorQuantizer
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class VQTerms(Terms):
    """The three terms of the VQ-VAE's objective, each (B,).

    Attributes:
        reconstruction: -log p(x|z_q) in nats, summed over the pixels.
        codebook: ||sg[z_e] - e||^2, summed over the map; 0 where the codebook is a moving average.
        commitment: ||z_e - sg[e]||^2, summed over the map.
    """

    codebook: Tensor
    commitment: Tensor

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return NATS if name == "reconstruction" else "squared distance"


class VQVAE(BaseVAE):
    """Autoencoder with a discrete latent: -log p(x|z_q) + codebook + commitment_weight commitment.

    Each place of the encoder's map is replaced by the nearest code of a learnt codebook.

    Args:
        code_dim: Size of a code.
        commitment_weight: Weight of the term that ties the *encoder* to its codes (beta in the
            paper; the codebook's own term has weight 1).
        encoder: Network from images to a map of ``code_dim`` channels.
        decoder: Network from that map to the parameters of the likelihood.
        quantizer: The codebook, how it learns, starts and revives its codes.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If ``commitment_weight`` is negative or the encoder keeps no map.
    """

    can_sample = False

    def __init__(
        self,
        code_dim: int = 64,
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
        channels, height, width = self.image_shape
        condition_features = self.num_classes if self.conditional else 0
        self.encoder = encoder(self.image_shape, code_dim, condition_features)
        params_shape = (self.likelihood.n_params * channels, height, width)
        self.decoder = decoder(params_shape, code_dim, condition_features)
        self.check_networks(features=(code_dim, 0, 0), latent=(code_dim, 0, 0))
        self.quantizer = quantizer(code_dim)
        self.n_codes = self.quantizer.codes
        self.training_counts = CodeCounts(self.n_codes)
        self.evaluation_counts = CodeCounts(self.n_codes)

    def quantize(self, x: Tensor, condition: Tensor | None = None) -> Quantized:
        """Encode images (B, C, H, W) and replace each place of the map by its nearest code."""
        return self.quantizer(self.encoder(self.place(x), condition))

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> VQTerms:
        """See `BaseVAE.terms`; nothing here is random."""
        quantized = self.quantize(x, condition)
        (self.training_counts if self.training else self.evaluation_counts).update(
            quantized.indices
        )
        params = self.decoder(self.place(quantized.z_q), condition)
        codebook = quantized.codebook
        if self.quantizer.learning == "ema":
            codebook = torch.zeros_like(codebook)
        return VQTerms(-self.likelihood.log_prob(params, x), codebook, quantized.commitment)

    def objective(self, terms: VQTerms) -> Tensor:
        """Reconstruction + codebook + commitment_weight commitment, (B,)."""
        return terms.reconstruction + terms.codebook + self.commitment_weight * terms.commitment

    def on_train_epoch_end(self) -> None:
        """Log perplexity and share of codes used, over the whole epoch."""
        counts = self.training_counts.compute().cpu()
        self.training_counts.reset()
        for name, result in self._usage(counts).items():
            # Every process has the same numbers; sync_dist only keeps Lightning from warning.
            self.log(f"train/{name}", result.value, sync_dist=True)

    def setup(self, stage: str) -> None:
        """See `BaseVAE.setup`; a training counts its codes from the start."""
        super().setup(stage)
        if stage == "fit":
            self.training_counts.reset()

    def unsharded_parameters(self) -> list[Parameter]:
        """All of the quantiser: it changes codes in place, which copies of shards would forget."""
        return [*super().unsharded_parameters(), *self.quantizer.parameters()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how often each code was used since the epoch began, by all processes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_counts"] = total(self.training_counts.counts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with these counts, inside an epoch; the first process holds those of all."""
        super().on_load_checkpoint(checkpoint)
        known = "training_counts" in checkpoint and is_inside_epoch(checkpoint)
        if self.global_rank == 0 and known:
            self.training_counts.counts = checkpoint["training_counts"].to(self.device)

    def report_means(self, stage: str) -> None:
        """Report the means, how the codebook is used, and the bits of a map of codes."""
        super().report_means(stage)
        counts = self.evaluation_counts.compute().cpu()
        self.evaluation_counts.reset()
        places = int(counts.sum()) / (self.results[f"{stage}/loss"].images or 1)
        usage = self._usage(counts)
        entropy = math.log2(max(usage["perplexity"].value, 1))
        usage["code_bits"] = Result(places * math.log2(len(counts)), "bits per image")
        usage["code_entropy_bits"] = Result(places * entropy, "bits per image")
        for name, result in usage.items():
            self.report(stage, name, result)

    @staticmethod
    def _usage(counts: Tensor) -> dict[str, Result]:
        return {
            "perplexity": Result(perplexity(counts).item(), f"of {len(counts)} codes"),
            "codes_used": Result(counts.gt(0).double().mean().item(), "of the codes"),
        }

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """``codes``: indices into the codebook, int64, (B, h, w)."""
        return {"codes": self.quantize(x, condition).indices}

    def codes(self, x: Tensor, label: Labels = None) -> Tensor:
        """Map of code indices of images (B, C, H, W): int64, (B, h, w)."""
        self.check_images(x)
        with self.inference():
            return self.quantize(x, self.condition(label, len(x))).indices

    def embed(self, x: Tensor, label: Labels = None) -> Tensor:
        """The chosen codes, (B, code_dim, h, w)."""
        with self.inference():
            return self.quantizer.lookup(self.codes(x, label))

    def decode_codes(self, codes: Tensor, label: Labels = None) -> Tensor:
        """Images of a map of code indices (B, h, w), (B, C, H, W)."""
        with self.inference():
            z_q = self.quantizer.lookup(codes.to(self.device))
        return self.decode(z_q, label)

    def sample(
        self, n: int, label: Labels = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Not possible.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "a VQVAE cannot sample: it has no prior over its codes; look at reconstruct(x), or "
            "decode code maps of your own with decode_codes(codes)"
        )
