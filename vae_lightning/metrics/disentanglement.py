"""Disentanglement scores: MIG, SAP, DCI and the FactorVAE score.

Pure functions without state or Lightning. Unless stated otherwise, their arguments are

- ``codes``, (N, L): The codes of N images, usually posterior means. Shifting or scaling a code
  changes results only by rounding.
- ``factors``, (N, F): The generative factors of the images. Every factor has to vary. Values of a
  categorical factor are only compared for equality.
- ``categorical``, F entries: Whether each factor is categorical.

Computations run on the CPU in float64 and are deterministic; the global random state is neither
used nor changed. Constant codes carry no information. Codes of small variance are not treated
specially, because their scale says nothing about their information.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

# Smaller leaves fit noise, which gives importance to uninformative codes.
_LEAF: Final = 5


def mutual_information(
    codes: Tensor, factors: Tensor, categorical: Sequence[bool], bins: int = 20
) -> Tensor:
    """Estimate the mutual information of every code and every factor from histograms.

    Codes and continuous factors are divided into ``bins`` intervals of equal width between their
    smallest and largest value. The estimate is biased upward by about (bins - 1)(K - 1) / 2N, where
    K is the number of values of the factor, so it is not exactly 0 for independent variables.

    Args:
        codes: Codes, (N, L).
        factors: Factors, (N, F).
        categorical: Whether each factor is categorical, F entries.
        bins: Number of intervals of a code and of a continuous factor, at least 2.

    Returns:
        Non-negative mutual information in nats, float64 on the CPU, (L, F). It is exactly 0 for a
        constant code.

    Raises:
        ValueError: If the shapes do not match, there are fewer than 2 rows, a number is not finite,
            a factor is constant, or ``bins`` is less than 2.

    Example:
        >>> factors = torch.arange(4.0)[:, None]
        >>> mutual_information(2 * factors, factors, [True]).exp().round().tolist()
        [[4.0]]

    References:
        Locatello et al. (2019), Challenging Common Assumptions in the Unsupervised Learning of
        Disentangled Representations, https://arxiv.org/abs/1811.12359
    """
    codes, factors = checked(codes, factors, categorical)
    return _information(codes, factors, categorical, bins)[0]


def mutual_information_gap(
    codes: Tensor, factors: Tensor, categorical: Sequence[bool], bins: int = 20
) -> float:
    """Compute the mutual information gap (MIG).

    For each factor, this is the difference of the two largest entries of `mutual_information`,
    divided by the entropy of the factor (of its bins if it is continuous). The score is the mean
    over factors. With a single code, the second largest entry is 0.

    The paper draws codes from the posterior and integrates over its density. As in Locatello et
    al., each image has one code here and codes are binned.

    Args:
        codes: Codes, (N, L).
        factors: Factors, (N, F).
        categorical: Whether each factor is categorical, F entries.
        bins: Number of intervals of a code and of a continuous factor, at least 2.

    Returns:
        The score between 0 and 1.

    Raises:
        ValueError: As for `mutual_information`.

    References:
        Chen et al. (2018), Isolating Sources of Disentanglement in Variational Autoencoders,
        section 4, https://arxiv.org/abs/1802.04942
    """
    codes, factors = checked(codes, factors, categorical)
    information, entropies = _information(codes, factors, categorical, bins)
    return (_gaps(information) / entropies).mean().item()


def predictability(codes: Tensor, factors: Tensor, categorical: Sequence[bool]) -> Tensor:
    """Measure how well every factor is predicted by a linear model of a single code.

    For a continuous factor, this is the R^2 of its regression on the code over all rows, the
    squared correlation. For a categorical factor, it is the balanced accuracy (mean recall) of a
    linear support vector machine that is fitted to the first half of the rows and scored on the
    second half, so the rows have to be in random order.

    Accuracies are rescaled so that chance (always the same class) is 0 and perfect prediction is 1.
    Values below chance are set to 0. Without rescaling, constant codes, which score 0 in the paper,
    would be worse than noise, and one uninformative code among constant ones would have a gap of
    1 / classes. With it, 0 means no information and 1 full information for both kinds of factors.

    The machine separates one class from the rest by one threshold. If more than two classes are
    separated along a code, it finds little more than the outermost ones: ten perfectly separated
    classes score about 0.1.

    Args:
        codes: Codes, (N, L).
        factors: Factors, (N, F).
        categorical: Whether each factor is categorical, F entries.

    Returns:
        Scores between 0 and 1, float64 on the CPU, (L, F). They are exactly 0 for a constant code.

    Raises:
        ValueError: If the shapes do not match, there are fewer than 2 rows, a number is not finite,
            or a factor is constant.

    References:
        Kumar et al. (2018), Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, section 3, https://arxiv.org/abs/1711.00848;
        Locatello et al. (2019), https://arxiv.org/abs/1811.12359 (the support vector machine
        instead of the paper's thresholds, and its settings)
    """
    codes, factors = checked(codes, factors, categorical)
    x = standardized(codes)
    scores = (x.T @ standardized(factors) / len(x)).square().clamp(max=1)
    for column, is_category in enumerate(categorical):
        if is_category:
            classes = factors[:, column].unique(return_inverse=True)[1]
            for row in range(x.shape[1]):
                scores[row, column] = _accuracy_above_chance(x[:, row], classes)
    return scores


def sap_score(codes: Tensor, factors: Tensor, categorical: Sequence[bool]) -> float:
    """Compute the separated attribute predictability (SAP) score.

    The score is the mean over factors of the difference of the two largest entries of
    `predictability`. With a single code, the second largest entry is 0. Because accuracies are
    relative to chance, the gap of a factor with K classes is K / (K - 1) times the gap of plain
    accuracies.

    Args:
        codes: Codes, rows in random order, (N, L).
        factors: Factors, (N, F).
        categorical: Whether each factor is categorical, F entries.

    Returns:
        The score between 0 and 1.

    Raises:
        ValueError: As for `predictability`.

    References:
        Kumar et al. (2018), Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, section 3, https://arxiv.org/abs/1711.00848
    """
    return _gaps(predictability(codes, factors, categorical)).mean().item()


class DCI(NamedTuple):
    """Result of `dci`.

    Attributes:
        disentanglement: Degree to which each code predicts only one factor, between 0 and 1.
        completeness: Degree to which each factor is predicted by only one code, between 0 and 1.
        informativeness: How well the factors are predicted from all codes, between 0 and 1.
        importances: Importance of each code for each factor, float64 on the CPU, (L, F). Columns
            sum to 1, or to 0 if no code predicts the factor.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importances: Tensor


