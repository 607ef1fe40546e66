"""VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae_lightning.distributions.mixture_prior import mixture_log_prob
from vae_lightning.distributions.posteriors import DiagonalGaussian, LatentDistribution
from vae_lightning.distributions.priors import Prior, TrainingImages
from vae_lightning.randomness import standard_normal

_MARGIN = 0.02


class VampPrior(Prior):
    r"""Mixture of the posteriors of learned pseudo-inputs: p(z) = 1/K sum_k q(z|u_k).

    The pseudo-inputs are images and start at training images. If the data are in [0, 1], they are
    kept in (0, 1) by a sigmoid, which, unlike a clipped range, always has a gradient. For models
    that are not conditional and have a Gaussian posterior.

    Args:
        latent_dim: See `Prior`.
        cond_features: Must be 0.
        components: Number of pseudo-inputs K.
        seed: Seed of the choice of the training images at which the pseudo-inputs start.

    Raises:
        ValueError: If ``components`` is not positive, or the model does not fit.

    Example:
        >>> from vae_lightning import VAE
        >>> from functools import partial
        >>> vae = VAE(image_shape=(1, 8, 8), latent_dim=2, prior=partial(VampPrior, components=4))
        >>> vae.prior.pseudo_inputs.shape
        torch.Size([4, 1, 8, 8])
    """

    pseudo_input_logits: nn.Parameter

    def __init__(
        self, latent_dim: int, cond_features: int = 0, components: int = 500, seed: int = 0
    ) -> None:
        super().__init__(latent_dim, cond_features)
        if components < 1:
            raise ValueError(f"VampPrior: components must be positive, got {components}")
        if cond_features:
            raise ValueError(
                "VampPrior has no classes for its pseudo-inputs: choose another prior for a "
                "conditional model"
            )
        self.components = components
        self.seed = seed

    def attach(
        self,
        posterior: Callable[[Tensor], LatentDistribution],
        image_shape: tuple[int, int, int],
    ) -> None:
        """See `Prior.attach`; creates the pseudo-inputs, gray until `init_from_data`."""
        self._posterior = posterior
        self.pseudo_input_logits = nn.Parameter(0.01 * torch.randn(self.components, *image_shape))
        with torch.no_grad():
            _gaussian(posterior(torch.zeros(1, *image_shape)))

    def init_from_data(self, images: TrainingImages) -> None:
        """See `Prior.init_from_data`; each pseudo-input starts at a training image."""
        x = images.random_images(self.components, self.seed)
        values = x.clamp(_MARGIN, 1 - _MARGIN).logit() if self.bounded else x
        self.pseudo_input_logits.data.copy_(values)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs u_k, (K, C, H, W), in (0, 1) if the data are in [0, 1]."""
        return self.pseudo_input_logits.sigmoid() if self.bounded else self.pseudo_input_logits

    def mixture(self) -> DiagonalGaussian:
        """Return the components q(z|u_k), with gradients.

        Raises:
            ValueError: If the posterior of the model is not a diagonal Gaussian.
        """
        return _gaussian(self._posterior(self.pseudo_inputs))

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`."""
        q = self.mixture()
        log_weights = q.mu.new_full((self.components,), -math.log(self.components))
        return mixture_log_prob(z, q.mu, q.log_var, log_weights)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        chosen = torch.randint(self.components, (n,), generator=generator)
        epsilon = standard_normal(n, self.latent_dim, generator)
        q = self.mixture()
        return q.mu[chosen] + (0.5 * q.log_var[chosen]).exp() * epsilon.to(q.mu.device)


def _gaussian(q: LatentDistribution) -> DiagonalGaussian:
    """Check that a posterior is Gaussian."""
    if not isinstance(q, DiagonalGaussian):
        raise ValueError(
            f"VampPrior needs a Gaussian posterior, not a {type(q).__name__}: choose "
            "GaussianPosterior, or another prior"
        )
    return q
