"""How well single codes stand for single generative factors: MIG, SAP, DCI and the FactorVAE score.

Pure functions, no state, no Lightning.  Where not said otherwise they take

- ``codes``, (N, L): the codes of N images, usually posterior means.  Shifting a code, or
  multiplying it by a number other than 0, changes nothing but rounding.
- ``factors``, (N, F): what the images were generated from.  Every factor has to vary; the values of
  a category are only compared for equality.
- ``categorical``, F entries: which of the factors are categories.

The work is done on the CPU in double precision, the global random state is neither used nor
changed, and equal input gives equal output.  A code that is constant is worth nothing; one that
hardly moves is taken as it is, since its scale says nothing about what it knows.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

# Smaller leaves follow the noise, which gives useless codes an importance of their own.
_LEAF: Final = 5


def mutual_information(
    codes: Tensor, factors: Tensor, categorical: Sequence[bool], bins: int = 20
) -> Tensor:
    """Mutual information of every code with every factor, from histograms.

    Codes and continuous factors are cut into ``bins`` intervals of equal width between their
    smallest and largest value. The estimate is too large by about (bins - 1)(K - 1) / 2N, where K
    is the number of values of the factor, so independence does not give exactly 0.

    Args:
        codes: (N, L).
        factors: (N, F).
        categorical: Which factors are categories, F entries.
        bins: Intervals of a code and of a continuous factor, at least 2.

    Returns:
        Nats, 0 or more, (L, F), float64 on the CPU. A constant code has exactly 0.

    Raises:
        ValueError: If the shapes do not match, there are fewer than 2 rows, a number is not finite,
            a factor is constant, or ``bins`` is less than 2.

    References:
        Locatello et al. (2019), Challenging Common Assumptions in the Unsupervised Learning of
        Disentangled Representations, https://arxiv.org/abs/1811.12359
    """
    codes, factors = _checked(codes, factors, categorical)
    return _information(codes, factors, categorical, bins)[0]


def mutual_information_gap(
    codes: Tensor, factors: Tensor, categorical: Sequence[bool], bins: int = 20
) -> float:
    """MIG: how much more one code knows about a factor than any other code does.

    For each factor, the gap between the two largest entries of `mutual_information`, divided by the
    entropy of the factor (of its bins, if it is continuous); then the mean over the factors. With a
    single code the second largest is 0.

    The paper draws codes from the posterior and integrates over its density; here each image has
    one code and codes are binned, as Locatello et al. do.

    Args:
        codes: (N, L).
        factors: (N, F).
        categorical: Which factors are categories, F entries.
        bins: Intervals of a code and of a continuous factor, at least 2.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: As `mutual_information`.

    References:
        Chen et al. (2018), Isolating Sources of Disentanglement in Variational Autoencoders,
        section 4, https://arxiv.org/abs/1802.04942
    """
    codes, factors = _checked(codes, factors, categorical)
    information, entropies = _information(codes, factors, categorical, bins)
    return (_gaps(information) / entropies).mean().item()


def predictability(codes: Tensor, factors: Tensor, categorical: Sequence[bool]) -> Tensor:
    """How well every factor is predicted, linearly, from every single code.

    A continuous factor: R^2 of its regression on the code, which is their squared correlation, over
    all rows. A categorical one: the balanced accuracy (mean recall) of a linear support vector
    machine that was fitted to the first half of the rows and is scored on the second half. So the
    rows have to be in random order.

    Accuracies are rescaled so that chance (always the same class) is 0 and no mistake is 1, and
    what is worse than chance is 0. Without this, constant codes, which the paper gives 0, would be
    worse than pure noise, and one useless code among constant ones would have a gap of 1 / classes.
    With it, 0 is "tells nothing" and 1 is "tells all" for either kind of factor.

    The machine separates one class from the rest by one threshold. Of more than two classes that
    lie side by side on a code it finds little more than the outermost, however cleanly they are
    separated: ten such classes score about 0.1.

    Args:
        codes: (N, L).
        factors: (N, F).
        categorical: Which factors are categories, F entries.

    Returns:
        Between 0 and 1, (L, F), float64 on the CPU. A constant code has exactly 0.

    Raises:
        ValueError: If the shapes do not match, there are fewer than 2 rows, a number is not finite,
            or a factor is constant.

    References:
        Kumar et al. (2018), Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, section 3, https://arxiv.org/abs/1711.00848;
        the machine in place of the paper's thresholds, and its settings: Locatello et al. (2019),
        https://arxiv.org/abs/1811.12359
    """
    codes, factors = _checked(codes, factors, categorical)
    x = _standardised(codes)
    scores = (x.T @ _standardised(factors) / len(x)).square().clamp(max=1)
    for column, is_category in enumerate(categorical):
        if is_category:
            classes = factors[:, column].unique(return_inverse=True)[1]
            for row in range(x.shape[1]):
                scores[row, column] = _accuracy_above_chance(x[:, row], classes)
    return scores


def sap_score(codes: Tensor, factors: Tensor, categorical: Sequence[bool]) -> float:
    """SAP: how much better one code predicts a factor than any other code does.

    The gap between the two largest entries of `predictability` for each factor, whose mean it is.
    With a single code the second largest is 0. Accuracies are relative to chance there, so the gap
    of a factor with K classes is K / (K - 1) times the one of plain accuracies.

    Args:
        codes: (N, L), rows in random order.
        factors: (N, F).
        categorical: Which factors are categories, F entries.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: As `predictability`.

    References:
        Kumar et al. (2018), Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, section 3, https://arxiv.org/abs/1711.00848
    """
    return _gaps(predictability(codes, factors, categorical)).mean().item()


class DCI(NamedTuple):
    """What `dci` returns.

    Attributes:
        disentanglement: Whether each code serves one factor only, between 0 and 1.
        completeness: Whether each factor is served by one code only, between 0 and 1.
        informativeness: How well the factors are predicted from all codes, between 0 and 1.
        importances: Share of each code in the prediction of each factor, (L, F), float64 on the
            CPU. A column sums to 1, or to 0 if no code was of any use.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importances: Tensor