def dci(codes: Tensor, factors: Tensor, categorical: Sequence[bool], trees: int = 20) -> DCI:
    """Compute disentanglement, completeness and informativeness (DCI) with random forests.

    One forest per factor is fitted to the first half of the rows and scored on the second half, so
    the rows have to be in random order. Importances are scikit-learn's decreases of impurity. Every
    split may use every code: with random subsets, the importance of a missing code would go to
    codes that are merely correlated with it.

    - The disentanglement of a code is 1 minus the entropy (to base F) of its normalized
      importances. The mean over codes is weighted by the sum of their importances, so unused codes
      do not count.
    - The completeness of a factor is 1 minus the entropy (to base L) of the importances for it. The
      mean over factors is unweighted, as in the authors' code; factors that no code predicts count
      as 0. (Columns sum to 1, so weights would only matter for these.)
    - The informativeness of a continuous factor is its R^2 (0 if negative), that of a categorical
      factor the accuracy (whose chance level is not 0). The mean is unweighted. Higher is better,
      unlike the errors that the paper reports.

    The entropy of a single outcome is 0: with one factor, every used code is disentangled, and with
    one code, every factor that it predicts is complete. If all importances are 0, so are
    disentanglement and completeness.

    A factor that cannot be predicted has its importance spread over all codes, which lowers the
    disentanglement of representations of only some of the factors. Unused codes increase the base L
    and thus the completeness of factors that share several codes.

    Args:
        codes: Codes, rows in random order, (N, L).
        factors: Factors, (N, F).
        categorical: Whether each factor is categorical, F entries.
        trees: Number of trees per forest, at least 1. The time is proportional to it.

    Returns:
        The three scores and the importances.

    Raises:
        ValueError: If the shapes do not match, there are fewer than 2 rows, a number is not finite,
            a factor is constant, or ``trees`` is less than 1.

    References:
        Eastwood and Williams (2018), A Framework for the Quantitative Evaluation of Disentangled
        Representations, section 2, https://openreview.net/forum?id=By-7dz-AZ
    """
    if trees < 1:
        raise ValueError(f"trees must be at least 1, got {trees}")
    codes, factors = checked(codes, factors, categorical)
    # Trees treat values less than 1e-7 apart as equal, so codes and factors of small scale would
    # be constant without this.
    x, y = standardized(codes), standardized(factors)
    columns, information = [], 0.0
    for column, is_category in enumerate(categorical):
        if is_category:
            target = factors[:, column].unique(return_inverse=True)[1]
        else:
            # A factor that is constant in the first half becomes exactly 0 there. For any other
            # number, rounding could give a positive variance that is attributed to the codes.
            target = y[:, column] - y[0, column]
        importances, score = _forest(x, target, is_category, trees)
        columns.append(importances)
        information += score
    matrix = torch.stack(columns, dim=1)
    weights = matrix.sum(1) / matrix.sum().clamp(min=torch.finfo(matrix.dtype).tiny)
    return DCI(
        disentanglement=(weights * _concentration(matrix)).sum().item(),
        completeness=_concentration(matrix.T).mean().item(),
        informativeness=information / len(categorical),
        importances=matrix,
    )


