"""Likelihoods p(x|z).

A decoder returns raw parameters, such as logits. `Likelihood.mean` and `Likelihood.sample` convert
them to images. All computations are in float32, also under mixed precision.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vae_lightning.distributions.logistic import (
    bounded_log_scale,
    clipped_mean,
    log_discretized_logistic,
    mu_of_clipped_mean,
)
from vae_lightning.distributions.priors import TrainingImages
from vae_lightning.functional import soft_clamp, softplus

_IMAGES_FOR_SIGMA = 1000


class Likelihood(nn.Module, ABC):
    """Distribution over images, given the output of a decoder.

    Attributes:
        n_params: Number of parameters per pixel and channel. A decoder for images with C channels
            has ``n_params * C`` output channels.
        binary: Whether pixels must be 0 or 1.
        bounded: Whether values must be in [0, 1].
        num_values: Number of values that a pixel can have, if `log_prob` is a log-probability; None
            if it is a log-density. Compare only likelihoods with the same ``num_values``.
        normalized: Whether `log_prob` is a log-density or log-probability. Otherwise, it is a
            negative loss, and all results are labeled with ``loss_name``.
        loss_name: Name under which minus `log_prob` is reported if it is not normalized.
    """

    n_params: int = 1
    binary: bool = False
    bounded: bool = False
    num_values: int | None = None
    normalized: bool = True
    loss_name: str = "loss"

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), summed over channels and pixels.

        Leading dimensions are broadcast: params (B, K, ...) and images (B, 1, ...) give (B, K).

        Args:
            params: Output of the decoder, (..., n_params * C, H, W).
            x: Images in [0, 1], (..., C, H, W).

        Returns:
            Nats, float32, (...).
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Return the mean of p(x|z).

        Args:
            params: Output of the decoder, (..., n_params * C, H, W).

        Returns:
            Images, float32, (..., C, H, W). Models whose data are in [0, 1] clip them.
        """

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw images from p(x|z), with independent noise in every pixel.

        Args:
            params: Output of the decoder, (..., n_params * C, H, W).
            generator: Random number generator on any device; by default torch's global one.

        Returns:
            Images, float32, (..., C, H, W), in the support of the distribution.

        Raises:
            ValueError: If it is a loss and no distribution.
        """

    @abstractmethod
    def params_at(self, mean: Tensor) -> Tensor:
        """Return parameters whose `mean` is approximately a given image.

        They initialize the bias of a decoder and are finite for any image.

        Args:
            mean: Image, (C, H, W).

        Returns:
            Parameters, (n_params * C, H, W).
        """

    def init_from_data(self, images: TrainingImages) -> None:
        """Initialize what depends on the training images; called before the first update."""

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Check that images have a shape for which the likelihood is defined; any shape is.

        Args:
            image_shape: Shape of an image, (C, H, W).

        Raises:
            ValueError: If they do not.
        """


def sum_pixels(x: Tensor) -> Tensor:
    """Sum over channels and pixels, (..., C, H, W) -> (...)."""
    return x.flatten(-3).sum(-1)


