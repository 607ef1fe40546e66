"""VAE (Kingma and Welling, 2014), https://arxiv.org/abs/1312.6114."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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

    @property
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
        encoder: Network from images to mu and log_var.
        decoder: Network from z to the parameters of the likelihood.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If ``latent_dim`` is not positive.
    """

    latent_dim: int

    def __init__(
        self,
        latent_dim: int = 20,
        encoder: Callable[[ImageShape, int, int], Encoder] = ConvEncoder,
        decoder: Callable[[ImageShape, int, int], Decoder] = ConvDecoder,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be positive, got {latent_dim}")
        self.latent_dim = latent_dim
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

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> ELBOTerms:
        """See `BaseVAE.terms`; one draw of z per image."""
        q = self.posterior(x, condition)
        params = self.decoder(self.place(q.sample(noise)), condition)
        return ELBOTerms(-self.likelihood.log_prob(params, x), q.kl().sum(1))

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
