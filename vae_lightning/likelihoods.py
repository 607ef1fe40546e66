"""Likelihoods p(x|z): what a decoder's output means.

A decoder returns raw parameters (logits, means), never probabilities; only `Likelihood.mean`
makes an image of them. Log-probabilities are computed in float32, also under mixed precision.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vae_lightning.functional import softplus


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

        Leading dimensions are broadcast: params (B, K, ...) and images (B, 1, ...) give (B, K).

        Args:
            params: What the decoder returned, (..., n_params * C, H, W).
            x: Images in [0, 1], (..., C, H, W).

        Returns:
            (...), float32.
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The mean of p(x|z) as an image in [0, 1], (B, C, H, W), float32."""

    @abstractmethod
    def params_at(self, mean: Tensor) -> Tensor:
        """Parameters whose `mean` is about an image in [0, 1], (C, H, W) -> (n_params * C, H, W).

        Where a decoder starts that knows nothing of z yet; a finite start for any image.
        """


def _sum(x: Tensor) -> Tensor:
    return x.flatten(-3).sum(-1)


class Bernoulli(Likelihood):
    r"""Independent pixels in {0, 1}; the decoder returns logits.

    .. math:: \log p(x|z) = \sum_i x_i \log p_i + (1 - x_i) \log(1 - p_i)

    On grey pixels this is a cross-entropy, still a useful loss, but **not** a log-likelihood:
    its values must not be compared with those of binary images or of another likelihood.
    """

    binary = True

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        logits = params.float()
        # log p = x logit - log(1 + exp(logit)); summed last, so that no digits are lost.
        return -_sum(torch.addcmul(softplus(logits), logits, x.float(), value=-1))

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return params.float().sigmoid()

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; as Burda et al. (2016), no closer to 0 or 1 than 0.001."""
        return mean.logit(eps=1e-3)


class ContinuousBernoulli(Likelihood):
    r"""Independent pixels in [0, 1] with a density; the decoder returns logits.

    .. math:: \log p(x|z) = \sum_i x_i l_i - \log \frac{e^{l_i} - 1}{l_i}

    The Bernoulli's cross-entropy, with the constant that makes a density of it.

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in
        variational autoencoders, https://arxiv.org/abs/1907.06845
    """

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        logits = params.float()
        # log (e^l - 1) / l = l / 2 + an even function of l, which at 0 needs its series.
        small = logits.abs() < 0.1
        size = torch.where(small, 1.0, logits.abs())
        even = torch.where(
            small,
            logits.square() / 24 - logits.pow(4) / 2880,
            size / 2 + (-torch.expm1(-size) / size).log(),
        )
        return _sum(logits * (x.float() - 0.5) - even)

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        logits = params.float()
        small = logits.abs() < 0.1
        safe = torch.where(small, 1.0, logits)
        series = 0.5 + logits / 12 - logits**3 / 720
        return torch.where(small, series, 1 / -torch.expm1(-safe) - 1 / safe).clamp(0, 1)

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; no closer to 0 or 1 than 0.001."""
        wanted = mean.clamp(1e-3, 1 - 1e-3)
        low, high = torch.full_like(mean, -1001.0), torch.full_like(mean, 1001.0)
        for _ in range(40):  # the mean has no inverse in closed form: bisection
            middle = (low + high) / 2
            below = self.mean(middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class Gaussian(Likelihood):
    r"""Independent pixels with one standard deviation; the decoder returns means.

    .. math:: \log p(x|z) = -\sum_i \frac{(x_i - \mu_i)^2}{2 \sigma^2}
        - \frac{D}{2} \log(2 \pi \sigma^2)

    A normalised density, so its log can be positive. With sigma = 1 the loss is half the squared
    error plus a constant; smaller values ask for sharper reconstructions.

    Args:
        sigma: Standard deviation, on the scale of pixels in [0, 1].
        learn_sigma: Whether sigma is a parameter, shared by all pixels, that starts there.

    Attributes:
        log_sigma: Logarithm of the standard deviation; a parameter if it is learnt.

    Raises:
        ValueError: If ``sigma`` is not positive.

    References:
        Rybkin et al. (2021), Simple and effective VAE training with calibrated decoders (learnt
        sigma), https://arxiv.org/abs/2006.13202
    """

    def __init__(self, sigma: float = 0.1, learn_sigma: bool = False) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"Gaussian: sigma must be positive, got {sigma}")
        # A number where it is fixed: a buffer would be broadcast at every step of DDP.
        self.log_sigma: nn.Parameter | float = math.log(sigma)
        if learn_sigma:
            self.log_sigma = nn.Parameter(torch.tensor(self.log_sigma))

    @property
    def sigma(self) -> float:
        """Standard deviation, on the scale of pixels in [0, 1]."""
        return math.exp(float(torch.as_tensor(self.log_sigma).detach()))

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        error = _sum((x.float() - params.float()).square())
        log_sigma: float | Tensor = self.log_sigma
        if isinstance(log_sigma, Tensor):
            log_sigma = log_sigma.float()
            precision: float | Tensor = (-2 * log_sigma).exp()
        else:
            precision = math.exp(-2 * log_sigma)
        pixels = math.prod(x.shape[-3:])
        return -0.5 * error * precision - pixels * (log_sigma + 0.5 * math.log(2 * math.pi))

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`; means outside [0, 1] are clipped."""
        return params.float().clamp(0, 1)

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`."""
        return mean


class DiscretizedLogistic(Likelihood):
    r"""Independent pixels with 256 values; the decoder returns the means and log-scales.

    The probability of the value k / 255 is what a logistic distribution has between (k - 1/2) / 255
    and (k + 1/2) / 255; the first and the last value also have all that lies beyond them.

    Args:
        min_log_scale: Log-scales, on the scale of pixels in [0, 1], are kept above it. exp(-7) is
            a quarter of a grey level.

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        https://arxiv.org/abs/1606.04934
        Salimans et al. (2017), PixelCNN++, https://arxiv.org/abs/1701.05517
    """

    n_params = 2

    def __init__(self, min_log_scale: float = -7.0) -> None:
        super().__init__()
        self.min_log_scale = min_log_scale

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_scale = params.float().chunk(2, dim=-3)
        # softplus, not a clamp: below the bound there would be no gradient.
        return mu, self.min_log_scale + softplus(log_scale - self.min_log_scale)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        mu, log_scale = self._split(params)
        x = x.float()
        inverse = (-log_scale).exp()
        above, below = (x + 0.5 / 255 - mu) * inverse, (x - 0.5 / 255 - mu) * inverse
        # s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)) for the sigmoid s: no difference of equals.
        width = inverse / 255
        small = width < 1e-3
        log_width = torch.where(
            small,
            -log_scale - math.log(255) - width / 2,
            (-torch.expm1(-torch.where(small, 1.0, width))).log(),
        )
        log_above = torch.where(x > 1 - 0.5 / 255, 0.0, -softplus(-above))
        log_below = torch.where(x < 0.5 / 255, 0.0, -softplus(below))
        inside = (x > 0.5 / 255) & (x < 1 - 0.5 / 255)
        return _sum(log_above + log_below + torch.where(inside, log_width, 0.0))

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`: that of the logistic, clipped to [0, 1]."""
        return self._split(params)[0].clamp(0, 1)

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; with a scale of some 30 grey levels."""
        return torch.cat([mean, torch.full_like(mean, -2.0)])
