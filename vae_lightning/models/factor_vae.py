"""FactorVAE (Kim and Mnih, 2018), https://arxiv.org/abs/1802.05983."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributed import gather_rows, own_rows
from vae_lightning.distributions.posteriors import REAL
from vae_lightning.functional import softplus
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.nets.mlp import critic_mlp
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class FactorTerms(ELBOTerms):
    """The terms of the ELBO, the total correlation, and the loss of the critic, each (B,).

    Attributes:
        total_correlation: The critic's estimate of log q(z) - sum_j log q(z_j), in nats.
        critic: Cross-entropy of the critic, which tells z from permuted z, in nats.
    """

    total_correlation: Tensor
    critic: Tensor

    batch_dependent = frozenset({"critic"})

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return "nats per decision" if name == "critic" else super().unit(name)


class FactorVAE(VAE):
    """VAE with a penalty on the total correlation, which a critic estimates.

    The critic learns to tell latents from latents whose dimensions are permuted over the joined
    batch of all processes. Its logit is an estimate of the log density ratio. The permuted latents
    are those of the same batch, where the paper takes a second one.

    Args:
        gamma: Weight of the total correlation.
        critic_hidden: Sizes of the hidden layers of the critic; the paper has six of 1000.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``gamma`` is negative, or latents are not real vectors.
    """

    critic: nn.Module

    def __init__(
        self, gamma: float = 6.0, critic_hidden: Sequence[int] = (1000,) * 6, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        if self.posterior_family.support != REAL:
            raise ValueError(
                f"{type(self).__name__} permutes the dimensions of latents, which have to be "
                f"{REAL}, not {self.posterior_family.support}: choose GaussianPosterior"
            )
        self.gamma = gamma
        self.critic = critic_mlp(self.latent_dim, critic_hidden)

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> FactorTerms:
        """See `BaseVAE.terms`; the critic sees the first draw of each image."""
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        z = self.to_device_dtype(draws.z[:, 0])
        permuted = permute_dimensions(z, noise)
        real, fake = self.critic(z.detach()).float()[:, 0], self.critic(permuted).float()[:, 0]
        return FactorTerms(
            reconstruction=-log_likelihood.mean(1),
            kl=self.kl(q, draws, condition),
            total_correlation=self.frozen_critic(z).float()[:, 0],
            critic=0.5 * (softplus(-real) + softplus(fake)),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the negative ELBO + gamma times the total correlation, (B,)."""
        assert isinstance(terms, FactorTerms)
        return terms.negative_elbo + self.gamma * terms.total_correlation

    def critic_objective(self, terms: FactorTerms) -> Tensor:
        """Return the cross-entropy of the critic, (B,)."""
        return terms.critic


def permute_dimensions(z: Tensor, noise: Noise) -> Tensor:
    """Permute each dimension of latents on its own, over the joined batch of all processes.

    Args:
        z: Latents of this process, (B, L).
        noise: Noise of the batch.

    Returns:
        Detached, (B, L): this process's rows of the permuted batch.
    """
    joined = gather_rows(z)
    generator = noise.generator("permute")
    orders = [torch.randperm(len(joined), generator=generator) for _ in range(z.shape[1])]
    permuted = joined.gather(0, torch.stack(orders, 1).to(z.device))
    return permuted[own_rows(z)]
