"""Likelihoods of real pixels whose tails are heavier than those of a Gaussian."""

import math

import torch
from torch import Tensor

from vae_lightning.distributions.likelihoods import LocationScale, sum_pixels, uniform_like
from vae_lightning.functional import softplus


class Laplace(LocationScale):
    r"""Independent Laplace pixels with a common standard deviation. The decoder returns means.

    .. math:: \log p(x|z) = -\sum_i \frac{\sqrt{2} |x_i - \mu_i|}{\sigma}
        - D \log(\sqrt{2} \sigma)

    The absolute error as a log-likelihood, with scale b = sigma / sqrt(2). It fits the median of a
    pixel instead of its mean: use it where some pixels are far off and should not count so much,
    such as noise, dead pixels or spikes of a signal.

    Args:
        sigma: Standard deviation, see `LocationScale`.
        learn_sigma: See `LocationScale`.

    References:
        Kotz, Kozubowski and Podgorski (2001), The Laplace distribution and generalizations,
        https://doi.org/10.1007/978-1-4612-0173-1

    Example:
        >>> likelihood = Laplace(sigma=math.sqrt(2))  # b = 1
        >>> log_prob = likelihood.log_prob(torch.zeros(1, 1, 1), torch.tensor([[[3.0]]]))
        >>> round(log_prob.item() + math.log(2), 4)
        -3.0
    """

    log_constant = 0.5 * math.log(2)

    def energy(self, error: Tensor, precision: Tensor | float) -> Tensor:
        """See `LocationScale.energy`."""
        return math.sqrt(2) * sum_pixels(error.abs()) * precision

    def standard_noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `LocationScale.standard_noise`; by the inverse of the distribution function."""
        sign, tail = _tails(like, generator)
        return -sign * (2 * tail).log() / math.sqrt(2)


class HyperbolicSecant(LocationScale):
    r"""Independent hyperbolic-secant pixels: the log-cosh loss as a log-likelihood.

    .. math:: \log p(x|z) = -\sum_i \log \cosh \frac{\pi (x_i - \mu_i)}{2 \sigma}
        - D \log(2 \sigma)

    Small errors count as their squares and large ones as their absolute values, so that outliers
    matter less than for `Gaussian`, without the kink of `Laplace`. The decoder returns means.

    With a = pi / (2 sigma), the loss of the paper, log cosh(a error) / a plus the KL term, is 1 / a
    times the one of a `BetaVAE` with beta = a, up to a constant. With beta = 1, the bound is one of
    log p(x), and sigma can be learned.

    Args:
        sigma: Standard deviation, see `LocationScale`.
        learn_sigma: See `LocationScale`.

    References:
        Chen et al. (2019), Log hyperbolic cosine loss improves variational auto-encoder,
        https://openreview.net/forum?id=rkglvsC9Ym
        Fischer (2014), Generalized hyperbolic secant distributions (the density),
        https://doi.org/10.1007/978-3-642-45138-6

    Example:
        >>> x = torch.tensor([[[0.0]], [[1.0]]]).view(2, 1, 1, 1)
        >>> HyperbolicSecant(sigma=1.0).log_prob(torch.zeros(1, 1, 1), x).exp()
        tensor([0.5000, 0.1993])
    """

    log_constant = math.log(2)

    def energy(self, error: Tensor, precision: Tensor | float) -> Tensor:
        """See `LocationScale.energy`."""
        size = (error * (0.5 * math.pi * precision)).abs()
        # log cosh(u) = |u| + log(1 + e^(-2 |u|)) - log 2, which does not overflow.
        return sum_pixels(size + softplus(-2 * size) - math.log(2))

    def standard_noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `LocationScale.standard_noise`; by the inverse of the distribution function."""
        sign, tail = _tails(like, generator)
        # The distribution function is 2 / pi arctan(e^(pi t / 2)).
        return -sign * (2 / math.pi) * (0.5 * math.pi * tail).tan().log()


def _tails(like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw a side, -1 or 1, and the probability of the tail beyond a value, in (0, 1/2]."""
    uniform = uniform_like(like, generator).clamp(min=2.0**-25)
    return torch.where(uniform < 0.5, -1.0, 1.0), torch.minimum(uniform, 1 - uniform)
