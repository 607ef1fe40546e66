"""Latents that consist of parts, each with a posterior and a prior of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import (
    REAL,
    Draws,
    GaussianPosterior,
    LatentDistribution,
    Posterior,
)
from vae_lightning.distributions.priors import Prior, StandardNormal
from vae_lightning.distributions.variables import Variable, joined
from vae_lightning.randomness import Noise


class Product(LatentDistribution):
    r"""Independent parts of a latent: q(z|x) is the product of those of the parts.

    Args:
        parts: Distributions of the parts.
        sizes: Their sizes, whose sum is L.

    Example:
        >>> from vae_lightning.distributions.posteriors import DiagonalGaussian
        >>> q = DiagonalGaussian(torch.zeros(8, 2), torch.zeros(8, 2))
        >>> Product([q, q], sizes=[2, 2]).rsample(Noise(torch.arange(8), "example"), n=5).z.shape
        torch.Size([8, 5, 4])
    """

    def __init__(self, parts: Sequence[LatentDistribution], sizes: Sequence[int]) -> None:
        self.parts = tuple(parts)
        self.sizes = list(sizes)

    @property
    def mean(self) -> Tensor:
        """See `LatentDistribution.mean`."""
        return torch.cat([part.mean for part in self.parts], 1)

    @property
    def point_estimate(self) -> Tensor:
        """See `LatentDistribution.point_estimate`."""
        estimates = [part.point_estimate for part in self.parts]
        return torch.cat([z for z in estimates if isinstance(z, Tensor)], 1)

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """See `LatentDistribution.rsample`; the parts draw one after the other."""
        drawn = [part.rsample(noise, n, first) for part in self.parts]
        z = torch.cat([draws.z for draws in drawn], 2)
        return Draws(z, lambda: torch.stack([draws.log_prob for draws in drawn]).sum(0))

    def log_prob(self, z: Tensor) -> Tensor | None:
        """See `LatentDistribution.log_prob`."""
        found = [part.log_prob(x) for part, x in self._split(z)]
        known = [log_prob for log_prob in found if log_prob is not None]
        return torch.stack(known).sum(0) if len(known) == len(found) else None

    def marginal_log_prob(self, z: Tensor) -> Tensor | None:
        """See `LatentDistribution.marginal_log_prob`."""
        found = [part.marginal_log_prob(x) for part, x in self._split(z)]
        known = [log_prob for log_prob in found if log_prob is not None]
        return torch.cat(known, 2) if len(known) == len(found) else None

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters of each part, with its number at the end of their names."""
        return {
            f"{name}_{number}": value
            for number, part in enumerate(self.parts)
            for name, value in part.parameters().items()
        }

    def _split(self, z: Tensor) -> list[tuple[LatentDistribution, Tensor]]:
        return list(zip(self.parts, z.split(self.sizes, 2), strict=True))


