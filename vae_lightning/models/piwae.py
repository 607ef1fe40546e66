"""PIWAE (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537."""

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import Draws
from vae_lightning.functional import with_gradient_of
from vae_lightning.models.iwae import IWAETerms, reweight_gradient
from vae_lightning.models.miwae import MIWAE, MIWAETerms
from vae_lightning.models.vae import ELBOTerms
from vae_lightning.randomness import Noise

_SMALLEST_WEIGHT = 1e-18
"""Weights of the decoder below it are raised to it: next to weights that sum to 1, it is less than
rounding. It bounds the factor by which the gradients of the latents are multiplied."""


class PIWAE(MIWAE):
    r"""VAE whose decoder is trained on one bound of M K samples, its encoder on M bounds of K.

    The decoder and the prior follow the gradient of the bound of `IWAE` with all draws, which is
    tight. What lies on the way through the draws and through log q(z|x) follows the gradient of
    `MIWAE`, which is less noisy:

    .. math:: \nabla_\theta \log \frac{1}{M K} \sum_{mk} w_{mk}, \quad
        \nabla_\phi \frac{1}{M} \sum_m \log \frac{1}{K} \sum_k w_{mk}

    Both are weighted sums of the same gradients, :math:`\nabla \log w_{mk}`, and are computed in
    one backward pass: with the normalized weights of the first bound in the decoder, and on the way
    from its input to the encoder with those of the second one. A step is as fast as one of `IWAE`.

    Use it where `IWAE` would be used with many samples. M = 1 is `IWAE`. The reported loss is the
    bound with all draws.

    Args:
        **kwargs: See `MIWAE`.

    Raises:
        ValueError: In training with 16-bit floats of a small range (``16-mixed``).

    References:
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better,
        https://arxiv.org/abs/1802.04537

    Example:
        >>> PIWAE(num_bounds=4, num_samples=16, latent_dim=2).num_draws
        64
    """

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> MIWAETerms:
        """See `BaseVAE.terms`; ``negative_iwae_bound`` has the gradients that are trained on."""
        self._check_precision(x)
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_draws)
        levels = (draws.z,) if isinstance(draws.z, Tensor) else draws.z
        levels = tuple(level.view_as(level) for level in levels)
        z = levels[0] if isinstance(draws.z, Tensor) else levels
        log_q = draws.log_prob.view_as(draws.log_prob)
        weights = self.weigh(x, Draws(z, lambda: log_q), condition)
        named = self.iwae_terms(q, draws, weights, condition)
        bound = self.mean_bound(weights.log_weights)

        values = weights.log_weights.detach()
        of_decoder = values.softmax(1).clamp(min=_SMALLEST_WEIGHT)
        groups = values.unflatten(1, (self.num_bounds, self.num_samples))
        of_encoder = groups.softmax(2).flatten(1) / self.num_bounds
        for tensor in (*levels, log_q):
            reweight_gradient(tensor, of_encoder / of_decoder)
        tight = with_gradient_of(
            -(of_decoder * weights.log_weights).sum(1), value=named["negative_iwae_bound"]
        )
        return MIWAETerms(**{**named, "negative_iwae_bound": tight}, negative_miwae_bound=-bound)

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the negative bound with all draws, (B,)."""
        assert isinstance(terms, IWAETerms)
        return terms.negative_iwae_bound

    def _check_precision(self, x: Tensor) -> None:
        device = x.device.type
        mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        if torch.is_grad_enabled() and torch.float16 in (mixed, self.dtype):
            raise ValueError(
                f"{type(self).__name__} scales gradients by more orders of magnitude than "
                "float16 has: train with precision bf16-mixed or 32 instead of 16-mixed"
            )
