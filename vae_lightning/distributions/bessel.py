"""Modified Bessel functions of the first kind, of any order, with derivatives.

References:
    NIST Digital Library of Mathematical Functions, sections 10.29 and 10.41,
    https://dlmf.nist.gov/10.41
"""

import math
from functools import cache
from typing import Any

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from vae_lightning.distributions.quantiles import exact

_ASYMPTOTIC = 24
"""Order from which the uniform asymptotic expansion is used."""

_TERMS = 8
"""Number of terms of the expansion: with the order above, errors are below 1e-12."""

_SLOPE_TERMS = 9
"""Number of terms of the series of the ratio's derivative at large numbers."""


def log_ive(order: float, x: Tensor) -> Tensor:
    r"""Return the logarithm of an exponentially scaled Bessel function, log(exp(-x) I_v(x)).

    It is accurate and differentiable (twice) from the smallest to the largest numbers, where the
    function itself underflows: up to the order 255, the relative error of the function is below
    1e-12 in float64.

    Args:
        order: Order v, not negative.
        x: Positive numbers, (...). Float32 numbers are computed in float64.

    Returns:
        (...), of the type of ``x``.

    Raises:
        ValueError: If the order is negative.

    Example:
        >>> log_ive(0, torch.tensor([0.1, 1.0, 10.0]))
        tensor([-0.0975, -0.7641, -2.0570])
    """
    wide = exact(x)
    logarithm = _LogReduced.apply(order, wide) + torch.special.xlogy(order, 0.5 * wide)
    return logarithm.to(x)


def log_reduced_ive(order: float, x: Tensor) -> Tensor:
    r"""Return log(exp(-x) I_v(x) / (x / 2)^v), which is also finite at 0.

    Args:
        order: Order v, not negative.
        x: Numbers from 0 up, (...).

    Returns:
        (...), float64 where the device has it, because it is often subtracted from nearly
        equal numbers.

    Raises:
        ValueError: If the order is negative.

    Example:
        >>> log_reduced_ive(2, torch.zeros(1)).exp()  # 1 / Gamma(3)
        tensor([0.5000], dtype=torch.float64)
    """
    logarithm: Tensor = _LogReduced.apply(order, exact(x))
    return logarithm.to(x.device)


def bessel_ratio(order: float, x: Tensor) -> Tensor:
    r"""Return I_{v+1}(x) / I_v(x).

    For v = m / 2 - 1, it is the length of the mean of a von Mises-Fisher distribution on the unit
    sphere in m dimensions with the concentration x.

    Args:
        order: Order v, not negative.
        x: Numbers from 0 up, (...).

    Returns:
        (...), in [0, 1), float64 where the device has it.

    Raises:
        ValueError: If the order is negative.

    Example:
        >>> bessel_ratio(0.5, torch.tensor([2.0]))  # coth(2) - 1 / 2
        tensor([0.5373], dtype=torch.float64)
    """
    ratio: Tensor = _Ratio.apply(order, exact(x))
    return ratio.to(x.device)


class _LogReduced(torch.autograd.Function):
    """Logarithm of the reduced function, whose derivative is the ratio less 1."""

    @staticmethod
    def forward(order: float, x: Tensor) -> Tensor:
        return _values(order, x)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[float, Tensor], output: Tensor) -> None:
        ctx.order = inputs[0]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, gradients[0] * (_Ratio.apply(ctx.order, x) - 1)


class _Ratio(torch.autograd.Function):
    """Ratio r of neighboring orders, whose derivative is 1 - r^2 - (2v + 1) r / x."""

    @staticmethod
    def forward(order: float, x: Tensor) -> Tensor:
        return _values(order, x)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[float, Tensor], output: Tensor) -> None:
        ctx.order = inputs[0]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        ratio = _Ratio.apply(ctx.order, x)
        slope = 1 - ratio.square() - (2 * ctx.order + 1) * (ratio / x.clamp(min=1e-100))
        slope = torch.where(x > 0, slope, 0.5 / (ctx.order + 1))
        # Where r is close to 1, the terms cancel.
        large = 10 * (ctx.order + 1) ** 2 + 1000
        slope = torch.where(x > large, _slope_at_large(ctx.order, x.clamp(min=large)), slope)
        return None, gradients[0] * slope


def _slope_at_large(order: float, x: Tensor) -> Tensor:
    """Return the derivative of the ratio by its asymptotic series in 1 / x."""
    # The coefficients follow from the differential equation of the ratio.
    c = [1.0]
    for k in range(1, _SLOPE_TERMS + 1):
        products = sum(c[i] * c[k - i] for i in range(1, k))
        c.append(0.5 * ((k - 2 - 2 * order) * c[k - 1] - products))
    slope = torch.zeros_like(x)
    for k in range(_SLOPE_TERMS, 0, -1):
        slope = (slope - k * c[k]) / x
    return slope / x


def _values(order: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the reduced function of an order, and the ratio to the next one.

    Both are computed at a higher order, where the asymptotic expansion is accurate, and brought
    down by I_{v-1} = (2v / x) I_v + I_{v+1}. In this direction, errors decrease.
    """
    if not order >= 0:
        raise ValueError(f"the order of a Bessel function must not be negative, got {order}")
    order = float(order)  # powers of an integer would overflow
    steps = max(0, math.ceil(_ASYMPTOTIC - order))
    high = order + steps
    logarithm = _expansion(high, x)
    half = 0.5 * x
    ratio = half * (_expansion(high + 1, x) - logarithm).exp()
    for step in range(steps):
        factor = (high - step) + half * ratio
        logarithm = logarithm + factor.log()
        ratio = half / factor
    return logarithm, ratio


def _expansion(order: float, x: Tensor) -> Tensor:
    """Return the logarithm of the reduced function of a high order."""
    root = (x.square() + order**2).sqrt()
    t = order / root
    total = torch.ones_like(x)
    for k, coefficients in enumerate(_debye_polynomials(), start=1):
        value = torch.zeros_like(x)
        for coefficient in reversed(coefficients):
            value = value * t + coefficient
        total = total + value / order**k
    # sqrt(v^2 + x^2) - x without the difference of equals
    exponent = order**2 / (root + x) + order * (2 / (order + root)).log()
    return exponent - 0.5 * (2 * math.pi * root).log() + total.log()


@cache
def _debye_polynomials() -> list[list[float]]:
    """Return the coefficients of the polynomials u_1, u_2, ... of the expansion, lowest first."""
    t = Polynomial([0.0, 1.0])
    u = Polynomial([1.0])
    found = []
    for _ in range(_TERMS):
        u = 0.5 * t**2 * (1 - t**2) * u.deriv() + ((1 - 5 * t**2) * u).integ() / 8
        found.append([float(c) for c in u.coef])
    return found
