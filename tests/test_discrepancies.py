"""Distances of samples against closed forms; the squared MMD is tested with the WAE."""

import math

import pytest
import torch

from vae_lightning.discrepancies import random_directions, squared_sliced_wasserstein


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def transport(x, y) -> float:
    """The cheapest assignment of one-dimensional points, by trying all of them, in float64."""
    from itertools import permutations

    x, y = x.double().tolist(), y.double().tolist()
    costs = (sum((a - b) ** 2 for a, b in zip(x, order, strict=True)) for order in permutations(y))
    return min(costs) / len(x)


def test_one_dimension_is_the_cheapest_assignment():
    for seed in range(5):
        x, y = (3 * torch.randn(6, 1, generator=generator(seed + shift)) for shift in (0, 100))
        for sign in (1.0, -1.0):  # both directions of a line are the same
            found = squared_sliced_wasserstein(x, y, torch.tensor([[sign]]))
            assert found.item() == pytest.approx(transport(x[:, 0], y[:, 0]), rel=1e-5)


def test_several_directions_are_the_mean_of_assignments():
    x, y = torch.randn(2, 6, 3, generator=generator())
    directions = random_directions(4, 3, generator(1))
    expected = sum(
        transport(x.double() @ d.double(), y.double() @ d.double()) for d in directions
    ) / len(directions)
    assert squared_sliced_wasserstein(x, y, directions).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_shifted_gaussians_have_the_squared_shift_over_the_dimension(size):
    """Of isotropic N(m, s^2 I) and N(0, t^2 I): |m|^2 / L + (s - t)^2."""
    n, m, s, t = 4000, 2.0, 1.5, 0.5
    x, y = torch.randn(2, n, size, generator=generator())
    shift = torch.zeros(size)
    shift[0] = m
    directions = random_directions(300, size, generator(1))
    found = squared_sliced_wasserstein(s * x + shift, t * y, directions).item()
    expected = m**2 / size + (s - t) ** 2
    # The mean of (theta_1 m)^2 over 300 directions has a relative error of 0.08 at most.
    assert found == pytest.approx(expected, rel=0.15)


def test_equal_samples_have_no_distance_whatever_their_order():
    x = torch.randn(50, 3, generator=generator())
    directions = random_directions(10, 3, generator(1))
    assert squared_sliced_wasserstein(x, x.flip(0), directions).item() == 0
    assert squared_sliced_wasserstein(x[:1], x[:1], directions).item() == 0


def test_distance_of_two_samples_of_one_distribution_decreases():
    directions = random_directions(50, 3, generator(1))
    small, large = (
        squared_sliced_wasserstein(*torch.randn(2, n, 3, generator=generator()), directions)
        for n in (20, 2000)
    )
    assert 0 < large < 0.2 * small


def test_gradient_moves_each_point_to_its_partner():
    """In one dimension: 2 (x_(i) - y_(i)) / n."""
    x = torch.tensor([[3.0], [0.0], [1.0]], requires_grad=True)
    y = torch.tensor([[5.0], [2.0], [-1.0]])
    squared_sliced_wasserstein(x, y, torch.ones(1, 1)).backward()
    torch.testing.assert_close(x.grad[:, 0], torch.tensor([-4.0, 2.0, -2.0]) / 3)


def test_is_computed_in_float32_under_autocast():
    x, y = torch.randn(2, 64, 3, generator=generator())
    directions = random_directions(8, 3, generator(1))
    exact = squared_sliced_wasserstein(x, y, directions)
    with torch.autocast("cpu", torch.bfloat16):
        assert squared_sliced_wasserstein(x, y, directions).equal(exact)


def test_directions_are_uniform_on_the_sphere():
    d = random_directions(20_000, 3, generator()).double()
    torch.testing.assert_close(d.square().sum(1), torch.ones(len(d)).double(), rtol=1e-6, atol=0)
    assert d.mean(0).abs().max() < 4 / math.sqrt(3 * len(d))
    second = d.T @ d / len(d)
    assert (second - torch.eye(3) / 3).abs().max() < 0.01
    # Normal numbers on the sphere have E[d_1^4] = 3 / (L (L + 2)); those of a cube would not.
    assert d[:, 0].pow(4).mean().item() == pytest.approx(1 / 5, abs=0.006)
