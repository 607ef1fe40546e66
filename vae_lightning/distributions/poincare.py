"""Hyperbolic space as a Poincaré ball: wrapped and Riemannian normal distributions.

References:
    Mathieu et al. (2019), Continuous hierarchical representations with Poincaré variational
    auto-encoders, https://arxiv.org/abs/1901.06033
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import Draws, LatentDistribution, Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.distributions.quantiles import Quantiles, exact, with_derivative
from vae_lightning.distributions.von_mises_fisher import log_area
from vae_lightning.functional import soft_clamp, standard_normal_log_prob
from vae_lightning.poincare_ball import PoincareBall
from vae_lightning.randomness import Noise

_FAR = 12.0
"""Distance times sqrt(c) beyond which points of the ball cannot be told apart in float32."""


def ball_support(curvature: float) -> str:
    """Return the support of latents in hyperbolic space, see `Prior.support`."""
    return f"points of a Poincaré ball of curvature -{curvature:g}"


class _OnBall(LatentDistribution):
    """A distribution of points exp_mu(v) around mu.

    Args:
        ball: The ball.
        mu: Centers in the ball, (B, L).
    """

    def __init__(self, ball: PoincareBall, mu: Tensor) -> None:
        self.ball = ball
        self.mu = mu

    @property
    def mean(self) -> Tensor:
        """The Fréchet mean mu, (B, L): the point of least mean squared distance."""
        return self.mu

    @abstractmethod
    def tangent_log_prob(self, v: Tensor) -> Tensor:
        """Return log q(exp_mu(v)) with respect to the hyperbolic volume, (B, n, L) -> (B, n)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of any points (B, n, L) in nats, (B, n)."""
        return self.tangent_log_prob(self.ball.log(self.mu[:, None], z))

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """Return `log_prob` as that of a single variable, (B, n, 1)."""
        return self.log_prob(z)[..., None]

    def _draws(self, v: Tensor) -> Draws:
        # The density from v itself: a logarithm of z loses digits near the boundary.
        return Draws(self.ball.exp(self.mu[:, None], v), lambda: self.tangent_log_prob(v))


class WrappedNormal(_OnBall):
    r"""A Gaussian of tangent vectors at mu, wrapped onto hyperbolic space by the exponential map.

    .. math:: z = \exp_\mu(v), \quad v \sim N(0, \mathrm{diag}(\sigma^2)), \quad \log q(z)
        = \log N(v; 0, \sigma^2) - (L - 1) \log \frac{\sinh(\sqrt{c} \|v\|)}{\sqrt{c} \|v\|}

    with respect to the volume of hyperbolic space; v is in the coordinates of `PoincareBall`, so
    sigma is a distance in hyperbolic space.

    Args:
        ball: The ball.
        mu: Centers in the ball, (B, L).
        log_var: Logarithms of the variances of v, (B, L).

    References:
        Nagano et al. (2019), A wrapped normal distribution on hyperbolic space for gradient-based
        learning, https://arxiv.org/abs/1902.02992
        Mathieu et al. (2019), section 3.1, https://arxiv.org/abs/1901.06033

    Example:
        >>> q = WrappedNormal(PoincareBall(), mu=torch.zeros(8, 2), log_var=torch.zeros(8, 2))
        >>> draws = q.rsample(Noise(torch.arange(8), "example"), n=5)
        >>> draws.z.shape, bool((draws.z.norm(dim=2) < 1).all())
        (torch.Size([8, 5, 2]), True)
    """

    def __init__(self, ball: PoincareBall, mu: Tensor, log_var: Tensor) -> None:
        super().__init__(ball, mu)
        self.log_var = log_var

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """See `LatentDistribution.rsample`."""
        size = self.mu.shape[1]
        epsilon = noise.normal(n * size, first * size).view(-1, n, size)
        return self._draws((0.5 * self.log_var).exp()[:, None] * epsilon)

    def tangent_log_prob(self, v: Tensor) -> Tensor:
        """See `_OnBall.tangent_log_prob`."""
        epsilon = v * (-0.5 * self.log_var).exp()[:, None]
        flat = standard_normal_log_prob(epsilon) - 0.5 * self.log_var.sum(1, keepdim=True)
        distance = _length(v)
        return flat - self.ball.log_volume_ratio(distance, v.shape[2])

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mu``, a point of the ball, and ``log_var``, each (B, L)."""
        return {"mu": self.mu, "log_var": self.log_var}


