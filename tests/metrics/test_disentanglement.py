"""Representations whose scores follow from how they were made."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vae_lightning.data.strokes import FACTORS, draw_factors
from vae_lightning.metrics.disentanglement import (
    dci,
    factor_vae_score,
    mutual_information,
    mutual_information_gap,
    predictability,
    sap_score,
)

LN2 = math.log(2)
# A category of two values and two continuous factors on different scales.
KINDS = [True, False, False]


def draw(n: int) -> Tensor:
    """Independent factors of `KINDS`, (n, 3)."""
    category = torch.randint(2, (n, 1)).float()
    return torch.cat([category, torch.rand(n, 1) * 60 - 30, torch.rand(n, 1) + 5], dim=1)


def factored(factors: Tensor) -> Tensor:
    """A code for each factor, in another order, scaled, shifted and flipped, and two of noise."""
    own = factors[:, [2, 0, 1]] * torch.tensor([-3.0, 0.1, 7.0]) + torch.tensor([1.0, -2.0, 40.0])
    return torch.cat([own, torch.randn(len(factors), 2)], dim=1)


def rotated(factors: Tensor) -> Tensor:
    """The same codes but for those of the two continuous factors, which are turned by 45 degrees.

    They have equal variances before, so that both factors are equally well in either code.
    """
    a, b = ((factors[:, i] - factors[:, i].mean()) / factors[:, i].std() for i in (1, 2))
    codes = factored(factors)
    codes[:, 0], codes[:, 2] = (a + b) / math.sqrt(2), (a - b) / math.sqrt(2)
    return codes


def bits(n: int, count: int) -> Tensor:
    """All combinations of ``count`` bits equally often, shuffled within each half: (n, count)."""
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * count).view(-1, count)
    half = every.repeat(n // 2 // len(every), 1)
    return torch.cat([half[torch.randperm(len(half))] for _ in range(2)])


def entropy(*shares: float) -> float:
    return -sum(p * math.log(p) for p in shares)


METRICS = {
    "mig": mutual_information_gap,
    "sap": sap_score,
    "dci": lambda *args: dci(*args, trees=5).disentanglement,
}


# All of them


@pytest.mark.parametrize("name", METRICS)
def test_one_code_for_each_factor_scores_one(name):
    # 1 minus what noise seems to know: about (20 - 1)^2 / 2N of log 20 nats for MIG; for SAP, where
    # R^2 is 1 minus 0, squared correlations of the size 1 / N, and 1 / sqrt(N) for the category.
    factors = draw(2000 if name == "dci" else 20_000)
    assert METRICS[name](factored(factors), factors, KINDS) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", METRICS)
def test_random_codes_score_zero(name):
    factors = draw(5000)
    assert 0 <= METRICS[name](torch.randn(5000, 4), factors, KINDS) < 0.02


@pytest.mark.parametrize("name", METRICS)
def test_turned_factors_score_zero(name):
    factors = draw(10_000)[:, 1:]
    codes = rotated(torch.cat([torch.zeros(10_000, 1), factors], dim=1))[:, [0, 2]]
    assert 0 <= METRICS[name](codes, factors, [False, False]) < 0.03


@pytest.mark.parametrize("name", METRICS)
def test_score_is_the_mean_over_factors(name):
    """One factor in a code of its own, two that are turned: a third of the full score.

    DCI gives the turned codes something too: of three factors, they exclude one.
    """
    factors = draw(10_000)
    expected = (1 + 2 * (1 - LN2 / math.log(3))) / 3 if name == "dci" else 1 / 3
    assert METRICS[name](rotated(factors), factors, KINDS) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("name", METRICS)
def test_order_of_codes_does_not_matter(name):
    factors = draw(1000)
    codes = rotated(factors) + 0.3 * torch.randn(1000, 5)
    expected = METRICS[name](codes, factors, KINDS)
    # A forest also depends on the order in which it looks at the codes.
    tolerance = 0.03 if name == "dci" else 1e-9
    permuted = METRICS[name](codes[:, [3, 1, 4, 0, 2]], factors, KINDS)
    assert permuted == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", METRICS)
def test_order_of_factors_does_not_matter(name):
    factors = draw(1000)
    codes = rotated(factors) + 0.3 * torch.randn(1000, 5)
    expected = METRICS[name](codes, factors, KINDS)
    assert METRICS[name](codes, factors[:, [1, 0, 2]], [False, True, False]) == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize("name", METRICS)
def test_scale_and_sign_of_codes_and_factors_do_not_matter(name):
    factors = draw(1000)
    codes = (rotated(factors) + 0.3 * torch.randn(1000, 5)).double()
    expected = METRICS[name](codes, factors, KINDS)
    tiny = METRICS[name](codes * -1e-12, factors.double() * 1e-9, KINDS)
    # Values on the border of two bins, or between two splits of a tree, may change sides.
    assert tiny == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", METRICS)
def test_constant_code_changes_nothing(name):
    factors = draw(1000)
    codes = factored(factors)
    # 0.1 is no binary fraction, so its mean may differ from it in the last digit.
    constant = torch.full((1000, 1), 0.1)
    more = torch.cat([constant, codes, constant], dim=1)
    # A forest also depends on the number of codes, from which it draws the order it looks at them.
    tolerance = 1e-3 if name == "dci" else 1e-9
    expected = METRICS[name](codes, factors, KINDS)
    assert METRICS[name](more, factors, KINDS) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", METRICS)
def test_constant_codes_alone_score_zero(name):
    assert METRICS[name](torch.full((100, 3), 0.1), draw(100), KINDS) == 0


@pytest.mark.parametrize("name", METRICS)
def test_of_a_single_code_the_second_best_is_zero(name):
    factors = draw(1000)[:, :1]
    assert METRICS[name](3 - factors, factors, [True]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_names_of_categories_do_not_matter(name):
    factors = draw(500)
    codes = rotated(factors)
    renamed = factors.clone()
    renamed[:, 0] = torch.where(factors[:, 0] == 1, -7.5, 3.0)
    expected = METRICS[name](codes, factors, KINDS)
    assert METRICS[name](codes, renamed, KINDS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_same_again_and_global_random_states_are_left_alone(name):
    factors = draw(300)
    codes = torch.randn(300, 3)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = METRICS[name](codes, factors, KINDS)
    torch.rand(1)
    assert METRICS[name](codes, factors, KINDS) == first
    torch.set_rng_state(torch_state)
    METRICS[name](codes, factors, KINDS)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.parametrize("name", METRICS)
def test_two_rows_are_enough(name):
    codes, factors = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 2.0], [1.0, 5.0]])
    assert 0 <= METRICS[name](codes, factors, [True, False]) <= 1


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("codes", "factors", "categorical", "sentence"),
    [
        (torch.rand(4), torch.rand(4, 1), [False], "codes must have one row per image"),
        (torch.rand(4, 0), torch.rand(4, 1), [False], "codes must have one row per image"),
        (torch.rand(4, 2), torch.rand(4), [False], "factors must have one row per image"),
        (torch.rand(4, 2), torch.rand(4, 0), [], "factors must have one row per image"),
        (torch.rand(4, 2), torch.rand(5, 1), [False], "the same number of rows, got 4 and 5"),
        (torch.rand(4, 2), torch.rand(4, 2), [False], "each of 2 factors, got 1"),
        (torch.rand(1, 2), torch.rand(1, 1), [False], "at least 2 rows, got 1"),
        (torch.full((4, 2), torch.nan), torch.rand(4, 1), [False], "must be finite"),
        (torch.rand(4, 2), torch.full((4, 1), torch.inf), [False], "must be finite"),
        (torch.rand(4, 2), torch.tensor([[1.0, 3.0], [2.0, 3.0]] * 2), [0, 0], "column 1 is"),
    ],
)
def test_wrong_input_is_refused(name, codes, factors, categorical, sentence):
    with pytest.raises(ValueError, match=sentence):
        METRICS[name](codes, factors, categorical)


# Mutual information


def test_information_of_a_code_that_is_the_category_is_its_entropy():
    category = torch.tensor([0.0] * 5 + [1.0] * 3 + [2.0] * 2)[:, None]
    information = mutual_information(1 - category, category, [True])
    assert information.shape == (1, 1)
    assert information.item() == pytest.approx(entropy(0.5, 0.3, 0.2), abs=1e-12)


def test_information_of_a_noisy_channel():
    """A bit that is wrong one time in ten: log 2 minus the entropy of the error."""
    sent = torch.tensor([0.0] * 50 + [1.0] * 50)[:, None]
    received = torch.tensor([0.0] * 45 + [1.0] * 5 + [0.0] * 5 + [1.0] * 45)[:, None]
    expected = LN2 - entropy(0.1, 0.9)
    assert mutual_information(received, sent, [True]).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bins", [2, 5, 20])
def test_continuous_factors_are_cut_into_bins(bins):
    values = torch.arange(100.0)[:, None]
    for codes in values, -values:
        information = mutual_information(codes, values, [False], bins=bins)
        assert information.item() == pytest.approx(math.log(bins), abs=1e-12)


def test_bins_are_of_equal_width_not_of_equal_count():
    values = torch.tensor([0.0] * 3 + [0.1] * 3 + [0.2] * 3 + [1.0])[:, None]
    information = mutual_information(values, values, [False], bins=2)
    assert information.item() == pytest.approx(entropy(0.9, 0.1), abs=1e-12)


def test_information_has_codes_as_rows_and_factors_as_columns():
    a, b, c = bits(64, 3).unbind(1)
    codes = torch.stack([b, a + 2 * c, torch.ones(64), b], dim=1)
    factors = torch.stack([a, b, c], dim=1)
    information = mutual_information(codes, factors, [True, False, True])
    expected = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]]).double() * LN2
    torch.testing.assert_close(information, expected, rtol=0, atol=1e-12)


def test_constant_code_has_exactly_no_information():
    information = mutual_information(torch.full((997, 2), 0.1), draw(997), KINDS)
    assert (information == 0).all()


def test_gap_is_divided_by_the_entropy_of_the_factor():
    """One bit of a category of four is half of what there is to know."""
    first, second = bits(64, 2).unbind(1)
    category = (2 * first + second)[:, None]
    assert mutual_information_gap(first[:, None], category, [True]) == pytest.approx(0.5, abs=1e-12)


def test_gap_of_a_factor_in_two_codes_is_zero():
    a, b = bits(64, 2).unbind(1)
    factors = torch.stack([a, b], dim=1)
    codes = torch.stack([a, 5 - 2 * a, b], dim=1)
    gap = mutual_information_gap(codes[:, :2], factors[:, :1], [True])
    assert gap == pytest.approx(0, abs=1e-12)
    # The other factor has a code of its own.
    assert mutual_information_gap(codes, factors, [True, True]) == pytest.approx(0.5, abs=1e-12)


def test_gap_of_the_factors_of_the_bundled_digits():
    factors = draw_factors(20_000, seed=0).factors
    kinds = [name == "digit" for name in FACTORS]
    codes = -factors.flip(1)
    assert mutual_information_gap(codes, factors, kinds) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("measure", [mutual_information, mutual_information_gap])
def test_one_bin_is_refused(measure):
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        measure(torch.rand(4, 2), torch.rand(4, 1), [False], bins=1)


# SAP


def test_predictability_is_the_squared_correlation():
    a, b = (2 * bits(64, 2) - 1).unbind(1)
    codes = torch.stack([a + b, 3 - a - 2 * b, b, torch.full((64,), 0.1)], dim=1)
    scores = predictability(codes, torch.stack([10 * a + 4, b], dim=1), [False, False])
    expected = torch.tensor([[1 / 2, 1 / 2], [1 / 5, 4 / 5], [0, 1], [0, 0]]).double()
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-7)
    assert (scores[3] == 0).all()
    # The means of the gaps 1/2 - 1/5 and 1 - 4/5.
    assert sap_score(codes, torch.stack([a, b], dim=1), [False, False]) == pytest.approx(
        0.25, abs=1e-7
    )


def test_gap_of_a_category_is_of_balanced_accuracies_above_chance():
    """Nine tenths are of class 0 and recognized; of the rest, one half is: recalls of 1 and 1/2.

    The mean is 3/4, half way from chance to no mistake. Unbalanced, 95 % would be right.
    """
    classes = torch.tensor([0.0] * 90 + [1.0] * 10).repeat(10)[:, None]
    seen = torch.tensor([0.0] * 90 + [0.0, 1.0] * 5).repeat(10)[:, None]
    assert predictability(seen, classes, [True]).item() == pytest.approx(0.5, abs=1e-12)
    codes = torch.cat([seen, torch.full((1000, 1), 0.1)], dim=1)
    assert sap_score(codes, classes, [True]) == pytest.approx(0.5, abs=1e-12)
    assert sap_score(torch.cat([codes, seen], dim=1), classes, [True]) == 0


def test_rare_classes_are_not_given_up():
    """Two bells of width 1 at -1 and 1, of 9 and 1 tenths: the best threshold is in the middle.

    It is right for a share Phi(1) of either class.
    """
    classes = (torch.rand(20_000, 1) < 0.1).float()
    codes = 2 * classes - 1 + torch.randn(20_000, 1)
    expected = math.erf(1 / math.sqrt(2))  # 2 Phi(1) - 1
    assert predictability(codes, classes, [True]).item() == pytest.approx(expected, abs=0.03)


def test_of_classes_side_by_side_only_the_outermost_are_predicted():
    """Two of ten are recalled, so 1/10 above chance of the 9/10 that there are."""
    classes = torch.arange(10.0).repeat(200)[:, None]
    assert predictability(classes, classes, [True]).item() == pytest.approx(1 / 9, abs=1e-9)


def test_machine_is_scored_on_the_other_half():
    classes = bits(200, 1)
    # The other half says the opposite, and says it louder.
    codes = torch.cat([classes[:100] - 0.5, 3 * (0.5 - classes[100:])])
    assert predictability(codes, classes, [True]).item() == 0
    assert predictability(classes, classes, [True]).item() == 1


def test_category_that_varies_in_one_half_only_is_not_predicted():
    classes = torch.cat([torch.zeros(50, 1), bits(50, 1)])
    assert predictability(classes, classes, [True]).item() == 0
    assert predictability(classes.flip(0), classes.flip(0), [True]).item() == 0


# DCI


def test_code_with_two_factors_is_not_disentangled_but_complete():
    """The first code has two of three factors in equal shares: 1 - log 2 / log 3 of 1."""
    a, b, c = bits(400, 3).unbind(1)
    codes = torch.stack([a + 2 * b, c], dim=1)
    factors = torch.stack([a, b, c], dim=1)
    scores = dci(codes, factors, [True, True, True], trees=5)
    expected = torch.tensor([[1, 1, 0], [0, 0, 1]]).double()
    torch.testing.assert_close(scores.importances, expected)
    # It has two thirds of all importance, the other code, of one factor only, has the rest.
    assert scores.disentanglement == pytest.approx(
        2 / 3 * (1 - LN2 / math.log(3)) + 1 / 3, abs=1e-9
    )
    assert scores.completeness == pytest.approx(1, abs=1e-9)
    assert scores.informativeness == pytest.approx(1, abs=1e-9)


def test_factor_in_two_codes_is_not_complete_but_disentangled():
    """The first factor is 2 a + b; a brings 4/5 of its variance and b 1/5, of 3 codes."""
    a, b, c = bits(4000, 3).unbind(1)
    codes = torch.stack([a, b, c], dim=1)
    factors = torch.stack([2 * a + b, c], dim=1)
    scores = dci(codes, factors, [False, True])
    expected = torch.tensor([[0.8, 0], [0.2, 0], [0, 1]]).double()
    torch.testing.assert_close(scores.importances, expected, rtol=0, atol=0.02)
    assert scores.disentanglement == pytest.approx(1, abs=1e-6)
    complete = 1 - entropy(0.8, 0.2) / math.log(3)
    assert scores.completeness == pytest.approx((complete + 1) / 2, abs=0.02)
    assert scores.informativeness == pytest.approx(1, abs=1e-6)


def test_turned_factors_are_still_informative():
    factors = draw(4000)
    plain = dci(factored(factors), factors, KINDS, trees=5)
    turned = dci(rotated(factors), factors, KINDS, trees=5)
    assert plain.completeness == pytest.approx(1, abs=0.01)
    assert plain.informativeness == pytest.approx(1, abs=0.01)
    # Of five codes, two share each of the turned factors evenly.
    complete = (1 + 2 * (1 - LN2 / math.log(5))) / 3
    assert turned.completeness == pytest.approx(complete, abs=0.03)
    assert turned.informativeness > 0.97


def test_random_codes_are_neither_complete_nor_informative():
    factors = draw(2000)
    scores = dci(torch.randn(2000, 4), factors, KINDS, trees=5)
    assert scores.completeness < 0.02
    # R^2 counts as 0 where it is negative, and half of a category of two is guessed.
    assert scores.informativeness == pytest.approx((0.5 + 0 + 0) / 3, abs=0.02)
    torch.testing.assert_close(scores.importances.sum(0), torch.ones(3).double())


def test_informativeness_is_that_of_the_other_half():
    a = bits(200, 1)
    codes = torch.cat([a[:100], 1 - a[100:]])
    assert dci(codes, a, [True], trees=2).informativeness == 0
    assert dci(codes, a, [False], trees=2).informativeness == 0
    # Of the variance of 2 a + b, 4/5 are that of 2 a.
    a, b = bits(2000, 2).unbind(1)
    scores = dci(a[:, None], (2 * a + b)[:, None], [False])
    assert scores.informativeness == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("is_category", [True, False])
def test_logarithms_to_the_base_one(is_category):
    a, b = bits(200, 2).unbind(1)
    one, two = a[:, None], torch.stack([a, b], dim=1)
    assert dci(one, one, [is_category], trees=2)[:3] == pytest.approx((1, 1, 1))
    # One factor, two codes: each of them has only this one.
    assert dci(two, one, [is_category], trees=2)[:3] == pytest.approx((1, 1, 1))
    # One code, two factors in equal shares.
    code = (a + 2 * b)[:, None]
    assert dci(code, two, [is_category] * 2, trees=2)[:3] == pytest.approx((0, 1, 1))


def test_no_importance_at_all():
    factors = draw(200)
    scores = dci(torch.full((200, 3), 0.1), factors, KINDS, trees=2)
    assert (scores.importances == 0).all()
    assert (scores.disentanglement, scores.completeness) == (0, 0)
    assert scores.informativeness == pytest.approx(0.5 / 3, abs=0.05)


@pytest.mark.parametrize("is_category", [True, False])
def test_factor_without_importance_is_incomplete_but_has_no_weight_among_codes(is_category):
    a, b = bits(200, 2).unbind(1)
    late = b.clone()
    late[:100] = 0
    codes = torch.stack([a, b], dim=1)
    scores = dci(codes, torch.stack([a, late], dim=1), [is_category] * 2, trees=2)
    assert (scores.importances[:, 1] == 0).all()
    assert scores.disentanglement == pytest.approx(1)
    assert scores.completeness == pytest.approx(0.5)


def test_forest_has_a_tree():
    with pytest.raises(ValueError, match="trees must be at least 1, got 0"):
        dci(torch.rand(4, 2), torch.rand(4, 1), [False], trees=0)


# FactorVAE


def vote(embed, count: int, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Variances (count, L) over batches with one factor of `draw` held fixed, and which one."""
    whole = embed(draw(20_000)).var(0)
    fixed = torch.randint(3, (count,))
    variances = []
    for column in fixed.tolist():
        factors = draw(batch)
        factors[:, column] = factors[0, column]
        variances.append(embed(factors).var(0) / whole)
    return torch.stack(variances), fixed


