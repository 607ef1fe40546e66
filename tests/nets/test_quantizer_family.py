"""The kinds of quantizers, against vector-quantize-pytorch on the same inputs and weights."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from vector_quantize_pytorch import FSQ as OtherFSQ
from vector_quantize_pytorch import LFQ as OtherLFQ
from vector_quantize_pytorch import ResidualVQ, VectorQuantize
from vector_quantize_pytorch import SimVQ as OtherSimVQ

from vae_lightning.nets.quantizers import (
    FSQ,
    LFQ,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from vae_lightning.nets.quantizers.base import pass_gradient
from vae_lightning.nets.quantizers.codebook import reparameterize
from vae_lightning.nets.quantizers.lookup_free import binary_entropy, entropy_of_mean

D, K = 6, 20


def vector_quantizer(**kwargs):
    return VectorQuantizer(
        **{"embedding_dim": D, "codebook_size": K, "codebook_init": "uniform", **kwargs}
    )


KINDS = {
    "gradient": functools.partial(vector_quantizer, codebook_update="gradient"),
    "ema": vector_quantizer,
    "cosine": functools.partial(vector_quantizer, similarity="cosine"),
    "rotation": functools.partial(vector_quantizer, gradient="rotation"),
    "orthogonal": functools.partial(
        vector_quantizer, codebook_update="gradient", orthogonality=10.0
    ),
    "reparameterized": functools.partial(vector_quantizer, codebook_update="reparameterized"),
    "fsq": lambda: FSQ(D, levels=(5, 4, 3)),
    "fsq_direct": lambda: FSQ(D, levels=(3, 4, 5, 6, 7, 8)),
    "lfq": lambda: LFQ(D, bits=5),
    "lfq_direct": lambda: LFQ(D, bits=D),
    "sim": lambda: SimVQ(D, codebook_size=K),
    "residual": lambda: ResidualQuantizer(
        D, num_quantizers=3, quantizer=functools.partial(VectorQuantizer, codebook_size=K)
    ),
    "grouped": lambda: ResidualQuantizer(
        D, num_quantizers=2, groups=3, quantizer=functools.partial(SimVQ, codebook_size=K)
    ),
}


def maps(seed=0, n=4, scale=1.0):
    torch.manual_seed(seed)
    return scale * torch.randn(n, D, 5, 3)


def made(name):
    torch.manual_seed(3)
    q = KINDS[name]()
    for parameter in q.parameters():
        if parameter.ndim == 2:
            parameter.data = torch.randn_like(parameter) / 2
    return q


# What every quantizer promises


@pytest.mark.parametrize("name", KINDS)
def test_the_codes_are_those_of_the_indices(name):
    q = made(name).eval()
    z_e = maps()
    out = q(z_e)
    shape = (4, 5, 3) if q.depth == 1 else (4, 5, 3, q.depth)
    assert out.indices.shape == shape
    assert out.indices.dtype == torch.int64
    assert 0 <= out.indices.min() <= out.indices.max() < q.codebook_size
    torch.testing.assert_close(q.lookup(out.indices), out.z_q, rtol=1e-5, atol=1e-5)
    for term in (out.codebook_loss, out.commitment_loss):
        assert term is None or term.shape == (4,)


@pytest.mark.parametrize("name", KINDS)
def test_codebooks_list_every_code(name):
    q = made(name).eval()
    books = q.codebooks
    assert {key: len(book) for key, book in books.items()} == q.codebook_sizes
    assert len(books) == q.depth
    if q.depth == 1:
        looked_up = q.lookup(torch.arange(q.codebook_size)[:, None, None])[:, :, 0, 0]
        torch.testing.assert_close(books[""], looked_up)
        assert len(books[""].unique(dim=0)) == q.codebook_size


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_changes_nothing(name):
    """Under autocast, and in a model that was converted, on inputs that have the lower type."""
    q = made(name).eval()
    z_e = maps(n=64).bfloat16()
    exact = q(z_e.float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = q(z_e)
    converted = q.to(torch.bfloat16)(z_e)
    for out in (mixed, converted):
        assert out.indices.equal(exact.indices)
        assert out.z_q.dtype == torch.float32
        torch.testing.assert_close(out.z_q, exact.z_q)
    # The rounding of the inputs themselves moves less than one in a hundred to another code.
    whole = q(maps(n=64))
    assert (whole.indices == exact.indices).float().mean() > 0.99
    assert exact.indices.max() < q.codebook_size


@pytest.mark.parametrize("name", KINDS)
def test_an_image_does_not_depend_on_the_others(name):
    q = made(name).eval()
    z_e = maps()
    whole, one = q(z_e), q(z_e[1:2])
    assert one.indices.equal(whole.indices[1:2])
    torch.testing.assert_close(one.z_q, whole.z_q[1:2])


@pytest.mark.parametrize("name", KINDS)
def test_the_encoder_gets_a_gradient(name):
    q = made(name)
    z_e = maps().requires_grad_()
    q(z_e).z_q.square().sum().backward()
    assert z_e.grad.isfinite().all()
    assert z_e.grad.abs().sum() > 0


# Against vector-quantize-pytorch


def other(q, **kwargs):
    """Its module with our codebook, in which nothing is initialized or revived."""
    made = VectorQuantize(
        D,
        codebook_size=K,
        decay=q.decay,
        kmeans_init=False,
        threshold_ema_dead_code=0,
        commitment_weight=1.0,
        **kwargs,
    )
    made._codebook.embed.data.copy_(q.codes.detach()[None])
    made._codebook.embed_avg.data.copy_(q.codes.detach()[None])
    made._codebook.cluster_size.data.fill_(1.0)
    return made


def as_images(x):
    return x.movedim(1, -1).flatten(1, 2)


@pytest.mark.parametrize("cosine", [False, True])
def test_nearest_codes_are_theirs(cosine):
    q = made("cosine" if cosine else "gradient").eval()
    theirs = other(q, use_cosine_sim=cosine, rotation_trick=False).eval()
    z_e = maps(n=16)
    codes, indices, _ = theirs(as_images(z_e))
    out = q(z_e)
    assert out.indices.flatten(1).equal(indices)
    torch.testing.assert_close(as_images(out.z_q), codes)


@pytest.mark.parametrize("cosine", [False, True])
def test_commitment_and_gradient_are_theirs(cosine):
    q = made("cosine" if cosine else "gradient")
    theirs = other(q, use_cosine_sim=cosine, rotation_trick=False, ema_update=False).train()
    z_e = maps(n=16)
    ours_in, theirs_in = (z_e.clone().requires_grad_() for _ in range(2))
    out = q(ours_in)
    codes, _, loss = theirs(as_images(theirs_in))
    torch.testing.assert_close(out.commitment_loss.sum() / z_e.numel(), loss.sum())
    weights = torch.randn_like(z_e)
    (out.z_q * weights).sum().backward()
    (codes * as_images(weights)).sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad)


def test_the_rotation_is_theirs_and_a_rotation():
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    torch.manual_seed(0)
    v, e = torch.randn(50, D), torch.randn(50, D)
    ours, theirs = (v.clone().requires_grad_() for _ in range(2))
    ours_out, theirs_out = pass_gradient(ours, e, "rotation"), rotate_to(theirs, e)
    torch.testing.assert_close(ours_out, e)
    torch.testing.assert_close(ours_out, theirs_out)
    weights = torch.randn(50, D)
    (ours_out * weights).sum().backward()
    (theirs_out * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    # The angle between gradient and code is that between the gradient and the vector.
    before = functional.cosine_similarity(weights, e)
    torch.testing.assert_close(functional.cosine_similarity(ours.grad, v), before)


@pytest.mark.parametrize("v", [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
def test_the_rotation_of_degenerate_vectors_is_finite(v):
    v = torch.tensor([v], requires_grad=True)
    pass_gradient(v, torch.tensor([[1.0, 0.0]]), "rotation").sum().backward()
    assert v.grad.isfinite().all()


def test_the_reparameterization_is_theirs():
    """With their noise, by the seed; gradients reach both the vectors and the codes."""
    from vector_quantize_pytorch.vector_quantize_pytorch import directional_reparam

    torch.manual_seed(0)
    v, e, weights = torch.randn(50, D), torch.randn(50, D), torch.randn(50, D)
    ours, theirs = ([x.clone().requires_grad_() for x in (v, e)] for _ in range(2))
    torch.manual_seed(1)
    theirs_out = directional_reparam(*theirs, noise_variance=0.04)
    torch.manual_seed(1)
    ours_out = reparameterize(*ours, 0.2 * torch.randn(50, D))
    torch.testing.assert_close(ours_out, theirs_out)
    (ours_out * weights).sum().backward()
    (theirs_out * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
        assert a.grad.abs().sum() > 0


def test_reparameterized_codes_learn_without_losses_of_their_own():
    q = vector_quantizer(codebook_update="reparameterized", noise_variance=0.01).train()
    q.codebook.data = torch.randn(K, D)
    out = q(maps())
    assert out.codebook_loss is None
    assert out.commitment_loss is None
    exact = q.lookup(out.indices)
    assert 0 < (out.z_q - exact).abs().mean() < 0.5
    out.z_q.square().sum().backward()
    used = out.indices.unique()
    assert (q.codebook.grad[used].abs().sum(1) > 0).all()
    with torch.no_grad():
        assert not q(maps()).z_q.equal(q(maps()).z_q)  # other noise in another step


def test_the_noise_of_reparameterized_codes_has_its_variance():
    """A code at distance 1: across its direction, it moves by the noise."""
    q = VectorQuantizer(
        2, 2, codebook_update="reparameterized", codebook_init="uniform", noise_variance=0.0025
    )
    q.codebook.data = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    z_q = q(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(5, 2, 40, 50)).z_q
    assert z_q[:, 1].mean().item() == pytest.approx(0, abs=0.003)
    assert z_q[:, 1].std().item() == pytest.approx(0.05, rel=0.05)


def test_a_code_that_equals_its_vector_has_a_finite_gradient():
    v = torch.zeros(1, D, requires_grad=True)
    e = torch.zeros(1, D, requires_grad=True)
    reparameterize(v, e, torch.ones(1, D)).sum().backward()
    assert v.grad.isfinite().all()
    assert e.grad.isfinite().all()


def test_options_of_reparameterized_codes_are_checked():
    with pytest.raises(ValueError, match="a gradient of their own"):
        vector_quantizer(codebook_update="reparameterized", gradient="rotation")
    with pytest.raises(ValueError, match="noise_variance must not be negative"):
        vector_quantizer(noise_variance=-1.0)


def test_orthogonality_is_theirs():
    q = made("orthogonal")
    theirs = other(
        q, orthogonal_reg_weight=10.0, ema_update=False, learnable_codebook=True,
        rotation_trick=False,
    ).train()  # fmt: skip
    z_e = maps()
    *_, loss = theirs(as_images(z_e))
    out = q(z_e)
    ours = out.commitment_loss.sum() / z_e.numel() + out.regularizer
    torch.testing.assert_close(ours, loss.sum())
    out.regularizer.backward()
    assert q.codebook.grad.abs().sum() > 0


def test_orthogonality_of_orthogonal_codes_is_zero():
    q = vector_quantizer(codebook_size=D, codebook_update="gradient", orthogonality=10.0)
    q.codebook.data = 3 * torch.eye(D)
    assert q(maps()).regularizer.abs() < 1e-6


@pytest.mark.parametrize("levels", [(5, 4, 3), (8, 5, 5, 5), (3, 4, 5, 6, 7, 8)])
def test_fsq_is_theirs(levels):
    torch.manual_seed(0)
    theirs = OtherFSQ(list(levels), dim=D).eval()
    q = FSQ(D, levels).eval()
    if len(levels) != D:
        q.project_in.load_state_dict(theirs.project_in.state_dict())
        q.project_out.load_state_dict(theirs.project_out.state_dict())
    z_e = maps(n=32, scale=2.0)
    ours_in, theirs_in = (z_e.clone().requires_grad_() for _ in range(2))
    out, (codes, indices) = q(ours_in), theirs(theirs_in)
    assert out.indices.equal(indices.long())
    torch.testing.assert_close(out.z_q, codes)
    assert q.codebook_size == theirs.codebook_size
    weights = torch.randn_like(z_e)
    (out.z_q * weights).sum().backward()
    (codes * weights).sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad)


@pytest.mark.parametrize("bits", [5, D])
def test_lfq_is_theirs(bits):
    torch.manual_seed(0)
    theirs = OtherLFQ(
        dim=D, codebook_size=2**bits, entropy_loss_weight=0.3, diversity_gamma=0.7,
        commitment_loss_weight=0.0,
    ).train()  # fmt: skip
    q = LFQ(D, bits, entropy_weight=0.3, diversity=0.7, temperature=0.01).train()
    if bits != D:
        q.project_in.load_state_dict(theirs.project_in.state_dict())
        q.project_out.load_state_dict(theirs.project_out.state_dict())
    z_e = maps(n=8, scale=0.02)  # within the temperature, so that the entropies are not 0
    ours_in, theirs_in = (z_e.clone().requires_grad_() for _ in range(2))
    out, (codes, indices, loss) = q(ours_in), theirs(theirs_in)
    assert out.indices.equal(indices.long())
    torch.testing.assert_close(out.z_q, codes)
    ours = out.regularizer.mean() / 15  # theirs is per position
    torch.testing.assert_close(ours, loss, rtol=1e-4, atol=1e-5)
    (ours + out.z_q.square().sum()).backward()
    (loss + codes.square().sum()).backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-3, atol=1e-4)


def test_lfq_commitment_is_theirs():
    torch.manual_seed(0)
    theirs = OtherLFQ(
        dim=D, codebook_size=2**D, entropy_loss_weight=0.0, commitment_loss_weight=1.0
    ).train()
    z_e = maps()
    *_, loss = theirs(z_e)
    out = LFQ(D, bits=D)(z_e)
    torch.testing.assert_close(out.commitment_loss.sum() / z_e.numel(), loss)


def test_lfq_commitment_moves_the_encoder_to_the_signs():
    z_e = maps().requires_grad_()
    LFQ(D, bits=D)(z_e).commitment_loss.sum().backward()
    torch.testing.assert_close(z_e.grad, 2 * (z_e - z_e.sign()).detach())


def test_entropies_against_all_codes():
    torch.manual_seed(0)
    logits = 3 * torch.randn(7, 5, dtype=torch.float64)
    codes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)
    bernoulli = torch.distributions.Bernoulli(logits=logits[:, None])
    joint = bernoulli.log_prob(codes.double()).sum(2).exp()
    torch.testing.assert_close(entropy_of_mean(logits), torch.special.entr(joint.mean(0)).sum())
    torch.testing.assert_close(
        binary_entropy(logits).sum(1), torch.special.entr(joint).sum(1), rtol=1e-9, atol=1e-9
    )


def test_the_entropy_of_certain_bits_is_finite_with_its_gradient():
    logits = torch.tensor([-1e6, 0.0, 1e6], requires_grad=True)
    entropy = binary_entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([0.0, math.log(2), 0.0]))
    entropy.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("codebook_init", ["kmeans", "data"])
def test_sim_vq_starts_from_the_data_once(codebook_init):
    q = SimVQ(D, K, codebook_init=codebook_init)
    z_e = maps(n=16, scale=5.0) + 20
    before = q.eval()(z_e).commitment_loss.mean()
    q.train()(z_e)
    assert q.transform.weight.equal(torch.eye(D))
    held = q.codebook.clone()
    assert q.eval()(z_e).commitment_loss.mean() < 0.2 * before
    q.train()(z_e + 100)
    assert q.codebook.equal(held)
    again = SimVQ(D, K)
    again.load_state_dict(q.state_dict())
    again.train()(z_e + 100)
    assert again.codebook.equal(held)


def test_sim_vq_starts_again_after_an_unstarted_state_was_loaded():
    q = SimVQ(D, codebook_size=K)
    unstarted = {name: value.clone() for name, value in q.state_dict().items()}
    q(maps())
    q.load_state_dict(unstarted)
    q(5 + maps(seed=1))
    assert q.codes.mean() > 3


@pytest.mark.parametrize("rotation", [False, True])
def test_sim_vq_is_theirs(rotation):
    torch.manual_seed(0)
    theirs = OtherSimVQ(D, K, channel_first=True, rotation_trick=rotation)
    gradient = "rotation" if rotation else "straight_through"
    q = SimVQ(D, K, codebook_init="random", gradient=gradient)
    q.codebook.data.copy_(theirs.frozen_codebook)
    q.transform.load_state_dict(theirs.code_transform.state_dict())
    z_e = maps(n=16)
    ours_in, theirs_in = (z_e.clone().requires_grad_() for _ in range(2))
    out, (codes, indices, loss) = q(ours_in), theirs(theirs_in)
    assert out.indices.equal(indices)
    torch.testing.assert_close(out.z_q, codes)
    ours = (out.codebook_loss + 0.25 * out.commitment_loss).sum() / z_e.numel()
    torch.testing.assert_close(ours, loss)
    weights = torch.randn_like(z_e)
    (ours + (out.z_q * weights).sum()).backward()
    (loss + (codes * weights).sum()).backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad)
    torch.testing.assert_close(q.transform.weight.grad, theirs.code_transform.weight.grad)
    assert q.codebook.grad is None


def test_residual_codes_are_theirs():
    torch.manual_seed(0)
    theirs = ResidualVQ(
        dim=D, num_quantizers=3, codebook_size=K, kmeans_init=False, rotation_trick=False,
    ).eval()  # fmt: skip
    q = made("residual").eval()
    for ours, layer in zip(q.quantizers, theirs.layers, strict=True):
        layer._codebook.embed.data.copy_(ours.codebook.detach()[None])
    z_e = maps(n=16)
    codes, indices, _ = theirs(as_images(z_e))
    out = q(z_e)
    assert out.indices.flatten(1, 2).equal(indices)
    torch.testing.assert_close(as_images(out.z_q), codes)
    # What is left shrinks with each step.
    rest = z_e.clone()
    for i in range(3):
        rest = rest - q.quantizers[i].lookup(out.indices[..., i])
    torch.testing.assert_close(z_e - out.z_q, rest)


@pytest.mark.parametrize("quantizer", [VectorQuantizer, SimVQ])
def test_every_step_of_a_residual_quantizer_starts_with_different_codes(quantizer):
    part = functools.partial(quantizer, codebook_size=K, codebook_init="data")
    q = ResidualQuantizer(D, num_quantizers=3, quantizer=part)
    indices = q(maps(n=32)).indices
    assert all(len(indices[..., i].unique()) > K // 2 for i in range(3))


def test_groups_are_quantized_alone():
    q = made("grouped").eval()
    z_e = maps()
    changed = z_e.clone()
    changed[:, :2] = torch.randn(4, 2, 5, 3)
    before, after = q(z_e), q(changed)
    assert before.indices[..., 2:].equal(after.indices[..., 2:])
    assert not before.indices[..., :2].equal(after.indices[..., :2])
    assert before.z_q[:, 2:].equal(after.z_q[:, 2:])


def test_the_gradient_of_a_residual_quantizer_passes_once():
    q = made("residual").eval()
    z_e = maps().requires_grad_()
    q(z_e).z_q.sum().backward()
    torch.testing.assert_close(z_e.grad, torch.ones_like(z_e))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FSQ(4, levels=()), "levels must be integers of at least 3"),
        (lambda: FSQ(4, levels=(8, 2)), "levels must be integers of at least 3"),
        (lambda: LFQ(4, bits=0), "bits must be from 1 to 20"),
        (lambda: LFQ(4, temperature=0), "temperature must be positive"),
        (lambda: LFQ(4, diversity=-1), "must not be negative"),
        (lambda: SimVQ(4, codebook_size=1), "codebook_size must be at least 2"),
        (lambda: SimVQ(0), "embedding_dim must be at least 1"),
        (lambda: ResidualQuantizer(4, num_quantizers=0), "num_quantizers must be at least 1"),
        (lambda: ResidualQuantizer(4, groups=3), "groups must divide embedding_dim 4"),
        (lambda: ResidualQuantizer(4, num_quantizers=1), "use its quantizer itself"),
        (lambda: ResidualQuantizer(4, quantizer=FSQ), "FSQ has no codebook"),
        (
            lambda: ResidualQuantizer(
                4, quantizer=functools.partial(VectorQuantizer, codebook_update="reparameterized")
            ),
            "a gradient that a sum does not pass on",
        ),
        (lambda: ResidualQuantizer(4, gradient="rot"), "gradient must be straight_through or rot"),
        (lambda: vector_quantizer(codebook_update="none"), "gradient, ema or reparameterized, got"),
        (lambda: vector_quantizer(similarity="cos"), "similarity must be euclidean or cosine"),
        (
            lambda: SimVQ(4, codebook_init="uniform"),
            "must be kmeans, data or random, got",
        ),
        (lambda: FSQ(4, levels=(8.5, 4)), "levels must be integers"),
        (lambda: vector_quantizer(orthogonality=1.0), "has no effect on moving averages"),
        (lambda: FSQ(4)(torch.zeros(2, 3, 7, 7)), r"embedding_dim 4 in .* got \(2, 3, 7, 7\)"),
        (
            lambda: ResidualQuantizer(
                4, quantizer=functools.partial(VectorQuantizer, similarity="cosine")
            ),
            "do not add up",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_a_linear_encoder_learns_with_every_kind():
    """Sixteen clusters are told apart: the error falls below that of a single code."""
    torch.manual_seed(0)
    centers = 3 * torch.randn(16, D)
    which = torch.randint(16, (64, 4, 4))
    x = (centers[which] + 0.1 * torch.randn(64, 4, 4, D)).movedim(-1, 1)
    for name in KINDS:
        q = made(name)
        encoder, decoder = nn.Conv2d(D, D, 1), nn.Conv2d(D, D, 1)
        parts = nn.ModuleList([encoder, decoder, q])
        optimizer = torch.optim.Adam([p for p in parts.parameters() if p.requires_grad], 2e-2)
        for _ in range(150):
            out = q(encoder(x))
            loss = (decoder(out.z_q) - x).square().flatten(1).sum(1)
            for term in (out.codebook_loss, out.commitment_loss, out.regularizer):
                loss = loss if term is None else loss + term
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        error = (decoder(q.eval()(encoder(x)).z_q) - x).square().mean()
        assert error < 0.5 * x.var(), name


@pytest.mark.parametrize("kwargs", [{"similarity": "cosine"}, {"orthogonality": 10.0}])
def test_codes_are_revived_before_the_backward_pass(kwargs):
    q = vector_quantizer(
        codebook_update="gradient", dead_code_threshold=0.9, decay=0.0, **kwargs
    ).train()
    for _ in range(3):
        out = q(maps().requires_grad_())
        loss = out.codebook_loss.sum() + out.commitment_loss.sum()
        (loss if out.regularizer is None else loss + out.regularizer).backward()
    assert q.codebook.grad.isfinite().all()


@pytest.mark.parametrize("name", KINDS)
def test_double_precision_as_default_changes_nothing(name):
    """Lightning sets the default type under 64-true and bf16-true."""
    q = made(name).eval()
    z_e = maps()
    exact = q(z_e)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            out = q(z_e.to(dtype) if dtype == torch.float64 else z_e)
        finally:
            torch.set_default_dtype(torch.float32)
        assert out.indices.equal(exact.indices)
        torch.testing.assert_close(out.z_q, exact.z_q)


@pytest.mark.parametrize("name", KINDS)
def test_lookup_is_exact_under_autocast(name):
    q = made(name).eval()
    indices = q(maps()).indices
    with torch.autocast("cpu", torch.bfloat16):
        mixed = q.lookup(indices)
    assert mixed.equal(q.lookup(indices))


def test_indices_of_many_levels_stay_in_range():
    q = FSQ(2, levels=(1025, 3)).eval()
    out = q(50 * torch.ones(1, 2, 1, 1))
    assert out.indices.item() == q.codebook_size - 1
    torch.testing.assert_close(q.lookup(out.indices), out.z_q)
    with pytest.raises(ValueError, match="more than 1,048,576"):
        FSQ(2, levels=(2000, 2000))


def test_a_zero_vector_gets_its_code_and_a_finite_gradient():
    v = torch.zeros(1, 3, requires_grad=True)
    e = torch.tensor([[0.5, -1.0, 2.0]])
    out = pass_gradient(v, e, "rotation")
    assert out.equal(e)
    out.sum().backward()
    assert v.grad.abs().max() < 10


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_residual_losses_are_those_of_all_steps_and_the_gradient_that_of_the_sum(gradient):
    part = functools.partial(
        vector_quantizer, codebook_update="gradient", orthogonality=10.0, codebook_size=K
    )
    q = ResidualQuantizer(
        D, num_quantizers=3, groups=2, gradient=gradient,
        quantizer=lambda size: part(embedding_dim=size),
    ).eval()  # fmt: skip
    for one in q.quantizers:
        one.codebook.data = torch.randn(K, D // 2)
    z_e = maps().requires_grad_()
    out, found = q(z_e), []
    for group, rest in enumerate(z_e.detach().chunk(2, 1)):
        for step in range(3):
            found.append(q.quantizers[3 * group + step](rest))
            rest = rest - found[-1].z_q
    for name in ("codebook_loss", "commitment_loss", "regularizer"):
        total = sum(getattr(one, name) for one in found)
        torch.testing.assert_close(getattr(out, name), total)
    weights, vectors = torch.randn_like(z_e), z_e.detach().movedim(1, -1).requires_grad_()
    (out.z_q * weights).sum().backward()
    replaced = pass_gradient(vectors, out.z_q.detach().movedim(1, -1), gradient)
    (replaced * weights.movedim(1, -1)).sum().backward()
    torch.testing.assert_close(z_e.grad, vectors.grad.movedim(-1, 1))


def test_every_step_of_a_residual_quantizer_ties_the_encoder_to_its_code():
    q = made("residual").eval()
    z_e = maps().requires_grad_()
    out = q(z_e)
    out.commitment_loss.sum().backward()
    rest, expected = z_e.detach(), torch.zeros_like(z_e)
    for i in range(3):
        rest = rest - q.quantizers[i].lookup(out.indices[..., i]).detach()
        expected = expected + 2 * rest
    torch.testing.assert_close(z_e.grad, expected)


def test_random_codes_of_sim_vq_have_a_length_of_about_one():
    lengths = SimVQ(64, 500, codebook_init="random").codebook.square().sum(1)
    assert lengths.mean().item() == pytest.approx(1, abs=0.05)