def uniform_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw float32 numbers in [0, 1) in the shape of ``x`` and move them to its device."""
    device = x.device if generator is None else generator.device
    return torch.rand(x.shape, generator=generator, device=device, dtype=torch.float32).to(x.device)


class Bernoulli(Likelihood):
    r"""Independent pixels in {0, 1}. The decoder returns logits.

    .. math:: \log p(x|z) = \sum_i x_i \log p_i + (1 - x_i) \log(1 - p_i)

    For gray pixels this is a cross-entropy: a useful loss, but **not** a log-likelihood. Do not
    compare its values with those of binary images or of other likelihoods.

    Example:
        >>> logits = torch.zeros(1, 1, 2, 2)
        >>> Bernoulli().log_prob(logits, torch.ones(1, 1, 2, 2)) / math.log(2)
        tensor([-4.])
    """

    binary = True
    bounded = True
    num_values = 2
    loss_name = "cross-entropy"

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        logits = params.float()
        # log p = x logit - log(1 + exp(logit)), summed last for accuracy.
        return -sum_pixels(torch.addcmul(softplus(logits), logits, x.float(), value=-1))

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return params.float().sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Likelihood.sample`; pixels are 0 or 1."""
        mean = self.mean(params)
        return (uniform_like(mean, generator) < mean).float()

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; clipped to [0.001, 0.999] as in Burda et al. (2016)."""
        return mean.logit(eps=1e-3)


class ContinuousBernoulli(Likelihood):
    r"""Independent pixels with a density on [0, 1]. The decoder returns logits.

    .. math:: \log p(x|z) = \sum_i x_i l_i - \log \frac{e^{l_i} - 1}{l_i}

    This is the cross-entropy of `Bernoulli` with the constant that normalizes it.

    Example:
        >>> x = torch.rand(1, 1, 2, 2)
        >>> ContinuousBernoulli().log_prob(torch.zeros(1, 1, 2, 2), x).abs()  # uniform density
        tensor([0.])

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in
        variational autoencoders, https://arxiv.org/abs/1907.06845
    """

    bounded = True

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        logits = params.float()
        # log (e^l - 1) / l = l / 2 + an even function of l, which needs its series near 0.
        small = logits.abs() < 0.1
        size = torch.where(small, 1.0, logits.abs())
        near = torch.where(small, logits, 0.0)  # no branch overflows, for the sake of gradients
        even = torch.where(
            small,
            near.square() / 24 - near.pow(4) / 2880,
            size / 2 + (-torch.expm1(-size) / size).log(),
        )
        return sum_pixels(logits * (x.float() - 0.5) - even)

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        logits = params.float()
        small = logits.abs() < 0.1
        near = torch.where(small, logits, 0.0)
        series = 0.5 + near / 12 - near**3 / 720
        # The mean for -|l|; that for |l| is 1 minus it.
        size = torch.where(small, 1.0, logits.abs())
        low = 1 / size - (-size).exp() / -torch.expm1(-size)
        return torch.where(small, series, torch.where(logits > 0, 1 - low, low)).clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Likelihood.sample`; computed by the inverse of the distribution function."""
        logits = params.float()
        # F(x) = (e^(l x) - 1) / (e^l - 1) is inverted for l < 0, where nothing overflows; for
        # l > 0, 1 - x has the logit -l. The bound avoids 0 / 0 and changes x by less than 1e-6.
        negative = -logits.abs().clamp(min=1e-6)
        uniform = uniform_like(logits, generator)
        x = (torch.log1p(uniform * torch.expm1(negative)) / negative).clamp(0, 1)
        return torch.where(logits > 0, 1 - x, x)

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; clipped to [0.001, 0.999]."""
        wanted = mean.clamp(1e-3, 1 - 1e-3)
        low, high = torch.full_like(mean, -1001.0), torch.full_like(mean, 1001.0)
        for _ in range(40):  # bisection, because the mean has no inverse in closed form
            middle = (low + high) / 2
            below = self.mean(middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class LocationScale(Likelihood):
    r"""Independent real pixels with a common standard deviation sigma. The decoder returns means.

    .. math:: p(x|z) = \prod_i \frac{1}{\sigma} f\left(\frac{x_i - \mu_i}{\sigma}\right)

    Subclasses define a density f with mean 0 and variance 1.

    Args:
        sigma: Standard deviation on the scale that the model sees: pixels in [0, 1], or scaled
            values. None for a learned one that starts at a third of the standard deviation of the
            training values around their mean.
        learn_sigma: Whether sigma is a learned parameter, shared by all pixels and initialized to
            ``sigma``. Its logarithm is bounded smoothly to +-40, which no pixels need.

    Attributes:
        log_sigma: Logarithm of the standard deviation; a parameter if it is learned.

    Raises:
        ValueError: If ``sigma`` is not positive, or None and not learned.
    """

    def __init__(self, sigma: float | None = 0.1, learn_sigma: bool = False) -> None:
        super().__init__()
        name = type(self).__name__
        self.starts_from_data = sigma is None
        if sigma is None:
            if not learn_sigma:
                raise ValueError(f"{name}: sigma may be None only with learn_sigma")
            sigma = 0.1
        if not sigma > 0:
            raise ValueError(f"{name}: sigma must be positive, got {sigma}")
        # A number if it is fixed, because DDP would broadcast a buffer at every step.
        self.log_sigma: nn.Parameter | float = math.log(sigma)
        if learn_sigma:
            self.log_sigma = nn.Parameter(torch.tensor(self.log_sigma))

    @abstractmethod
    def energy(self, error: Tensor, precision: Tensor | float) -> Tensor:
        """Return the sum over the pixels of -log f(error / sigma) - `log_constant`.

        Args:
            error: x - mu, float32, (..., C, H, W).
            precision: 1 / sigma, positive, ().

        Returns:
            (...).
        """

    @property
    @abstractmethod
    def log_constant(self) -> float:
        """What is added to `energy` for each pixel, so that f integrates to 1."""

    @abstractmethod
    def standard_noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw from f, float32, in the shape of ``like`` and on its device."""

    def init_from_data(self, images: TrainingImages) -> None:
        """See `Likelihood.init_from_data`."""
        if self.starts_from_data:
            x = images.random_images(_IMAGES_FOR_SIGMA, 0).double()
            spread = (x - x.mean(0)).square().mean().sqrt().item() / 3
            assert isinstance(self.log_sigma, nn.Parameter)
            self.log_sigma.data.fill_(math.log(max(spread, 1e-3)))

    @property
    def sigma(self) -> float:
        """Standard deviation on the scale that the model sees."""
        return math.exp(float(torch.as_tensor(self._bounded_log_sigma()).detach()))

    def _bounded_log_sigma(self) -> float | Tensor:
        """Return the logarithm of sigma, bounded smoothly if it is learned."""
        if isinstance(self.log_sigma, Tensor):
            return soft_clamp(self.log_sigma.float())
        return self.log_sigma

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        log_sigma = self._bounded_log_sigma()
        if isinstance(log_sigma, Tensor):
            precision: float | Tensor = (-log_sigma).exp()
        else:
            precision = math.exp(-log_sigma)
        energy = self.energy(x.float() - params.float(), precision)
        return -energy - math.prod(x.shape[-3:]) * (log_sigma + self.log_constant)

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        return params.float()

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Likelihood.sample`; draws may be outside [0, 1]."""
        mu = params.float()
        sigma = torch.as_tensor(self._bounded_log_sigma()).float().exp()
        return mu + self.standard_noise(mu, generator) * sigma

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`."""
        return mean


class Gaussian(LocationScale):
    r"""Independent Gaussian pixels with a common standard deviation. The decoder returns means.

    .. math:: \log p(x|z) = -\sum_i \frac{(x_i - \mu_i)^2}{2 \sigma^2}
        - \frac{D}{2} \log(2 \pi \sigma^2)

    The density is normalized, so its log can be positive. With sigma = 1 the loss is half the
    squared error plus a constant. Smaller values give sharper reconstructions. With a learned sigma
    that starts from the data, a VAE is a sigma-VAE: sigma finds the root mean squared error, and no
    weight of the KL term has to be tuned.

    Args:
        sigma: See `LocationScale`.
        learn_sigma: See `LocationScale`.

    References:
        Rybkin et al. (2021), Simple and effective VAE training with calibrated decoders (learned
        sigma), https://arxiv.org/abs/2006.13202

    Example:
        >>> Gaussian(sigma=1.0).log_prob(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        tensor([-0.9189])
    """

    log_constant = 0.5 * math.log(2 * math.pi)

    def energy(self, error: Tensor, precision: Tensor | float) -> Tensor:
        """See `LocationScale.energy`."""
        return 0.5 * sum_pixels(error.square()) * precision**2

    def standard_noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `LocationScale.standard_noise`."""
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(
            like.device
        )


class DiscretizedLogistic(Likelihood):
    r"""Independent pixels with 256 values. The decoder returns the means and log-scales.

    The probability of the value k / 255 is the mass of a logistic distribution between
    (k - 1/2) / 255 and (k + 1/2) / 255. The first and the last value include the tails.

    Args:
        min_log_scale: Lower bound of the log-scales, on the scale of pixels in [0, 1]. exp(-7) is
            about a quarter of a gray level.

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        https://arxiv.org/abs/1606.04934
        Salimans et al. (2017), PixelCNN++, https://arxiv.org/abs/1701.05517

    Example:
        >>> DiscretizedLogistic().mean(torch.zeros(1, 2 * 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    n_params = 2
    bounded = True
    num_values = 256

    def __init__(self, min_log_scale: float = -7.0) -> None:
        super().__init__()
        self.min_log_scale = min_log_scale

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_scale = params.float().chunk(2, dim=-3)
        return mu, bounded_log_scale(log_scale, self.min_log_scale)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        return sum_pixels(log_discretized_logistic(x.float(), *self._split(params)))

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`; of a logistic variable that is clipped to [0, 1]."""
        return clipped_mean(*self._split(params)).clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Likelihood.sample`; pixels are one of the 256 values k / 255."""
        mu, log_scale = self._split(params)
        x = mu + log_scale.exp() * uniform_like(mu, generator).logit()
        return (x * 255).round().clamp(0, 255) / 255

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; the scale is about 35 gray levels."""
        log_scale = torch.full_like(mean, -2.0)
        mu = mu_of_clipped_mean(mean, bounded_log_scale(log_scale, self.min_log_scale))
        return torch.cat([mu, log_scale])