def turned(factors: Tensor) -> Tensor:
    """As `rotated`, but by what is known of the factors, not by what a batch has of them."""
    a = factors[:, 1] / 60
    b = factors[:, 2] - 5.5
    return torch.stack([factors[:, 0], a + b, a - b], dim=1)


@pytest.mark.parametrize(
    ("embed", "expected", "tolerance"),
    [
        (factored, 1, 0),
        # The category is always told, which of the turned factors is fixed half of the time.
        (turned, 2 / 3, 0.06),
        (lambda factors: torch.randn(len(factors), 4), 1 / 3, 0.06),
    ],
    ids=["factored", "turned", "random"],
)
def test_factor_vae_score(embed, expected, tolerance):
    variances, fixed = vote(embed, 1200)
    active = torch.ones(variances.shape[1], dtype=torch.bool)
    score = factor_vae_score(variances, fixed, active, train=600)
    assert score == pytest.approx(expected, abs=tolerance)
    order = torch.randperm(len(active))
    assert factor_vae_score(variances[:, order], fixed, active, train=600) == score


def by_hand(codes: list[int], size: int = 3) -> Tensor:
    """Variances in which these codes are the least."""
    return 1 - torch.nn.functional.one_hot(torch.tensor(codes), size) * 0.5


def test_votes_counted_by_hand():
    # Code 0 is learned as factor 7 (2 of 3 votes), code 1 as factor 4, code 2 was never seen.
    variances = by_hand([0, 0, 0, 1, 1, 0, 0, 1, 2])
    fixed = torch.tensor([7, 7, 5, 4, 4, 7, 5, 4, 4])
    active = torch.ones(3, dtype=torch.bool)
    assert factor_vae_score(variances, fixed, active, train=5) == 0.5
    # With one vote more to learn from, the first that is right above is no longer scored.
    assert factor_vae_score(variances, fixed, active, train=6) == pytest.approx(1 / 3)


