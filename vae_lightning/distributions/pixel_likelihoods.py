"""Likelihoods of pixels with 256 values that can have several modes."""

import torch
from torch import Tensor

from vae_lightning.distributions.likelihoods import Likelihood, sum_pixels, uniform_like
from vae_lightning.distributions.logistic import (
    bounded_log_scale,
    clipped_mean,
    log_discretized_logistic,
    mu_of_clipped_mean,
)

_UNIFORM_SHARE = 1e-3
"""Share of a uniform distribution in the one that `Categorical256` starts with."""


class MixtureOfLogistics(Likelihood):
    r"""Independent pixels with 256 values, each from a mixture of discretized logistics.

    .. math:: p(x|z) = \prod_i \sum_{k=1}^K \pi_{ik} \left[
        s\left(\frac{x_i + 1/510 - \mu_{ik}}{s_{ik}}\right) -
        s\left(\frac{x_i - 1/510 - \mu_{ik}}{s_{ik}}\right) \right]

    The decoder returns logits, means and log-scales of K components for each pixel and channel. The
    first and the last value include the tails, as in `DiscretizedLogistic`, the case of K = 1. Use
    it for photographs, where a pixel is on one side of an edge or on the other.

    The channels of a pixel are independent, given z. In PixelCNN++, they share the component, and
    the means of green and blue depend on the channels before. That fits colors better, but then
    the mean of a pixel has no closed form; here, the latents have to agree on a color.

    Args:
        components: Number of components K.
        min_log_scale: Lower bound of the log-scales, on the scale of pixels in [0, 1]. exp(-7) is
            about a quarter of a gray level.

    Raises:
        ValueError: If ``components`` is not positive.

    References:
        Salimans et al. (2017), PixelCNN++, https://arxiv.org/abs/1701.05517

    Example:
        >>> MixtureOfLogistics(components=5).mean(torch.zeros(1, 3 * 5 * 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    bounded = True
    num_values = 256

    def __init__(self, components: int = 10, min_log_scale: float = -7.0) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"MixtureOfLogistics: components must be positive, got {components}")
        self.components = components
        self.min_log_scale = min_log_scale
        self.n_params = 3 * components

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of the weights, means and log-scales, each (..., K, C, H, W)."""
        parts = params.float().chunk(3, dim=-3)
        channels = params.shape[-3] // self.n_params
        logits, mu, log_scale = (part.unflatten(-3, (self.components, channels)) for part in parts)
        return logits, mu, bounded_log_scale(log_scale, self.min_log_scale)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`."""
        logits, mu, log_scale = self._split(params)
        log_p = log_discretized_logistic(x.float().unsqueeze(-4), mu, log_scale)
        return sum_pixels((logits.log_softmax(-4) + log_p).logsumexp(-4))

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`.

        The mean of the mixture of logistics after clipping draws to [0, 1]. With the default
        ``min_log_scale``, rounding to the 256 values changes it by less than a tenth of a gray
        level.
        """
        logits, mu, log_scale = self._split(params)
        return (logits.softmax(-4) * clipped_mean(mu, log_scale)).sum(-4).clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Likelihood.sample`; pixels are one of the 256 values k / 255."""
        logits, mu, log_scale = self._split(params)
        chosen = _draw_index(logits, generator)
        mu, log_scale = (part.gather(-4, chosen).squeeze(-4) for part in (mu, log_scale))
        x = mu + log_scale.exp() * uniform_like(mu, generator).clamp(min=2.0**-25).logit()
        return (x * 255).round().clamp(0, 255) / 255

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`; equal weights, and scales from about 35 to 5 gray levels."""
        log_scale = torch.linspace(-2, -4, self.components).view(-1, 1, 1, 1).to(mean)
        log_scale = log_scale.expand(-1, *mean.shape)
        mu = mu_of_clipped_mean(mean, bounded_log_scale(log_scale, self.min_log_scale))
        parts = torch.zeros_like(mu), mu, log_scale
        return torch.cat([part.flatten(0, 1) for part in parts])


class Categorical256(Likelihood):
    r"""Independent pixels with 256 values, each with a probability of its own.

    .. math:: \log p(x|z) = \sum_i l_{i, x_i} - \log \sum_{k=0}^{255} e^{l_{ik}}

    The decoder returns 256 logits for each pixel and channel, as in PixelRNN. Every distribution of
    a pixel can be learned, but the model is not told that neighboring gray values are similar: it
    takes more data, memory and time than `MixtureOfLogistics`. Use it for small images with few
    values, or values without an order, such as palettes. The channels are independent, given z.

    References:
        van den Oord et al. (2016), Pixel recurrent neural networks,
        https://arxiv.org/abs/1601.06759

    Example:
        >>> x = torch.tensor([51, 255]).view(1, 1, 1, 2) / 255
        >>> Categorical256().log_prob(torch.zeros(1, 256, 1, 2), x) / torch.log(torch.tensor(2.0))
        tensor([-16.])
    """

    n_params = 256
    bounded = True
    num_values = 256

    def _logits(self, params: Tensor) -> Tensor:
        """Return logits, (..., 256, C, H, W)."""
        channels = params.shape[-3] // self.n_params
        return params.float().unflatten(-3, (self.n_params, channels))

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """See `Likelihood.log_prob`; values between those of 8 bits count as the nearest one."""
        log_p = self._logits(params).log_softmax(-4)
        chosen = (x.float() * 255).round().clamp(0, 255).long().unsqueeze(-4)
        shape = torch.broadcast_shapes(log_p.shape[:-4], chosen.shape[:-4])
        log_p = log_p.expand(*shape, *log_p.shape[-4:])
        return sum_pixels(log_p.gather(-4, chosen.expand(*shape, *chosen.shape[-4:])).squeeze(-4))

    def mean(self, params: Tensor) -> Tensor:
        """See `Likelihood.mean`."""
        p = self._logits(params).softmax(-4)
        values = torch.arange(256, device=p.device).view(-1, 1, 1, 1) / 255
        return (p * values).sum(-4).clamp(0, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Likelihood.sample`; pixels are one of the 256 values k / 255."""
        return _draw_index(self._logits(params), generator).squeeze(-4) / 255

    def params_at(self, mean: Tensor) -> Tensor:
        """See `Likelihood.params_at`.

        Log-probabilities that are linear in the value: of all distributions with this mean, the one
        with the largest entropy. A small uniform share keeps every value possible.
        """
        wanted = mean.clamp(0.5 * _UNIFORM_SHARE, 1 - 0.5 * _UNIFORM_SHARE)
        values = (torch.arange(256).view(-1, 1, 1, 1) / 255).to(mean)
        low, high = torch.full_like(mean, -3000.0), torch.full_like(mean, 3000.0)
        for _ in range(50):  # bisection, because the mean has no inverse in closed form
            middle = (low + high) / 2
            below = ((middle * values).softmax(0) * values).sum(0) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        p = ((low + high) / 2 * values).softmax(0)
        return torch.lerp(p, torch.full_like(p, 1 / 256), _UNIFORM_SHARE).log().flatten(0, 1)


def _draw_index(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw an index with given logits, (..., N, C, H, W) -> int64, (..., 1, C, H, W)."""
    total = logits.softmax(-4).cumsum(-4)
    threshold = uniform_like(total[..., :1, :, :, :], generator) * total[..., -1:, :, :, :]
    return (total <= threshold).sum(-4, keepdim=True).clamp(max=logits.shape[-4] - 1)
