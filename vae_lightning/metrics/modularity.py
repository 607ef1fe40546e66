"""Modularity and explicitness of codes of images whose generative factors are known.

Pure functions without state or Lightning; `vae_lightning.metrics.disentanglement` says what their
arguments are, and holds the other scores.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lightning.metrics.disentanglement import checked, mutual_information, standardized


def modularity(information: Tensor) -> float:
    r"""Compute modularity: the degree to which each code depends on one factor only.

    .. math:: \frac{1}{L} \sum_i (1 - \delta_i), \quad
        \delta_i = \frac{\sum_{f \ne f_i} m_{if}^2}{(F - 1) \, m_{i f_i}^2}

    where m_if is the mutual information of code i and factor f, and f_i the factor of which code i
    knows most. Several codes may depend on the same factor, unlike in DCI's completeness or MIG.

    A code without information about any factor counts as 0, as in Locatello et al. The estimate of
    a code of noise is not 0 but about equal for factors with equally many values, so such a code
    counts as little; leave out codes that are not in use. With one factor, every code that knows
    something of it counts as 1.

    Args:
        information: Mutual information of codes and factors, as `mutual_information` returns it,
            (L, F).

    Returns:
        The score between 0 (every code knows equally much about all factors) and 1.

    Raises:
        ValueError: If it is no table of numbers that are not negative.

    References:
        Ridgeway and Mozer (2018), Learning deep disentangled embeddings with the F-statistic loss,
        section 3, https://arxiv.org/abs/1802.05312
        Locatello et al. (2019), https://arxiv.org/abs/1811.12359

    Example:
        >>> modularity(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
        1.0
        >>> modularity(torch.tensor([[2.0, 1.0, 0.0]]))  # 1 - (1 / 4) / 2
        0.875
    """
    if information.ndim != 2 or not information.numel():
        raise ValueError(f"information must be (L, F), got shape {tuple(information.shape)}")
    if not (information >= 0).all():  # also refuses NaN
        raise ValueError("mutual information must be numbers that are not negative")
    squares = information.detach().cpu().double()
    squares = (squares / squares.amax(1, keepdim=True).clamp(min=torch.finfo().tiny)).square()
    known = squares.amax(1) > 0
    deviation = (squares.sum(1) - squares.amax(1)) / max(1, squares.shape[1] - 1)
    return torch.where(known, 1 - deviation, 0.0).mean().item()


def modularity_score(
    codes: Tensor, factors: Tensor, categorical: Sequence[bool], bins: int = 20
) -> float:
    """Compute `modularity` of codes from the histograms of `mutual_information`.

    Args:
        codes: Codes, (N, L).
        factors: Factors, (N, F).
        categorical: Whether each factor is categorical, F entries.
        bins: Number of intervals of a code and of a continuous factor, at least 2.

    Returns:
        The score between 0 and 1.

    Raises:
        ValueError: As for `mutual_information`.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0))
        >>> modularity_score(-2 * factors, factors, [True, True])
        1.0
    """
    return modularity(mutual_information(codes, factors, categorical, bins))


def explicitness(codes: Tensor, factors: Tensor, categorical: Sequence[bool]) -> Tensor:
    r"""Measure how well every factor can be read linearly from all codes together.

    For each value of a categorical factor, a logistic regression of all codes (one value against
    the rest) is fitted to the first half of the rows. The area under its ROC curve says how well it
    tells images with this value from all others in the second half. The mean over values is
    reported.

    The paper only has categorical factors. The area is the probability that of two images of
    different kinds, the right one gets the higher prediction. For a continuous factor, it is the
    probability that of any two images of the second half, the one with the larger factor gets the
    larger prediction from a linear regression (the concordance index).

    Args:
        codes: Codes, rows in random order, (N, L).
        factors: Factors, (N, F).
        categorical: Whether each factor is categorical, F entries.

    Returns:
        A score for each factor, float64, (F,): 1 if it can be read without errors, 0.5 if codes
        know nothing of it. Values of a category that only one half of the rows has, or that all
        rows of a half have, are left out; 0.5 if none remains.

    Raises:
        ValueError: If the shapes do not match, there are fewer than 2 rows, a number is not finite,
            or a factor is constant.

    References:
        Ridgeway and Mozer (2018), Learning deep disentangled embeddings with the F-statistic loss,
        section 3, https://arxiv.org/abs/1802.05312
        Harrell et al. (1982), Evaluating the yield of medical tests (the concordance index),
        https://doi.org/10.1001/jama.1982.03320430047030

    Example:
        >>> factors = torch.rand(100, 1)
        >>> explicitness(torch.cat([1 - 2 * factors, torch.rand(100, 1)], 1), factors, [False])
        tensor([1.], dtype=torch.float64)
    """
    codes, factors = checked(codes, factors, categorical)
    x = standardized(codes)
    scores = []
    for column, is_category in enumerate(categorical):
        target = factors[:, column]
        score = _area(x, target) if is_category else _concordance(x, target)
        scores.append(score)
    return torch.tensor(scores, dtype=torch.float64)


def _area(x: Tensor, target: Tensor) -> float:
    """Return the mean area under the ROC curves of the values of a categorical factor (N,)."""
    # Imported here, because it takes half a second that other commands should not wait for.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    half = len(x) // 2
    areas = []
    for value in target.unique():
        known, held_out = (target[:half] == value).numpy(), (target[half:] == value).numpy()
        if len(set(known)) < 2 or len(set(held_out)) < 2:
            continue
        fitted = LogisticRegression(max_iter=1000).fit(x[:half].numpy(), known)
        areas.append(roc_auc_score(held_out, fitted.decision_function(x[half:].numpy())))
    return float(sum(areas) / len(areas)) if areas else 0.5


def _concordance(x: Tensor, target: Tensor) -> float:
    """Return the concordance index of a linear regression of a continuous factor (N,)."""
    from sklearn.linear_model import LinearRegression

    half = len(x) // 2
    fitted = LinearRegression().fit(x[:half].numpy(), target[:half].numpy())
    return concordance(torch.from_numpy(fitted.predict(x[half:].numpy())), target[half:])


def concordance(predicted: Tensor, target: Tensor) -> float:
    """Return how often, of two items, the one with the larger target has the larger prediction.

    Args:
        predicted: Predictions, (N,).
        target: Targets, (N,).

    Returns:
        Between 0 and 1. Equal predictions count as one half, and pairs with equal targets are left
        out; 0.5 if there are no others.

    Example:
        >>> concordance(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 5.0, 3.0])) * 3
        2.0
    """
    right = pairs = 0.0
    for first in range(0, len(target), 512):
        here = slice(first, first + 512)
        larger = target[here, None] > target[None]
        above = predicted[here, None] - predicted[None]
        pairs += larger.sum().item()
        right += (larger & (above > 0)).sum().item() + 0.5 * (larger & (above == 0)).sum().item()
    return right / pairs if pairs else 0.5
