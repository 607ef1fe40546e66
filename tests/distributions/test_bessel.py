"""Bessel functions against scipy, closed forms and finite differences."""

import math

import pytest
import torch
from scipy import special

from vae_lightning.distributions.bessel import bessel_ratio, log_ive, log_reduced_ive

X = torch.logspace(-3, 4, 100, dtype=torch.float64)
# Orders of spheres in 2 to 128 dimensions, and others.
ORDERS = [0, 0.5, 1, 1.5, 2, 4.5, 10, 11.75, 23.9, 24, 24.1, 40, 63]


@pytest.mark.parametrize("order", ORDERS)
def test_values_are_those_of_scipy(order):
    known = torch.from_numpy(special.ive(order, X.numpy()))
    normal = known > 1e-290  # where scipy's own function does not underflow
    assert normal.sum() > 80
    found = log_ive(order, X)
    assert found.isfinite().all()
    torch.testing.assert_close(found[normal].exp(), known[normal], rtol=1e-12, atol=0)
    above = torch.from_numpy(special.ive(order + 1, X.numpy()))
    normal &= above > 1e-290
    torch.testing.assert_close(
        bessel_ratio(order, X)[normal], (above / known)[normal], rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("order", ORDERS)
def test_float32_is_computed_in_float64(order):
    single = X.float()
    found = log_ive(order, single)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, log_ive(order, single.double()).float(), rtol=1e-6, atol=0)


def test_half_orders_are_elementary():
    """I_1/2(x) is proportional to sinh(x) / sqrt(x)."""
    x = torch.tensor([0.01, 1.0, 5.0, 30.0], dtype=torch.float64)
    expected = (x.sinh() * (2 / (math.pi * x)).sqrt()).log() - x
    torch.testing.assert_close(log_ive(0.5, x), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(bessel_ratio(0.5, x), 1 / x.tanh() - 1 / x, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("order", [0, 0.5, 3, 63])
def test_at_zero_and_far_away(order):
    x = torch.tensor([0.0, 1e12], dtype=torch.float64)
    reduced, ratio = log_reduced_ive(order, x), bessel_ratio(order, x)
    assert reduced[0].item() == pytest.approx(-math.lgamma(order + 1), abs=1e-12)
    assert ratio[0].item() == 0
    assert reduced[1].item() == pytest.approx(
        -order * math.log(5e11) - 0.5 * math.log(2e12 * math.pi), rel=1e-9
    )
    assert ratio[1].item() == pytest.approx(1, abs=1e-9)


def test_the_slope_of_the_ratio_has_all_digits_at_large_numbers():
    x = torch.logspace(-1, 12, 60, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bessel_ratio(0.5, x).sum(), x)
    # coth(x) - 1 / x, whose slope cancels for small numbers in this form.
    expected = 1 / x.square() - 1 / x.sinh().square()
    torch.testing.assert_close(slope[15:], expected[15:], rtol=1e-7, atol=0)
    for order in (0, 0.5, 4, 63, 511):
        (slope,) = torch.autograd.grad(bessel_ratio(order, x).sum(), x)
        # r = 1 - (v + 1/2) / x + (v + 1/2) (v - 1/2) / 2 x^2 - ...
        leading = (order + 0.5) / x**2 * (1 - (order - 0.5) / x)
        torch.testing.assert_close(slope[-20:], leading[-20:], rtol=1e-5, atol=0)


def test_integer_orders_may_be_large():
    x = torch.tensor([1.0, 1e3], dtype=torch.float64)
    for order in (255, 1000):
        assert log_ive(order, x).equal(log_ive(float(order), x))


@pytest.mark.parametrize("order", [0, 0.5, 4, 30.5, 63])
@pytest.mark.parametrize("function", [log_ive, log_reduced_ive, bessel_ratio])
def test_derivatives_are_those_of_finite_differences(function, order):
    """The first and the second one, by x d/dx."""
    x = torch.tensor([0.01, 0.3, 2.0, 40.0, 900.0], dtype=torch.float64)

    def slope(x):
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(function(order, x).sum(), x, create_graph=True)
        return found, x

    def difference(f):
        step = 1e-4
        return (f(x * (1 + step)) - f(x * (1 - step))) / (2 * step)

    first, at = slope(x)
    torch.testing.assert_close(
        first * x, difference(lambda x: function(order, x)), rtol=1e-6, atol=1e-8
    )
    (second,) = torch.autograd.grad(first.sum(), at)
    torch.testing.assert_close(
        second * x, difference(lambda x: slope(x)[0].detach()), rtol=1e-6, atol=1e-8
    )


def test_slope_at_zero_is_finite():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bessel_ratio(1.5, x).sum(), x)
    assert slope.item() == pytest.approx(1 / 5)
    (slope,) = torch.autograd.grad(log_reduced_ive(1.5, x).sum(), x)
    assert slope.item() == pytest.approx(-1)


def test_negative_orders_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        log_ive(-1, X)
