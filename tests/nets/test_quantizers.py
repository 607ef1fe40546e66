import pytest
import torch

from vae_lightning.nets.quantizers import VectorQuantizer
from vae_lightning.nets.quantizers.codebook import kmeans


def quantizer(**kwargs) -> VectorQuantizer:
    return VectorQuantizer(
        **{"embedding_dim": 3, "codebook_size": 5, "codebook_init": "uniform", **kwargs}
    )


def test_nearest_code_is_that_of_all_distances():
    q = VectorQuantizer(embedding_dim=8, codebook_size=40)
    vectors = torch.randn(6, 4, 4, 8)
    q.codebook.data = torch.randn(40, 8)
    brute_force = (vectors[..., None, :] - q.codebook).square().sum(-1).argmin(-1)
    assert q.nearest(vectors).equal(brute_force)


def test_output_are_codes_and_the_gradient_passes_straight_through():
    q = quantizer().eval()
    z_e = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = q(z_e)
    torch.testing.assert_close(out.z_q, q.codebook[out.indices].movedim(-1, 1))
    assert out.indices.shape == (2, 4, 4)
    weights = torch.randn(2, 3, 4, 4)
    (out.z_q * weights).sum().backward()
    torch.testing.assert_close(z_e.grad, weights)


def test_codebook_term_moves_only_codes_and_commitment_only_the_encoder():
    """Some tutorials have the two exchanged."""
    q = quantizer(codebook_update="gradient").eval()
    z_e = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = q(z_e)
    of_codebook = torch.autograd.grad(
        out.codebook_loss.sum(), [z_e, q.codebook], retain_graph=True, allow_unused=True
    )
    of_commitment = torch.autograd.grad(
        out.commitment_loss.sum(), [z_e, q.codebook], allow_unused=True
    )
    assert of_codebook[0] is None
    assert of_codebook[1].abs().sum() > 0
    assert of_commitment[0].abs().sum() > 0
    assert of_commitment[1] is None


def test_terms_are_summed_per_image():
    q = quantizer(codebook_update="gradient").eval()
    z_e = torch.randn(4, 3, 2, 2)
    out = q(z_e)
    expected = (z_e - q.codebook[out.indices].movedim(-1, 1)).square().sum((1, 2, 3))
    torch.testing.assert_close(out.commitment_loss, expected)
    torch.testing.assert_close(out.codebook_loss, expected)
    torch.testing.assert_close(q(z_e[:1]).commitment_loss, expected[:1])  # whatever the batch size


def test_moving_average_of_the_paper():
    q = quantizer(codebook_update="ema", decay=0.9, dead_code_threshold=0)
    q.codebook.data = torch.randn(5, 3)
    q.sums.data = q.codebook.data.clone()
    count, total = torch.ones(5), q.codebook.data.clone()  # appendix A.1, one code at a time
    for _ in range(3):
        z_e = torch.randn(2, 3, 4, 4)
        vectors = z_e.movedim(1, -1).reshape(-1, 3)
        chosen = q.nearest(vectors)
        share = len(vectors) / 5
        for k in range(5):
            mine = vectors[chosen == k]
            count[k] = 0.9 * count[k] + 0.1 * len(mine) / share
            total[k] = 0.9 * total[k] + 0.1 * mine.sum(0) / share
        q(z_e)
        torch.testing.assert_close(q.usage.data, count)
        torch.testing.assert_close(q.codebook.data, total / count[:, None])


@pytest.mark.parametrize("codebook_update", ["gradient", "ema"])
@pytest.mark.parametrize("batches", [0, 1])
def test_a_batch_with_nan_teaches_nothing(codebook_update, batches):
    q = VectorQuantizer(2, codebook_size=4, codebook_update=codebook_update)
    for _ in range(batches):
        q(torch.randn(8, 2, 3, 3))
    q.usage.data[:2] = 0.0  # dead codes, which would move to vectors of the batch
    before = {name: value.clone() for name, value in q.state_dict().items()}
    q(torch.full((8, 2, 3, 3), torch.nan))
    for name, value in q.state_dict().items():
        assert value.equal(before[name]), name


def test_nothing_learns_in_evaluation():
    q = VectorQuantizer(embedding_dim=3, codebook_size=5).eval()
    before = {name: value.clone() for name, value in q.state_dict().items()}
    q(torch.randn(2, 3, 4, 4))
    for name, value in q.state_dict().items():
        assert value.equal(before[name]), name


@pytest.mark.parametrize("codebook_update", ["gradient", "ema"])
def test_dead_codes_move_to_vectors_of_the_batch_and_their_averages_start_again(codebook_update):
    q = quantizer(codebook_update=codebook_update, decay=0.5, dead_code_threshold=0.1)
    q.codebook.data = torch.tensor([[0.0] * 3] + [[1e3] * 3] * 4)  # one code takes everything
    q.sums.data = q.codebook.data.clone()
    z_e = torch.randn(2, 3, 4, 4)
    for _ in range(3):
        q(z_e)
    assert q.usage.min() > 0.1
    q(z_e)  # usage of the four falls to 0.5 ** 4 < 0.1
    vectors = {tuple(v) for v in z_e.movedim(1, -1).reshape(-1, 3).tolist()}
    for k in range(1, 5):
        assert tuple(q.codebook[k].tolist()) in vectors
    assert q.usage[1:].tolist() == [1] * 4
    assert q.sums[1:].equal(q.codebook[1:])
    assert len({tuple(code) for code in q.codebook[1:].tolist()}) == 4  # not four times the same


