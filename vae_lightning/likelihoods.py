"""Likelihoods p(x|z): what a decoder's output means.

A decoder returns raw parameters (logits, means), never probabilities; only `Likelihood.mean`
makes an image of them. Log-probabilities are computed in float32, also under mixed precision.
"""

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class Likelihood(nn.Module, ABC):
    """A distribution over images, given what a decoder returns.

    Attributes:
        n_params: Parameters per pixel and channel; a decoder for images with C channels has
            ``n_params * C`` output channels.
        binary: Whether it is a distribution of {0, 1}-valued pixels only.
    """

    n_params: int = 1
    binary: bool = False

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log p(x|z) in nats, summed over channels and pixels.

        Args:
            params: What the decoder returned, (B, n_params * C, H, W).
            x: Images in [0, 1], (B, C, H, W).

        Returns:
            (B,), float32.
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The mean of p(x|z) as an image in [0, 1], (B, C, H, W), float32."""


class Bernoulli(Likelihood):
    r"""Independent pixels in {0, 1}; the decoder returns logits.

    .. math:: \log p(x|z) = \sum_i x_i \log p_i + (1 - x_i) \log(1 - p_i)

    On grey pixels this is a cross-entropy, still a useful loss, but **not** a log-likelihood:
    its values must not be compared with those of binary images or of another likelihood.
    """

    binary = True

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        nats = binary_cross_entropy_with_logits(params.float(), x.float(), reduction="none")
        return -nats.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return params.float().sigmoid()


class Gaussian(Likelihood):
    r"""Independent pixels with a fixed standard deviation; the decoder returns means.

    .. math:: \log p(x|z) = -\sum_i \frac{(x_i - \mu_i)^2}{2 \sigma^2}
        - \frac{D}{2} \log(2 \pi \sigma^2)

    A normalised density, so its log can be positive. With sigma = 1 the loss is half the squared
    error plus a constant; smaller values ask for sharper reconstructions.

    Args:
        sigma: Standard deviation, on the scale of pixels in [0, 1].

    Raises:
        ValueError: If ``sigma`` is not positive.
    """

    def __init__(self, sigma: float = 0.1) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"Gaussian: sigma must be positive, got {sigma}")
        self.sigma = sigma

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        squared_error = (x.float() - params.float()).square().flatten(1)
        log_normaliser = 0.5 * math.log(2 * math.pi * self.sigma**2) * squared_error.shape[1]
        return -squared_error.sum(1) / (2 * self.sigma**2) - log_normaliser

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`; means outside [0, 1] are clipped."""
        return params.float().clamp(0, 1)