def factor_vae_score(variances: Tensor, factor: Tensor, active: Tensor, train: int) -> float:
    """Compute the FactorVAE score: the accuracy of predicting a fixed factor from the codes.

    For each vote, a batch of images is generated in which one factor is fixed and the others are
    random. The code with the smallest variance in the batch, relative to its variance over the data
    set, casts the vote. A majority vote classifier that maps this code to the fixed factor is
    fitted to the first votes. The score is its accuracy on the other votes. Codes that cast none of
    the first votes count as errors; ties go to the factor with the smallest index.

    Args:
        variances: Empirical variance of each code over the batch of a vote, divided by its variance
            over the whole data set, (V, L).
        factor: Index of the fixed factor of each vote, (V,).
        active: Codes in use, bool, (L,). Others are ignored: a collapsed code has almost no
            variance in any batch and would win by rounding errors.
        train: Number of votes to fit, at least 1 and less than V.

    Returns:
        The score between 0 and 1, or 0 if no code is active. Chance is the frequency of the most
        frequent factor, 1 / F if all are equally frequent.

    Raises:
        ValueError: If the shapes do not match, ``active`` is not bool, ``train`` leaves no votes to
            fit or to score, or the variance of an active code is NaN.

    References:
        Kim and Mnih (2018), Disentangling by Factorising, section 4,
        https://arxiv.org/abs/1802.05983
    """
    if variances.ndim != 2 or variances.shape[1] == 0:
        raise ValueError(f"variances must have the shape (V, L), got {tuple(variances.shape)}")
    votes, size = variances.shape
    if factor.shape != (votes,):
        raise ValueError(
            f"factor must have one entry for each of {votes} votes, got shape {tuple(factor.shape)}"
        )
    if active.shape != (size,) or active.dtype != torch.bool:
        raise ValueError(
            f"active must have one bool for each of {size} codes, got {active.dtype} of shape "
            f"{tuple(active.shape)}"
        )
    if not 1 <= train < votes:
        raise ValueError(
            f"train must be at least 1 and less than the number of votes, {votes}, got {train}"
        )
    if not active.any():
        return 0.0
    used = variances.detach().cpu()[:, active.cpu()]
    if used.isnan().any():
        raise ValueError("the variances of active codes must be numbers, got NaN")
    least = used.argmin(1)
    names, fixed = factor.detach().cpu().unique(return_inverse=True)
    cells = least[:train] * len(names) + fixed[:train]
    counts = cells.bincount(minlength=used.shape[1] * len(names)).view(-1, len(names))
    seen = counts.sum(1) > 0
    correct = (counts.argmax(1)[least] == fixed) & seen[least]
    return correct[train:].double().mean().item()


