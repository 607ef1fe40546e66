"""Doubly reparameterized gradient (Tucker et al., 2019), https://arxiv.org/abs/1810.04152."""

from typing import Any, Literal

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import Draws, GaussianPosterior, LatentDistribution
from vae_lightning.functional import with_gradient_of
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.models.iwae import IWAE, IWAETerms, reweight_gradient
from vae_lightning.randomness import Noise

Estimator = Literal["dreg", "stl"]


class DReG(IWAE):
    r"""IWAE whose encoder follows another estimate of the same gradient, with less noise.

    The bound, the decoder and the prior are those of `IWAE`. The gradient of log q(z|x) with
    respect to its own parameters is zero on average, or equal on average to a gradient on the way
    through z. Without it, the encoder's gradient is

    .. math:: \sum_k \tilde w_k^2 \, \frac{\partial \log w_k}{\partial z_k}
        \frac{\partial z_k}{\partial \phi}, \quad w_k = \frac{p(x, z_k)}{q(z_k|x)}, \quad
        \tilde w_k = \frac{w_k}{\sum_j w_j}

    which is unbiased. The noise of IWAE's own estimate hides the encoder's gradient as K grows;
    this one gets better. Use it instead of `IWAE` wherever q(z|x) can be evaluated at any z, such
    as Gaussians. With K = 1, it is the gradient of the ELBO without the score of q(z|x).

    Args:
        estimator: ``dreg``, or ``stl`` ("sticking the landing"), which has the weights
            :math:`\tilde w_k` instead of their squares. It is biased unless K = 1.
        **kwargs: See `IWAE`.

    Raises:
        MissingCapabilityError: If q(z|x) cannot be evaluated at any z, as that of most flows.
        ValueError: If there is no such estimator.

    References:
        Tucker et al. (2019), Doubly reparameterized gradient estimators for Monte Carlo objectives,
        https://arxiv.org/abs/1810.04152
        Roeder et al. (2017), Sticking the landing, https://arxiv.org/abs/1703.09194

    Example:
        >>> DReG(num_samples=5, latent_dim=2).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(self, estimator: Estimator = "dreg", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if estimator not in ("dreg", "stl"):
            raise ValueError(f"estimator must be dreg or stl, got {estimator!r}")
        if not self.has_posterior_density:
            family = type(self.posterior_family)
            remedy = f"choose another posterior than {family.__name__}, such as GaussianPosterior"
            if family is GaussianPosterior:  # the draws are moved on, or there are several levels
                remedy = "its posterior is more than a GaussianPosterior"
            raise MissingCapabilityError(
                type(self).__name__, Capability.POSTERIOR_DENSITY, f"{remedy}, or choose IWAE"
            )
        self.estimator: Estimator = estimator

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> IWAETerms:
        """See `BaseVAE.terms`; ``negative_iwae_bound`` has the gradients that are trained on."""
        features = self.posterior_features(x, condition)
        q: LatentDistribution = self.posterior_family(features)
        draws = q.rsample(noise, self.num_draws)
        z = draws.z.view_as(draws.z)

        def log_prob() -> Tensor:
            log_q = self._fixed_posterior(features).log_prob(z)
            assert log_q is not None
            return with_gradient_of(log_q, value=draws.log_prob)

        # Gradients of the bound now have the weights w / sum w, and reach the encoder by z only.
        weights = self.weigh(x, Draws(z, log_prob), condition)
        if self.estimator == "dreg":
            reweight_gradient(z, weights.log_weights.detach().softmax(1))
        return IWAETerms(**self.iwae_terms(q, draws, weights, condition))

    def _fixed_posterior(self, features: Tensor) -> LatentDistribution:
        """Return q(z|x) of the same values, without gradients to its parameters."""
        family = self.posterior_family
        named = {**dict(family.named_parameters()), **dict(family.named_buffers())}
        frozen = {name: value.detach() for name, value in named.items()}
        q: LatentDistribution = torch.func.functional_call(family, frozen, (features.detach(),))
        return q