class ProductPosterior(Posterior):
    """Parts of a latent with posteriors of different families, for a `ProductPrior` of the parts.

    With it, a latent can be continuous and discrete at once, or on a product of spaces: several
    small spheres, or a ball and a plane.

    Args:
        latent_dim: See `Posterior`; the sum of the sizes.
        posteriors: The families, one for each part.
        sizes: Sizes of the parts; by default equal ones.

    Raises:
        ValueError: If there are no parts, or the sizes do not fit.

    References:
        Dupont (2018), Learning disentangled joint continuous and discrete representations,
        https://arxiv.org/abs/1804.00104
        Skopek et al. (2020), Mixed-curvature variational autoencoders,
        https://arxiv.org/abs/1911.08411

    Example:
        >>> from functools import partial
        >>> from vae_lightning.distributions.gumbel_softmax import GumbelSoftmaxPosterior
        >>> categories = partial(GumbelSoftmaxPosterior, num_categories=3)
        >>> family = ProductPosterior(8, posteriors=(GaussianPosterior, categories), sizes=(2, 6))
        >>> family.eval()(torch.zeros(1, family.in_features)).mean.shape
        torch.Size([1, 8])
    """

    def __init__(
        self,
        latent_dim: int,
        posteriors: Sequence[Callable[[int], Posterior]] = (GaussianPosterior,),
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(latent_dim)
        self.sizes = _sizes(self, latent_dim, len(posteriors), sizes)
        made = [make(size) for make, size in zip(posteriors, self.sizes, strict=True)]
        self.parts = nn.ModuleList(made)
        self.support = _support([part.support for part in made], self.sizes)
        self.features = [part.in_features for part in made]
        self.has_density = all(part.has_density for part in made)
        self.relaxed_in_training = any(part.relaxed_in_training for part in made)

    @property
    def in_features(self) -> int:
        """What the parts need together."""
        return sum(self.features)

    def forward(self, features: Tensor) -> Product:
        """See `Posterior.forward`."""
        split = features.split(self.features, 1)
        return Product([part(x) for part, x in zip(self.parts, split, strict=True)], self.sizes)


class ProductPrior(Prior):
    """Independent parts of a latent, each with a prior of its own, see `ProductPosterior`.

    Args:
        latent_dim: See `Prior`; the sum of the sizes.
        cond_features: See `Prior`; handed on to the parts.
        priors: The priors, one for each part.
        sizes: Sizes of the parts; by default equal ones.

    Raises:
        ValueError: If there are no parts, or the sizes do not fit, or a part, such as `VampPrior`,
            is built from the posterior of the model.

    Example:
        >>> from functools import partial
        >>> from vae_lightning.distributions.categorical import UniformCategorical
        >>> categories = partial(UniformCategorical, num_categories=3)
        >>> prior = ProductPrior(8, priors=(StandardNormal, categories), sizes=(2, 6))
        >>> prior.sample(5)[:, 2:].sum(1)
        tensor([2., 2., 2., 2., 2.])
    """

    def __init__(
        self,
        latent_dim: int,
        cond_features: int = 0,
        priors: Sequence[Callable[[int, int], Prior]] = (StandardNormal,),
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(latent_dim, cond_features)
        self.sizes = _sizes(self, latent_dim, len(priors), sizes)
        made = [make(size, cond_features) for make, size in zip(priors, self.sizes, strict=True)]
        for part in made:
            if type(part).attach is not Prior.attach or (
                type(part).init_from_data is not Prior.init_from_data
            ):
                raise ValueError(
                    f"ProductPrior: {type(part).__name__} cannot be a part of a latent, because it "
                    "is made from the whole: choose another prior"
                )
        self.parts = nn.ModuleList(made)
        self.support = _support([part.support for part in made], self.sizes)
        self.has_density = all(part.has_density for part in made)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables of the parts."""
        return joined(part.variables for part in self._parts)

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`; the sum of those of the parts."""
        found = [part.log_prob(x, condition) for part, x in self.split(z)]
        return torch.stack(found).sum(0)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        return torch.cat([part.sample(n, condition, generator) for part in self._parts], 1)

    def kl(self, q: LatentDistribution, condition: Tensor | None = None) -> Tensor | None:
        """See `Prior.kl`; those of the variables of each part, one part after the other."""
        if not isinstance(q, Product) or q.sizes != self.sizes:
            return None
        found = [
            part.kl(of_part, condition) for part, of_part in zip(self._parts, q.parts, strict=True)
        ]
        known = [kl for kl in found if kl is not None]
        return torch.cat(known, 1) if len(known) == len(found) else None

    def marginal_log_prob(self, z: Tensor) -> Tensor | None:
        """See `Prior.marginal_log_prob`."""
        found = [part.marginal_log_prob(x) for part, x in self.split(z)]
        known = [log_prob for log_prob in found if log_prob is not None]
        return torch.cat(known, -1) if len(known) == len(found) else None

    def marginal_quantiles(self, p: Tensor) -> Tensor:
        """See `Prior.marginal_quantiles`."""
        return torch.cat([part.marginal_quantiles(p).to(p) for part in self._parts], 1)

    def project(self, z: Tensor) -> Tensor:
        """See `Prior.project`."""
        return torch.cat([part.project(x) for part, x in self.split(z)], -1)

    def geodesic(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor | None:
        """See `Prior.geodesic`; straight in flat parts, at the same fractions of the way in all."""
        found = []
        curved = False
        for (part, a), (_, b) in zip(self.split(start), self.split(end), strict=True):
            path = part.geodesic(a, b, t)
            curved = curved or path is not None
            found.append(torch.lerp(a, b, t) if path is None else path)
        return torch.cat(found, -1) if curved else None

    @property
    def _parts(self) -> list[Prior]:
        return [part for part in self.parts if isinstance(part, Prior)]

    def split(self, z: Tensor) -> list[tuple[Prior, Tensor]]:
        """Return the parts with their shares of latents (..., L)."""
        return list(zip(self._parts, z.split(self.sizes, -1), strict=True))


def _sizes(owner: object, latent_dim: int, parts: int, sizes: Sequence[int] | None) -> list[int]:
    """Return the sizes of the parts of a latent."""
    name = type(owner).__name__
    if not parts:
        raise ValueError(f"{name}: give at least one part")
    if sizes is None:
        if latent_dim % parts:
            raise ValueError(
                f"{name}: {latent_dim} dimensions cannot be divided equally into {parts} parts: "
                "give sizes"
            )
        return [latent_dim // parts] * parts
    if len(sizes) != parts or sum(sizes) != latent_dim or min(sizes) < 1:
        raise ValueError(
            f"{name}: sizes must be one positive number for each of the {parts} parts, with the "
            f"sum latent_dim = {latent_dim}, got {list(sizes)}"
        )
    return list(sizes)


def _support(supports: Sequence[str], sizes: Sequence[int]) -> str:
    """Return the support of a product, that of the parts if it is the same space."""
    if all(support == REAL for support in supports):
        return REAL
    return " and ".join(
        f"{support} ({size} dimensions)" for support, size in zip(supports, sizes, strict=True)
    )