def checked(codes: Tensor, factors: Tensor, categorical: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Check codes and factors and return them on the CPU in float64."""
    for name, x in ("codes", codes), ("factors", factors):
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} must have one row per image, got shape {tuple(x.shape)}")
    if len(codes) != len(factors):
        raise ValueError(
            f"codes and factors must have the same number of rows, got {len(codes)} and "
            f"{len(factors)}"
        )
    if len(categorical) != factors.shape[1]:
        raise ValueError(
            f"categorical must have one entry for each of {factors.shape[1]} factors, "
            f"got {len(categorical)}"
        )
    if len(codes) < 2:
        raise ValueError(f"there must be at least 2 rows, got {len(codes)}")
    # First to the CPU, because not every device supports float64.
    codes, factors = codes.detach().cpu().double(), factors.detach().cpu().double()
    if not (codes.isfinite().all() and factors.isfinite().all()):
        raise ValueError("codes and factors must be finite numbers")
    constant = (factors == factors[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"every factor must vary, but column {constant[0]} is constant")
    return codes, factors


def _unit_range(x: Tensor) -> Tensor:
    """Scale columns (N, C) to the range from 0 to 1; constant ones become exactly 0."""
    low, high = x.amin(0), x.amax(0)
    return (x - low) / torch.where(high > low, high - low, 1.0)


def standardized(x: Tensor) -> Tensor:
    """Scale columns (N, C) to mean 0 and variance 1; constant ones become exactly 0."""
    # First to the unit range, so that the variance of very small or large values is accurate.
    x = _unit_range(x)
    std = x.std(0, correction=0)
    return (x - x.mean(0)) / torch.where(std > 0, std, 1.0)


def _information(
    codes: Tensor, factors: Tensor, categorical: Sequence[bool], bins: int
) -> tuple[Tensor, Tensor]:
    """Return the mutual information (L, F) and the entropies of the factors (F,) in nats."""
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    n, size = codes.shape
    binned = _bins(codes, bins)
    # Every code has its own block of cells, so that one bincount serves all codes.
    first = (torch.arange(size) * bins + binned)[:, :, None]
    information, entropies = [], []
    for column, is_category in enumerate(categorical):
        if is_category:
            names, values = factors[:, column].unique(return_inverse=True)
            levels = len(names)
        else:
            values, levels = _bins(factors[:, [column]], bins)[:, 0], bins
        cells = first[:, :, 0] * levels + values[:, None]
        joint = cells.flatten().bincount(minlength=size * bins * levels).view(size, bins, levels)
        expected = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        # Counts are integers, so a constant code has a ratio of exactly 1 and 0 nats.
        ratio = (joint * n).double() / expected.clamp(min=1)
        information.append(torch.special.xlogy(joint.double() / n, ratio).sum((1, 2)).clamp(min=0))
        entropies.append(torch.special.entr(values.bincount().double() / n).sum())
    return torch.stack(information, dim=1), torch.stack(entropies)


def _bins(x: Tensor, bins: int) -> Tensor:
    """Return the index of the interval of equal width of every entry of columns (N, C)."""
    # The largest value belongs to the last interval.
    return (_unit_range(x) * bins).long().clamp(max=bins - 1)


def _gaps(scores: Tensor) -> Tensor:
    """Return the difference of the two largest of non-negative scores (L, F), (F,)."""
    # The zeros are the second largest of a single code and have no effect otherwise.
    best, second = torch.cat([scores, torch.zeros_like(scores[:1])]).topk(2, dim=0).values
    return best - second


def _accuracy_above_chance(code: Tensor, classes: Tensor) -> float:
    """Return the rescaled balanced accuracy of predicting classes (N,) from one code (N,)."""
    # Imported here, because it takes half a second that other commands should not wait for.
    from sklearn.svm import LinearSVC

    half = len(code) // 2
    held_out = classes[half:]
    sizes = held_out.bincount()
    present = sizes > 0
    chance = 1 / int(present.sum())
    if (code == code[0]).all() or chance == 1 or len(classes[:half].unique()) == 1:
        return 0.0
    machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
    machine.fit(code[:half, None].numpy(), classes[:half].numpy())
    predicted = torch.from_numpy(machine.predict(code[half:, None].numpy()))
    hits = held_out[predicted == held_out].bincount(minlength=len(sizes))
    accuracy = (hits[present].double() / sizes[present]).mean().item()
    return max(0.0, (accuracy - chance) / (1 - chance))


def _forest(x: Tensor, target: Tensor, is_category: bool, trees: int) -> tuple[Tensor, float]:
    """Return the importances (L,) of a forest fitted to the first half, and its held-out score."""
    # Imported here for the reason above.
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    half = len(x) // 2
    kind = RandomForestClassifier if is_category else RandomForestRegressor
    forest = kind(
        n_estimators=trees, min_samples_leaf=_LEAF, max_features=None, random_state=0, n_jobs=1
    )
    forest.fit(x[:half].numpy(), target[:half].numpy())
    predicted = torch.from_numpy(forest.predict(x[half:].numpy()))
    importances = torch.from_numpy(forest.feature_importances_)
    truth = target[half:]
    if is_category:
        return importances, (predicted == truth).double().mean().item()
    total = (truth - truth.mean()).square().sum()
    if total == 0:
        return importances, 0.0
    return importances, max(0.0, 1 - ((predicted - truth).square().sum() / total).item())


def _concentration(importances: Tensor) -> Tensor:
    """Return 1 minus the entropy (to base C) of each row (R, C), (R,); 0 for rows of zeros."""
    total = importances.sum(1, keepdim=True)
    shares = importances / torch.where(total > 0, total, 1.0)
    # At least 2, because the logarithm to base 1 is undefined; the entropy is then 0 anyway.
    entropy = torch.special.entr(shares).sum(1) / math.log(max(importances.shape[1], 2))
    return torch.where(total[:, 0] > 0, (1 - entropy).clamp(min=0), 0.0)
