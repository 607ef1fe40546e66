"""The unit sphere: von Mises-Fisher posterior and uniform prior.

References:
    Davidson et al. (2018), Hyperspherical variational auto-encoders,
    https://arxiv.org/abs/1804.00891
"""

import math

import torch
from torch import Tensor, nn

from vae_lightning.distributions.bessel import bessel_ratio, log_reduced_ive
from vae_lightning.distributions.posteriors import Draws, LatentDistribution, Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.distributions.quantiles import Quantiles, with_derivative
from vae_lightning.functional import slerp
from vae_lightning.randomness import Noise, standard_normal

_SMALLEST = 1e-6
"""Smallest concentration."""

SPHERE = "unit vectors"
"""Support of latents on a unit sphere, see `Prior.support`."""


class VonMisesFisher(LatentDistribution):
    r"""Von Mises-Fisher distribution on the unit sphere in L dimensions.

    .. math:: q(z) = \frac{\kappa^{L/2-1}}{(2 \pi)^{L/2} I_{L/2-1}(\kappa)} \exp(\kappa \mu^T z)

    with respect to the area of the sphere. It is symmetric about mu; for L = 2, it is the von Mises
    distribution of an angle, for L = 3 the Fisher distribution. A draw is

    .. math:: z = \cos(\theta) \mu + \sin(\theta) \xi

    where xi is uniform on the unit sphere orthogonal to mu, and theta is the quantile of a uniform
    number under p(theta), which is proportional to exp(kappa cos theta) sin(theta)^(L-2). Nothing
    is rejected, so every draw takes L + 1 random numbers, and its derivative with respect to kappa
    is that of the quantile: the gradient needs no correction term.

    Args:
        mu: Mean directions, unit vectors, (B, L).
        concentration: Concentrations kappa, positive, (B,).

    References:
        Davidson et al. (2018), https://arxiv.org/abs/1804.00891
        Figurnov et al. (2018), Implicit reparameterization gradients,
        https://arxiv.org/abs/1805.08498

    Example:
        >>> q = VonMisesFisher(torch.eye(3), concentration=torch.full((3,), 100.0))
        >>> z = q.rsample(Noise(torch.arange(3), "example"), n=5).z
        >>> z.shape, bool((z.norm(dim=2) - 1).abs().max() < 1e-6)
        (torch.Size([3, 5, 3]), True)
    """

    def __init__(self, mu: Tensor, concentration: Tensor) -> None:
        self.mu = mu
        self.concentration = concentration

    @property
    def _order(self) -> float:
        return self.mu.shape[1] / 2 - 1

    @property
    def mean(self) -> Tensor:
        """Mean of z, inside the sphere, (B, L)."""
        return bessel_ratio(self._order, self.concentration).to(self.mu)[:, None] * self.mu

    @property
    def point_estimate(self) -> Tensor:
        """The mean direction mu, on the sphere, (B, L)."""
        return self.mu

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """See `LatentDistribution.rsample`."""
        size = self.mu.shape[1]
        uniform = noise.uniform(n, first)
        normal = noise.normal(n * size, first * size).view(-1, n, size).to(self.mu)
        angle = self._angles(uniform)[..., None]
        mu = self.mu[:, None]
        # Twice, because little is left of noise that is nearly parallel to mu.
        for _ in range(2):
            normal = nn.functional.normalize(
                normal - (normal * mu).sum(2, keepdim=True) * mu, dim=2
            )
        z = angle.cos() * mu + angle.sin() * normal
        return Draws(z, lambda: self.log_prob(z))

    def _angles(self, uniform: Tensor) -> Tensor:
        """Return the angles between mu and draws, (B, n), with gradients."""
        with torch.no_grad():
            exact = self.concentration.cpu() if uniform.is_mps else self.concentration
            found = angle_quantiles(self.mu.shape[1], exact.double())(
                uniform.to(exact.device).double()
            )
        return with_derivative(found[0], self.concentration, found[1])

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of any unit vectors (B, n, L) in nats, (B, n)."""
        size = self.mu.shape[1]
        normalizer = log_reduced_ive(self._order, self.concentration)
        constant = normalizer + 0.5 * size * math.log(2 * math.pi) - self._order * math.log(2)
        # kappa (mu z - 1) without the difference of equals
        distance = (z - self.mu[:, None]).square().sum(2)
        return -0.5 * self.concentration[:, None] * distance - constant.to(self.mu)[:, None]

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """Return `log_prob` as that of a single variable, (B, n, 1)."""
        return self.log_prob(z)[..., None]

    def uniform_kl(self) -> Tensor:
        r"""Return KL(q(z|x) || uniform) in nats, (B,).

        .. math:: \kappa \frac{I_{L/2}(\kappa)}{I_{L/2-1}(\kappa)} - \log\left(\Gamma(L/2)
            (2 / \kappa)^{L/2-1} I_{L/2-1}(\kappa)\right)
        """
        order = self._order
        ratio = bessel_ratio(order, self.concentration)
        kappa = self.concentration.to(ratio)
        kl = kappa * (ratio - 1) - log_reduced_ive(order, kappa) - math.lgamma(order + 1)
        return kl.to(self.mu)

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mu``, (B, L), and ``concentration``, (B,)."""
        return {"mu": self.mu, "concentration": self.concentration}


