"""Unsupervised disentanglement ranking: whether several trainings find the same latents."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Similarity = Literal["spearman", "lasso"]
"""How the latents of two models are compared."""

_PENALTY = 0.1
"""Weight of the Lasso's penalty."""


def udr(
    latents: Sequence[Tensor],
    informative: Sequence[Tensor],
    similarity: Similarity = "spearman",
) -> tuple[Tensor, Tensor]:
    r"""Compute the UDR score of several models, usually trainings with different seeds.

    Latents that capture independent factors are found by each training up to their order, sign and
    scale; entangled ones are mixed differently each time. With a similarity R between the
    informative latents a of model i and b of model j,

    .. math:: UDR_{ij} = \frac{1}{d_i + d_j} \Big( \sum_b \frac{r_b^2}{\sum_a R_{ab}}
        + \sum_a \frac{r_a^2}{\sum_b R_{ab}} \Big), \quad
        r_b = \max_a R_{ab}, \; r_a = \max_b R_{ab}

    where d counts the informative latents of each model. It is 1 if every latent is similar to
    exactly one of the other model, and to that one perfectly. The score of a model is the median
    over all others.

    - ``spearman``: R is the absolute rank correlation, so any monotone change of a latent is
      allowed. The correlations of unrelated latents are not 0 but about 1/sqrt(N) for N images,
      which lowers the score of a perfect match of d latents by about d/sqrt(N).
    - ``lasso``: R is the absolute weight of a latent of model i in a linear prediction of one of
      model j, both standardized, with an L1 penalty of 0.1. Unrelated latents get weights of 0;
      the penalty lowers the score of a perfect match to 0.9.

    A high score does not say that the latents mean anything, only that they are found again.

    Args:
        latents: Posterior means of the same N images by each model, (N, L); L may differ.
        informative: The latents of each model that are in use, bool, (L,). The paper takes those
            with a mean KL above 0.01 nats; others say nothing about an image and are left out.
        similarity: ``spearman`` or ``lasso``.

    Returns:
        The score of each model, (P,), and UDR_ij of each pair, (P, P), float64. The diagonal is
        NaN. A pair with a model without informative latents scores 0.

    Raises:
        ValueError: If there are fewer than two models, shapes do not match, a latent is not finite,
            or there is no such similarity.

    References:
        Duan et al. (2020), Unsupervised model selection for variational disentangled representation
        learning, https://arxiv.org/abs/1905.12614

    Example:
        >>> z = torch.randn(10_000, 3)
        >>> copy = z[:, [2, 0, 1]] * torch.tensor([-1.0, 5.0, 0.1])
        >>> in_use = torch.ones(3, dtype=torch.bool)
        >>> scores, _ = udr([z, copy], [in_use, in_use])
        >>> bool((scores > 0.95).all())
        True
    """
    if similarity not in ("spearman", "lasso"):
        raise ValueError(f"similarity must be spearman or lasso, got {similarity!r}")
    if len(latents) < 2 or len(latents) != len(informative):
        raise ValueError(
            f"UDR needs at least two models, each with its informative latents, got {len(latents)} "
            f"and {len(informative)}"
        )
    kept = []
    for z, mask in zip(latents, informative, strict=True):
        if z.ndim != 2 or len(z) != len(latents[0]) or mask.shape != z.shape[1:]:
            raise ValueError(
                "latents must be (N, L) for the same N images, and informative (L,), got "
                f"{tuple(z.shape)} and {tuple(mask.shape)}"
            )
        if not z.isfinite().all():
            raise ValueError("the latents of a model are not finite: it has diverged")
        kept.append(z.detach().cpu().double()[:, mask.cpu()])
    if similarity == "spearman":
        kept = [_ranks(z) for z in kept]
    kept = [_standardized(z) for z in kept]
    compare = _correlations if similarity == "spearman" else _lasso_weights
    pairs = torch.full((len(kept), len(kept)), torch.nan, dtype=torch.float64)
    for i, first in enumerate(kept):
        for j, second in enumerate(kept):
            if i != j:
                pairs[i, j] = pair_score(compare(first, second))
    # As the authors do with the Lasso, which has a direction: the latents of the model itself are
    # predicted from those of the others.
    others = [torch.cat([pairs[:j, j], pairs[j + 1 :, j]]).quantile(0.5) for j in range(len(kept))]
    return torch.stack(others), pairs


def pair_score(similarities: Tensor) -> float:
    """Compute UDR_ij from the similarities of the informative latents of two models.

    Args:
        similarities: R, not negative, (d_i, d_j).

    Returns:
        Between 0 and 1 for similarities up to 1; 0 if a model has no informative latent.

    Example:
        >>> pair_score(torch.eye(3))
        1.0
        >>> round(pair_score(torch.ones(4, 4)), 6)
        0.25
    """
    if not similarities.numel():
        return 0.0
    score = 0.0
    for dim in (0, 1):
        total = similarities.sum(dim)
        best = similarities.amax(dim).square()
        score += torch.where(total > 0, best / total.clamp(min=1e-300), 0.0).sum().item()
    return score / sum(similarities.shape)


def _correlations(first: Tensor, second: Tensor) -> Tensor:
    """Return the absolute correlations of standardized columns, (d_i, d_j)."""
    return (first.T @ second / len(first)).abs().clamp(max=1)


def _lasso_weights(first: Tensor, second: Tensor) -> Tensor:
    """Return the absolute weights of predictions of the second from the first, (d_i, d_j)."""
    # Imported here, because it takes half a second that other commands should not wait for.
    from sklearn.linear_model import Lasso

    if not first.shape[1] or not second.shape[1]:
        return first.new_zeros(first.shape[1], second.shape[1])
    fitted = Lasso(alpha=_PENALTY).fit(first.numpy(), second.numpy())
    return torch.from_numpy(fitted.coef_).view(second.shape[1], first.shape[1]).abs().T


def _ranks(x: Tensor) -> Tensor:
    """Return the ranks of the values of each column; equal values share the mean of theirs."""
    columns = []
    for column in x.T:
        _, inverse, counts = column.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        columns.append((last - (counts.double() - 1) / 2)[inverse])
    return torch.stack(columns, 1) if columns else x


def _standardized(x: Tensor) -> Tensor:
    """Scale columns to mean 0 and variance 1; constant ones become 0."""
    centered = x - x.mean(0)
    std = centered.square().mean(0).sqrt()
    return torch.where(std > 0, centered / std.clamp(min=1e-300), 0.0)
