"""The gyroplane layer against the hyperboloid model, and its decoder."""

import functools
import math

import pytest
import torch

from vae_lightning import VAE
from vae_lightning.distributions.poincare import WrappedNormalPosterior, WrappedNormalPrior
from vae_lightning.nets import ConvDecoder, GyroplaneDecoder
from vae_lightning.nets.gyroplane import GyroplaneLayer


def to_hyperboloid(z: torch.Tensor, c: float) -> torch.Tensor:
    square = c * z.square().sum(-1, keepdim=True)
    return torch.cat([(1 + square) / math.sqrt(c), 2 * z], -1) / (1 - square)


def minkowski(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[..., 1:] * b[..., 1:]).sum(-1) - a[..., 0] * b[..., 0]


@pytest.mark.parametrize("c", [0.3, 1.0, 2.5])
def test_outputs_are_signed_distances_from_hyperplanes(c):
    """For the distance d of X and the unit normal N, sinh(sqrt(c) d) = sqrt(c) <X, N>."""
    layer = GyroplaneLayer(3, 4, curvature=c).double()
    ball = layer.ball
    z = ball.exp(torch.zeros(20, 3).double(), 1.5 * torch.randn(20, 3).double())
    p = ball.exp(torch.zeros(4, 3).double(), layer.offsets)
    found = layer(z)
    for k in range(4):
        point, normal = p[k].detach(), layer.normals[k].detach()
        _, pushed = torch.autograd.functional.jvp(lambda x: to_hyperboloid(x, c), point, normal)
        unit = pushed / minkowski(pushed, pushed).sqrt()
        height = math.sqrt(c) * minkowski(to_hyperboloid(z, c), unit)
        expected = normal.norm() * height.asinh() / math.sqrt(c)
        torch.testing.assert_close(found[:, k], expected, rtol=1e-8, atol=1e-10)


def test_is_zero_on_the_hyperplane_and_grows_with_the_distance():
    layer = GyroplaneLayer(2, 1, curvature=0.7).double()
    ball = layer.ball
    p = ball.exp(torch.zeros(1, 2).double(), layer.offsets.detach())
    a = torch.nn.functional.normalize(layer.normals.detach(), dim=1)
    steps = torch.tensor([-1.2, 0.0, 0.4, 2.0], dtype=torch.float64)[:, None]
    along = ball.exp(p.expand(4, -1), steps * a)
    found = layer(along)[:, 0] / layer.normals.norm()
    torch.testing.assert_close(found, steps[:, 0], rtol=1e-8, atol=1e-10)
    beside = ball.exp(p, 0.8 * torch.stack([-a[:, 1], a[:, 0]], 1))
    torch.testing.assert_close(layer(beside), torch.zeros(1, 1).double(), rtol=0, atol=1e-12)


def test_a_small_curvature_gives_a_linear_layer():
    layer = GyroplaneLayer(3, 4, curvature=1e-8)
    z = torch.randn(5, 3)
    expected = (2 * z[:, None] - layer.offsets) @ layer.normals.t()
    expected = torch.diagonal(expected, dim1=1, dim2=2)
    torch.testing.assert_close(layer(z), expected, rtol=1e-3, atol=1e-3)


def test_is_finite_at_the_boundary_and_keeps_float32_under_autocast():
    layer = GyroplaneLayer(2, 6)
    z = torch.tensor([[0.99999, 0.0], [0.0, 0.0], [0.7, -0.7]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, layer(z), rtol=0, atol=0)
    for gradient in torch.autograd.grad(found.sum(), (z, *layer.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("conditional", [False, True])
def test_the_decoder_with_any_other_behind_it(batch, conditional):
    vae = VAE(
        image_shape=(1, 8, 8),
        latent_dim=2,
        num_classes=4,
        conditional=conditional,
        prior=functools.partial(WrappedNormalPrior, curvature=0.7),
        posterior=functools.partial(WrappedNormalPosterior, curvature=0.7),
        decoder=functools.partial(GyroplaneDecoder, curvature=0.7, width=12, decoder=ConvDecoder),
    )
    label = batch.y if conditional else None
    assert vae.reconstruct(batch.x, label).shape == batch.x.shape
    assert vae.decoder.first.normals.shape == (12, 2)


def test_the_decoder_behind_it_sees_the_class_and_distances_on_one_side_of_the_hyperplanes():
    decoder = GyroplaneDecoder((1, 2, 2), 2, cond_features=3, curvature=0.4, width=50)
    layer = GyroplaneLayer(2, 50, curvature=0.4)
    layer.load_state_dict(decoder.first.state_dict())
    z, classes = 0.5 * torch.randn(6, 2), torch.eye(3)[torch.arange(6) % 3]
    distances = layer(z)
    assert distances.min() < -0.1
    expected = decoder.decoder(distances.clamp(min=0), classes)
    torch.testing.assert_close(decoder(z, classes), expected)
    assert not decoder(z, classes.roll(1, 0)).allclose(expected)


def test_the_decoder_starts_at_a_mean_image():
    decoder = GyroplaneDecoder((1, 2, 2), 2, width=5)
    params = torch.randn(1, 2, 2)
    decoder.start_at(params)
    for weight in decoder.decoder.layers[-1].weight:
        torch.nn.init.zeros_(weight)
    torch.testing.assert_close(decoder(torch.zeros(1, 2))[0], params)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="GyroplaneDecoder: width must be positive, got 0"):
        GyroplaneDecoder((1, 8, 8), 2, width=0)
    with pytest.raises(ValueError, match="must be positive"):
        GyroplaneDecoder((1, 8, 8), 2, curvature=0.0)
