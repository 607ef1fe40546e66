"""Radial flow posterior (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770."""

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import DiagonalGaussian, Posterior
from vae_lightning.distributions.transformed import TransformedGaussian
from vae_lightning.functional import softplus

_SMALLEST = 1e-6
"""Smallest alpha and alpha + beta: both are positive also after rounding."""


class RadialFlowPosterior(Posterior):
    r"""Gaussian transformed by radial flows, whose parameters the encoder provides for each image.

    Each flow expands or contracts space around a point :math:`z_0`, with :math:`r = |z - z_0|`:

    .. math:: f(z) = z + \frac{\beta}{\alpha + r} (z - z_0), \quad
        \log |\det \partial f / \partial z| = (L - 1) \log\left(1 + \frac{\beta}{\alpha + r}\right)
        + \log\left(1 + \frac{\alpha \beta}{(\alpha + r)^2}\right)

    with :math:`\alpha > 0` and :math:`\beta > -\alpha`, so that f is invertible (appendix A.2 of
    the paper). The inverse has a closed form. So the density is known at any latent.

    Use it where the density of the posterior is needed at latents other than its own draws, as for
    the diagnostics of the aggregate posterior. As a posterior, it bends less than planar or
    Sylvester flows.

    Args:
        latent_dim: See `Posterior`.
        flows: Number of radial flows.

    Raises:
        ValueError: If ``flows`` is not positive.

    References:
        Rezende and Mohamed (2015), Variational inference with normalizing flows,
        https://arxiv.org/abs/1505.05770

    Example:
        >>> posterior = RadialFlowPosterior(latent_dim=2, flows=3)
        >>> q = posterior(torch.zeros(8, posterior.in_features))
        >>> q.mean.shape, q.log_prob(torch.zeros(8, 5, 2)).shape
        (torch.Size([8, 2]), torch.Size([8, 5]))
    """

    def __init__(self, latent_dim: int, flows: int = 10) -> None:
        super().__init__(latent_dim)
        if flows < 1:
            raise ValueError(f"RadialFlowPosterior: flows must be positive, got {flows}")
        self.flows = flows

    @property
    def in_features(self) -> int:
        """Mu and log_var, and the center, alpha and beta of every flow."""
        return 2 * self.latent_dim + self.flows * (self.latent_dim + 2)

    def forward(self, features: Tensor) -> TransformedGaussian:
        """See `Posterior.forward`; all flows are the identity where their features are 0."""
        size, flows = self.latent_dim, self.flows
        mu, log_var, center, a, b = features.split([size, size, flows * size, flows, flows], 1)
        center = center.unflatten(1, (flows, size))
        alpha = softplus(a) + _SMALLEST
        total = softplus(b) + _SMALLEST
        return TransformedGaussian(
            DiagonalGaussian(mu, log_var),
            lambda z: radial_flows(z, center, alpha, total),
            lambda z: inverse_radial_flows(z, center, alpha, total),
        )


def radial_flows(z: Tensor, center: Tensor, alpha: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Apply radial flows, one after the other.

    Args:
        z: Draws, (B, n, L).
        center: Points around which space is stretched, (B, T, L).
        alpha: Positive lengths, (B, T).
        total: Positive sums alpha + beta, (B, T).

    Returns:
        Transformed draws (B, n, L) and the log-determinants of the Jacobians, (B, n).
    """
    size = z.shape[2]
    log_det = z.new_zeros(z.shape[:2])
    for t in range(center.shape[1]):
        a, m = alpha[:, t, None], total[:, t, None]
        offset = z - center[:, None, t]
        r = torch.linalg.vector_norm(offset, dim=2)
        z = z + ((m - a) / (a + r))[:, :, None] * offset
        # Both factors of the determinant as ratios of positive numbers, without differences.
        log_det = log_det + (size - 1) * (r + m).log() - (size + 1) * (r + a).log()
        log_det = log_det + (r * (r + 2 * a) + m * a).log()
    return z, log_det


def inverse_radial_flows(z: Tensor, center: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
    r"""Invert `radial_flows`.

    A flow maps the distance r to :math:`s = r (r + \alpha + \beta) / (r + \alpha)`, a quadratic
    equation with one positive solution.

    Args:
        z: Transformed draws, (B, n, L).
        center: See `radial_flows`.
        alpha: See `radial_flows`.
        total: See `radial_flows`.

    Returns:
        Draws, (B, n, L).
    """
    for t in reversed(range(center.shape[1])):
        a, m = alpha[:, t, None], total[:, t, None]
        offset = z - center[:, None, t]
        s = torch.linalg.vector_norm(offset, dim=2)
        half = 0.5 * (m - s)
        root = (half.square() + a * s).sqrt()
        # The solution without the difference of equals, and divided by s, which may be 0.
        share = torch.where(half > 0, a / (root + half), (root - half) / s.clamp(min=1e-30))
        z = center[:, None, t] + share[:, :, None] * offset
    return z
