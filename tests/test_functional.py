import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vae_lightning.functional import (
    log_mean_exp,
    perplexity,
    slerp,
    soft_clamp,
    softplus,
    standard_normal_kl,
    without_autocast,
)


def test_kl_is_that_of_torch_distributions():
    mu, log_var = torch.randn(50, 7), torch.randn(50, 7)
    expected = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(standard_normal_kl(mu, log_var), expected, rtol=1e-5, atol=1e-6)


def test_kl_keeps_its_digits_near_the_prior():
    mu, log_var = torch.full((1,), 1e-4), torch.full((1,), 1e-4)
    exact = 0.5 * (1e-8 + (math.expm1(1e-4) - 1e-4))
    assert standard_normal_kl(mu, log_var).item() == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_log_mean_exp_is_safe_for_large_values(shift):
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    for dim in (0, 1, 2):
        expected = x.exp().mean(dim).log() + shift
        torch.testing.assert_close(log_mean_exp(x + shift, dim), expected)
    assert log_mean_exp(torch.tensor([[-math.inf, 1.0]]), 1).item() == pytest.approx(
        1 - math.log(2)
    )


@pytest.mark.parametrize(
    ("counts", "expected"), [([5, 5, 5, 5], 4.0), ([7, 0, 0], 1.0), ([0, 0], 0.0), ([1, 3], None)]
)
def test_perplexity(counts, expected):
    if expected is None:
        expected = math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_softplus_against_float64():
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([-1e-6, 0.0, 1e-6, 1e4, -1e4])])
    exact = torch.logaddexp(x.double(), torch.zeros(()).double())
    # Absolutely below 0, where the value is small; relatively above.
    torch.testing.assert_close(softplus(x).double(), exact, rtol=2e-7, atol=1.2e-7)


def test_gradient_of_softplus_is_the_sigmoid():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softplus, x)
    assert torch.autograd.gradgradcheck(softplus, x)
    by_func = torch.func.vmap(torch.func.grad(softplus))(x.detach())
    torch.testing.assert_close(by_func, x.detach().sigmoid())
    weight = torch.linspace(1, 2, 61, dtype=torch.float64)
    (softplus(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight * torch.sigmoid(x.detach()))


def test_soft_clamp_is_the_identity_inside_and_bounded_outside():
    x = torch.linspace(-30, 30, 1001)
    assert soft_clamp(x).equal(x)
    far = torch.tensor([-1e30, -200.0, -31.0, 31.0, 88.0, 200.0, 1e30], dtype=torch.float64)
    bounded = soft_clamp(far)
    assert bounded.diff().ge(0).all()
    assert bounded.abs().max() <= 40
    x = torch.tensor([-50.0, -29.0, 31.0, 100.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_clamp, (x,))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_keep_their_type_without_autocast(device):
    x = torch.ones(2, 2, device=device)
    with torch.autocast("cpu", torch.bfloat16), without_autocast(x):
        assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize("size", [2, 3, 20])
@pytest.mark.parametrize("apart", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("opposite", [False, True])
def test_slerp_stays_on_the_sphere(size, apart, opposite):
    """Also of nearly equal and of nearly opposite directions, in float32."""
    torch.manual_seed(0)
    start = torch.nn.functional.normalize(torch.randn(1000, size), dim=1)
    near = torch.nn.functional.normalize(start + apart * torch.randn(1000, size), dim=1)
    end = -near if opposite else near
    t = torch.linspace(0, 1, 9).view(9, 1, 1)
    path = slerp(start, end, t)
    torch.testing.assert_close(path.norm(dim=2), torch.ones(9, 1000), rtol=0, atol=2e-6)
    torch.testing.assert_close(path[0], start, rtol=0, atol=1e-5)
    if apart > 1e-5:
        torch.testing.assert_close(path[-1], end, rtol=0, atol=1e-5)
    # At constant speed, which nothing but a great circle has with these ends.
    steps = path.diff(dim=0).norm(dim=2)
    torch.testing.assert_close(steps, steps[:1].expand(8, -1), rtol=1e-3, atol=2e-6)


def test_slerp_from_zero_is_straight():
    start, end = torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 0.0]])
    for a, b in ((start, end), (end, start)):
        assert slerp(a, b, torch.tensor([0.25])).equal(torch.lerp(a, b, 0.25))
