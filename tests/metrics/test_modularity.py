"""Modularity and explicitness of codes whose scores follow from how they were made."""

import functools
import math

import pytest
import torch
from scipy.stats import kendalltau
from sklearn.metrics import mutual_info_score, roc_auc_score

from vae_lightning.metrics.modularity import (
    concordance,
    explicitness,
    modularity,
    modularity_score,
)


def grid(*sizes, repeat=1):
    """Every combination of categories equally often, shuffled within each half: (n, F)."""
    every = torch.cartesian_prod(*[torch.arange(float(size)) for size in sizes]).view(
        -1, len(sizes)
    )
    half = every.repeat(repeat, 1)
    return torch.cat([half[torch.randperm(len(half))] for _ in range(2)])


# Modularity


def test_one_factor_for_each_code_scores_one():
    """Several codes may know the same factor; their order, scale and sign do not matter."""
    factors = grid(4, 3, 5)
    codes = factors[:, [2, 0, 0, 1]] * torch.tensor([-1.0, 10.0, 0.01, 3.0]) + 7
    assert modularity_score(codes, factors, [True] * 3) == pytest.approx(1, abs=1e-12)


def test_codes_that_know_all_factors_equally_score_zero():
    factors = grid(2, 2, 2)
    code = factors @ torch.tensor([4.0, 2.0, 1.0])  # every bit of a number
    assert modularity_score(code[:, None], factors, [True] * 3) == pytest.approx(0, abs=1e-12)


def test_known_values_of_mixed_codes():
    """A code of both of two factors with 4 and 2 values: 1 - (log 2 / log 4)^2 = 3/4."""
    factors = grid(4, 2, repeat=3)
    both = factors @ torch.tensor([2.0, 1.0])
    assert modularity_score(both[:, None], factors, [True, True]) == pytest.approx(0.75, abs=1e-12)
    with_a_pure_one = torch.stack([both, factors[:, 1]], 1)
    assert modularity_score(with_a_pure_one, factors, [True, True]) == pytest.approx(0.875)
    # With a third factor of which the code knows nothing, the deviation is shared by two.
    factors = grid(4, 2, 3, repeat=3)
    both = factors @ torch.tensor([2.0, 1.0, 0.0])
    assert modularity_score(both[:, None], factors, [True] * 3) == pytest.approx(1 - 0.25 / 2)
    # A constant code knows nothing and counts as 0.
    codes = torch.stack([factors[:, 0], torch.ones(len(factors))], 1)
    assert modularity_score(codes, factors, [True] * 3) == pytest.approx(0.5)


@functools.cache
def known():
    """Random codes of continuous and categorical factors."""
    factors = torch.stack([torch.rand(600), torch.randint(4, (600,)).float(), torch.randn(600)], 1)
    codes = factors @ torch.randn(3, 5) + torch.randn(600, 5)
    return codes.double(), factors.double()


def test_modularity_by_scikit_learns_mutual_information():
    codes, factors = known()

    def bins(x):
        return ((x - x.min()) / (x.max() - x.min()) * 20).long().clamp(max=19)

    names = [bins(factors[:, 0]), factors[:, 1].long(), bins(factors[:, 2])]
    scores = []
    for i in range(5):
        m = sorted((mutual_info_score(bins(codes[:, i]), f) for f in names), reverse=True)
        scores.append(1 - (m[1] ** 2 + m[2] ** 2) / (2 * m[0] ** 2))
    expected = sum(scores) / 5
    assert 0.1 < expected < 0.9
    assert modularity_score(codes, factors, [False, True, False]) == pytest.approx(expected)


def test_modularity_of_tables():
    assert modularity(torch.tensor([[1e-30, 0.0], [0.0, 1e30]])) == 1
    assert modularity(torch.zeros(2, 3)) == 0
    assert modularity(torch.tensor([[0.3], [0.0]])) == 0.5  # one factor
    for wrong in (torch.tensor([[-1.0, 0.0]]), torch.tensor([[math.nan, 0.0]]), torch.zeros(3)):
        with pytest.raises(ValueError, match="information"):
            modularity(wrong)