def angle_quantiles(size: int, concentration: Tensor) -> Quantiles:
    """Return the quantiles of the angle between mu and z, with derivatives with respect to it.

    Args:
        size: Dimension L of the space.
        concentration: Concentrations, float64, (B,).
    """

    def log_density(angle: Tensor) -> Tensor:
        kappa = concentration.view(-1, *[1] * (angle.ndim - 1))
        of_exponent = -2 * kappa * (0.5 * angle).sin().square()
        return of_exponent + torch.special.xlogy(size - 2.0, angle.sin().abs())

    def score(angle: Tensor) -> Tensor:
        return -2 * (0.5 * angle).sin().square()

    # The mode, and the second derivative there.
    cosine = 2 * concentration / (size - 2 + ((size - 2) ** 2 + 4 * concentration**2).sqrt())
    sine_squared = (1 - cosine.square()).clamp(min=1e-300)
    precision = concentration * cosine + (size - 2) / sine_squared * (size > 2)
    width, mode = precision.rsqrt(), cosine.clamp(max=1).acos()
    low, high = mode - 10 * width, mode + 14 * width
    return Quantiles(log_density, score, low.clamp(min=0), high.clamp(max=math.pi))


class VonMisesFisherPosterior(Posterior):
    r"""Von Mises-Fisher distribution on the unit sphere in L dimensions, for `UniformSphere`.

    The encoder provides L numbers for the mean direction and one for the concentration,

    .. math:: \mu = h / \|h\|, \quad \kappa = \kappa_0 + \log(1 + e^c).

    A sphere has no center for latents to collapse to. Use it if only the direction of a latent
    should carry information (angles, cosine similarities, clusters for k-means on the sphere). It
    helps in few dimensions; there is one concentration for all of them, so in many dimensions, a
    Gaussian with a variance for each is more flexible.

    Args:
        latent_dim: See `Posterior`; at least 2. The sphere has one dimension less.
        min_concentration: Smallest concentration :math:`\kappa_0`, not negative. A positive one
            keeps posteriors from becoming uniform early in the training.

    Raises:
        ValueError: If ``latent_dim`` is less than 2 or ``min_concentration`` is negative.

    References:
        Davidson et al. (2018), Hyperspherical variational auto-encoders,
        https://arxiv.org/abs/1804.00891

    Example:
        >>> posterior = VonMisesFisherPosterior(latent_dim=3)
        >>> posterior(torch.randn(8, posterior.in_features)).mean.shape
        torch.Size([8, 3])
    """

    support = SPHERE

    def __init__(self, latent_dim: int, min_concentration: float = 1.0) -> None:
        super().__init__(latent_dim)
        _check_dimension(self, latent_dim)
        if not min_concentration >= 0:
            raise ValueError(
                "VonMisesFisherPosterior: min_concentration must not be negative, got "
                f"{min_concentration}"
            )
        self.min_concentration = min_concentration

    @property
    def in_features(self) -> int:
        """The latent size and one."""
        return self.latent_dim + 1

    def forward(self, features: Tensor) -> VonMisesFisher:
        """See `Posterior.forward`."""
        direction, scale = features.split([self.latent_dim, 1], 1)
        is_zero = direction.norm(dim=1, keepdim=True) < 1e-12  # which has no direction: take any
        mu = nn.functional.normalize(torch.where(is_zero, 1.0, direction), dim=1)
        # Where softplus underflows, the smallest concentration is positive all the same.
        concentration = self.min_concentration + nn.functional.softplus(scale[:, 0])
        return VonMisesFisher(mu, concentration.clamp(min=_SMALLEST))


class UniformSphere(Prior):
    """Uniform distribution on the unit sphere in L dimensions.

    Densities are with respect to the area of the sphere.

    Args:
        latent_dim: See `Prior`; at least 2.
        cond_features: See `Prior`; ignored.

    Raises:
        ValueError: If ``latent_dim`` is less than 2.

    References:
        Davidson et al. (2018), Hyperspherical variational auto-encoders,
        https://arxiv.org/abs/1804.00891

    Example:
        >>> prior = UniformSphere(latent_dim=3)
        >>> prior.sample(5).shape
        torch.Size([5, 3])
        >>> (-prior.log_prob(prior.sample(1)[None])).exp() / math.pi  # area: 4 pi
        tensor([[4.0000]])
    """

    support = SPHERE
    radius = 1.0

    def __init__(self, latent_dim: int, cond_features: int = 0) -> None:
        super().__init__(latent_dim, cond_features)
        _check_dimension(self, latent_dim)

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`."""
        return z.new_full(z.shape[:-1], -log_area(self.latent_dim))

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        return nn.functional.normalize(standard_normal(n, self.latent_dim, generator), dim=1)

    def kl(self, q: LatentDistribution, condition: Tensor | None = None) -> Tensor | None:
        """See `Prior.kl`; exact for a von Mises-Fisher distribution, (B, 1)."""
        return q.uniform_kl()[:, None] if isinstance(q, VonMisesFisher) else None

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """See `Prior.marginal_log_prob`; the latent is a single variable."""
        return self.log_prob(z)[..., None]

    def project(self, z: Tensor) -> Tensor:
        """See `Prior.project`."""
        return nn.functional.normalize(z, dim=-1)

    def geodesic(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
        """See `Prior.geodesic`; an arc of a great circle."""
        return slerp(start, end, t)


def log_area(size: int) -> float:
    """Return the logarithm of the area of the unit sphere in ``size`` dimensions.

    Example:
        >>> round(math.exp(log_area(3)) / math.pi, 6)
        4.0
    """
    return math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)


def _check_dimension(owner: object, latent_dim: int) -> None:
    if latent_dim < 2:
        raise ValueError(
            f"{type(owner).__name__}: a sphere needs at least 2 dimensions, got {latent_dim}"
        )
