"""Radial flows against the paper's formula, Jacobians by autograd, and their inverses."""

import math

import pytest
import torch
from contract_checks import check_real_sampler
from torch.autograd.functional import jacobian

from vae_lightning import VAE
from vae_lightning.distributions.radial_flow import (
    RadialFlowPosterior,
    inverse_radial_flows,
    radial_flows,
)
from vae_lightning.models.capabilities import Capability
from vae_lightning.randomness import Noise


def parameters(images=3, flows=4, size=3):
    """Centers, alpha, and alpha + beta."""
    center = torch.randn(images, flows, size).double()
    alpha, total = 0.05 + 3 * torch.rand(2, images, flows).double().pow(2)
    return center, alpha, total


def test_flows_are_those_of_the_paper():
    """One flow after the other, with beta = -alpha + total and h = 1 / (alpha + r)."""
    center, alpha, total = parameters()
    z = torch.randn(3, 5, 3).double()
    found, log_det = radial_flows(z, center, alpha, total)
    for i in range(3):
        for k in range(5):
            value, expected = z[i, k], 0.0
            for t in range(4):
                a = float(alpha[i, t])
                beta = float(total[i, t]) - a
                r = float((value - center[i, t]).norm())
                h, slope = 1 / (a + r), -1 / (a + r) ** 2
                expected += 2 * math.log(1 + beta * h) + math.log(1 + beta * h + beta * slope * r)
                value = value + beta * h * (value - center[i, t])
            torch.testing.assert_close(found[i, k], value)
            assert log_det[i, k].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_log_det_is_that_of_the_jacobian(size):
    center, alpha, total = parameters(images=2, size=size)
    z = torch.randn(2, 3, size).double()
    _, log_det = radial_flows(z, center, alpha, total)
    full = jacobian(lambda z: radial_flows(z, center, alpha, total)[0], z)
    full = full.view(6, size, 6, size)
    for i in range(6):
        assert full[i, :, [j for j in range(6) if j != i]].abs().max() == 0
        sign, expected = torch.linalg.slogdet(full[i, :, i])
        assert sign == 1
        assert log_det.flatten()[i].item() == pytest.approx(expected.item(), abs=1e-9)
    assert log_det.std() > 0.05


@pytest.mark.parametrize("alpha", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("total", [1e-6, 1.0, 1e4])
def test_flows_are_invertible_with_extreme_parameters(alpha, total):
    """In float64, to the digits that squeezing by up to 1e10 leaves; finite in float32."""
    center = torch.randn(1, 1, 3).double()
    near, far = (center[:, 0] + scale * torch.randn(4, 3).double() for scale in (1e-3, 30))
    z = torch.cat([near, far])[None]
    given = center, *(torch.full((1, 1), value).double() for value in (alpha, total))
    moved, log_det = radial_flows(z, *given)
    assert log_det.isfinite().all()
    back = inverse_radial_flows(moved, *given)
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-6)
    single = [value.float().requires_grad_() for value in (z, *given)]
    moved, log_det = radial_flows(*single)
    (moved.sum() + log_det.sum()).backward()
    assert log_det.isfinite().all()
    assert all(value.grad.isfinite().all() for value in single)


@pytest.mark.parametrize("value", [-1000.0, -30.0, 0.0, 30.0, 1000.0])
def test_the_encoder_cannot_leave_the_invertible_flows(value):
    """Distances from the center keep their order, whatever alpha and beta the encoder returns."""
    family = RadialFlowPosterior(2, flows=1)
    for a, b in ((value, 0.0), (0.0, value), (value, value), (value, -value)):
        q = family(torch.tensor([[0.0, 0, 0, 0, 0.5, -0.5, a, b]]))
        distance = torch.linspace(0, 8, 401)[:, None]
        z = torch.tensor([0.5, -0.5]) + distance * torch.tensor([0.6, 0.8])
        moved, log_det = q.transform(z[None])
        assert log_det.isfinite().all()
        along = (moved[0] - torch.tensor([0.5, -0.5])) @ torch.tensor([0.6, 0.8])
        assert along.diff().min() >= -1e-4


def test_points_at_the_center_stay_there():
    center, alpha, total = parameters(images=1, flows=1)
    z = center[:, :1].clone().requires_grad_()
    moved, log_det = radial_flows(z, center, alpha, total)
    torch.testing.assert_close(moved, z)
    # Space is stretched by (alpha + beta) / alpha in all directions.
    expected = 3 * (total / alpha).log()
    torch.testing.assert_close(log_det, expected)
    torch.testing.assert_close(inverse_radial_flows(moved, center, alpha, total), z)
    (moved.sum() + log_det.sum()).backward()
    assert z.grad.isfinite().all()


def test_features_of_zero_are_the_identity():
    family = RadialFlowPosterior(3, flows=2)
    q = family(torch.zeros(1, family.in_features))
    z = torch.randn(1, 5, 3)
    moved, log_det = q.transform(z)
    torch.testing.assert_close(moved, z)
    torch.testing.assert_close(log_det, torch.zeros(1, 5), rtol=0, atol=1e-6)


def test_features_are_those_of_the_paper():
    """Center, alpha = softplus and alpha + beta = softplus."""
    family = RadialFlowPosterior(3, flows=2)
    assert family.in_features == 6 + 2 * 5
    features = torch.randn(2, 16).double()
    q = family(features)
    softplus = torch.nn.functional.softplus
    z = torch.randn(2, 4, 3).double()
    given = features[:, 6:12].view(2, 2, 3), softplus(features[:, 12:14])
    expected, log_det = radial_flows(z, *given, softplus(features[:, 14:]))
    torch.testing.assert_close(q.transform(z)[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.transform(z)[1], log_det, rtol=1e-4, atol=1e-4)
    assert q.base.mu.equal(features[:, :3])
    assert q.base.log_var.equal(features[:, 3:6])


def test_density_of_any_latents_is_that_of_draws():
    family = RadialFlowPosterior(4, flows=5).double()
    q = family(1.5 * torch.randn(3, family.in_features).double())
    draws = q.rsample(Noise(torch.arange(3), "test"), 6)
    torch.testing.assert_close(q.log_prob(draws.z), draws.log_prob, rtol=1e-6, atol=1e-6)
    assert q.log_prob(draws.z.roll(1, 0)).isfinite().all()


def test_draws_follow_a_density_that_integrates_to_one():
    family = RadialFlowPosterior(2, flows=4)
    q = family(torch.randn(1, family.in_features))
    check_real_sampler(
        lambda n: q.rsample(Noise(torch.arange(1), "test"), n).z[0],
        lambda z: q.log_prob(z[None])[0],
    )


def test_the_aggregate_posterior_can_be_measured():
    assert VAE(posterior=RadialFlowPosterior).has(Capability.POSTERIOR_DENSITY)


def test_flows_keep_their_digits_under_autocast():
    z, given = torch.randn(3, 5, 3), [value.float() for value in parameters()]
    exact = radial_flows(z, *given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = radial_flows(z, *given)
    assert all(a.equal(b) for a, b in zip(exact, mixed, strict=True))


def test_flows_must_be_positive():
    with pytest.raises(ValueError, match="RadialFlowPosterior: flows must be positive, got 0"):
        RadialFlowPosterior(2, flows=0)
