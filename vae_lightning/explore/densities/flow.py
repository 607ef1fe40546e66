"""Masked autoregressive flow from zuko."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lightning.distributions.zuko_flows import zuko_flows
from vae_lightning.explore.densities.base import LatentDensity, train
from vae_lightning.functional import standard_normal_log_prob


class FlowDensity(LatentDensity):
    """Masked autoregressive flow, trained by maximum likelihood.

    Args:
        latent_dim: See `LatentDensity`.
        num_classes: See `LatentDensity`.
        transforms: Number of autoregressive transforms.
        hidden: Sizes of the hidden layers of each transform.
        learning_rate: Learning rate of Adam.
        max_epochs: Largest number of epochs; training ends when the likelihood of a held-out tenth
            of the latents no longer rises.

    Raises:
        ValueError: If a number is not positive, or there is only one latent dimension.

    References:
        Papamakarios et al. (2017), Masked autoregressive flow for density estimation,
        https://arxiv.org/abs/1705.07057
    """

    name = "flow"

    def __init__(
        self,
        latent_dim: int,
        num_classes: int = 0,
        transforms: int = 5,
        hidden: Sequence[int] = (128, 128),
        learning_rate: float = 1e-3,
        max_epochs: int = 50,
    ) -> None:
        super().__init__(latent_dim, num_classes)
        if latent_dim < 2:
            raise ValueError("a flow needs at least two latent dimensions: use gmm")
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.flow = zuko_flows().MAF(
            latent_dim, num_classes, transforms=transforms, hidden_features=tuple(hidden)
        )

    def _fit(self, z: Tensor, label: Tensor | None, seed: int) -> None:
        def loss(z: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
            return -self._log_density(z, condition)

        train(
            self.flow,
            loss,
            z,
            self.one_hot(label),
            seed,
            learning_rate=self.learning_rate,
            max_epochs=self.max_epochs,
            patience=5,
        )

    def _log_density(self, z: Tensor, condition: Tensor | None) -> Tensor:
        base, log_det = self.flow.transform(condition).call_and_ladj(z)
        log_prob: Tensor = standard_normal_log_prob(base) + log_det
        return log_prob

    def _log_prob(self, z: Tensor, label: Tensor | None) -> Tensor:
        return self._log_density(z, self.one_hot(label))

    def _sample(self, n: int, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        base = torch.randn(n, self.latent_dim, generator=generator)
        z: Tensor = self.flow.transform(self.one_hot(label)).inv(base)
        return z
