"""Planar flow posterior (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770."""

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import DiagonalGaussian, Posterior
from vae_lightning.distributions.transformed import TransformedGaussian
from vae_lightning.functional import softplus

_MIN_STRETCH = 1e-6
"""Smallest factor by which a flow stretches space: w u > -1 also after rounding."""
_MIN_NORM = 1e-20


class PlanarFlowPosterior(Posterior):
    r"""Gaussian transformed by planar flows, whose parameters the encoder provides for each image.

    .. math:: f(z) = z + u \tanh(w^\top z + b), \quad
        \log |\det \partial f / \partial z| = \log(1 + (1 - \tanh^2) \, w^\top u)

    with :math:`w^\top u \ge -1`, so that f is invertible (appendix A.1 of the paper).

    Args:
        latent_dim: See `Posterior`.
        flows: Number of planar flows.

    Raises:
        ValueError: If ``flows`` is not positive.

    Example:
        >>> posterior = PlanarFlowPosterior(latent_dim=2, flows=3)
        >>> posterior(torch.zeros(8, posterior.in_features)).mean.shape
        torch.Size([8, 2])
    """

    def __init__(self, latent_dim: int, flows: int = 10) -> None:
        super().__init__(latent_dim)
        if flows < 1:
            raise ValueError(f"PlanarFlowPosterior: flows must be positive, got {flows}")
        self.flows = flows

    @property
    def in_features(self) -> int:
        """Mu and log_var, and u, w and b of every flow."""
        return 2 * self.latent_dim + self.flows * (2 * self.latent_dim + 1)

    def forward(self, features: Tensor) -> TransformedGaussian:
        """See `Posterior.forward`."""
        size, flows = self.latent_dim, self.flows
        mu, log_var, u, w, b = features.split([size, size, flows * size, flows * size, flows], 1)
        u, w = u.unflatten(1, (flows, size)), w.unflatten(1, (flows, size))
        base = DiagonalGaussian(mu, log_var)
        return TransformedGaussian(base, lambda z: planar_flows(z, u, w, b))


def planar_flows(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Apply planar flows, one after the other.

    Args:
        z: Draws, (B, n, L).
        u: Directions, (B, T, L); made such that each flow is invertible.
        w: Normals of the planes, (B, T, L).
        b: Offsets, (B, T).

    Returns:
        Transformed draws (B, n, L) and the log-determinants of the Jacobians, (B, n).
    """
    w_u, norm = (w * u).sum(2), w.square().sum(2)  # (B, T)
    stretch = softplus(w_u) + _MIN_STRETCH  # 1 + w u, once u is changed
    safe_norm = norm.clamp(min=_MIN_NORM)
    u = u + ((stretch - 1 - w_u) / safe_norm)[:, :, None] * w
    stretch = torch.lerp(1 + w_u, stretch, norm / safe_norm)  # where w is 0, u could not be changed
    log_det = z.new_zeros(z.shape[:2])
    for t in range(u.shape[1]):
        # No matrix product, which autocast would round.
        h = ((z * w[:, None, t]).sum(2) + b[:, t, None]).tanh()
        z = z + h[:, :, None] * u[:, None, t]
        # log(1 + (1 - h^2) w u) without the difference of equals where w u is near -1.
        log_det = log_det + (h.square() + (1 - h.square()) * stretch[:, t, None]).log()
    return z, log_det
