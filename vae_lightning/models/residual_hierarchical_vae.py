"""Residual hierarchy of latents, after NVAE (Vahdat and Kautz), https://arxiv.org/abs/2007.03898."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.functional import soft_clamp
from vae_lightning.models.hierarchy import Choose
from vae_lightning.models.top_down import TopDownVAE
from vae_lightning.nets.base import ImageShape, positive
from vae_lightning.nets.top_down import BottomUp, Group, TopDown, group_shapes

_LINEAR, _MOST = 5.0, 8.0
"""Logarithms of variances are as the networks say up to the first, and bounded by the second."""

_SMALLEST_KL = 0.01
"""KL in nats that is added to that of each group before balancing."""


class ResidualHierarchicalVAE(TopDownVAE):
    r"""VAE with maps of latents at several resolutions and residual networks, a small NVAE.

    Groups of latents are drawn from the smallest map to the largest one. Each adds to a state, from
    which a residual network computes the prior of the next group, and in the end the image:

    .. math:: p(z) = p(z_L) \prod_{l<L} N(z_l; \mu_l(z_{>l}), \sigma_l^2(z_{>l}))

    The posterior of a group is relative to its prior. It sees the state, and a map that a network
    has computed from the image at the same resolution:

    .. math:: q(z_l|z_{>l}, x) = N(\mu_l + \Delta\mu_l, \; \sigma_l^2 \, \Delta\sigma_l^2)

    so that a posterior that knows nothing is the prior, and :math:`KL_l = \frac{1}{2} \sum
    (\Delta\mu_l^2 / \sigma_l^2 + \Delta\sigma_l^2 - \log \Delta\sigma_l^2 - 1)`. That of the top is
    relative to N(0, I).

    The networks have no normalization, so an image does not depend on the others of its batch.
    Images may have any size and channels, and signals (height 1) get one-dimensional networks.
    Latents are tuples (z_1, ..., z_L), the lowest level (the largest map) first, each flattened,
    (B, L_l).

    Use it for likelihoods and samples of images, where one vector of latents is too little: it
    costs several times as much as a `VAE`. Its latents are no embedding: most are details.

    Args:
        groups_per_resolution: Number of groups of latents at each resolution, from half of the
            image's size on.
        latent_channels: Channels of the map of each group.
        channels: Channels of the state and of the maps computed from the image.
        hidden: Channels inside the residual blocks.
        balance: Whether to balance the groups while the factor of the KL term is below 1, as NVAE
            does: the KL of each is weighted in proportion to its mean per position. Groups that
            say little then cost less.
        image_shape: See `ImageModel`.
        **kwargs: See `TopDownVAE` and `VAE`; posterior, encoder and decoder are no options.

    Raises:
        ValueError: If a size is not positive, or there are no groups at the smallest resolution.

    References:
        Vahdat and Kautz (2020), NVAE: a deep hierarchical variational autoencoder,
        https://arxiv.org/abs/2007.03898
        Child (2021), Very deep VAEs generalize autoregressive models and can outperform them on
        images, https://arxiv.org/abs/2011.10650

    Example:
        >>> vae = ResidualHierarchicalVAE(groups_per_resolution=(1, 1), latent_channels=2)
        >>> [level.shape[1] for level in vae.embed(torch.rand(3, 1, 28, 28))]
        [392, 98]
    """

    draws_are_small = False
    encodes_with_decoder = True

    def __init__(
        self,
        groups_per_resolution: Sequence[int] = (1, 2, 2),
        latent_channels: int = 8,
        channels: int = 32,
        hidden: int = 16,
        balance: bool = False,
        image_shape: ImageShape = (1, 28, 28),
        **kwargs: Any,
    ) -> None:
        groups = list(groups_per_resolution)
        if not groups or min(groups) < 0 or not groups[-1]:
            raise ValueError(
                f"{type(self).__name__}: groups_per_resolution must be numbers of groups, with at "
                f"least one at the smallest resolution, got {groups}"
            )
        positive(self, latent_channels=latent_channels, channels=channels, hidden=hidden)
        self.groups = group_shapes(image_shape, groups, latent_channels)
        self.level_sizes = tuple(g.channels * g.height * g.width for g in self.groups)
        self._channels = channels
        encoder = partial(BottomUp, hidden=hidden, blocks=[max(1, number) for number in groups])
        decoder = partial(
            TopDown,
            channels=channels,
            hidden=hidden,
            groups=self.groups,
            resolutions=len(groups),
        )
        super().__init__(
            image_shape=image_shape,
            latent_dim=sum(self.level_sizes),
            encoder=cast(Any, encoder),  # they return, and take, more than one map
            decoder=cast(Any, decoder),
            **kwargs,
        )
        self.balance = balance
        self.attach_top()

    @property
    def encoder_features(self) -> int:
        """See `LatentVariableModel.encoder_features`: channels of maps."""
        return self._channels

    def check_networks(self, features: Sequence[int], latent: Sequence[int]) -> None:
        """See `BaseVAE.check_networks`; these networks fit each other."""

    def bottom_up(self, x: Tensor, condition: Tensor | None) -> Sequence[Tensor]:
        """Return a map of each resolution, from the largest to the smallest."""
        maps: list[Tensor] = self.encoder(x, condition)
        return maps

    def posterior_at(
        self, level: int, p: DiagonalGaussian | None, state: Tensor, features: Sequence[Tensor]
    ) -> DiagonalGaussian:
        """See `TopDownVAE.posterior_at`."""
        group = cast(Group, self.net.groups[level])
        map_of_image = features[self.groups[level].resolution - 1]
        relative = _gaussian(group.posterior_of(state, map_of_image))
        if p is None:
            return relative
        return DiagonalGaussian(p.mu + relative.mu, p.log_var + relative.log_var)

    def top_down(self, choose: Choose, n: int, condition: Tensor | None) -> Tensor:
        """See `Hierarchy.top_down`; returns the state at half of the resolution of the image."""
        net, resolution = self.net, len(self.net.sizes) - 1
        state = net.begin(n, condition)
        for level in reversed(range(len(self.groups))):
            while resolution > self.groups[level].resolution:
                resolution -= 1
                state = net.enlarge(state, resolution, condition)
            group = cast(Group, net.groups[level])
            parameters, state = group.prior_of(state)
            p = None if parameters is None else _gaussian(parameters)
            state = group.add(state, self.to_device_dtype(choose(level, p, state)))
        while resolution > 1:
            resolution -= 1
            state = net.enlarge(state, resolution, condition)
        return state

    def decode_state(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """See `Hierarchy.decode_state`."""
        return self.net.parameters_of(state)

    @property
    def net(self) -> TopDown:
        """The decoder."""
        return cast(TopDown, self.decoder)

    def level_weights(self, kl: Tensor, beta: float) -> Tensor:
        """See `TopDownVAE.level_weights`: those of NVAE during the warm-up, if asked for."""
        if not self.balance or beta >= 1:
            return super().level_weights(kl, beta)
        at_resolution = Counter(group.resolution for group in self.groups)
        positions = [g.height * g.width / at_resolution[g.resolution] for g in self.groups]
        weights = (kl + _SMALLEST_KL) / torch.tensor(positions).to(kl)
        return weights / weights.mean()


def _gaussian(parameters: Tensor) -> DiagonalGaussian:
    """Return the distribution with these parameters, (B, 2 L), and variances in bounds.

    A variance that a network says nothing about then cannot make a KL of 1e9, which happens to
    deep hierarchies without bounds.
    """
    mu, log_var = parameters.float().chunk(2, dim=1)
    return DiagonalGaussian(mu, soft_clamp(log_var, _LINEAR, _MOST))
