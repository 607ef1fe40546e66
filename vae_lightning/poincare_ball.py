"""The Poincaré ball: hyperbolic space of any dimension and curvature, in coordinates of a ball."""

import math

import torch
from torch import Tensor

_TINY = 1e-15
_MARGINS = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Distances from the boundary, relative to the radius, that are kept for each type."""


class PoincareBall:
    r"""The ball of radius 1 / sqrt(c) with the metric of hyperbolic space of curvature -c.

    A vector at x that has the length l in the coordinates has the length

    .. math:: \lambda_x l, \quad \lambda_x = \frac{2}{1 - c \|x\|^2}

    in hyperbolic space, so the boundary is infinitely far away. Tangent vectors are given here in
    orthonormal coordinates: a vector of length r leads to a point at the distance r, and parallel
    transport along geodesics through 0 keeps its coordinates. For c towards 0, hyperbolic space
    becomes Euclidean, with coordinates of half the size.

    Points are kept off the boundary by 1e-5 of the radius in float32, which is at the distance
    12.2 / sqrt(c) from 0 (28.3 / sqrt(c) in float64).

    Args:
        curvature: c, positive: minus the sectional curvature.

    Raises:
        ValueError: If ``curvature`` is not positive.

    References:
        Ganea et al. (2018), Hyperbolic neural networks, section 2,
        https://arxiv.org/abs/1805.09112

    Example:
        >>> ball = PoincareBall(curvature=1.0)
        >>> z = ball.exp(torch.zeros(2), torch.tensor([3.0, 0.0]))
        >>> z, ball.distance(z, torch.zeros(2))
        (tensor([0.9051, 0.0000]), tensor(3.0000))
    """

    def __init__(self, curvature: float = 1.0) -> None:
        if not curvature > 0:
            raise ValueError(f"curvature: c of a Poincaré ball must be positive, got {curvature}")
        self.curvature = curvature
        self.root = math.sqrt(curvature)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the points at the ends of geodesics that start at x in the direction of v.

        Args:
            x: Points, (..., L).
            v: Tangent vectors at x in orthonormal coordinates, (..., L).

        Returns:
            Points, (..., L).
        """
        length = _norm(v)
        # tanh(sqrt(c) r / 2) / (sqrt(c) r), which is 1 / 2 at 0
        scaled = (0.5 * self.root * length).clamp(min=1e-6)
        y = v * (0.5 * scaled.tanh() / scaled)
        return self.project(self._difference(y, -x))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the tangent vectors at x that lead to y: the inverse of `exp`.

        Args:
            x: Points, (..., L).
            y: Points, (..., L).

        Returns:
            Vectors in orthonormal coordinates, (..., L), as long as the distances of the points.
        """
        w = self._difference(y, x)
        return w * (self.distance(x, y)[..., None] / _norm(w))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Return the distances of points (..., L), (...).

        .. math:: \frac{2}{\sqrt{c}} \operatorname{arsinh}
            \sqrt{\frac{c \|x - y\|^2}{(1 - c \|x\|^2) (1 - c \|y\|^2)}}

        This form loses no digits for points near each other, nor more than the coordinates
        themselves near the boundary.
        """
        chord = _norm(x - y) * (self._room(x) * self._room(y)).rsqrt()
        return (2 / self.root) * (self.root * chord).asinh()[..., 0]

    def geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Return points on the geodesics from x to y.

        Args:
            x: Points, (..., L).
            y: Points, (..., L).
            t: Fractions of the way, broadcast with the points, (..., 1).

        Returns:
            Points, (..., L).
        """
        return self.exp(x, t * self.log(x, y))

    def log_volume_ratio(self, distance: Tensor, size: int) -> Tensor:
        r"""Return the log of the volume of hyperbolic space relative to that of tangent space.

        .. math:: (L - 1) \log \frac{\sinh(\sqrt{c} r)}{\sqrt{c} r}

        Args:
            distance: Distances r from the point at which the space is tangent, (...).
            size: Dimension L.

        Returns:
            The logarithm of the Jacobian determinant of `exp`, (...).
        """
        return (size - 1) * log_sinhc(self.root * distance)

    def project(self, x: Tensor) -> Tensor:
        """Move points (..., L) that are outside the ball, or too close to the boundary, into it."""
        margin = _MARGINS.get(x.dtype, 1e-3)
        largest = (1 - margin) / self.root
        return x * (largest / _norm(x)).clamp(max=1)

    def _room(self, x: Tensor) -> Tensor:
        """Return 1 - c |x|^2, (..., 1), which is positive."""
        scaled = self.root * _norm(x)
        return ((1 - scaled) * (1 + scaled)).clamp(min=1e-7 if x.dtype == torch.float32 else _TINY)

    def _difference(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the Möbius difference (-x) + y, without differences of nearly equal numbers."""
        offset = y - x
        squared = self.curvature * offset.square().sum(-1, keepdim=True)
        room_x, room_y = self._room(x), self._room(y)
        return (room_x * offset - squared * x) / (room_x * room_y + squared)


def _norm(x: Tensor) -> Tensor:
    """Return the lengths of vectors (..., L), (..., 1), with a finite gradient at 0."""
    return x.square().sum(-1, keepdim=True).clamp(min=1e-30).sqrt()


def log_sinhc(x: Tensor) -> Tensor:
    """Return log(sinh(x) / x) of numbers from 0 up, (...), which is 0 at 0.

    Example:
        >>> log_sinhc(torch.tensor([0.0, 1.0, 10.0]))
        tensor([0.0000, 0.1614, 7.0043])
    """
    small = x < 0.1
    safe = torch.where(small, 1.0, x)
    large = safe - math.log(2) + (-torch.expm1(-2 * safe)).log() - safe.log()
    square = torch.where(small, x, 0.0).square()
    series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square / 37800)))
    return torch.where(small, series, large)
