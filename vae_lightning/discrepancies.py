"""Distances between distributions, estimated from a sample of each; they have gradients."""

from typing import Literal

import torch
from torch import Tensor

from vae_lightning.functional import without_autocast
from vae_lightning.randomness import standard_normal

Kernel = Literal["imq", "rbf"]
"""Kernel of the maximum mean discrepancy: inverse multiquadratic, or Gaussian."""

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def check_kernel(kernel: str) -> None:
    """Check the name of a kernel.

    Raises:
        ValueError: If there is no such kernel.

    Example:
        >>> check_kernel("imq")
    """
    if kernel not in ("imq", "rbf"):
        raise ValueError(f"kernel must be imq or rbf, got {kernel!r}")


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel = "imq") -> Tensor:
    r"""Estimate the squared maximum mean discrepancy of two samples, without bias.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n(n-1)} \sum_{i \ne j}
        k(y_i, y_j) - \frac{2}{n^2} \sum_{i, j} k(x_i, y_j)

    with k(x, y) = C / (C + |x - y|^2) (imq) or exp(-|x - y|^2 / C) (rbf), summed over C = 2 L s for
    seven scales s from 0.1 to 10.

    Args:
        x: Sample, (n, L).
        y: Sample of the same shape.
        kernel: ``imq`` or ``rbf``.

    Returns:
        A scalar; it can be negative. 0 for n < 2, from which nothing can be estimated.

    References:
        Gretton et al. (2012), A kernel two-sample test, section 2.2,
        https://jmlr.org/papers/v13/gretton12a.html

    Example:
        >>> x, y = torch.randn(2, 100, 3)
        >>> squared_mmd(x, y) < squared_mmd(x, y + 2)
        tensor(True)
    """
    n, size = x.shape
    if n < 2:
        return 0 * x.sum()
    distances = [_squared_distances(a, b) for a, b in ((x, x), (y, y), (x, y))]
    total = x.new_zeros(())
    off_diagonal = 1 - torch.eye(n, device=x.device)
    for scale in _SCALES:
        c = 2.0 * size * scale
        k_xx, k_yy, k_xy = (c / (c + d) if kernel == "imq" else (-d / c).exp() for d in distances)
        within = ((k_xx + k_yy) * off_diagonal).sum() / (n * (n - 1))
        total = total + within - 2 * k_xy.mean()
    return total


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2, (n, m)."""
    x, y = x.float(), y.float()
    return (x[:, None] - y[None]).square().sum(2)


def squared_sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    r"""Estimate the squared sliced Wasserstein-2 distance of two samples.

    .. math:: \frac{1}{P n} \sum_p \sum_i \big( (\theta_p^T x)_{(i)} - (\theta_p^T y)_{(i)} \big)^2

    where (i) is the i-th smallest of the n projections. In one dimension, sorting solves the
    transport problem exactly; the distance in L dimensions is the mean over directions on the
    sphere, which are drawn. Two Gaussians with a common covariance have the squared distance of
    their means over L. Two samples of one distribution have a positive distance, which decreases
    with n.

    Args:
        x: Sample, (n, L).
        y: Sample of the same shape.
        directions: Unit vectors, (P, L), see `random_directions`.

    Returns:
        A scalar, float32.

    References:
        Kolouri et al. (2018), Sliced-Wasserstein auto-encoders, https://arxiv.org/abs/1804.01947

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]])
        >>> squared_sliced_wasserstein(x, y, torch.ones(1, 1))
        tensor(4.)
    """
    with without_autocast(x):
        projections = directions.float().T
        of_x, of_y = ((sample.float() @ projections).sort(0).values for sample in (x, y))
        return (of_x - of_y).square().mean()


def random_directions(n: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``n`` unit vectors uniformly from the sphere, (n, size), on the CPU.

    Example:
        >>> random_directions(3, 2).norm(dim=1).allclose(torch.ones(3))
        True
    """
    return torch.nn.functional.normalize(standard_normal(n, size, generator), dim=1)
