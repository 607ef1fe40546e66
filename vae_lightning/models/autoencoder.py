"""Deterministic autoencoder, without a prior."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import DeterministicPosterior, Latents, Posterior
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.models.base import Terms
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import Noise

_NO_PRIOR = "fit a density to its latents with vae density fit, then use vae sample --density"
_MOMENTUM = 0.01


class Autoencoder(LatentVariableModel):
    r"""Plain deterministic autoencoder: -log p(x|z) with z = E(x), and no prior to sample from.

    Nothing constrains the latents, so no distribution of them is known before one is fitted to
    them: ``vae density fit`` does, and ``vae sample --density`` then draws from it. There is no
    density of images, and no bound on one. Use it as the baseline of every other autoencoder, or
    for compression to a vector.

    Running averages of the mean and the variance of the latents tell pictures of the latent space
    how far to go.

    Args:
        posterior: A family without noise. Noise would have no effect but to be turned off.
        **kwargs: See `LatentVariableModel`; leave out ``prior`` and ``num_samples``.

    Raises:
        ValueError: If a prior, a posterior with a density, or a number of samples is given.

    References:
        Hinton and Salakhutdinov (2006), Reducing the dimensionality of data with neural networks,
        https://www.science.org/doi/10.1126/science.1127647

    Example:
        >>> model = Autoencoder(latent_dim=2)
        >>> model.has(Capability.SAMPLES), model.embed(torch.rand(3, 1, 28, 28)).shape
        (False, torch.Size([3, 2]))
    """

    latent_mean: Tensor
    latent_variance: Tensor

    def __init__(
        self,
        posterior: Callable[[int], Posterior] = DeterministicPosterior,
        **kwargs: Any,
    ) -> None:
        super().__init__(posterior=posterior, **kwargs)
        self.register_buffer("latent_mean", torch.zeros(self.latent_dim))
        self.register_buffer("latent_variance", torch.ones(self.latent_dim))

    def check_parts(self) -> None:
        """See `LatentVariableModel.check_parts`: there is no prior, and no noise.

        Raises:
            ValueError: If there is one.
        """
        name, prior, family = (
            type(part).__name__ for part in (self, self.prior, self.posterior_family)
        )
        if type(self.prior) is not StandardNormal:
            raise ValueError(
                f"{name} has no prior, so {prior} has no effect: leave it out, and fit a density "
                "to the latents with vae density fit"
            )
        if self.posterior_family.has_density:
            raise ValueError(
                f"{name} has a deterministic encoder, not a {family}: use DeterministicPosterior"
            )
        if self.num_samples != 1:
            raise ValueError(
                f"num_samples has no effect on {name}, whose encoder is deterministic: leave it out"
            )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `GenerativeModel.capabilities`."""
        return super().capabilities - {Capability.SAMPLES}

    def instead_of(self, capability: Capability) -> str:
        """See `ImageModel.instead_of`."""
        return _NO_PRIOR if capability is Capability.SAMPLES else super().instead_of(capability)

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> Terms:
        """See `BaseVAE.terms`."""
        z = self.latents(x, condition)
        return Terms(-self.log_likelihood(x, z[:, None], condition)[:, 0])

    def objective(self, terms: Terms) -> Tensor:
        """Return the reconstruction term, (B,)."""
        return terms.reconstruction

    def latents(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Encode images (B, C, H, W) with gradients, (B, L); in training, follow their moments."""
        z = self.posterior(x, condition).mean
        if self.training:
            with torch.no_grad():
                share = max(_MOMENTUM, 1 / (self.step + 1))
                self.latent_mean.lerp_(z.mean(0).to(self.latent_mean), share)
                variance = z.var(0, correction=0).to(self.latent_variance)
                self.latent_variance.lerp_(variance, share)
        return z

    def latent_quantiles(self, p: Tensor) -> Tensor:
        """Return quantiles of each latent dimension, (P, L), as if it were normally distributed.

        Its mean and variance are running averages over the training.
        """
        scale = self.latent_variance.sqrt().clamp(min=1e-6).cpu()
        return self.latent_mean.cpu() + scale * torch.special.ndtri(p.cpu())[:, None]

    def sample_latents(
        self, n: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> Latents:
        """Not possible: there is no prior.

        Raises:
            MissingCapabilityError: Always.
        """
        raise self.missing(Capability.SAMPLES)
