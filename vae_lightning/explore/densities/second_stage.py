"""Second-stage VAE (Dai and Wipf, 2019)."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lightning.explore.densities.base import LatentDensity, train
from vae_lightning.functional import standard_normal_log_prob

_IMPORTANCE_SAMPLES = 64


class SecondStageVAE(LatentDensity):
    """A small VAE of the latents, whose own latent u has as many dimensions.

    Gaussian with one learned standard deviation: p(z|u) = N(f(u), gamma^2 I).

    Args:
        latent_dim: See `LatentDensity`.
        num_classes: See `LatentDensity`.
        hidden: Sizes of the hidden layers of encoder and decoder.
        learning_rate: Learning rate of Adam.
        max_epochs: Largest number of epochs; training ends when the bound of a held-out tenth of
            the latents no longer rises.

    Raises:
        ValueError: If a number is not positive.

    References:
        Dai and Wipf (2019), Diagnosing and enhancing VAE models, https://arxiv.org/abs/1903.05789
    """

    name = "vae"

    def __init__(
        self,
        latent_dim: int,
        num_classes: int = 0,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 1e-3,
        max_epochs: int = 100,
    ) -> None:
        super().__init__(latent_dim, num_classes)
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        size = latent_dim + num_classes
        self.encoder = _SkipMLP(size, hidden, 2 * latent_dim)
        self.decoder = _SkipMLP(size, hidden, latent_dim)
        # From a standard deviation of 1, it would settle at ignoring u.
        self.log_gamma = nn.Parameter(torch.tensor(-1.0))

    def _fit(self, z: Tensor, label: Tensor | None, seed: int) -> None:
        def loss(z: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
            return -self._log_weights(z, condition, 1, generator)[:, 0]

        train(
            self,
            loss,
            z,
            self.one_hot(label),
            seed,
            learning_rate=self.learning_rate,
            max_epochs=self.max_epochs,
            patience=10,
        )

    def _log_weights(
        self,
        z: Tensor,
        condition: Tensor | None,
        num_samples: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return log p(z, u) - log q(u|z) of draws of u from q(u|z), (N, num_samples)."""
        mu, log_var = self.encoder(_join(z, condition)).chunk(2, 1)
        noise = torch.randn(num_samples, *z.shape, generator=generator).movedim(0, 1)
        std = (0.5 * log_var).exp()
        u = mu[:, None] + std[:, None] * noise
        given = None if condition is None else condition[:, None].expand(-1, num_samples, -1)
        residual = (z[:, None] - self.decoder(_join(u, given))) / self.log_gamma.exp()
        log_likelihood = standard_normal_log_prob(residual) - self.latent_dim * self.log_gamma
        log_q = standard_normal_log_prob(noise) - 0.5 * log_var.sum(1, keepdim=True)
        return log_likelihood + standard_normal_log_prob(u) - log_q

    def _log_prob(self, z: Tensor, label: Tensor | None) -> Tensor:
        """See `LatentDensity.log_prob`: a lower bound in expectation, by importance sampling."""
        generator = torch.Generator().manual_seed(0)
        condition = self.one_hot(label)
        found = []
        for part in torch.arange(len(z)).split(500):
            given = None if condition is None else condition[part]
            log_weights = self._log_weights(z[part], given, _IMPORTANCE_SAMPLES, generator)
            found.append(log_weights.logsumexp(1) - math.log(_IMPORTANCE_SAMPLES))
        return torch.cat(found)

    def _sample(self, n: int, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        u, noise = torch.randn(2, n, self.latent_dim, generator=generator)
        mean: Tensor = self.decoder(_join(u, self.one_hot(label)))
        return mean + self.log_gamma.exp() * noise


class _SkipMLP(nn.Module):
    """Multilayer perceptron whose last layer sees the input beside the last hidden layer."""

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([in_features, *hidden]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(in_features + hidden[-1], out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([x, self.layers(x)], -1))
        return out


def _join(z: Tensor, condition: Tensor | None) -> Tensor:
    return z if condition is None else torch.cat([z, condition], -1)
