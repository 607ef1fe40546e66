"""The maths of variational autoencoders: pure functions, no state, no Lightning.

Terms are in nats and per image: whatever is summed is summed over pixels or latent dimensions,
never over the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning.randomness import Noise


def standard_normal_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    r"""KL divergence of a diagonal Gaussian from the standard normal, per dimension.

    .. math:: KL(N(\mu, \sigma^2) \| N(0, 1)) = (\mu^2 + \sigma^2 - \log \sigma^2 - 1) / 2

    Args:
        mu: Means, any shape.
        log_var: Logarithms of the variances, the shape of ``mu``.

    Returns:
        Nats, the shape of ``mu``, float32.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, appendix B,
        https://arxiv.org/abs/1312.6114
    """
    mu, log_var = mu.float(), log_var.float()
    # expm1 keeps the digits that exp(v) - v - 1 loses near v = 0, where untrained models start.
    return 0.5 * (mu.square() + log_var.expm1() - log_var)


class DiagonalGaussian(NamedTuple):
    """The approximate posterior q(z|x) = N(mu, diag(exp(log_var))).

    Attributes:
        mu: Means, (B, L).
        log_var: Logarithms of the variances, (B, L).
    """

    mu: Tensor
    log_var: Tensor

    def sample(self, noise: Noise) -> Tensor:
        """Z = mu + sigma * epsilon, (B, L): a draw through which gradients flow.

        References:
            Kingma and Welling (2014), section 2.4, https://arxiv.org/abs/1312.6114
        """
        return self.mu + (0.5 * self.log_var).exp() * noise.normal(self.mu.shape[1])

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) of each dimension in nats, (B, L)."""
        return standard_normal_kl(self.mu, self.log_var)


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes in use: exp of the entropy of their frequencies.

    Args:
        counts: How often each code was chosen, (K,).

    Returns:
        A scalar between 1 (always the same code) and K (all equally often); 0 if all counts are 0.
    """
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.where(counts.sum() > 0, torch.special.entr(p).sum().exp(), 0.0)