def test_least_variance_counts_not_the_largest():
    variances = torch.tensor([[0.1, 1.0, 2.0], [0.1, 2.0, 1.0]] * 2)
    active = torch.ones(3, dtype=torch.bool)
    assert factor_vae_score(variances, torch.zeros(4), active, train=1) == 1
    assert factor_vae_score(-variances, torch.zeros(4), active, train=1) == pytest.approx(1 / 3)


def test_inactive_codes_have_no_vote():
    variances = torch.cat(
        [torch.full((4, 1), torch.nan), torch.zeros(4, 1), by_hand([0, 1] * 2)], 1
    )
    fixed = torch.tensor([0, 1] * 2)
    active = torch.tensor([False, False, True, True, True])
    assert factor_vae_score(variances, fixed, active, train=2) == 1
    assert factor_vae_score(variances, fixed, torch.zeros(5, dtype=torch.bool), train=2) == 0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"variances": torch.rand(4)}, "variances must have the shape"),
        ({"variances": torch.rand(4, 0)}, "variances must have the shape"),
        ({"factor": torch.zeros(3)}, "factor must have one entry for each of 4 votes"),
        ({"active": torch.ones(3, dtype=torch.bool)}, "one bool for each of 2 codes"),
        ({"active": torch.ones(2)}, "one bool for each of 2 codes"),
        ({"train": 0}, "train must be at least 1"),
        ({"train": 4}, "less than the number of votes, 4, got 4"),
        ({"variances": torch.full((4, 2), torch.nan)}, "must be numbers"),
    ],
)
def test_wrong_votes_are_refused(changed, sentence):
    good = {
        "variances": torch.rand(4, 2),
        "factor": torch.zeros(4),
        "active": torch.ones(2, dtype=torch.bool),
        "train": 2,
    }
    with pytest.raises(ValueError, match=sentence):
        factor_vae_score(**(good | changed))