def test_dead_codes_move_to_other_vectors_in_another_step():
    q = quantizer(codebook_update="gradient", decay=0.0)
    z_e, found = torch.randn(2, 3, 4, 4), []
    for _ in range(2):
        q.codebook.data = torch.tensor([[0.0] * 3] + [[1e3] * 3] * 4)
        q(z_e)
        found.append(q.codebook[1:].tolist())
    assert found[0] != found[1]


def test_revival_can_be_switched_off():
    q = quantizer(decay=0.1, dead_code_threshold=0)
    q.codebook.data = torch.tensor([[0.0] * 3] + [[1e3] * 3] * 4)
    q.sums.data = q.codebook.data.clone()
    for _ in range(5):
        q(torch.randn(2, 3, 4, 4))
    assert q.codebook[1:].min() > 100


@pytest.mark.parametrize("codebook_init", ["kmeans", "data"])
def test_start_from_data(codebook_init):
    q = quantizer(codebook_init=codebook_init, decay=0.999)
    clusters = 10 * torch.eye(3)[torch.arange(64) % 3] + 0.01 * torch.randn(64, 3)
    q(clusters.view(4, 4, 4, 3).movedim(-1, 1))
    distances = torch.cdist(q.codebook.data, 10 * torch.eye(3)).min(1).values
    assert distances.max() < 1
    after = q.codebook.data.clone()
    q(-clusters.view(4, 4, 4, 3).movedim(-1, 1))  # the start happens once
    assert (q.codebook.data - after).abs().max() < 1


@pytest.mark.parametrize("codebook_init", ["kmeans", "data"])
def test_codes_of_cosine_similarity_start_from_directions(codebook_init):
    """However long the vectors are."""
    z_e, found = torch.randn(4, 3, 4, 4), []
    for lengths in (1, 0.1 + 100 * torch.rand(4, 1, 4, 4)):
        q = quantizer(codebook_init=codebook_init, similarity="cosine")
        q(lengths * z_e)
        found.append(q.codebook.detach())
    torch.testing.assert_close(*found)


def test_kmeans_finds_the_centers():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = centers.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2)
    found = kmeans(vectors, vectors[[0, 60, 120]])
    torch.testing.assert_close(found, vectors.view(3, 50, 2).mean(1))


def test_kmeans_goes_on_until_no_vector_changes_its_center():
    vectors = torch.tensor([[0.0], [1.0], [2.0], [4.0], [20.0]])
    found = kmeans(vectors, torch.tensor([[0.0], [1.0]]))  # 6.75, 12 and 20 for the second
    assert found.tolist() == [[1.75], [20.0]]


def test_kmeans_keeps_centers_without_vectors():
    found = kmeans(torch.zeros(4, 2), torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    assert found.tolist() == [[0, 0], [9, 9]]


def test_precision_does_not_matter():
    q = quantizer().eval()
    z_e = torch.randn(2, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = q(z_e)
    assert out.z_q.dtype == out.commitment_loss.dtype == torch.float32
    assert out.indices.equal(q(z_e.float()).indices)


@pytest.mark.parametrize(
    "kwargs",
    [{"embedding_dim": 0}, {"codebook_size": 1}, {"decay": 1.0}, {"dead_code_threshold": -0.1}],
)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=f"VectorQuantizer: .*{next(iter(kwargs))}"):
        quantizer(**kwargs)


def test_a_code_that_nobody_uses_stays_where_it_is():
    quantizer = VectorQuantizer(2, 2, codebook_init="uniform", decay=0.9, dead_code_threshold=0)
    codes = torch.tensor([[0.0, 0.0], [12.0, -6.0]])
    quantizer.codebook.data.copy_(codes)
    quantizer.sums.data.copy_(codes)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        quantizer(torch.randn(4, 2, 1, 1, generator=generator))
    assert quantizer.usage[1] < 1e-30
    assert quantizer.codebook[1].equal(codes[1])
    for _ in range(5):  # once it is used, it moves at once
        quantizer(torch.tensor([11.0, -5.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(quantizer.codebook[1], torch.tensor([11.0, -5.0]))


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0, -1000.0])
def test_nearest_codes_far_from_the_origin(offset):
    generator = torch.Generator().manual_seed(0)
    codes = (torch.randn(64, 8, generator=generator) + offset).double()
    vectors = (torch.randn(1000, 8, generator=generator) + offset).double()
    quantizer = VectorQuantizer(8, 64)
    quantizer.codebook.data.copy_(codes)
    exact = (vectors.float().double()[:, None] - quantizer.codebook.double()).square().sum(2)
    found = quantizer.nearest(vectors.float())
    assert (found == exact.argmin(1)).float().mean() > 0.999
    centers = kmeans(vectors.float(), codes.float(), iterations=1)
    own = [vectors[exact.argmin(1) == k].mean(0) for k in range(64)]
    wrong = [k for k, mean in enumerate(own) if not centers[k].double().allclose(mean, atol=1e-3)]
    assert len(wrong) <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_codebook_and_averages_stay_in_float32(dtype):
    quantizer = VectorQuantizer(4, 8, codebook_init="data", decay=0.99)
    reference = VectorQuantizer(4, 8, codebook_init="data", decay=0.99)
    quantizer.to(dtype)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        z = torch.randn(16, 4, 2, 2, generator=generator)
        reference(z)
        quantizer(z)
    assert quantizer.codebook.dtype == quantizer.usage.dtype == torch.float32
    assert quantizer.codebook.equal(reference.codebook)
    assert quantizer.to("meta").codebook.is_meta
