"""Principal components, for plotting latent spaces of more than two dimensions."""

import math

import torch
from torch import Tensor

from vae_lightning.plotting.checks import check_tensor


def principal_components(points: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
    """Project points onto their first principal components.

    The arbitrary sign of a component is chosen so that its loading of largest magnitude is
    positive. The computation runs on the CPU in float64 and is deterministic.

    Args:
        points: Points, (N, D). Rows with non-finite entries are ignored and projected to NaN.
        k: Number of components, from 1 to D.

    Returns:
        The centered and projected points, (N, k), and the fraction of the total variance that each
        component explains, (k,). Both are on the device of ``points``, float64 if ``points`` is and
        float32 otherwise. Components beyond the rank of the data are zero and explain nothing.

    Raises:
        ValueError: If ``points`` is not a non-empty matrix or has fewer than ``k`` columns.

    Example:
        >>> points = torch.tensor([[0.0, 0.0, 1.0], [2.0, 2.0, 1.0]])
        >>> projected, explained = principal_components(points, k=1)
        >>> explained.tolist()
        [1.0]
    """
    where = "principal_components"
    check_tensor(where, "points", points, "N D")
    count, dimensions = points.shape
    if count == 0:
        raise ValueError(f"{where}: points has shape {tuple(points.shape)}, pass at least one row.")
    if not 1 <= k <= dimensions:
        raise ValueError(
            f"{where}: k is {k} for points with {dimensions} dimensions, "
            f"pass k from 1 to {dimensions}."
        )
    values = points.detach().to("cpu", torch.float64)
    finite = values.isfinite().all(dim=1)
    projected = torch.full((count, k), math.nan, dtype=torch.float64)
    explained = torch.zeros(k, dtype=torch.float64)
    if finite.any():
        kept = values[finite]
        centered = kept - kept.mean(dim=0)
        if len(kept) > dimensions:  # the covariance matrix is smaller than the data
            squares, vectors = torch.linalg.eigh(centered.T @ centered)
            squares, loadings = squares.flip(0), vectors.T.flip(0)
        else:
            _, singular_values, loadings = torch.linalg.svd(centered, full_matrices=False)
            squares = singular_values.square()
        # Directions without variance are not exactly zero because of rounding.
        rounding = max(kept.shape) * torch.finfo(torch.float64).eps
        noise = torch.maximum((rounding * kept.abs().max()).square(), rounding * squares[0])
        rank = min(k, int((squares > noise).sum()))
        largest = loadings.abs().argmax(dim=1, keepdim=True)
        loadings = loadings * loadings.gather(1, largest).sign()
        part = torch.zeros(len(kept), k, dtype=torch.float64)
        part[:, :rank] = centered @ loadings[:rank].T
        projected[finite] = part
        if rank:
            explained[:rank] = squares[:rank] / squares.clamp_min(0).sum()
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    return projected.to(points.device, dtype), explained.to(points.device, dtype)
