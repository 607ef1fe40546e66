"""A Gaussian that is transformed by a flow."""

from collections.abc import Callable

from torch import Tensor

from vae_lightning.distributions.posteriors import DiagonalGaussian, Draws, LatentDistribution
from vae_lightning.randomness import Noise

Transform = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Map draws (B, n, L) to draws (B, n, L) and the log-determinants of the Jacobians, (B, n)."""


class TransformedGaussian(LatentDistribution):
    """The distribution of f(e) for a diagonal Gaussian e: log q(f(e)) = log N(e) - log|det df/de|.

    Args:
        base: Distribution of e.
        transform: The invertible map f.
        inverse: Its inverse, from latents (B, n, L) to latents, where it is known. With it, the
            density is known at any latent.

    References:
        Rezende and Mohamed (2015), Variational inference with normalizing flows,
        https://arxiv.org/abs/1505.05770

    Example:
        >>> import torch
        >>> base = DiagonalGaussian(mu=torch.ones(8, 2), log_var=torch.zeros(8, 2))
        >>> log_det = torch.tensor(4.0).log()
        >>> q = TransformedGaussian(base, lambda e: (2 * e, log_det.expand(e.shape[:2])))
        >>> q.mean[0]
        tensor([2., 2.])
    """

    def __init__(
        self,
        base: DiagonalGaussian,
        transform: Transform,
        inverse: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.base = base
        self.transform = transform
        self.inverse = inverse

    @property
    def mean(self) -> Tensor:
        """The transformed mean of the base, (B, L): a point estimate of the mean."""
        return self.transform(self.base.mu[:, None])[0][:, 0]

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """See `LatentDistribution.rsample`."""
        base = self.base.rsample(noise, n, first)
        z, log_det = self.transform(base.z)
        return Draws(z, lambda: base.log_prob - log_det)

    def log_prob(self, z: Tensor) -> Tensor | None:
        """See `LatentDistribution.log_prob`; None without an inverse."""
        if self.inverse is None:
            return None
        e = self.inverse(z)
        return self.base.log_prob(e) - self.transform(e)[1]

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mean`` and the parameters of the base, each (B, L)."""
        return {"mean": self.mean, "base_mu": self.base.mu, "base_log_var": self.base.log_var}
