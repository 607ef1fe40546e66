"""Logistic variables, discretized to 256 values or clipped to [0, 1]."""

import math

import torch
from torch import Tensor

from vae_lightning.functional import softplus

_LARGEST_LOG_SCALE = 30.0
"""Bound of log-scales, where a clipped variable only has the values 0 and 1 left."""


def bounded_log_scale(log_scale: Tensor, smallest: float) -> Tensor:
    """Bound log-scales from both sides, smoothly from below.

    Args:
        log_scale: Output of a network, (...).
        smallest: Lower bound.

    Returns:
        (...).

    Example:
        >>> bounded_log_scale(torch.tensor([-100.0, -2.0, 100.0]), smallest=-7.0)
        tensor([-7.0000, -1.9933, 30.0000])
    """
    # softplus instead of clamp, which would have no gradient below the bound.
    return (smallest + softplus(log_scale - smallest)).clamp(max=_LARGEST_LOG_SCALE)


def log_discretized_logistic(x: Tensor, mu: Tensor, log_scale: Tensor) -> Tensor:
    """Return log-probabilities of one of the 256 values k / 255, see `DiscretizedLogistic`.

    Args:
        x: Values, float32, (...).
        mu: Means of the logistic distributions, float32, (...).
        log_scale: Logarithms of their scales, float32, (...).

    Returns:
        Nats for each value, (...).

    Example:
        >>> x = torch.arange(256) / 255
        >>> p = log_discretized_logistic(x, torch.tensor(0.3), torch.tensor(-2.0)).exp()
        >>> round(p.sum().item(), 4)
        1.0
    """
    inverse = (-log_scale).exp()
    above, below = (x + 0.5 / 255 - mu) * inverse, (x - 0.5 / 255 - mu) * inverse
    # s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)) for the sigmoid s avoids cancellation.
    width = inverse / 255
    small = width < 1e-3
    log_width = torch.where(
        small,
        -log_scale - math.log(255) - width / 2,
        (-torch.expm1(-torch.where(small, 1.0, width))).log(),
    )
    log_above = torch.where(x > 1 - 0.5 / 255, 0.0, -softplus(-above))
    log_below = torch.where(x < 0.5 / 255, 0.0, -softplus(below))
    inside = (x > 0.5 / 255) & (x < 1 - 0.5 / 255)
    return log_above + log_below + torch.where(inside, log_width, 0.0)


def clipped_mean(mu: Tensor, log_scale: Tensor) -> Tensor:
    r"""Return the mean of a logistic variable X that is clipped to [0, 1].

    .. math:: \int_0^1 P(X > t) dt =
        s \left[\log(1 + e^{\mu / s}) - \log(1 + e^{(\mu - 1) / s})\right]

    Args:
        mu: Means of the logistic distributions, (...).
        log_scale: Logarithms of their scales s, (...).

    Returns:
        (...), between 0 and 1.
    """
    scale = log_scale.exp()
    # With the mean of 1 - X below 1/2, large numbers do not cancel.
    smaller = torch.minimum(mu, 1 - mu)
    low, width = (smaller - 1) / scale, 1 / scale
    # The difference of the logarithms is log(1 + s(low) (e^width - 1)) for the sigmoid s.
    narrow = width < 1
    growth = torch.expm1(torch.where(narrow, width, 1.0))
    mean = scale * torch.where(
        narrow, torch.log1p(low.sigmoid() * growth), softplus(low + width) - softplus(low)
    )
    return torch.where(mu > 0.5, 1 - mean, mean)


def mu_of_clipped_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the mean of a logistic variable that has another mean when it is clipped to [0, 1].

    Args:
        mean: Means of the clipped variables, broadcast with ``log_scale``; 0 and 1 are attained in
            the limit only, so they are moved inside by 1e-3.
        log_scale: Logarithms of the scales of the logistic distributions, (...).

    Returns:
        (...).

    Example:
        >>> mu = mu_of_clipped_mean(torch.tensor(0.9), log_scale=torch.tensor(-2.0))
        >>> clipped_mean(mu, torch.tensor(-2.0))
        tensor(0.9000)
    """
    wanted = mean.clamp(1e-3, 1 - 1e-3)
    low, high = torch.full_like(log_scale, -10.0), torch.full_like(log_scale, 11.0)
    for _ in range(40):  # bisection, because the mean has no inverse in closed form
        middle = (low + high) / 2
        below = clipped_mean(middle, log_scale) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
