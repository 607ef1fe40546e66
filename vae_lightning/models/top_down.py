"""Hierarchies whose posterior goes from the top level down, as their prior does."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_lightning.distributed import gather_rows
from vae_lightning.distributions.posteriors import (
    DiagonalGaussian,
    Draws,
    GaussianPosterior,
    LatentDistribution,
    Latents,
)
from vae_lightning.functional import standard_normal_kl
from vae_lightning.models.hierarchy import Hierarchy, repeated
from vae_lightning.models.vae import ELBOTerms
from vae_lightning.randomness import Noise
from vae_lightning.schedules import Constant, Schedule


@dataclass(frozen=True)
class HierarchyTerms(ELBOTerms):
    """The terms of the ELBO of a hierarchy.

    Attributes:
        kl_per_level: KL of each level given draws of the levels above it, the lowest first, in
            nats, (B, L). They sum to ``kl`` and are logged as ``kl_1``, ``kl_2``, ...
    """

    kl_per_level: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """Return the terms, the bound, and the KL of each level."""
        named = super().as_dict()
        levels = named.pop("kl_per_level").unbind(1)
        return {**named, **{f"kl_{i}": kl for i, kl in enumerate(levels, 1)}}


class TopDownVAE(Hierarchy, ABC):
    r"""Hierarchy with the posterior q(z_L|x) q(z_{L-1}|z_L, x) ... q(z_1|z_2, ..., z_L, x).

    The KL term is a sum over the levels, each exact given draws of the levels above it:

    .. math:: KL(q(z_L|x) \| p(z_L)) + \sum_{l<L} E_{q(z_{>l}|x)}\,
        KL(q(z_l|z_{>l}, x) \| p(z_l|z_{>l}))

    Training minimizes reconstruction + beta sum_l max(free_bits, KL_l), with the factor beta of
    ``schedule`` and the mean KL_l over the joined batch of all processes. Validation and test use
    the negative ELBO, so that their losses can be compared between epochs.

    Args:
        schedule: Factor beta of the KL term over the training, such as `LinearWarmup`.
        free_bits: Nats per image of each level that cost nothing in training.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``free_bits`` is negative, or a part does not fit.

    References:
        Sonderby et al. (2016), Ladder variational autoencoders (warm-up of the KL term),
        https://arxiv.org/abs/1602.02282
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        appendix C.8 (free bits), https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self, schedule: Callable[[], Schedule] = Constant, free_bits: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(posterior=GaussianPosterior, **kwargs)
        if not free_bits >= 0:
            raise ValueError(f"free_bits must not be negative, got {free_bits}")
        self.schedule = schedule()
        self.free_bits = free_bits

    # What a model implements, besides `Hierarchy.top_down`

    @abstractmethod
    def bottom_up(self, x: Tensor, condition: Tensor | None) -> Sequence[Tensor]:
        """Return features of images (B, C, H, W) for `posterior_at`, each (B, ...)."""

    @abstractmethod
    def posterior_at(
        self, level: int, p: DiagonalGaussian | None, state: Tensor, features: Sequence[Tensor]
    ) -> DiagonalGaussian:
        """Return the posterior of a level given the levels above it.

        Args:
            level: Number of the level, 0 for the lowest one.
            p: Its prior given the levels above it, None for the top level.
            state: What the networks have computed from the levels above.
            features: What `bottom_up` returned.
        """

    # Distributions

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> "TopDownPosterior":
        """See `VAE.posterior`."""
        return TopDownPosterior(self, self.bottom_up(self.to_device_dtype(x), condition), condition)

    def top_posterior(self, x: Tensor, condition: Tensor | None = None) -> DiagonalGaussian:
        """Return the posterior of the top level alone, q(z_L|x)."""
        return self.posterior(x, condition).levels[-1]

    def attach_top(self) -> None:
        """See `Hierarchy.attach_top`; the prior is offered the posterior of the top level."""
        self.attach_prior_to(self.top_posterior)

    def log_ratio(self, draws: Draws, condition: Tensor | None = None) -> Tensor:
        """See `LatentVariableModel.log_ratio`: from the distributions that draws were made with."""
        if not isinstance(draws, LevelDraws):
            return super().log_ratio(draws, condition)
        found = self.prior.log_prob(draws.z[-1], condition) - draws.log_prob
        for level in draws.levels:
            if level.p is not None:
                found = found + level.p.log_prob(level.drawn.z).view_as(found)
        return found

    def log_likelihood(self, x: Tensor, z: Latents, condition: Tensor | None = None) -> Tensor:
        """See `LatentVariableModel.log_likelihood`."""
        if not isinstance(z, Levels):
            return super().log_likelihood(x, z, condition)
        n = z[0].shape[1]
        params = self.decode_state(z.state, repeated(condition, n))
        return self.likelihood.log_prob(params.unflatten(0, (-1, n)), x[:, None])

    # Terms and objective

    def elbo_terms(
        self, q: LatentDistribution, x: Tensor, condition: Tensor | None, noise: Noise
    ) -> HierarchyTerms:
        """See `VAE.elbo_terms`."""
        draws = q.rsample(noise, self.num_samples)
        assert isinstance(draws, LevelDraws)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        kl = self.kl_per_level(draws, condition)
        return HierarchyTerms(-log_likelihood.mean(1), kl.sum(1), kl)

    def kl(
        self,
        q: LatentDistribution,
        draws: Draws,
        condition: Tensor | None = None,
        log_ratio: Tensor | None = None,
    ) -> Tensor:
        """See `VAE.kl`; exact for each level given the levels above it."""
        assert isinstance(draws, LevelDraws)
        return self.kl_per_level(draws, condition).sum(1)

    def kl_per_level(self, draws: "LevelDraws", condition: Tensor | None = None) -> Tensor:
        """Return the KL of each level given draws of the levels above it, in nats, (B, L).

        That of the top level is estimated from its draws if it has no closed form.

        Args:
            draws: Draws from the posterior, (B, n).
            condition: One-hot classes, (B, num_classes), of a conditional model.
        """
        n, found = draws.z[0].shape[1], []
        for q, p, drawn in draws.levels:
            if p is not None:
                kl = gaussian_kl(q, p).sum(1)
            else:
                exact = self.prior.kl(q, repeated(condition, n))
                kl = (
                    drawn.log_prob - self.prior.log_prob(draws.z[-1], condition).view(-1, 1)
                    if exact is None
                    else exact.sum(1)
                )
            found.append(kl.view(-1, n).mean(1))
        return torch.stack(found, 1)

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + beta sum_l max(free_bits, KL_l) in training, (B,)."""
        assert isinstance(terms, HierarchyTerms)
        beta = self.schedule(self.step)
        if not self.training or (beta == 1 and not self.free_bits):
            return terms.negative_elbo
        kl = terms.kl_per_level
        mean = gather_rows(kl).mean(0)
        if self.free_bits:
            # With the mean over the batch, this is max(free_bits, mean), and so is its gradient.
            kl = torch.where(mean < self.free_bits, self.free_bits, kl)
        return terms.reconstruction + beta * (self.level_weights(mean, beta) * kl).sum(1)

    def level_weights(self, kl: Tensor, beta: float) -> Tensor:
        """Return weights of the levels in training, (L,), with the mean 1.

        Args:
            kl: Mean KL of each level over the joined batch, (L,), without gradients.
            beta: Factor of the KL term.
        """
        return torch.ones_like(kl)


class Level(NamedTuple):
    """One level of draws from a posterior, of N = B n latents.

    Attributes:
        q: Its posterior given the levels above it.
        p: Its prior given the levels above it, None for the top level.
        drawn: Draws, (N, 1, L_l).
    """

    q: DiagonalGaussian
    p: DiagonalGaussian | None
    drawn: Draws


class Levels(tuple[Tensor, ...]):
    """Latents of all levels with the ``state`` that they lead to, which is not computed twice."""

    state: Tensor


class LevelDraws(Draws):
    """Draws from the posterior of a hierarchy.

    Args:
        levels: The levels, the lowest first.
        n: Number of draws per image.
        state: What `Hierarchy.top_down` returned, (B n, ...).
    """

    def __init__(self, levels: Sequence[Level], n: int, state: Tensor) -> None:
        self.levels = levels
        z = Levels(level.drawn.z[:, 0].unflatten(0, (-1, n)) for level in levels)
        z.state = state
        super().__init__(
            z, lambda: torch.stack([level.drawn.log_prob.view(-1, n) for level in levels]).sum(0)
        )


class TopDownPosterior(LatentDistribution):
    """The distribution q(z_L|x) ... q(z_1|z_2, ..., z_L, x) of a `TopDownVAE`.

    Args:
        model: The model.
        features: What `TopDownVAE.bottom_up` returned.
        condition: One-hot classes, (B, num_classes), of a conditional model.
    """

    def __init__(
        self, model: TopDownVAE, features: Sequence[Tensor], condition: Tensor | None
    ) -> None:
        self.model = model
        self.features = features
        self.condition = condition

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> LevelDraws:
        """See `LatentDistribution.rsample`; each level is drawn given the levels above it."""
        features = self.features
        if n > 1:
            features = [feature.repeat_interleave(n, 0) for feature in features]
        found: list[Level] = []

        def choose(level: int, p: DiagonalGaussian | None, state: Tensor) -> Tensor:
            q = self.model.posterior_at(level, p, state, features)
            size = q.mu.shape[1]
            epsilon = noise.normal(n * size, first * size).view(-1, 1, size)
            found.append(Level(q, p, q.draws_at(epsilon)))
            z: Tensor = found[-1].drawn.z[:, 0]
            return z

        rows = features[0].shape[0]
        state = self.model.top_down(choose, rows, repeated(self.condition, n))
        return LevelDraws(found[::-1], n, state)

    @property
    def levels(self) -> list[DiagonalGaussian]:
        """The posterior of each level given the means of those above it, the lowest first."""
        found: list[DiagonalGaussian] = []

        def choose(level: int, p: DiagonalGaussian | None, state: Tensor) -> Tensor:
            found.append(self.model.posterior_at(level, p, state, self.features))
            return found[-1].mu

        self.model.top_down(choose, self.features[0].shape[0], self.condition)
        return found[::-1]

    @property
    def mean(self) -> Latents:  # type: ignore[override]
        """The mean of each level, given the means of those above it."""
        return tuple(q.mu for q in self.levels)

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mu_1``, ``log_var_1``, ... of each level, given the means of those above it."""
        return {
            f"{name}_{i}": value
            for i, q in enumerate(self.levels, 1)
            for name, value in q.parameters().items()
        }


def gaussian_kl(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    r"""Return the KL divergence between two diagonal Gaussians for each dimension.

    .. math:: KL(q \| p) = \frac{1}{2} \Big(\frac{(\mu_q - \mu_p)^2}{\sigma_p^2}
        + \frac{\sigma_q^2}{\sigma_p^2} - \log \frac{\sigma_q^2}{\sigma_p^2} - 1\Big)

    Args:
        q: Distribution of (B, L).
        p: Distribution of (B, L).

    Returns:
        Nats, float32, (B, L).

    Example:
        >>> q = DiagonalGaussian(torch.tensor([[2.0]]), torch.zeros(1, 1))
        >>> gaussian_kl(q, DiagonalGaussian(torch.zeros(1, 1), torch.zeros(1, 1)))
        tensor([[2.]])
    """
    return standard_normal_kl((q.mu - p.mu) * (-0.5 * p.log_var).exp(), q.log_var - p.log_var)
