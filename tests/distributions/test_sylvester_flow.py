"""Sylvester flows: orthonormal columns, Jacobians by autograd, and inverses by fixed points."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal

from vae_lightning.distributions.sylvester_flow import (
    SylvesterFlowPosterior,
    orthonormal_columns,
    unit_vectors,
)
from vae_lightning.randomness import Noise

VARIANTS = {
    "orthogonal": {"columns": 3},
    "householder": {"reflections": 4},
    "triangular": {},
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def family(variant, size=5, flows=3, **kwargs) -> SylvesterFlowPosterior:
    options = {**VARIANTS[variant], **kwargs}
    return SylvesterFlowPosterior(size, flows=flows, variant=variant, **options).double()


def features(posterior, images=2, scale=1.5):
    return scale * torch.randn(images, posterior.in_features, dtype=torch.float64)


def basis_matrices(posterior, given):
    """The matrices Q of each flow, (B, L, M), as maps of unit vectors."""
    m, size = posterior.directions, posterior.latent_dim
    vectors = given[:, 2 * size :].unflatten(1, (posterior.flows, -1))
    vectors = vectors[:, :, : posterior._q_features]
    vectors = vectors.unflatten(2, (-1, size)) if posterior._q_features else None
    units = torch.eye(m, dtype=given.dtype).expand(len(given), m, m)
    bases = posterior._bases(vectors)
    return bases, [basis.lift(units).mT for basis in bases]


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e6])
def test_columns_are_orthonormal_whatever_the_encoder_returns(variant, scale):
    posterior = family(variant)
    given = features(posterior, scale=scale)
    bases, matrices = basis_matrices(posterior, given)
    z = torch.randn(2, 4, 5, dtype=torch.float64)
    identity = torch.eye(posterior.directions).double().expand(2, -1, -1)
    for basis, q in zip(bases, matrices, strict=True):
        torch.testing.assert_close(q.mT @ q, identity, rtol=0, atol=1e-12)
        torch.testing.assert_close(basis.project(z), z @ q, rtol=0, atol=1e-12)


def test_columns_span_what_the_vectors_of_the_encoder_span():
    """The QR decomposition keeps the span of the first columns; it starts at others per flow."""
    vectors = torch.randn(2, 3, 2, 5).double()
    q = orthonormal_columns(vectors)
    assert q.shape == (2, 3, 5, 2)
    start = torch.eye(5).double()[torch.tensor([[0, 1], [2, 3], [4, 0]])]
    given = (vectors + start).mT
    torch.testing.assert_close(q @ (q.mT @ given), given)
    assert torch.linalg.matrix_rank(given).eq(2).all()


def test_householder_matrices_are_products_of_reflections():
    posterior = family("householder", flows=1, reflections=3)
    given = features(posterior, images=1)
    _, (q,) = basis_matrices(posterior, given)
    expected = torch.eye(5).double()
    for v in given[0, 10:25].view(3, 5):
        expected = expected @ (torch.eye(5).double() - 2 * torch.outer(v, v) / (v @ v))
    torch.testing.assert_close(q[0], expected)


def test_unit_vectors_at_zero():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [1e-10, 0.0]]).requires_grad_()
    found = unit_vectors(vectors)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert vectors.grad.isfinite().all()


def test_triangular_flows_alternate_the_order():
    """One has a triangular Jacobian; the next one is triangular in the reverse order."""
    for flows, zeros in ((1, 10), (2, 0)):
        posterior = family("triangular", flows=flows)
        q = posterior(features(posterior, images=1))
        matrix = jacobian(lambda e, q=q: q.transform(e)[0].flatten(), torch.randn(1, 1, 5).double())
        matrix = matrix.view(5, 5)
        assert int((matrix == 0).sum()) == zeros
        if flows == 1:
            assert matrix.equal(matrix.triu())


@pytest.mark.parametrize("scale", [0.3, 1.5, 4.0])
def test_log_det_is_that_of_the_jacobian(variant, scale):
    posterior = family(variant)
    q = posterior(features(posterior, scale=scale))
    e = torch.randn(2, 3, 5, dtype=torch.float64)
    _, log_det = q.transform(e)
    full = jacobian(lambda e: q.transform(e)[0], e).view(6, 5, 6, 5)
    for i in range(6):
        for j in range(6):
            if i != j:
                assert full[i, :, j].abs().max() == 0
        sign, expected = torch.linalg.slogdet(full[i, :, i])
        assert sign == 1
        assert log_det.flatten()[i].item() == pytest.approx(expected.item(), abs=1e-9)
    assert log_det.std() > 0.05


def reference(posterior, given, z):
    """The formula of the paper with explicit matrices, in float64, for one image and draw."""
    m, size = posterior.directions, posterior.latent_dim
    total = 0.0
    _, matrices = basis_matrices(posterior, given)
    for t in range(posterior.flows):
        flow = given[0, 2 * size :].view(posterior.flows, -1)[t, posterior._q_features :]
        square, diagonal, b = flow.split([m * m, m, m])
        square = square.view(m, m)
        r = torch.triu(square, 1) + torch.diag(square.diagonal().tanh())
        r_tilde = torch.triu(square.T, 1) + torch.diag(diagonal.tanh())
        q = matrices[t][0]
        inner = r_tilde @ q.T @ z + b
        slope = torch.diag(1 - inner.tanh() ** 2)
        # Sylvester's identity, before the triangular matrices simplify it.
        inside = torch.eye(m).double() + slope @ r_tilde @ q.T @ q @ r
        total += torch.linalg.slogdet(inside).logabsdet
        z = z + q @ r @ inner.tanh()
    return z, total


def test_flows_are_those_of_the_paper(variant):
    posterior = family(variant)
    given = features(posterior, images=1)
    e = torch.randn(1, 1, 5, dtype=torch.float64)
    found, log_det = posterior(given).transform(e)
    z, total = reference(posterior, given, e[0, 0])
    torch.testing.assert_close(found[0, 0], z, rtol=1e-5, atol=1e-5)
    assert log_det.item() == pytest.approx(total.item(), abs=1e-4)


def test_one_column_without_triangles_is_a_planar_flow():
    """z + q r tanh(r~ q z + b): u = r q and w = r~ q."""
    posterior = family("orthogonal", flows=1, columns=1)
    given = features(posterior, images=1)
    _, (q,) = basis_matrices(posterior, given)
    r, r_tilde = given[0, 15:17].tanh()
    b = given[0, 17]
    z = torch.randn(1, 6, 5).double()
    w, u = r_tilde * q[0, :, 0], r * q[0, :, 0]
    h = (z @ w + b).tanh()
    moved, log_det = posterior(given).transform(z)
    torch.testing.assert_close(moved, z + h[..., None] * u, rtol=1e-5, atol=1e-5)
    expected = (1 + (1 - h.square()) * (w @ u)).log()
    torch.testing.assert_close(log_det, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sign", [-1, 1])
def test_flows_are_invertible_with_extreme_parameters(variant, sign):
    """The diagonals saturate: r r~ near -1 squeezes space, but distinct points stay distinct."""
    posterior = family(variant, flows=1).float()
    m, q_features = posterior.directions, posterior._q_features
    given = torch.zeros(1, posterior.in_features)
    flow = given[0, 10 + q_features :]
    flow[: m * m] = torch.diag(torch.full((m,), 50.0)).flatten()
    flow[m * m : m * m + m] = sign * 50.0
    given[0, 10 : 10 + q_features] = torch.randn(q_features)
    given.requires_grad_()
    q = posterior(given)
    _, (matrix,) = basis_matrices(posterior, given.detach())
    distance = torch.linspace(-3, 3, 401)  # with 0, where the slope is least
    z = distance[:, None] * matrix[0, :, 0]
    moved, log_det = q.transform(z[None])
    assert log_det.isfinite().all()
    along = (moved[0] @ matrix[0, :, 0]).detach()
    assert along.diff().min() >= -1e-6
    assert (along[201:] - along[199:-2]).min() > -1e-6
    assert (along[::10].diff() > 0).all()
    if sign < 0:
        assert log_det[0, 200].item() == pytest.approx(m * math.log(2e-6), rel=0.02)
    (log_det.sum() + moved.sum()).backward()
    assert given.grad.isfinite().all()


def test_density_integrates_to_one_over_the_latents(variant):
    """The integral over z of q(z): of q(f(e)) |det df/de| over a grid of e."""
    posterior = family(variant, size=2, columns=2)
    q = posterior(features(posterior, images=1, scale=0.8))
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    e = torch.cartesian_prod(axis, axis)
    z, log_det = q.transform(e[None])
    p = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    integral = (p.log_prob(z[0]) + log_det[0]).logsumexp(0).exp() * (24 / 480) ** 2
    assert integral.item() == pytest.approx(1, abs=2e-3)


def test_parameters_are_those_of_each_image(variant):
    posterior = family(variant)
    given = features(posterior, images=1).repeat(2, 1)
    e = torch.randn(1, 4, 5).double().expand(2, -1, -1)
    for start, end in ((10, 10 + posterior._q_features), (-3, None)):
        if start == end:
            continue
        other = given.clone()
        other[1, start:end] += torch.randn(other[1, start:end].shape).double()
        z, _ = posterior(other).transform(e)
        torch.testing.assert_close(z[0], posterior(given).transform(e)[0][0])
        assert (z[0] - z[1]).abs().max() > 1e-3


def test_log_dets_keep_their_digits_under_autocast(variant):
    posterior = family(variant).float()
    q = posterior(features(posterior).float())
    e = torch.randn(2, 4, 5)
    exact = q.transform(e)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = posterior(features(posterior).float())
        mixed = q.transform(e)
    assert all(a.equal(b) for a, b in zip(exact, mixed, strict=True))


def test_gradients_reach_every_feature(variant):
    posterior = family(variant)
    given = features(posterior).requires_grad_()
    draws = posterior(given).rsample(Noise(torch.arange(2), "test"), 4)
    (draws.log_prob + (draws.z * torch.randn(2, 4, 5)).sum(2)).sum().backward()
    assert given.grad.isfinite().all()
    assert (given.grad.abs().sum(0) > 0).all()


def test_gradients_at_zero_features_are_finite(variant):
    posterior = family(variant)
    given = torch.zeros(2, posterior.in_features, dtype=torch.float64).requires_grad_()
    draws = posterior(given).rsample(Noise(torch.arange(2), "test"), 4)
    (draws.log_prob + draws.z.sum(2)).sum().backward()
    assert given.grad.isfinite().all()


def test_columns_are_at_most_the_latent_size():
    assert SylvesterFlowPosterior(4, columns=8).directions == 4
    assert SylvesterFlowPosterior(4, columns=2).in_features == 8 + 4 * (8 + 4 + 4)
    assert SylvesterFlowPosterior(4, flows=1, variant="triangular").in_features == 8 + 16 + 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flows": 0}, "flows must be positive, got 0"),
        ({"columns": 0}, "columns must be positive, got 0"),
        ({"reflections": 0}, "reflections must be positive, got 0"),
        ({"variant": "diagonal"}, "must be orthogonal, householder or triangular, got 'diagonal'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SylvesterFlowPosterior(4, **options)
