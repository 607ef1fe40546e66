"""VAE (Kingma and Welling, 2014), https://arxiv.org/abs/1312.6114."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data.batch import Batch
from vae_lightning.functional import DiagonalGaussian
from vae_lightning.models.base import BaseVAE, Labels, Terms
from vae_lightning.nets import ConvDecoder, ConvEncoder, Decoder, Encoder, ImageShape
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class ELBOTerms(Terms):
    """The two terms of the evidence lower bound, each in nats per image, (B,).

    Attributes:
        reconstruction: -log p(x|z), summed over the pixels.
        kl: KL(q(z|x) || p(z)), summed over the latent dimensions.
    """

    kl: Tensor

    @cached_property
    def negative_elbo(self) -> Tensor:
        """The bound on -log p(x): both terms with weight 1, whatever is trained on, (B,)."""
        return self.reconstruction + self.kl

    def named(self) -> dict[str, Tensor]:
        """The terms and the bound."""
        return {**super().named(), "negative_elbo": self.negative_elbo}


class VAE(BaseVAE):
    """Variational autoencoder with a standard normal prior: -E_q[log p(x|z)] + KL(q(z|x) || p(z)).

    Args:
        latent_dim: Size of the latent vector z.
        samples: Draws of z per image in training and in the reported terms, which are their means.
        encoder: Network from images to mu and log_var.
        decoder: Network from z to the parameters of the likelihood.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If ``latent_dim`` or ``samples`` is not positive.
    """

    latent_dim: int

    def __init__(
        self,
        latent_dim: int = 20,
        samples: int = 1,
        encoder: Callable[[ImageShape, int, int], Encoder] = ConvEncoder,
        decoder: Callable[[ImageShape, int, int], Decoder] = ConvDecoder,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"latent_dim": latent_dim, "samples": samples}.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.latent_dim = latent_dim
        self.samples = samples
        channels, height, width = self.image_shape
        condition_features = self.num_classes if self.conditional else 0
        self.encoder = encoder(self.image_shape, 2 * latent_dim, condition_features)
        params_shape = (self.likelihood.n_params * channels, height, width)
        self.decoder = decoder(params_shape, latent_dim, condition_features)
        self.check_networks(features=(2 * latent_dim,), latent=(latent_dim,))

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> DiagonalGaussian:
        """q(z|x) of images (B, C, H, W), in float32, with gradients."""
        mu, log_var = self.encoder(self.place(x), condition).float().chunk(2, dim=1)
        return DiagonalGaussian(mu, log_var)

    def log_likelihood(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log p(x|z) of images (B, C, H, W) for draws z (B, K, L) of each: (B, K), nats."""
        draws = z.shape[1]
        if condition is not None:
            condition = condition.repeat_interleave(draws, 0)
        params = self.decoder(self.place(z.flatten(0, 1)), condition)
        return self.likelihood.log_prob(params.unflatten(0, (-1, draws)), x[:, None])

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> ELBOTerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        log_likelihood = self.log_likelihood(x, q.sample(noise, self.samples), condition)
        return ELBOTerms(-log_likelihood.mean(1), q.kl().sum(1))

    def log_marginal(self, batch: Batch, samples: int, rows: int) -> Tensor:
        """See `BaseVAE.log_marginal`; a stream of weights of which only their sum is kept."""
        with self.inference():
            x, condition = batch.x, self.one_hot(batch)
            q = self.posterior(x, condition)
            exact = torch.float32 if x.is_mps else torch.float64
            log_sum = torch.full((len(x),), -torch.inf, dtype=exact, device=x.device)
            # Latents are small: many are drawn at once, and decoded in parts.
            drawn, decoded = max(1, 16 * rows // len(x)), max(1, rows // len(x))
            for first in range(0, samples, drawn):
                noise = self.evaluation_noise(batch, "importance")
                draws = q.sample(noise, min(drawn, samples - first), first)
                for z, log_ratio in zip(
                    draws.split(decoded, 1), q.log_ratio(draws).split(decoded, 1), strict=True
                ):
                    log_weights = (self.log_likelihood(x, z, condition) + log_ratio).to(exact)
                    log_sum = log_sum.logaddexp(log_weights.logsumexp(1))
            return log_sum - math.log(samples)

    def objective(self, terms: ELBOTerms) -> Tensor:
        """The negative ELBO, (B,)."""
        return terms.negative_elbo

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """``mu`` and ``log_var`` of q(z|x), each (B, latent_dim)."""
        return self.posterior(x, condition)._asdict()

    def embed(self, x: Tensor, label: Labels = None) -> Tensor:
        """Means of q(z|x), (B, latent_dim)."""
        self.check_images(x)
        with self.inference():
            return self.posterior(x, self.condition(label, len(x))).mu

    def latent_kl(self, x: Tensor, label: Labels = None) -> Tensor:
        """KL(q(z|x) || p(z)) of each latent dimension in nats, (B, latent_dim)."""
        self.check_images(x)
        with self.inference():
            return self.posterior(x, self.condition(label, len(x))).kl()

    def sample(
        self, n: int, label: Labels = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """See `BaseVAE.sample`; z is drawn from N(0, I)."""
        if n < 1:
            raise ValueError(f"the number of samples must be positive, got {n}")
        z = torch.randn(n, self.latent_dim, generator=generator)
        return self.decode(z, self.take_turns(n) if label is None else label)
