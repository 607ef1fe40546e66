"""Mixture-of-Gaussians prior."""

import math

import torch
from torch import Tensor, nn

from vae_lightning.distributions.priors import Prior
from vae_lightning.randomness import standard_normal


class MixtureOfGaussians(Prior):
    """Mixture of diagonal Gaussians with learned weights, means and variances.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`; ignored.
        components: Number of components.
        init_scale: Standard deviation of the initial means.

    Raises:
        ValueError: If ``components`` or ``init_scale`` is not positive.

    References:
        Tomczak and Welling (2018), VAE with a VampPrior, section 2.2 (as the baseline MoG),
        https://arxiv.org/abs/1705.07120

    Example:
        >>> prior = MixtureOfGaussians(latent_dim=2, components=10)
        >>> prior.log_prob(torch.zeros(8, 1, 2)).shape
        torch.Size([8, 1])
    """

    def __init__(
        self,
        latent_dim: int,
        cond_features: int = 0,
        components: int = 100,
        init_scale: float = 0.5,
    ) -> None:
        super().__init__(latent_dim, cond_features)
        if components < 1 or not init_scale > 0:
            raise ValueError(
                "MixtureOfGaussians: components and init_scale must be positive, got "
                f"{components} and {init_scale}"
            )
        self.mu = nn.Parameter(init_scale * torch.randn(components, latent_dim))
        self.log_var = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`."""
        log_weights = self.logits.float().log_softmax(0)
        return mixture_log_prob(z, self.mu.float(), self.log_var.float(), log_weights)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        weights = self.logits.detach().float().softmax(0).cpu()
        chosen = weights.multinomial(n, replacement=True, generator=generator)
        epsilon = standard_normal(n, self.latent_dim, generator, self.mu.device)
        return self.mu[chosen] + (0.5 * self.log_var[chosen]).exp() * epsilon


def mixture_log_prob(z: Tensor, mu: Tensor, log_var: Tensor, log_weights: Tensor) -> Tensor:
    r"""Return the log-density of a mixture of diagonal Gaussians.

    .. math:: \log \sum_k \pi_k N(z; \mu_k, \mathrm{diag}(\sigma_k^2))

    The squared distances are expanded, so that two matrix products serve all components. This loses
    digits where variances are small, so they are computed in float64 where the device has it.

    Args:
        z: Latents, (..., L).
        mu: Means, (K, L).
        log_var: Logarithms of the variances, (K, L).
        log_weights: Logarithms of the weights, (K,).

    Returns:
        Nats, (...), float32.

    Example:
        >>> mu = torch.tensor([[-1.0], [1.0]])
        >>> log_weights = torch.tensor([0.5, 0.5]).log()
        >>> mixture_log_prob(torch.zeros(1), mu, torch.zeros(2, 1), log_weights)
        tensor(-1.4189)
    """
    with torch.autocast(z.device.type, enabled=False):
        dtype = torch.float32 if z.is_mps else torch.float64
        z, mu, log_var = (x.to(dtype) for x in (z, mu, log_var))
        center = mu.detach().mean(0)
        z, mu = z - center, mu - center
        precision = (-log_var).exp()
        constant = (mu.square() * precision + log_var).sum(1) + mu.shape[1] * math.log(2 * math.pi)
        distance = z.square() @ precision.t() - 2 * (z @ (mu * precision).t()) + constant
        return (log_weights - 0.5 * distance).logsumexp(-1).float()
