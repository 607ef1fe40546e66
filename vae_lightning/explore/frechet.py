"""Fréchet distance between sets of images, by the features of a classifier of the same data."""

from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.models.classifier import Classifier


class _Features(nn.Module):
    """Extractor for torchmetrics whose inputs are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_metric(num_features: int) -> Any:
    """Return torchmetrics' accumulator of the distance, which adds up over processes.

    Call ``update(features, real)`` with features (B, num_features) in float64, then ``compute()``.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes a second

    return FrechetInceptionDistance(feature=_Features(num_features))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    r"""Return the Fréchet distance between normal distributions fitted to two sets of features.

    .. math:: |\mu_1 - \mu_2|^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1
        \Sigma_2)^{1/2})

    It is computed in float64 by torchmetrics. The estimate is biased upward, less so for more
    vectors: compare only distances of equal numbers of vectors and of the same features.

    Args:
        first: Features, (N, F), such as those of `Classifier.features`.
        second: Features, (M, F).

    Raises:
        ValueError: If there are fewer than two vectors of each, or their sizes differ.

    References:
        Heusel et al. (2017), GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium, https://arxiv.org/abs/1706.08500

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> frechet_distance(x, x + 3)
        9.0
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"expected features (N, F) and (M, F), got {shapes}")
    if min(len(first), len(second)) < 2:
        raise ValueError("the Fréchet distance needs at least two images of each kind")
    metric = frechet_metric(first.shape[1])
    metric.update(first.double().cpu(), real=True)
    metric.update(second.double().cpu(), real=False)
    distance: float = metric.compute().item()
    return distance


def features(classifier: Classifier, x: Tensor, *, batch_size: int = 256) -> Tensor:
    """Return the features of images (N, C, H, W) in [0, 1], float64, (N, F), on the CPU."""
    parts = [classifier.features(part).double().cpu() for part in x.split(batch_size)]
    return torch.cat(parts)