# Explicitness


def test_factors_that_are_linear_in_the_codes_score_one():
    factors = torch.cat([grid(2, repeat=100), torch.rand(400, 2)], 1)
    turned = factors @ torch.linalg.qr(torch.randn(3, 3))[0]  # no code has one of its own
    found = explicitness(turned, factors, [True, False, False])
    torch.testing.assert_close(found, torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_codes_that_know_nothing_score_one_half():
    factors = torch.stack([torch.randint(3, (6000,)).float(), torch.rand(6000)], 1)
    found = explicitness(torch.randn(6000, 4), factors, [True, False])
    assert found.tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    constant = explicitness(torch.ones(100, 2), factors[:100], [True, False])
    assert constant.tolist() == [0.5, 0.5]


def test_a_value_between_others_is_not_told_apart_linearly():
    """Of three values along a line, the outer ones have an area of 1, the middle one about 1/2."""
    factors = grid(3, repeat=400)
    found = explicitness(factors + 0.01 * torch.randn(len(factors), 1), factors, [True])
    assert found.item() == pytest.approx((1 + 1 + 0.5) / 3, abs=0.1)


def test_known_areas_of_overlapping_classes():
    """Two normal codes at a distance d: the area is Phi(d / sqrt(2))."""
    factors = grid(2, repeat=10_000)
    codes = torch.cat([factors, torch.zeros_like(factors)], 1)
    codes = codes + torch.randn(len(factors), 2)
    expected = torch.special.ndtr(torch.tensor(1 / math.sqrt(2))).item()
    assert explicitness(codes, factors, [True]).item() == pytest.approx(expected, abs=0.01)


def test_explicitness_is_measured_on_held_out_rows():
    """As many codes as rows fit anything; held-out rows show that it is noise."""
    factors = torch.stack([torch.rand(200), grid(2, repeat=50).flatten()], 1)
    found = explicitness(torch.randn(200, 150), factors, [False, True])
    assert found.max() < 0.65


def test_areas_by_another_route():
    """By gradient descent on the logistic loss with the same penalty."""
    codes, factors = known()
    half = 300
    x = (codes - codes.mean(0)) / codes.std(0, correction=0)
    areas = []
    for value in range(4):
        y = (factors[:half, 1] == value).double()
        w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

        def loss(w=w, y=y, optimizer=optimizer):
            optimizer.zero_grad()
            logits = x[:half] @ w[:5] + w[5]
            total = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
            total = total + w[:5].square().sum() / 2
            total.backward()
            return total

        optimizer.step(loss)
        areas.append(roc_auc_score(factors[half:, 1] == value, (x[half:] @ w[:5]).detach()))
    found = explicitness(codes, factors, [False, True, False])[1].item()
    assert found == pytest.approx(sum(areas) / 4, abs=2e-3)


def test_the_concordance_index():
    x, y = torch.randn(1300), torch.randn(1300)
    y = y + x
    tau = kendalltau(x, y).statistic
    assert concordance(x, y) == pytest.approx((tau + 1) / 2, rel=1e-9)
    assert concordance(-x, y) == pytest.approx((1 - tau) / 2, rel=1e-9)
    assert concordance(torch.zeros(5), torch.arange(5.0)) == 0.5
    assert concordance(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0])) == 0.75
    assert concordance(torch.arange(3.0), torch.zeros(3)) == 0.5


def test_rare_values_are_left_out():
    factors = torch.zeros(40, 1)
    factors[3] = 1  # in the first half only
    assert explicitness(torch.randn(40, 2), factors, [True]).item() == 0.5
    with pytest.raises(ValueError, match="constant"):
        explicitness(torch.randn(40, 2), torch.zeros(40, 1), [True])