def dci(codes: Tensor, factors: Tensor, categorical: Sequence[bool], trees: int = 20) -> DCI:
    """Disentanglement, completeness and informativeness of random forests that predict the factors.

    A forest for each factor is fitted to the first half of the rows and scored on the second, so
    the rows have to be in random order. Importances are the decreases of impurity, as scikit-learn
    reports them. Every split may use every code: a random subset would hand the share of a code
    that was not in it to others which are merely correlated with it.

    - Disentanglement of a code is 1 minus the entropy, to the base F, of its importances divided by
      their sum. The mean is weighted by these sums, so unused codes do not count.
    - Completeness of a factor is 1 minus the entropy, to the base L, of the importances for it. The
      mean is plain, as in the evaluation that the authors published; a factor for which no code is
      of any use counts as 0. (Columns sum to 1, so weights would differ for such a factor only.)
    - Informativeness is R^2 of a continuous factor (0 if negative) and the accuracy of a
      categorical one (of which chance is not 0), with a plain mean. More is better here, while the
      paper reports errors, in which less is better.

    An entropy of a single outcome is 0: with one factor every code that is used is disentangled,
    and with one code every factor that it serves is complete. If no importance is above 0,
    disentanglement and completeness are 0.

    A factor that cannot be predicted spreads its importance over all codes, and so pulls down the
    disentanglement of representations that know only some of the factors. Unused codes raise the
    base L and with it the completeness of a factor that several codes share.

    Args:
        codes: (N, L), rows in random order.
        factors: (N, F).
        categorical: Which factors are categories, F entries.
        trees: Trees of a forest, at least 1. Time is proportional to it.

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
    codes, factors = _checked(codes, factors, categorical)
    # Trees take values that are less than 1e-7 apart for equal: without this, a code or a factor
    # on a small scale would be constant to them.
    x, y = _standardised(codes), _standardised(factors)
    columns, information = [], 0.0
    for column, is_category in enumerate(categorical):
        if is_category:
            target = factors[:, column].unique(return_inverse=True)[1]
        else:
            # A factor that is constant in the first half becomes exactly 0 there. The variance of
            # any other number may be rounded to more, and would be divided among the codes.
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
    """Score of FactorVAE: whether the code that varies least tells which factor was held fixed.

    For each vote a batch of images is generated in which one factor has the same value and the
    others are drawn anew. The code that varies least in it, relative to its variance elsewhere,
    casts the vote. From the first votes it is learnt which factor is held fixed most often when a
    code is the one; the score is the accuracy of this on the other votes. Votes of a code that was
    never seen before count as mistakes; of equally frequent factors the smallest is taken.

    Args:
        variances: Empirical variance of each code over the batch of a vote, divided by its variance
            over the whole data set, (V, L).
        factor: Which factor was held fixed, (V,).
        active: Which codes are in use, bool, (L,); the others are ignored, whatever their
            variances. A collapsed code hardly moves in any batch, and would win by its rounding.
        train: Number of votes to learn from, at least 1 and less than V.

    Returns:
        Between 0 and 1; 0 if no code is active. Chance is the frequency of the most frequent
        factor, 1 / F if they are equally frequent.

    Raises:
        ValueError: If the shapes do not match, ``active`` is not bool, ``train`` leaves no vote to
            learn from or to score, or the variance of an active code is not a number.

    References:
        Kim and Mnih (2018), Disentangling by Factorising, section 4,
        https://arxiv.org/abs/1802.05983
    """
    if variances.ndim != 2 or variances.shape[1] == 0:
        raise ValueError(f"variances must have the shape (V, L), got {tuple(variances.shape)}")
    votes, size = variances.shape
    if factor.shape != (votes,):
        raise ValueError(
            f"factor must have one entry for each of {votes} votes, got the shape "
            f"{tuple(factor.shape)}"
        )
    if active.shape != (size,) or active.dtype != torch.bool:
        raise ValueError(
            f"active must have one bool for each of {size} codes, got {active.dtype} of the shape "
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


def _checked(codes: Tensor, factors: Tensor, categorical: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Codes and factors, float64 on the CPU; what is wrong with them is said in one sentence."""
    for name, x in ("codes", codes), ("factors", factors):
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} must have a row for each image, got {tuple(x.shape)}")
    if len(codes) != len(factors):
        raise ValueError(
            f"codes and factors must have equally many rows, got {len(codes)} and {len(factors)}"
        )
    if len(categorical) != factors.shape[1]:
        raise ValueError(
            f"categorical must have one entry for each of {factors.shape[1]} factors, "
            f"got {len(categorical)}"
        )
    if len(codes) < 2:
        raise ValueError(f"there must be at least 2 rows, got {len(codes)}")
    # First to the CPU: not every device has double precision.
    codes, factors = codes.detach().cpu().double(), factors.detach().cpu().double()
    if not (codes.isfinite().all() and factors.isfinite().all()):
        raise ValueError("codes and factors must be finite numbers")
    constant = (factors == factors[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"every factor must vary, but column {constant[0]} is constant")
    return codes, factors


def _unit_range(x: Tensor) -> Tensor:
    """Columns (N, C) moved and stretched to the range from 0 to 1; constant ones are exactly 0."""
    low, high = x.amin(0), x.amax(0)
    return (x - low) / torch.where(high > low, high - low, 1.0)


def _standardised(x: Tensor) -> Tensor:
    """Columns (N, C) with mean 0 and variance 1; constant ones are exactly 0."""
    # By way of the unit range, in which neither tiny nor huge values lose their variance.
    x = _unit_range(x)
    std = x.std(0, correction=0)
    return (x - x.mean(0)) / torch.where(std > 0, std, 1.0)


def _information(
    codes: Tensor, factors: Tensor, categorical: Sequence[bool], bins: int
) -> tuple[Tensor, Tensor]:
    """Mutual information (L, F) and entropies of the factors (F,), nats."""
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    n, size = codes.shape
    binned = _bins(codes, bins)
    # Each code has a block of cells of its own, so that one count serves all of them.
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
        # Counts are whole numbers: those of a constant code give a ratio of 1 and exactly 0 nats.
        ratio = (joint * n).double() / expected.clamp(min=1)
        information.append(torch.special.xlogy(joint.double() / n, ratio).sum((1, 2)).clamp(min=0))
        entropies.append(torch.special.entr(values.bincount().double() / n).sum())
    return torch.stack(information, dim=1), torch.stack(entropies)


def _bins(x: Tensor, bins: int) -> Tensor:
    """Numbers of the intervals of equal width, 0 to bins - 1, in which the columns (N, C) lie."""
    # The largest value belongs to the last interval, not to one of its own.
    return (_unit_range(x) * bins).long().clamp(max=bins - 1)


def _gaps(scores: Tensor) -> Tensor:
    """Largest minus second largest of scores (L, F) that are not negative: (F,)."""
    # The zeros are the second best of a single code, and change nothing if there are more.
    best, second = torch.cat([scores, torch.zeros_like(scores[:1])]).topk(2, dim=0).values
    return best - second


def _accuracy_above_chance(code: Tensor, classes: Tensor) -> float:
    """Balanced accuracy, 0 for chance and 1 for no mistake, of classes (N,) from one code (N,)."""
    # Not at the top: it takes about half a second, for which every command would have to wait.
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
    """Importances (L,) and the score on the second half of a forest fitted to the first half."""
    # Not at the top, as above.
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
    """1 minus the entropy of each row (R, C), to the base C: (R,); rows of zeros give 0."""
    total = importances.sum(1, keepdim=True)
    shares = importances / torch.where(total > 0, total, 1.0)
    # A single outcome has the entropy 0, to any base; that of the logarithm must not be 1.
    entropy = torch.special.entr(shares).sum(1) / math.log(max(importances.shape[1], 2))
    return torch.where(total[:, 0] > 0, (1 - entropy).clamp(min=0), 0.0)
