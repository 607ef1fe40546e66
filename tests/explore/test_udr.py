"""UDR of latents whose relation is known, and an independent computation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso

from vae_lightning.explore.udr import pair_score, udr

N = 20_000


def all_of(*latents):
    return [torch.ones(z.shape[1], dtype=torch.bool) for z in latents]


def copies():
    """Latents of one model, and permuted, flipped and rescaled ones."""
    z = torch.randn(N, 4)
    other = z[:, [2, 3, 0, 1]] * torch.tensor([-1.0, 100.0, 1e-3, -5.0]) + torch.tensor(3.0)
    third = z[:, [1, 0, 3, 2]] * torch.tensor([1.0, -1.0, 1.0, 1.0])
    return [z, other, third]


def test_the_same_latents_in_another_order_sign_and_scale_score_one():
    models = copies()
    scores, pairs = udr(models, all_of(*models))
    # Three unrelated latents have correlations of about 0.8 / sqrt(N).
    assert scores.tolist() == pytest.approx([1.0] * 3, abs=4 * 3 / math.sqrt(N))
    assert pairs.diagonal().isnan().all()
    assert pairs[0, 1] == pytest.approx(pairs[1, 0].item())
    # The penalty makes each weight 1 - 0.1.
    assert udr(models, all_of(*models), "lasso")[0].tolist() == pytest.approx([0.9] * 3, abs=1e-6)


def test_monotone_changes_do_not_matter_to_ranks():
    z = torch.randn(N, 3)
    models = [z, (2 * z).exp()]
    assert udr(models, all_of(*models))[0].min() > 0.95


@pytest.mark.parametrize("similarity", ["spearman", "lasso"])
def test_independent_latents_score_zero(similarity):
    models = [torch.randn(N, 5) for _ in range(3)]
    scores, _ = udr(models, all_of(*models), similarity)
    assert scores.tolist() == pytest.approx([0] * 3, abs=0.03)


def test_rotated_latents_score_less():
    """Two latents turned by 45 degrees: each is similar to two, with r: r^2 / 2r = r / 2."""
    z = torch.randn(N, 2)
    turned = torch.stack([z[:, 0] + z[:, 1], z[:, 0] - z[:, 1]], 1)
    r = 6 / math.pi * math.asin(math.sqrt(0.5) / 2)  # rank correlation of normal variables
    scores, _ = udr([z, turned], all_of(z, turned))
    assert scores.tolist() == pytest.approx([r / 2] * 2, abs=0.02)


def test_uninformative_latents_are_left_out():
    z = torch.randn(N, 2)
    models = [torch.cat([z, torch.randn(N, 3)], 1), torch.cat([torch.randn(N, 1), -z], 1)]
    in_use = [torch.tensor([1, 1, 0, 0, 0]).bool(), torch.tensor([0, 1, 1]).bool()]
    assert udr(models, in_use)[0].min() > 0.95
    assert udr(models, all_of(*models))[0].max() < 0.7
    in_use[0][:] = False
    for similarity in ("spearman", "lasso"):
        assert udr(models, in_use, similarity)[0].tolist() == [0, 0]


def test_the_score_is_the_median_over_the_others():
    z = torch.randn(N, 2)
    models = [z, z.flip(1), -z, torch.randn(N, 2), torch.randn(N, 2), torch.randn(N, 2)]
    scores, pairs = udr(models, all_of(*models))
    # Two of five others agree with each of the first three, so the median is that of strangers.
    assert scores.max() < 0.1
    assert pairs[0, 1] > 0.9
    scores, pairs = udr(models[:5], all_of(*models[:5]))
    # Two of four: the mean of the middle two.
    expected = np.median([pairs[j, 0].item() for j in (1, 2, 3, 4)])
    assert scores[0].item() == pytest.approx(expected)
    assert 0.4 < expected < 0.6


def test_known_pair_scores():
    assert pair_score(torch.eye(4)) == 1
    # The formula of the paper divides by the numbers of both models' latents together.
    r = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]])
    columns = 1 + 0.25 + 0  # a column of zeros counts as 0
    rows = 1 / 1.5 + 0.25 / 0.5
    assert pair_score(r) == pytest.approx((columns + rows) / 5)
    assert pair_score(torch.zeros(0, 3)) == 0


@pytest.mark.parametrize("similarity", ["spearman", "lasso"])
def test_by_another_route(similarity):
    """With ties, and latents that depend on each other; by scipy and a loop over the formula."""
    torch.manual_seed(4)
    source = torch.randn(500, 6)
    models = [(source @ torch.randn(6, size)).mul(3).round().double() for size in (3, 4, 5)]
    scores, _ = udr(models, all_of(*models), similarity)
    expected = np.full((3, 3), np.nan)
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            a, b = (
                (z - z.mean(0)).div(z.std(0, correction=0)).numpy() for z in (models[i], models[j])
            )
            if similarity == "lasso":
                r = np.abs(Lasso(alpha=0.1).fit(a, b).coef_).T
            else:
                r = np.abs(spearmanr(a, b).statistic[: a.shape[1], a.shape[1] :])
            total = sum(r[:, k].max() ** 2 / r[:, k].sum() for k in range(r.shape[1]))
            total += sum(r[k].max() ** 2 / r[k].sum() for k in range(r.shape[0]))
            expected[i, j] = total / sum(r.shape)
    expected = [np.median(np.delete(expected[:, j], j)) for j in range(3)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)


def test_wrong_arguments():
    z = torch.randn(10, 2)
    with pytest.raises(ValueError, match="at least two models"):
        udr([z], all_of(z))
    with pytest.raises(ValueError, match="spearman or lasso"):
        udr([z, z], all_of(z, z), "pearson")
    with pytest.raises(ValueError, match="same N images"):
        udr([z, z[:5]], all_of(z, z))
    with pytest.raises(ValueError, match="not finite"):
        udr([z, z * math.nan], all_of(z, z))


@pytest.mark.parametrize("similarity", ["spearman", "lasso"])
def test_a_constant_latent_is_similar_to_none(similarity):
    z = torch.randn(N, 2)
    models = [z, torch.cat([z, torch.full((N, 1), 3.0)], 1)]
    scores, _ = udr(models, all_of(*models), similarity)
    # The two are found again, perfectly but for the penalty; the third adds 0 of 5.
    expected = (1 if similarity == "spearman" else 0.9) * 4 / 5
    assert scores.tolist() == pytest.approx([expected] * 2, abs=0.02)
