"""Adversarial autoencoder (Makhzani et al., 2016), https://arxiv.org/abs/1511.05644."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vae_lightning.distributed import own_rows
from vae_lightning.distributions.posteriors import DeterministicPosterior, Posterior
from vae_lightning.functional import softplus
from vae_lightning.models.base import Terms
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.nets.base import concatenate
from vae_lightning.nets.mlp import critic_mlp
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class AdversarialTerms(Terms):
    """The terms of the autoencoder and of its critic, each (B,).

    Attributes:
        reconstruction: -log p(x|z) in nats.
        adversarial: -log D(z): how well the critic tells the latent from draws of the prior, nats.
        critic: Cross-entropy of the critic, in nats.
    """

    adversarial: Tensor
    critic: Tensor

    batch_dependent = frozenset({"critic"})

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return super().unit(name) if name == "reconstruction" else "nats per decision"


class AdversarialAutoencoder(LatentVariableModel):
    """Autoencoder whose latents a critic cannot tell from draws of the prior.

    -log p(x|z) + adversarial_weight (-log D(z)), where the critic D is trained to tell draws of
    the prior from latents of images. With the default, deterministic encoder there is no density
    of images, and none is reported.

    Args:
        adversarial_weight: Weight of the adversarial term, in nats.
        critic_hidden: Sizes of the hidden layers of the critic.
        posterior: The family of q(z|x): deterministic or Gaussian.
        **kwargs: See `LatentVariableModel`.

    Raises:
        ValueError: If ``adversarial_weight`` is negative.
    """

    critic: nn.Module

    def __init__(
        self,
        adversarial_weight: float = 10.0,
        critic_hidden: Sequence[int] = (512, 512),
        posterior: Callable[[int], Posterior] = DeterministicPosterior,
        **kwargs: Any,
    ) -> None:
        super().__init__(posterior=posterior, **kwargs)
        if not adversarial_weight >= 0:
            raise ValueError(f"adversarial_weight must not be negative, got {adversarial_weight}")
        self.adversarial_weight = adversarial_weight
        self.critic = critic_mlp(self.latent_dim + self.cond_features, critic_hidden)

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> AdversarialTerms:
        """See `BaseVAE.terms`; the critic sees the first draw of each image."""
        draws = self.posterior(x, condition).rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        z = self.to_device_dtype(draws.z[:, 0])
        joined = self.joined_prior_samples(len(x), condition, noise)
        prior = joined[own_rows(x)].detach().to(z.dtype)
        adversarial = softplus(-self.frozen_critic(_with(z, condition)).float())[:, 0]
        real = softplus(-self.critic(_with(prior, condition)).float())[:, 0]
        fake = softplus(self.critic(_with(z.detach(), condition)).float())[:, 0]
        return AdversarialTerms(-log_likelihood.mean(1), adversarial, 0.5 * (real + fake))

    def objective(self, terms: Terms) -> Tensor:
        """Return reconstruction + adversarial_weight times the adversarial term, (B,)."""
        assert isinstance(terms, AdversarialTerms)
        return terms.reconstruction + self.adversarial_weight * terms.adversarial

    def critic_objective(self, terms: AdversarialTerms) -> Tensor:
        """Return the cross-entropy of the critic, (B,)."""
        return terms.critic


def _with(z: Tensor, condition: Tensor | None) -> Tensor:
    """Append the class to the latents, so that the critic sees both."""
    return concatenate(z, condition)