class RiemannianNormal(_OnBall):
    r"""The Riemannian normal distribution around a point of hyperbolic space.

    .. math:: q(z) = \frac{1}{Z(\sigma)} \exp\left(-\frac{d(\mu, z)^2}{2 \sigma^2}\right)

    with respect to the volume of hyperbolic space. Of all distributions with this mean and this
    mean squared distance from it, it has the largest entropy. A direction is drawn uniformly, and
    the distance r as the quantile of a uniform number under

    .. math:: p(r) \propto
        e^{-r^2 / 2 \sigma^2} \left(\frac{\sinh(\sqrt{c} r)}{\sqrt{c}}\right)^{L-1},

    whose integral gives Z, too. Nothing is rejected: every draw takes L + 1 random numbers, and has
    an exact gradient.

    Args:
        ball: The ball.
        mu: Centers in the ball, (B, L).
        log_var: Logarithm of sigma squared, (B,).

    References:
        Mathieu et al. (2019), section 3.1 and appendix B, https://arxiv.org/abs/1901.06033
        Said et al. (2014), New Riemannian priors on the univariate normal model,
        https://doi.org/10.3390/e16074015

    Example:
        >>> q = RiemannianNormal(PoincareBall(), mu=torch.zeros(8, 2), log_var=torch.zeros(8))
        >>> q.rsample(Noise(torch.arange(8), "example"), n=5).z.shape
        torch.Size([8, 5, 2])
    """

    def __init__(self, ball: PoincareBall, mu: Tensor, log_var: Tensor) -> None:
        super().__init__(ball, mu)
        self.log_var = log_var
        with torch.no_grad():
            sigma = (0.5 * exact(self.log_var)).exp()
            self._quantiles = radius_quantiles(ball, mu.shape[1], sigma)
        self._sigma = (0.5 * self.log_var).exp()

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """See `LatentDistribution.rsample`."""
        size = self.mu.shape[1]
        uniform = noise.uniform(n, first)
        normal = noise.normal(n * size, first * size).view(-1, n, size).to(self.mu)
        with torch.no_grad():
            radius, derivative = self._quantiles(uniform.to(self._quantiles.edges))
        radius = with_derivative(radius, self._sigma, derivative)
        return self._draws(radius[..., None] * nn.functional.normalize(normal, dim=2))

    def tangent_log_prob(self, v: Tensor) -> Tensor:
        """See `_OnBall.tangent_log_prob`."""
        quantiles = self._quantiles
        log_integral = with_derivative(
            quantiles.log_integral[:, None], self._sigma, quantiles.mean_score[:, None]
        )
        squared = v.square().sum(2) * (-self.log_var).exp()[:, None]
        return -0.5 * squared - log_integral - log_area(v.shape[2])

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mu``, a point of the ball, (B, L), and ``log_var``, (B,)."""
        return {"mu": self.mu, "log_var": self.log_var}


def radius_quantiles(ball: PoincareBall, size: int, sigma: Tensor) -> Quantiles:
    """Return the quantiles of the distance of a `RiemannianNormal` from its center.

    Args:
        ball: The ball.
        size: Dimension L.
        sigma: Scales, float64, (B,), by which the quantiles have derivatives.
    """

    def wide(r: Tensor) -> Tensor:
        return sigma.view(-1, *[1] * (r.ndim - 1))

    def log_density(r: Tensor) -> Tensor:
        flat = torch.special.xlogy(size - 1.0, r) - 0.5 * (r / wide(r)).square()
        return flat + ball.log_volume_ratio(r, size)

    def score(r: Tensor) -> Tensor:
        return r.square() / wide(r) ** 3

    # The mode is between these, because coth(x) is between 1 or 1 / x, and 1 + 1 / x.
    curved, flat = ball.root * (size - 1) * sigma.square(), sigma * math.sqrt(size - 1)
    low = torch.maximum(curved, flat)
    high = 0.5 * (curved + (curved.square() + 4 * flat.square()).sqrt())
    # The density is log-concave, and decreases faster than that of N(0, sigma^2).
    return Quantiles(log_density, score, (low - 9 * sigma).clamp(min=0), high + 9 * sigma)


class _BallPosterior(Posterior):
    """A family of distributions on a Poincaré ball.

    Args:
        latent_dim: See `Posterior`.
        curvature: See `PoincareBall`.
    """

    def __init__(self, latent_dim: int, curvature: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.ball = PoincareBall(curvature)
        self.support = ball_support(curvature)

    def _center(self, h: Tensor) -> Tensor:
        """Return the points at the ends of vectors (B, L) from 0."""
        return self.ball.exp(torch.zeros_like(h), h)


def _largest_wrapped(ball: PoincareBall, size: int) -> float:
    """Return the scale of a wrapped normal distribution up to which draws have room in float32."""
    return _FAR / ball.root / (math.sqrt(size) + 4)


def _largest_riemannian(ball: PoincareBall, size: int) -> float:
    """Return the scale of a Riemannian normal distribution up to which draws have room in float32.

    Few draws are farther from the center than sigma (sqrt(c) sigma (L - 1) + sqrt(L - 1) + 4).
    """
    curved, flat = ball.root * (size - 1), math.sqrt(size - 1) + 4
    far = _FAR / ball.root
    return 2 * far / (flat + math.sqrt(flat**2 + 4 * curved * far))


def _bounded(log_var: Tensor, largest: float) -> Tensor:
    """Bound logarithms of variances smoothly from both sides.

    Draws beyond the room of float32 are moved to the boundary of the ball. Their density would be
    that of points farther away, and the KL term would be too small, or even negative.
    """
    most = 2 * math.log(largest)
    return most - 40 + soft_clamp(log_var - most + 40, linear=39)


class WrappedNormalPosterior(_BallPosterior):
    r"""Wrapped normal distribution on a Poincaré ball, for a prior on the same ball.

    The encoder provides the tangent vector at 0 that leads to mu, and a logarithm of the variance
    for each dimension. The volume of hyperbolic space grows exponentially with the distance, as the
    number of nodes of a tree does with the depth: choose it, with few dimensions, for data that are
    thought to be hierarchical. The KL term has no closed form and is estimated from the draws.

    Latents are points of the ball; a `GyroplaneDecoder` uses their geometry. Sigma is bounded
    smoothly by the largest one whose draws have room in the ball in float32:
    :math:`12 / (\sqrt{c} (\sqrt{L} + 4))`.

    Args:
        latent_dim: See `Posterior`.
        curvature: c: minus the curvature of the space. The prior must have the same.

    Raises:
        ValueError: If ``curvature`` is not positive.

    References:
        Mathieu et al. (2019), Continuous hierarchical representations with Poincaré variational
        auto-encoders, https://arxiv.org/abs/1901.06033

    Example:
        >>> posterior = WrappedNormalPosterior(latent_dim=2)
        >>> posterior(torch.zeros(8, posterior.in_features)).mean.shape
        torch.Size([8, 2])
    """

    @property
    def in_features(self) -> int:
        """Twice the latent size."""
        return 2 * self.latent_dim

    def forward(self, features: Tensor) -> WrappedNormal:
        """See `Posterior.forward`."""
        h, log_var = features.chunk(2, dim=1)
        bounded = _bounded(log_var, _largest_wrapped(self.ball, self.latent_dim))
        return WrappedNormal(self.ball, self._center(h), bounded)


class RiemannianNormalPosterior(_BallPosterior):
    r"""Riemannian normal distribution on a Poincaré ball, for a prior on the same ball.

    The encoder provides the tangent vector at 0 that leads to mu, and one variance for all
    directions. In many dimensions, its mass is far from mu: at about the distance
    :math:`\sigma^2 (L - 1) \sqrt{c}` if that is large. Sigma is bounded smoothly, such that draws
    have room in the ball in float32. See `WrappedNormalPosterior`.

    Args:
        latent_dim: See `Posterior`.
        curvature: c: minus the curvature of the space. The prior must have the same.

    Raises:
        ValueError: If ``curvature`` is not positive.

    References:
        Mathieu et al. (2019), https://arxiv.org/abs/1901.06033

    Example:
        >>> posterior = RiemannianNormalPosterior(latent_dim=2)
        >>> posterior(torch.zeros(8, posterior.in_features)).mean.shape
        torch.Size([8, 2])
    """

    @property
    def in_features(self) -> int:
        """The latent size and one."""
        return self.latent_dim + 1

    def forward(self, features: Tensor) -> RiemannianNormal:
        """See `Posterior.forward`."""
        h, log_var = features.split([self.latent_dim, 1], 1)
        bounded = _bounded(log_var[:, 0], _largest_riemannian(self.ball, self.latent_dim))
        return RiemannianNormal(self.ball, self._center(h), bounded)


class _BallPrior(Prior):
    """A distribution around 0 of a Poincaré ball.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`; ignored.
        curvature: See `PoincareBall`.
        scale: Scale sigma, a distance in hyperbolic space.
    """

    def __init__(
        self,
        latent_dim: int,
        cond_features: int = 0,
        curvature: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__(latent_dim, cond_features)
        if not scale > 0:
            raise ValueError(f"{type(self).__name__}: scale must be positive, got {scale}")
        self.ball = PoincareBall(curvature)
        self.scale = scale
        self.support = ball_support(curvature)
        self.radius = 1 / self.ball.root
        if scale > self.largest_scale():
            raise ValueError(
                f"{type(self).__name__}: in {latent_dim} dimensions, draws are too far from the "
                f"center for float32 with scale {scale:g} and curvature {curvature:g}: choose a "
                "smaller one"
            )

    @abstractmethod
    def largest_scale(self) -> float:
        """Return the scale up to which draws have room in the ball in float32."""

    @abstractmethod
    def distribution(self, like: Tensor) -> _OnBall:
        """Return the distribution, as a batch of one."""

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`; with respect to the volume of hyperbolic space."""
        flat = z.reshape(1, -1, self.latent_dim)
        return self.distribution(z).log_prob(flat).view(z.shape[:-1])

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """See `Prior.marginal_log_prob`; the latent is a single variable."""
        return self.log_prob(z)[..., None]

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        z: Tensor = self.distribution(torch.zeros(1)).rsample(_Generated(generator), n).z
        return z[0]

    def project(self, z: Tensor) -> Tensor:
        """See `Prior.project`."""
        return self.ball.project(z)

    def geodesic(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
        """See `Prior.geodesic`."""
        return self.ball.geodesic(start, end, t)


class _Generated(Noise):
    """Noise from a torch generator, for one distribution."""

    def __init__(self, source: torch.Generator | None) -> None:
        super().__init__(torch.zeros(1, dtype=torch.int64), "generated")
        self.source = source

    def uniform(self, size: int, first: int = 0) -> Tensor:
        """See `Noise.uniform`."""
        return torch.rand(1, size, generator=self.source, dtype=torch.float32).clamp(min=2**-24)

    def normal(self, size: int, first: int = 0) -> Tensor:
        """See `Noise.normal`."""
        return torch.randn(1, size, generator=self.source, dtype=torch.float32)


class WrappedNormalPrior(_BallPrior):
    r"""Wrapped normal distribution around the center of a Poincaré ball, see `WrappedNormal`.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`; ignored.
        curvature: c: minus the curvature of the space. The posterior must have the same.
        scale: Standard deviation of the tangent vectors, a distance in hyperbolic space.

    Raises:
        ValueError: If ``curvature`` or ``scale`` is not positive, or too large for float32.

    References:
        Mathieu et al. (2019), https://arxiv.org/abs/1901.06033

    Example:
        >>> prior = WrappedNormalPrior(latent_dim=2, curvature=0.7)
        >>> z = prior.sample(5)
        >>> prior.log_prob(z[:, None]).shape
        torch.Size([5, 1])
    """

    def largest_scale(self) -> float:
        """See `_BallPrior.largest_scale`."""
        return _largest_wrapped(self.ball, self.latent_dim)

    def distribution(self, like: Tensor) -> WrappedNormal:
        """See `_BallPrior.distribution`."""
        zero = like.new_zeros(1, self.latent_dim)
        return WrappedNormal(self.ball, zero, zero + 2 * math.log(self.scale))


class RiemannianNormalPrior(_BallPrior):
    r"""Riemannian normal distribution around the center of a Poincaré ball.

    See `RiemannianNormal`.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`; ignored.
        curvature: c: minus the curvature of the space. The posterior must have the same.
        scale: Scale sigma, a distance in hyperbolic space.

    Raises:
        ValueError: If ``curvature`` or ``scale`` is not positive, or too large for float32.

    References:
        Mathieu et al. (2019), https://arxiv.org/abs/1901.06033

    Example:
        >>> prior = RiemannianNormalPrior(latent_dim=2, curvature=0.7)
        >>> z = prior.sample(5)
        >>> prior.log_prob(z[:, None]).shape
        torch.Size([5, 1])
    """

    def largest_scale(self) -> float:
        """See `_BallPrior.largest_scale`."""
        return _largest_riemannian(self.ball, self.latent_dim)

    def distribution(self, like: Tensor) -> RiemannianNormal:
        """See `_BallPrior.distribution`."""
        zero = like.new_zeros(1, self.latent_dim)
        return RiemannianNormal(self.ball, zero, zero[:, 0] + 2 * math.log(self.scale))


def _length(v: Tensor) -> Tensor:
    """Return the lengths of vectors (..., L), (...), with a finite gradient at 0."""
    return v.square().sum(-1).clamp(min=1e-30).sqrt()
