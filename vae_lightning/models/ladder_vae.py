"""Ladder VAE (Sonderby et al., 2016), https://arxiv.org/abs/1602.02282."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import DiagonalGaussian, Latents
from vae_lightning.functional import softplus
from vae_lightning.models.hierarchy import Choose, check_sizes
from vae_lightning.models.top_down import TopDownVAE

_SLOPE = 0.1
"""Slope of leaky rectifiers below 0."""


class LadderVAE(TopDownVAE):
    r"""VAE with several stochastic layers, whose posterior corrects the prior from the top down.

    A deterministic pass from the image up gives each level a Gaussian
    :math:`N(\hat\mu_l, \hat\sigma_l^2)`, an approximate likelihood of z_l. On the way down, it is
    merged with the prior :math:`p(z_l|z_{l+1}) = N(\mu_l, \sigma_l^2)`, each weighted by its
    precision:

    .. math:: q(z_l|z_{l+1}, x) = N\!\left(\frac{\hat\mu_l \hat\sigma_l^{-2} + \mu_l \sigma_l^{-2}}
        {\hat\sigma_l^{-2} + \sigma_l^{-2}},\;
        \frac{1}{\hat\sigma_l^{-2} + \sigma_l^{-2}}\right), \quad
        q(z_L|x) = N(\hat\mu_L, \hat\sigma_L^2)

    Latents are tuples (z_1, ..., z_L), the lowest level first; the image is decoded from z_1. The
    encoder gives the features from which the pass starts, and the prior is one of z_L. The paper
    has batch normalization in all networks. Here it is layer normalization: with batch
    normalization, a term of an image would depend on the other images of the batch, and samples
    from the prior would be decoded with the statistics of draws from the posterior.

    Use it for likelihoods of small images, and where latents of several levels of abstraction are
    wanted. The upper levels stay unused without a warm-up of the KL term.

    Args:
        latent_dims: Sizes of z_1, ..., z_L.
        widths: Sizes of the two hidden layers of the networks of each level, in both directions.
            The first is the number of features of the encoder.
        normalize: Whether hidden layers have layer normalization.
        schedule: Factor of the KL term over the training, such as `LinearWarmup`.
        **kwargs: See `TopDownVAE` and `VAE`; the posterior is not an option.

    Raises:
        ValueError: If sizes are not positive, or their numbers differ, or a part does not fit.

    References:
        Sonderby et al. (2016), Ladder variational autoencoders, https://arxiv.org/abs/1602.02282

    Example:
        >>> vae = LadderVAE(latent_dims=(8, 4, 2), widths=(64, 32, 16))
        >>> [level.shape[1] for level in vae.embed(torch.rand(3, 1, 28, 28))]
        [8, 4, 2]
    """

    def __init__(
        self,
        latent_dims: Sequence[int] = (64, 32, 16, 8, 4),
        widths: Sequence[int] = (512, 256, 128, 64, 32),
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        check_sizes(type(self).__name__, latent_dims=latent_dims, widths=widths)
        self.level_sizes = tuple(latent_dims)
        self._width = widths[0]
        super().__init__(latent_dim=latent_dims[0], **kwargs)
        self.start = _activation(widths[0], normalize)
        self.up_nets = nn.ModuleList(
            _hidden_layers(before, after, normalize) for before, after in pairwise(widths)
        )
        self.up_heads = nn.ModuleList(
            nn.Linear(width, 2 * size) for width, size in zip(widths, latent_dims, strict=True)
        )
        self.down_nets = nn.ModuleList(
            nn.Sequential(_hidden_layers(above, width, normalize), nn.Linear(width, 2 * size))
            for width, (size, above) in zip(widths[:-1], pairwise(latent_dims), strict=True)
        )
        self.attach_top()

    @property
    def encoder_features(self) -> int:
        """See `LatentVariableModel.encoder_features`."""
        return self._width

    @property
    def decoded_sizes(self) -> tuple[int, ...]:
        """See `Hierarchy.decoded_sizes`: z_1 only."""
        return self.level_sizes[:1]

    def bottom_up(self, x: Tensor, condition: Tensor | None) -> Sequence[Tensor]:
        """Return the parameters of each level's approximate likelihood, each (B, 2 L_l)."""
        hidden = self.start(self.encoder(x, condition))
        found = [self.up_heads[0](hidden)]
        for net, head in zip(self.up_nets, self.up_heads[1:], strict=True):
            hidden = net(hidden)
            found.append(head(hidden))
        return found

    def top_posterior(self, x: Tensor, condition: Tensor | None = None) -> DiagonalGaussian:
        """See `TopDownVAE.top_posterior`."""
        return _gaussian(self.bottom_up(self.to_device_dtype(x), condition)[-1])

    def posterior_at(
        self, level: int, p: DiagonalGaussian | None, state: Tensor, features: Sequence[Tensor]
    ) -> DiagonalGaussian:
        """See `TopDownVAE.posterior_at`."""
        likelihood = _gaussian(features[level])
        return likelihood if p is None else merged(likelihood, p)

    def top_down(self, choose: Choose, n: int, condition: Tensor | None) -> Tensor:
        """See `Hierarchy.top_down`; returns z_1."""
        nothing = torch.empty(n, 0, device=self.device)
        z = choose(len(self.level_sizes) - 1, None, nothing)
        for level, net in reversed(list(enumerate(self.down_nets))):
            z = choose(level, _gaussian(net(self.to_device_dtype(z))), nothing)
        return z

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """See `GenerativeModel.likelihood_params`; needs no other level than z_1."""
        return self.decode_state(z[0], condition)


def merged(q: DiagonalGaussian, p: DiagonalGaussian) -> DiagonalGaussian:
    """Return the product of two diagonal Gaussians (B, L), normalized.

    Example:
        >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
        >>> merged(DiagonalGaussian(one, zero), DiagonalGaussian(-one, zero)).mu
        tensor([[0.]])
    """
    difference = p.log_var - q.log_var
    # The precisions of both are never computed, as they may overflow.
    mu = p.mu + difference.sigmoid() * (q.mu - p.mu)
    return DiagonalGaussian(mu, p.log_var - softplus(difference))


def _gaussian(parameters: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(*parameters.float().chunk(2, dim=1))


def _activation(width: int, normalize: bool) -> nn.Sequential:
    return nn.Sequential(*([nn.LayerNorm(width)] if normalize else []), nn.LeakyReLU(_SLOPE))


def _hidden_layers(before: int, width: int, normalize: bool) -> nn.Sequential:
    """Return the two hidden layers of a network."""
    return nn.Sequential(
        nn.Linear(before, width),
        _activation(width, normalize),
        nn.Linear(width, width),
        _activation(width, normalize),
    )
