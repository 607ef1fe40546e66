"""Base class of densities of latents."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vae_lightning import randomness
from vae_lightning.settings import Configurable

_BATCH_SIZE = 500
_HELD_OUT = 0.1
"""Share of the latents by which the training of a network is stopped."""


class LatentDensity(Configurable, nn.Module, ABC):
    """A density of latents z, or of latents given a class, that is fitted to examples.

    Args:
        latent_dim: Size L of a latent.
        num_classes: Number of classes, 0 for a density that does not depend on the class.

    Raises:
        ValueError: If ``latent_dim`` is not positive.
    """

    name: ClassVar[str]
    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int, num_classes: int = 0) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be positive, got {latent_dim}")
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))

    def fit(self, z: Tensor, label: Tensor | None = None, seed: int = 0) -> None:
        """Fit the density.

        Args:
            z: Latents, (N, L).
            label: Their classes, (N,), for a density with classes.
            seed: Seed of all random numbers.

        Raises:
            ValueError: If there are too few latents, or they are not finite.
        """
        self._check_label(len(z), label)
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"expected latents (N, {self.latent_dim}), got {tuple(z.shape)}")
        if not z.isfinite().all():
            raise ValueError("the latents have NaN or infinite values: no density can be fitted")
        if len(z) < 2:
            raise ValueError(f"a density needs at least two latents, got {len(z)}")
        z = z.float()
        self.mean, self.std = z.mean(0), z.std(0).clamp(min=1e-6)
        self._fit((z - self.mean) / self.std, label, seed)
        self.eval()

    @abstractmethod
    def _fit(self, z: Tensor, label: Tensor | None, seed: int) -> None:
        """Fit the density to latents (N, L) of mean 0 and variance 1."""

    def log_prob(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return log q(z), or log q(z|y), of latents (N, L) with classes (N,): nats, (N,)."""
        self._check_label(len(z), label)
        with torch.no_grad():
            scaled = (z.float() - self.mean) / self.std
            return self._log_prob(scaled, label) - self.std.log().sum()

    @abstractmethod
    def _log_prob(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Return the log-density of latents (N, L) of mean 0 and variance 1, (N,)."""

    def sample(
        self, n: int, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``n`` latents, given classes (n,) for a density with classes: (n, L)."""
        self._check_label(n, label)
        with torch.no_grad():
            return self._sample(n, label, generator) * self.std + self.mean

    @abstractmethod
    def _sample(self, n: int, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Draw latents of mean 0 and variance 1, (n, L)."""

    def one_hot(self, label: Tensor | None) -> Tensor | None:
        """Return one-hot classes, (N, num_classes), None for a density without classes."""
        if label is None:
            return None
        return nn.functional.one_hot(label, self.num_classes).float()

    def _check_label(self, n: int, label: Tensor | None) -> None:
        if (label is not None) != bool(self.num_classes):
            raise ValueError(
                f"this density is one of latents given one of {self.num_classes} classes: give them"
                if self.num_classes
                else "this density does not depend on the class: give no label"
            )
        if label is not None and label.shape != (n,):
            raise ValueError(f"{n} latents need {n} labels, got shape {tuple(label.shape)}")


def train(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor | None, torch.Generator], Tensor],
    z: Tensor,
    condition: Tensor | None,
    seed: int,
    *,
    learning_rate: float,
    max_epochs: int,
    patience: int,
) -> None:
    """Train a network by Adam until its loss on held-out latents no longer falls; keep the best.

    Args:
        network: What is trained; the gradients come from the loss.
        loss: Function of latents (B, L), one-hot classes (B, num_classes) and a generator that
            returns one value per latent, (B,).
        z: Latents, (N, L).
        condition: One-hot classes, (N, num_classes), or None.
        seed: Seed of the split, the order and the noise.
        learning_rate: Learning rate.
        max_epochs: Largest number of epochs.
        patience: Number of epochs without a better loss after which the training ends.
    """
    order = randomness.choose(len(z), len(z), seed, "held out")
    held_out = max(1, round(_HELD_OUT * len(z)))
    val, trained = order[:held_out], order[held_out:]
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def mean_loss(index: Tensor, generator: torch.Generator) -> Tensor:
        return loss(z[index], None if condition is None else condition[index], generator).mean()

    best, best_state, waited = float("inf"), _copy(network), 0
    for epoch in tqdm(range(max_epochs), desc="density", unit="epoch", delay=3, leave=False):
        network.train()
        generator = randomness.generator(seed, "density", epoch)
        shuffled = trained[torch.randperm(len(trained), generator=generator)]
        for part in shuffled.split(_BATCH_SIZE):
            optimizer.zero_grad()
            mean_loss(part, generator).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            now = mean_loss(val, randomness.generator(seed, "density validation")).item()
        waited += 1
        if now < best:
            best, best_state, waited = now, _copy(network), 0
        if waited == patience:
            break
    network.load_state_dict(best_state)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
