"""Multi-scale structural similarity of images, as a loss."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning.distributions.likelihoods import Likelihood

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales, the finest first."""

_C_1, _C_2 = 0.01**2, 0.03**2
"""Constants that keep the ratios finite, for values in [0, 1]."""

_SMALLEST = 0.05
"""Similarity of a scale below which `_positive` bends it."""


class _Scales(NamedTuple):
    """How images of a size are compared.

    Attributes:
        windows: Lengths of the window along the height and the width.
        number: Number of scales.
    """

    windows: tuple[int, int]
    number: int


class MSSSIM(Likelihood):
    r"""Multi-scale structural similarity (MS-SSIM) as a loss: **not** a likelihood.

    .. math:: -\texttt{log\_prob} = w \sum_c H W \left[1 - l_M(x_c, \hat x_c)^{\beta_M}
        \prod_{j=1}^M cs_j(x_c, \hat x_c)^{\beta_j}\right]

    The terms compare the local means (l) and the local contrasts and structures (cs) of an image
    and its reconstruction, in Gaussian windows of 11 pixels, at up to five scales of which each has
    half the size of the one before. They follow human perception: edges and texture matter, slow
    changes of brightness hardly. The decoder returns logits of the pixels.

    There is no density behind it: the results of such a model are neither log-likelihoods nor
    bounds of them, and not in nats, and pixels cannot be drawn. Compare only models that were
    trained with the same loss, by their pictures or by other metrics.

    Five scales need images of 176 pixels. Smaller images have fewer, with weights that sum to 1 as
    well, and images below 22 pixels smaller windows. An axis of one value, as signals have, is left
    out. Similarities of a scale below 0.05 are bent to small positive values, so that their powers
    are defined and an untrained decoder gets a gradient.

    Args:
        weight: Weight w of the loss of one value, relative to a nat of the KL term.
        window: Length of the window, odd; at most half of an axis of the image.

    Raises:
        ValueError: If ``weight`` is not positive, or ``window`` not odd or below 3.

    References:
        Wang, Simoncelli and Bovik (2003), Multiscale structural similarity for image quality
        assessment, https://doi.org/10.1109/ACSSC.2003.1292216
        Snell et al. (2015), Learning to generate images with perceptual similarity metrics,
        https://arxiv.org/abs/1511.06409

    Example:
        >>> x = torch.rand(2, 1, 28, 28).clamp(0.01, 0.99)
        >>> MSSSIM().log_prob(x.logit(), x).abs() < 1e-2
        tensor([True, True])
    """

    bounded = True
    normalized = False
    loss_name = "dissimilarity"

    def __init__(self, weight: float = 1.0, window: int = 11) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"MSSSIM: weight must be positive, got {weight}")
        if window < 3 or window % 2 == 0:
            raise ValueError(f"MSSSIM: window must be odd and at least 3, got {window}")
        self.weight = weight
        self.window = window

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """See `Likelihood.check_shape`.

        Raises:
            ValueError: If both axes have less than 6 values, too few for any window.
        """
        self._scales(*image_shape[1:])

    def _scales(self, height: int, width: int) -> _Scales:
        windows = _window(height, self.window), _window(width, self.window)
        used = [(n, w) for n, w in zip((height, width), windows, strict=True) if w > 1]
        if not used:
            raise ValueError(
                f"MSSSIM compares windows of at least 3 values, and images of {height}x{width} are "
                "too small for them: choose another likelihood, such as Gaussian"
            )
        count = 1
        while count < len(_WEIGHTS) and all(n >> count >= w for n, w in used):
            count += 1
        return _Scales(windows, count)

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the multi-scale structural similarity of each channel.

        Args:
            x: Images in [0, 1], (..., C, H, W).
            y: Others, of a shape that broadcasts with it.

        Returns:
            (..., C), above 0, and 1 for equal images.

        Raises:
            ValueError: If the images are too small.
        """
        x, y = torch.broadcast_tensors(x.float(), y.float())
        windows, count = self._scales(x.shape[-2], x.shape[-1])
        total = sum(_WEIGHTS[:count])
        kernels = [_gaussian(length) for length in windows]
        log_similarity = torch.zeros(x.shape[:-2], device=x.device)
        for j in range(count):
            luminance, structure = _compare(x, y, kernels)
            is_last = j == count - 1
            scale = (luminance * structure if is_last else structure).mean((-2, -1))
            log_similarity = log_similarity + _WEIGHTS[j] / total * _positive(scale).log()
            if not is_last:
                x, y = _halve(x, windows), _halve(y, windows)
        return log_similarity.exp()

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return minus the loss, (...): no log-probability, see `Likelihood.log_prob`."""
        loss = 1 - self.similarity(self.mean(params), x)
        return -self.weight * math.prod(x.shape[-2:]) * loss.sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the image that is compared, see `Likelihood.mean`."""
        return params.float().sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Likelihood.sample`; there is nothing to draw from.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "MSSSIM is a loss and not a distribution of pixels, so they cannot be drawn: use the "
            "decoded image itself"
        )

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; clipped to [0.001, 0.999]."""
        return mean.logit(eps=1e-3)


def _window(n: int, largest: int) -> int:
    """Return the length of the window along an axis: odd, and at most half of it."""
    half = n // 2
    return max(1, min(largest, half - 1 + half % 2))


def _gaussian(length: int) -> list[float]:
    """Return a Gaussian window that sums to 1; with 11 values, its standard deviation is 1.5."""
    deviation = 1.5 * length / 11
    weights = [math.exp(-0.5 * ((i - length // 2) / deviation) ** 2) for i in range(length)]
    return [weight / sum(weights) for weight in weights]


def _compare(x: Tensor, y: Tensor, kernels: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Return the similarities of means and of contrast and structure, at each window."""
    moments = torch.stack([x, y, x * x, y * y, x * y])
    for dim, kernel in zip((-2, -1), kernels, strict=True):
        # Sums, because convolutions on a GPU would round to ten bits and the variances be lost.
        size = moments.shape[dim] - len(kernel) + 1
        blurred = kernel[0] * moments.narrow(dim, 0, size)
        for i, weight in enumerate(kernel[1:], 1):
            blurred = torch.add(blurred, moments.narrow(dim, i, size), alpha=weight)
        moments = blurred
    mu_x, mu_y, xx, yy, xy = moments
    product, squares = mu_x * mu_y, mu_x.square() + mu_y.square()
    luminance = (2 * product + _C_1) / (squares + _C_1)
    structure = (2 * (xy - product) + _C_2) / (xx + yy - squares + _C_2)
    return luminance, structure


def _positive(x: Tensor) -> Tensor:
    """Return values with those below `_SMALLEST` continued by a hyperbola, always positive."""
    return torch.where(x > _SMALLEST, x, _SMALLEST**2 / (2 * _SMALLEST - x.clamp(max=_SMALLEST)))


def _halve(x: Tensor, windows: tuple[int, int]) -> Tensor:
    """Average pairs of neighbors along the axes that are compared."""
    for dim, window in zip((-2, -1), windows, strict=True):
        if window > 1:
            even = x.shape[dim] // 2 * 2
            x = x.narrow(dim, 0, even).unflatten(dim, (even // 2, 2)).mean(dim)
    return x
