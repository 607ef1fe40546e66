"""Gaussian posterior with a full covariance matrix."""

import math

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import Draws, LatentDistribution, Posterior
from vae_lightning.functional import soft_clamp, standard_normal_log_prob, without_autocast
from vae_lightning.randomness import Noise


class FullCovarianceGaussian(LatentDistribution):
    r"""N(mu, C C^T) with the lower triangular Cholesky factor C.

    Args:
        mu: Means, (B, L).
        log_var: Twice the logarithms of the diagonal of C, (B, L): the logarithms of the variances
            of each dimension given the dimensions before it. Bounded as in `DiagonalGaussian`.
        below: Entries of C below the diagonal, (B, L, L); the others are ignored.

    Example:
        >>> below = torch.full((1, 2, 2), 3.0)
        >>> q = FullCovarianceGaussian(torch.zeros(1, 2), torch.zeros(1, 2), below)
        >>> q.covariance[0]
        tensor([[ 1.,  3.],
                [ 3., 10.]])
    """

    def __init__(self, mu: Tensor, log_var: Tensor, below: Tensor) -> None:
        self.mu = mu
        self.log_var = soft_clamp(log_var)
        self.cholesky = below.tril(-1) + (0.5 * self.log_var).exp().diag_embed()

    @property
    def mean(self) -> Tensor:
        """See `LatentDistribution.mean`."""
        return self.mu

    @property
    def covariance(self) -> Tensor:
        """The covariance matrices, (B, L, L)."""
        with without_autocast(self.mu):
            return self.cholesky @ self.cholesky.mT

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """Draw z = mu + C epsilon; see `LatentDistribution.rsample`."""
        size = self.mu.shape[1]
        epsilon = noise.normal(n * size, first * size).view(-1, n, size)
        with without_autocast(self.mu):
            z = torch.baddbmm(self.mu[:, None], epsilon.to(self.mu.dtype), self.cholesky.mT)
        return Draws(z, lambda: self._log_prob(epsilon))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of any latents (B, n, L) in nats, (B, n)."""
        offset = (z - self.mu[:, None]).mT
        return self._log_prob(torch.linalg.solve_triangular(self.cholesky, offset, upper=False).mT)

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z_j|x) of any latents (B, n, L) in nats, (B, n, L)."""
        variance = self._variance[:, None]
        squares = (z - self.mu[:, None]).square() / variance
        return -0.5 * (squares + variance.log() + math.log(2 * math.pi))

    def _log_prob(self, epsilon: Tensor) -> Tensor:
        return standard_normal_log_prob(epsilon) - 0.5 * self.log_var.sum(1, keepdim=True)

    @property
    def _variance(self) -> Tensor:
        """Variances of the single dimensions, (B, L)."""
        return self.cholesky.square().sum(2)

    def normal_kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        r"""See `LatentDistribution.normal_kl`: of each dimension given the dimensions before it.

        .. math:: KL_j = E_q[KL(q(z_j|z_{<j}, x) \| p(z_j))] = \frac{1}{2} \left(
            \frac{(\mu_j - m_j)^2 + \sum_{k \le j} C_{jk}^2}{\sigma_j^2}
            - \log \frac{C_{jj}^2}{\sigma_j^2} - 1 \right)

        By the chain rule, these values are not negative, and their sum is the KL divergence.
        """
        precision = (-log_var).exp()
        # As in `standard_normal_kl`: expm1 is accurate where both variances are nearly equal.
        ratio = self.log_var - log_var
        correlated = self.cholesky.tril(-1).square().sum(2)
        moved = ((self.mu - mu).square() + correlated) * precision
        return 0.5 * (moved + ratio.expm1() - ratio)

    def standard_normal_kl(self) -> Tensor:
        """Return KL(q(z|x) || N(0, I)) split over the dimensions as in `normal_kl`, (B, L)."""
        zeros = torch.zeros_like(self.mu)
        return self.normal_kl(zeros, zeros)

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mu`` (B, L) and ``cholesky``, the factor C, (B, L, L)."""
        return {"mu": self.mu, "cholesky": self.cholesky}


class FullCovariancePosterior(Posterior):
    r"""Gaussian with a full covariance; the encoder provides mu and its Cholesky factor C.

    .. math:: q(z|x) = N(\mu, C C^\top), \quad z = \mu + C \epsilon

    Use it where latents of an image are correlated given the image, and a closed form of the KL
    term is wanted. The encoder has L (L + 3) / 2 outputs, of which those below the diagonal are
    divided by L: with more than about a hundred latent
    dimensions, a flow is cheaper.

    The KL divergence from N(0, I) has a closed form. It does not split into the dimensions, as that
    of a diagonal Gaussian does. What is reported for a dimension is its share given the dimensions
    before it, see `FullCovarianceGaussian.normal_kl`; the sum over the dimensions is the KL.

    Args:
        latent_dim: See `Posterior`.

    References:
        Kingma and Welling (2019), An introduction to variational autoencoders,
        https://arxiv.org/abs/1906.02691

    Example:
        >>> posterior = FullCovariancePosterior(latent_dim=4)
        >>> posterior.in_features
        14
        >>> posterior(torch.zeros(8, 14)).covariance.shape
        torch.Size([8, 4, 4])
    """

    @property
    def in_features(self) -> int:
        """Mu, log_var, and L times the entries of C below its diagonal."""
        return 2 * self.latent_dim + self.latent_dim * (self.latent_dim - 1) // 2

    def forward(self, features: Tensor) -> FullCovarianceGaussian:
        """See `Posterior.forward`."""
        size = self.latent_dim
        mu, log_var, entries = features.split([size, size, self.in_features - 2 * size], 1)
        # Where each entry of the matrix is among the features, with a zero before them.
        place = torch.zeros(size, size, dtype=torch.int64, device=features.device)
        rows, columns = torch.tril_indices(size, size, -1, device=features.device)
        place[rows, columns] = torch.arange(1, 1 + entries.shape[1], device=features.device)
        # Adam moves all features equally fast, and the noise of a latent is a sum of up to L
        # entries: without the division, the noise of a new encoder is learned away slowly.
        below = nn.functional.pad(entries, (1, 0))[:, place] / size
        return FullCovarianceGaussian(mu, log_var, below)
