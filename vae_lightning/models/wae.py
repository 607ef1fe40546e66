"""Wasserstein autoencoder with MMD (Tolstikhin et al., 2018), https://arxiv.org/abs/1711.01558."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_lightning.discrepancies import Kernel, check_kernel, squared_mmd
from vae_lightning.distributed import join_rows
from vae_lightning.distributions.posteriors import DeterministicPosterior, Posterior
from vae_lightning.models.base import Terms
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class WAETerms(Terms):
    """The two terms of the objective.

    Attributes:
        reconstruction: -log p(x|z) in nats, (B,).
        mmd: Squared maximum mean discrepancy of the joined batch from the prior, ().
    """

    mmd: Tensor

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return "squared MMD" if name == "mmd" else super().unit(name)


class WAE(LatentVariableModel):
    """Autoencoder whose latents, over a batch, are pulled to the prior by a kernel distance.

    -log p(x|z) + mmd_weight MMD^2(q(z), p(z)). With the default, deterministic encoder there is no
    density of images, and none is reported.

    Args:
        mmd_weight: Weight of the squared MMD, in nats.
        kernel: ``imq`` (inverse multiquadratic, the paper's choice) or ``rbf`` (Gaussian), each
            summed over seven scales around the one that suits N(0, I).
        posterior: The family of q(z|x): deterministic or Gaussian.
        **kwargs: See `LatentVariableModel`.

    Raises:
        ValueError: If ``mmd_weight`` is negative or the kernel is unknown.
    """

    def __init__(
        self,
        mmd_weight: float = 500.0,
        kernel: Kernel = "imq",
        posterior: Callable[[int], Posterior] = DeterministicPosterior,
        **kwargs: Any,
    ) -> None:
        super().__init__(posterior=posterior, **kwargs)
        if not mmd_weight >= 0:
            raise ValueError(f"mmd_weight must not be negative, got {mmd_weight}")
        check_kernel(kernel)
        self.mmd_weight = mmd_weight
        self.kernel: Kernel = kernel

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> WAETerms:
        """See `BaseVAE.terms`."""
        draws = self.posterior(x, condition).rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        prior = self.joined_prior_samples(len(x), condition, noise)
        joined = join_rows(draws.z[:, 0])
        return WAETerms(-log_likelihood.mean(1), squared_mmd(joined, prior, self.kernel))

    def objective(self, terms: Terms) -> Tensor:
        """Return reconstruction + mmd_weight MMD^2, (B,)."""
        assert isinstance(terms, WAETerms)
        return terms.reconstruction + self.mmd_weight * terms.mmd
