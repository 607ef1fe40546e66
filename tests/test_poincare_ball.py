"""The Poincaré ball against the hyperboloid model, which has none of its formulas."""

import math
from itertools import pairwise

import pytest
import torch

from vae_lightning.poincare_ball import PoincareBall, log_sinhc

CURVATURES = [0.01, 0.7, 1.0, 3.0]


def to_hyperboloid(z: torch.Tensor, c: float) -> torch.Tensor:
    """Map the ball of curvature -c to points (t, x) with t^2 - |x|^2 = 1 / c."""
    square = c * z.square().sum(-1, keepdim=True)
    return torch.cat([(1 + square) / math.sqrt(c), 2 * z], -1) / (1 - square)


def minkowski(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[..., 0] * b[..., 0] - (a[..., 1:] * b[..., 1:]).sum(-1)


def points(ball: PoincareBall, n: int = 50, reach: float = 3.0, dtype=torch.float64):
    v = reach * torch.randn(n, 3, dtype=dtype) / ball.root
    return ball.exp(torch.zeros_like(v), v.clamp(-8 / ball.root, 8 / ball.root))


@pytest.mark.parametrize("c", CURVATURES)
def test_distances_are_those_of_the_hyperboloid(c):
    ball = PoincareBall(c)
    x, y = points(ball, reach=1.0), points(ball, reach=1.0)
    product = c * minkowski(to_hyperboloid(x, c), to_hyperboloid(y, c))
    torch.testing.assert_close(
        ball.distance(x, y), product.acosh() / math.sqrt(c), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("c", CURVATURES)
def test_exp_and_log_are_inverse_and_as_long_as_the_distance(c):
    ball = PoincareBall(c)
    x, v = points(ball, reach=1.0), torch.randn(50, 3).double() / ball.root
    y = ball.exp(x, v)
    torch.testing.assert_close(ball.log(x, y), v, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ball.distance(x, y), v.norm(dim=1), rtol=1e-9, atol=0)
    z = points(ball, reach=1.0)
    torch.testing.assert_close(ball.exp(x, ball.log(x, z)), z, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ball.log(x, x), torch.zeros_like(x), rtol=0, atol=1e-12)


def test_coordinates_are_kept_by_parallel_transport_from_the_center():
    """The direction in which a geodesic leaves x is that of v: the ball is conformal."""
    ball = PoincareBall(0.7)
    x, v = points(ball, reach=1.0), torch.randn(50, 3).double()
    little = ball.exp(x, 1e-6 * v) - x
    cosine = torch.nn.functional.cosine_similarity(little, v, dim=1)
    torch.testing.assert_close(cosine, torch.ones(50).double(), rtol=0, atol=1e-9)
    # Its length in the coordinates of the ball is shorter by 2 / (1 - c |x|^2).
    factor = 2 / (1 - 0.7 * x.square().sum(1))
    torch.testing.assert_close(little.norm(dim=1) * factor, 1e-6 * v.norm(dim=1), rtol=1e-4, atol=0)


def test_geodesics_are_shortest_paths_at_constant_speed():
    ball = PoincareBall(1.5)
    x, y = points(ball, reach=1.0), points(ball, reach=1.0)
    t = torch.linspace(0, 1, 5).double()[:, None, None]
    path = ball.geodesic(x, y, t)
    torch.testing.assert_close(path[0], x)
    torch.testing.assert_close(path[-1], y)
    parts = torch.stack([ball.distance(a, b) for a, b in pairwise(path)])
    torch.testing.assert_close(parts, (ball.distance(x, y) / 4).expand(4, -1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("c", [0.5, 2.0])
def test_volume_ratio_is_the_determinant_of_exp(c):
    """By the metric: the volume element of the ball is (2 / (1 - c |z|^2))^L dz."""
    ball = PoincareBall(c)
    for x in (torch.zeros(3).double(), points(ball, 1, reach=0.7)[0]):
        v = torch.randn(3).double()
        jacobian = torch.autograd.functional.jacobian(lambda v, x=x: ball.exp(x, v), v)
        z = ball.exp(x, v)
        stretch = 3 * (2 / (1 - c * z.square().sum())).log()
        expected = torch.linalg.slogdet(jacobian).logabsdet + stretch
        found = ball.log_volume_ratio(v.norm(), 3)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_small_curvature_is_euclidean_with_coordinates_of_half_the_size():
    ball = PoincareBall(1e-8)
    x, v = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    torch.testing.assert_close(ball.exp(x, v), x + v / 2, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ball.distance(x, x + v), 2 * v.norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("c", CURVATURES)
def test_float32_is_safe_near_the_boundary(c):
    """Nearly exact up to the distance 9 / sqrt(c), finite everywhere, with finite gradients."""
    ball = PoincareBall(c)
    direction = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    for distance, error in ((3.0, 1e-4), (6.0, 1e-3), (9.0, 2e-2)):
        x = ball.exp(torch.zeros(3), distance / ball.root * direction)
        assert (ball.root * x.norm(dim=1) < 1).all()
        v = 0.3 * torch.randn(200, 3)
        found = ball.log(x, ball.exp(x, v))
        assert (found - v).abs().max() < error / min(1, ball.root)
        far = ball.distance(x, torch.zeros(3))
        assert (far * ball.root - distance).abs().max() < error
    v = (1e4 * torch.randn(200, 3)).requires_grad_()
    start = (x.detach() * 0.999999).requires_grad_()
    z = ball.exp(start, v)
    assert (ball.root * z.norm(dim=1) < 1).all()
    value = ball.distance(z, start).sum() + ball.log(z, start).sum() + z.sum()
    assert value.isfinite()
    for gradient in torch.autograd.grad(value, (start, v)):
        assert gradient.isfinite().all()


def test_points_outside_are_moved_inside():
    ball = PoincareBall(4.0)
    z = torch.tensor([[3.0, 4.0], [0.1, 0.2], [0.0, 0.0]])
    found = ball.project(z)
    assert found[0].norm() < 0.5
    torch.testing.assert_close(found[0] / found[0].norm(), torch.tensor([0.6, 0.8]))
    assert found[1:].equal(z[1:])


def test_gradients_at_equal_points_are_finite():
    ball = PoincareBall(1.0)
    x = torch.zeros(1, 2, requires_grad=True)
    v = torch.zeros(1, 2, requires_grad=True)
    z = ball.exp(x, v)
    total = z.sum() + ball.log(x, z).sum() + ball.distance(x, z).sum()
    for gradient in torch.autograd.grad(total, (x, v)):
        assert gradient.isfinite().all()


def test_log_sinhc():
    x = torch.cat([torch.logspace(-3, 2, 60), torch.tensor([0.0999, 0.1001])]).double()
    expected = (x.sinh() / x).log()
    torch.testing.assert_close(log_sinhc(x), expected, rtol=1e-9, atol=1e-15)
    assert log_sinhc(torch.tensor(1e5)).item() == pytest.approx(1e5 - math.log(2e5))
    y = torch.tensor([0.0, 0.05, 3.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_sinhc(y).sum(), y)
    expected = 1 / y.tanh() - 1 / y
    torch.testing.assert_close(slope[1:], expected[1:].detach(), rtol=1e-7, atol=1e-10)
    assert slope[0] == 0


@pytest.mark.parametrize("c", [0.0, -1.0])
def test_the_curvature_must_be_positive(c):
    with pytest.raises(ValueError, match="must be positive"):
        PoincareBall(c)
