"""Hierarchies of latents: several levels, each with a distribution given the levels above it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import REAL, DiagonalGaussian, Latents
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.vae import VAE
from vae_lightning.randomness import standard_normal

Choose = Callable[[int, DiagonalGaussian | None, Tensor], Tensor]
"""Choose the latents of a level, (N, L_l): a function of

- the number of the level, 0 for the lowest one,
- its distribution given the latents that were chosen above it, None for the top level, whose
  distribution is the prior,
- what the networks have computed from the levels above.
"""

_ROWS = 256
"""Number of latents that samples are computed for at once."""


class Hierarchy(VAE, ABC):
    r"""VAE with levels of latents: p(z_L) p(z_{L-1}|z_L) ... p(z_1|z_2, ..., z_L) p(x|z).

    Latents are tuples (z_1, ..., z_L), the lowest level first, each (B, n, L_l). Below the top,
    each level is a diagonal Gaussian given the levels above it: z_l = mu_l + sigma_l epsilon_l. The
    prior is one of the top level.

    A subclass calls `attach_top` at the end of its ``__init__``.

    Attributes:
        level_sizes: Number of dimensions L_l of each level, the lowest first. A subclass sets it
            before it calls ``super().__init__``.
    """

    level_sizes: tuple[int, ...]
    encodes_with_decoder: ClassVar[bool] = False
    """Whether the posterior needs the decoder."""
    has_closed_form_kl = False

    @property
    def decoded_sizes(self) -> tuple[int, ...]:
        """Sizes of those levels that the image depends on when all are given, the lowest first."""
        return self.level_sizes

    @abstractmethod
    def top_down(self, choose: Choose, n: int, condition: Tensor | None) -> Tensor:
        """Go through the levels, from the top to the lowest.

        Args:
            choose: Called once for each level; returns its latents.
            n: Number of latents N of each level.
            condition: One-hot classes, (N, num_classes), of a conditional model.

        Returns:
            What `decode_state` takes, (N, ...).
        """

    def decode_state(self, state: Tensor, condition: Tensor | None) -> Tensor:
        """Return the parameters of p(x|z), given what `top_down` returned."""
        params: Tensor = self.decoder(self.to_device_dtype(state), condition)
        return params

    def attach_prior(self) -> None:
        """Wait until the networks between the levels are there: see `attach_top`."""

    def attach_top(self) -> None:
        """Attach the prior of the top level, as `LatentVariableModel.attach_prior` does.

        Raises:
            ValueError: If it is not a prior of real vectors, or does not suit the model.
        """
        if self.prior.support != REAL:
            raise ValueError(
                f"{type(self).__name__} has {REAL} as latents, but {type(self.prior).__name__} is "
                f"a distribution of {self.prior.support}: choose another prior and posterior"
            )
        super().attach_prior()

    @property
    def prior_dim(self) -> int:
        """See `LatentVariableModel.prior_dim`: the size of the top level."""
        return self.level_sizes[-1]

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `GenerativeModel.capabilities`; the latent is a tuple of levels, not a vector."""
        return super().capabilities - {
            Capability.LATENT_VECTOR,
            Capability.CONTINUOUS_LATENT,
            Capability.TRAVERSABLE,
            Capability.KL_PER_DIMENSION,
        }

    def log_prior(self, z: Latents, condition: Tensor | None = None) -> Tensor:
        """Return log p(z_L) + ... + log p(z_1|z_2, ..., z_L) in nats, (B, n)."""
        n = z[0].shape[1]
        rows = [level.flatten(0, 1) for level in z]
        found = [self.prior.log_prob(z[-1], condition)]

        def choose(level: int, p: DiagonalGaussian | None, state: Tensor) -> Tensor:
            if p is not None:
                found.append(p.log_prob(rows[level][:, None]).view(-1, n))
            return rows[level]

        self.top_down(choose, rows[0].shape[0], repeated(condition, n))
        return torch.stack(found).sum(0)

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """See `GenerativeModel.likelihood_params`."""
        levels = [level.to(self.device) for level in z]
        state = self.top_down(lambda level, p, state: levels[level], levels[0].shape[0], condition)
        return self.decode_state(state, condition)

    # Latents as noise: a vector that has no constraints, and N(0, I) as prior below the top

    def to_noise(self, z: Latents, condition: Tensor | None = None) -> Tensor:
        r"""Return latents as the noise that they are made of.

        Args:
            z: Levels, each (N, L_l).
            condition: One-hot classes, (N, num_classes), of a conditional model.

        Returns:
            z_L and the noise :math:`(z_l - \mu_l) / \sigma_l` of the levels below it, from the top
            to the lowest, (N, sum of L_l).
        """
        found: list[Tensor] = []

        def choose(level: int, p: DiagonalGaussian | None, state: Tensor) -> Tensor:
            chosen = z[level]
            found.append(chosen if p is None else (chosen - p.mu) * (-0.5 * p.log_var).exp())
            return chosen

        self.top_down(choose, z[0].shape[0], condition)
        return torch.cat(found, 1)

    def from_noise(self, noise: Tensor, condition: Tensor | None = None) -> Latents:
        """Return the latents that are made of noise, the inverse of `to_noise`.

        Args:
            noise: As `to_noise` returns it. With zeros below the top, each level is its mean given
                the levels above it.
            condition: One-hot classes, (N, num_classes), of a conditional model.

        Returns:
            Levels, each (N, L_l).
        """
        return self._from_noise(noise, condition)[0]

    def decode_noise(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the parameters of p(x|z) for latents as `to_noise` returns them."""
        return self.decode_state(self._from_noise(noise, condition)[1], condition)

    def _from_noise(self, noise: Tensor, condition: Tensor | None) -> tuple[Latents, Tensor]:
        parts = noise.split(self.level_sizes[::-1], 1)[::-1]
        chosen: list[Tensor] = []

        def choose(level: int, p: DiagonalGaussian | None, state: Tensor) -> Tensor:
            z = parts[level] if p is None else p.draws_at(parts[level][:, None]).z[:, 0]
            chosen.append(z)
            return z

        state = self.top_down(choose, noise.shape[0], condition)
        return tuple(reversed(chosen)), state

    def sample_latents(
        self, n: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> Latents:
        """See `GenerativeModel.sample_latents`."""
        top = self.prior.sample(n, condition, generator).to(self.device)
        below = standard_normal(n, sum(self.level_sizes[:-1]), generator, self.device)
        return self._in_parts(torch.cat([top, below], 1), condition)

    def tempered(self, z: Latents, temperature: float, condition: Tensor | None = None) -> Latents:
        """See `LatentVariableModel.tempered`: every level's standard deviation is multiplied."""
        noise = self.to_noise(z, condition)
        top = self._tempered_prior(noise[:, : self.prior_dim], temperature, condition)
        below = temperature * noise[:, self.prior_dim :]
        return self._in_parts(torch.cat([top, below], 1), condition)

    def _in_parts(self, noise: Tensor, condition: Tensor | None) -> Latents:
        """Return `from_noise`, computed for some rows at a time, so that maps fit in memory."""
        parts = [
            self.from_noise(noise[here], None if condition is None else condition[here])
            for here in torch.arange(len(noise), device=noise.device).split(_ROWS)
        ]
        return tuple(torch.cat(levels) for levels in zip(*parts, strict=True))


def repeated(x: Tensor | None, n: int) -> Tensor | None:
    """Return each row of ``x`` ``n`` times, (B n, ...)."""
    return x if x is None or n == 1 else x.repeat_interleave(n, 0)


def check_sizes(owner: str, **sizes: Sequence[int]) -> None:
    """Check that sizes of levels are positive, and that there are as many of each.

    Args:
        owner: Name of the model's class.
        **sizes: Sizes of the levels by name.

    Raises:
        ValueError: If they are not.
    """
    for name, values in sizes.items():
        if not values or any(value < 1 for value in values):
            raise ValueError(f"{owner}: {name} must be positive, got {list(values)}")
    (first, expected), *others = sizes.items()
    for name, values in others:
        if len(values) != len(expected):
            raise ValueError(
                f"{owner}: {name} must have one number for each of {first}, got "
                f"{list(values)} and {list(expected)}"
            )
