"""Flows from zuko (Rozet et al., https://github.com/probabilists/zuko): a prior and a posterior.

zuko is imported when one of them is built, because few trainings need it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, Normal

from vae_lightning.distributions.posteriors import DiagonalGaussian, Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.distributions.transformed import TransformedGaussian
from vae_lightning.functional import soft_clamp, standard_normal_log_prob, without_autocast
from vae_lightning.precision import Float32Module
from vae_lightning.randomness import standard_normal


def zuko_flows() -> Any:
    """Import ``zuko.flows``, which switches off the checks of torch's distributions globally."""
    checks = _arguments_are_checked()
    import zuko.flows

    Distribution.set_default_validate_args(checks)
    return zuko.flows


def _arguments_are_checked() -> bool:
    """Return whether torch's distributions check their arguments; torch has no function for it."""
    try:
        Normal(0.0, -1.0)
    except ValueError:
        return True
    return False


class IAFPosterior(Float32Module, Posterior):
    """Gaussian transformed by inverse autoregressive flows that see a context from the encoder.

    Each transform mixes a latent with a prediction m from the preceding dimensions and the context,
    z -> g z + (1 - g) m, with a gate g that starts near 1 for stability (equations 13 and 14 of the
    paper).

    Drawing is one pass through masked networks, with the density of what was drawn at no extra
    cost. The density of other latents would take L passes and is not needed.

    Args:
        latent_dim: See `Posterior`.
        transforms: Number of autoregressive transforms, which alternate the order of dimensions.
        context_features: Number of features of the encoder that the transforms see.
        hidden: Sizes of the hidden layers of each transform.

    Raises:
        ValueError: If a number is not positive, or there is only one latent dimension.

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        https://arxiv.org/abs/1606.04934

    Example:
        >>> posterior = IAFPosterior(latent_dim=2, hidden=(16,))
        >>> posterior(torch.zeros(8, posterior.in_features)).mean.shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        transforms: int = 2,
        context_features: int = 64,
        hidden: Sequence[int] = (256,),
    ) -> None:
        super().__init__(latent_dim)
        _check(self, latent_dim, transforms=transforms, context_features=context_features)
        self.context_features = context_features
        flow = zuko_flows().MAF(
            latent_dim,
            context_features,
            transforms=transforms,
            hidden_features=tuple(hidden),
            univariate=_gated_update,
        )
        self.transforms = flow.transform

    @property
    def in_features(self) -> int:
        """Mu and log_var, and the context."""
        return 2 * self.latent_dim + self.context_features

    def forward(self, features: Tensor) -> TransformedGaussian:
        """See `Posterior.forward`."""
        size = self.latent_dim
        features = features.to(next(self.parameters()).dtype)
        mu, log_var, context = features.split([size, size, self.context_features], 1)

        def transform(z: Tensor) -> tuple[Tensor, Tensor]:
            with without_autocast(z):
                # The direction in which MAF evaluates densities: one pass for all dimensions.
                moved, log_det = self.transforms(context[:, None]).call_and_ladj(z)
            return moved, log_det

        return TransformedGaussian(DiagonalGaussian(mu, log_var), transform)


class FlowPrior(Float32Module, Prior, ABC):
    """Standard normal transformed by a flow; p(z|y) for conditional models.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`.
        transforms: A lazy transform of zuko from latents to standard normal noise.
    """

    def __init__(self, latent_dim: int, cond_features: int, transforms: Any) -> None:
        super().__init__(latent_dim, cond_features)
        self.transforms = transforms

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`."""
        if condition is not None:
            condition = condition[:, None].expand(*z.shape[:2], -1).float()
        with without_autocast(z):
            base, log_det = self.transforms(condition).call_and_ladj(z.float())
            log_prob: Tensor = standard_normal_log_prob(base) + log_det
        return log_prob

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        device = next(self.parameters()).device
        base = standard_normal(n, self.latent_dim, generator, device)
        condition = None if condition is None else condition.to(device, torch.float32)
        with without_autocast(base):
            return self.inverse(base, condition)

    @abstractmethod
    def inverse(self, base: Tensor, condition: Tensor | None) -> Tensor:
        """Return the latents (n, L) that the flow maps to noise (n, L)."""


class RealNVPPrior(FlowPrior):
    """Standard normal transformed by affine coupling layers; p(z|y) for conditional models.

    Densities and samples both take one pass. `MAFPrior` is more flexible per layer.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`.
        transforms: Number of coupling layers, which alternate the dimensions that they change.
        hidden: Sizes of the hidden layers of each coupling layer.

    Raises:
        ValueError: If a number is not positive, or there is only one latent dimension.

    References:
        Dinh et al. (2017), Density estimation using Real NVP, https://arxiv.org/abs/1605.08803

    Example:
        >>> prior = RealNVPPrior(latent_dim=2, hidden=(16,))
        >>> prior.sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        cond_features: int = 0,
        transforms: int = 6,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        _check(self, latent_dim, transforms=transforms)
        flow = zuko_flows().RealNVP(
            latent_dim, cond_features, transforms=transforms, hidden_features=tuple(hidden)
        )
        super().__init__(latent_dim, cond_features, flow.transform)

    def inverse(self, base: Tensor, condition: Tensor | None) -> Tensor:
        """See `FlowPrior.inverse`."""
        z: Tensor = self.transforms(condition).inv(base)
        return z


class MAFPrior(FlowPrior):
    r"""Standard normal transformed by masked autoregressive flows; p(z|y) for conditional models.

    Each transform shifts and scales a dimension by what a masked network makes of the dimensions
    before it, :math:`\epsilon_j = \sigma(z_{<j}) z_j + \mu(z_{<j})`; the next transform has the
    reverse order.

    Use it for the best densities: training takes one pass per transform. Samples are computed by
    fixed-point iteration, which takes at most as many passes as there are dimensions, and is
    stopped when all values stay the same, often after about ten for each transform.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`.
        transforms: Number of autoregressive transforms.
        hidden: Sizes of the hidden layers of each transform.

    Raises:
        ValueError: If a number is not positive, or there is only one latent dimension.

    References:
        Papamakarios et al. (2017), Masked autoregressive flow for density estimation,
        https://arxiv.org/abs/1705.07057

    Example:
        >>> prior = MAFPrior(latent_dim=2, hidden=(16,))
        >>> prior.sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        cond_features: int = 0,
        transforms: int = 5,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        _check(self, latent_dim, transforms=transforms)
        flow = zuko_flows().MAF(
            latent_dim, cond_features, transforms=transforms, hidden_features=tuple(hidden)
        )
        super().__init__(latent_dim, cond_features, flow.transform)

    def inverse(self, base: Tensor, condition: Tensor | None) -> Tensor:
        """See `FlowPrior.inverse`; exact after as many passes as there are dimensions."""
        z = base
        for transform in reversed(self.transforms(condition).transforms):
            found = torch.zeros_like(z)
            for _ in range(self.latent_dim):
                before = found
                found = transform.meta(before).inv(z)
                if found.equal(before):
                    break
            z = found
        return z


def _gated_update(m: Tensor, s: Tensor) -> AffineTransform:
    """Return the transform z -> g z + (1 - g) m with the gate g = sigmoid(s + 2)."""
    gate = soft_clamp(s + 2).sigmoid()  # whose logarithm stays finite
    return AffineTransform((1 - gate) * m, gate)


def _check(owner: object, latent_dim: int, **sizes: int) -> None:
    name = type(owner).__name__
    if latent_dim < 2:
        raise ValueError(f"{name} needs at least two latent dimensions, got {latent_dim}")
    for option, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {option} must be positive, got {size}")
