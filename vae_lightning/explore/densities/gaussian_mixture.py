"""Mixture of Gaussians with full covariances, fitted by expectation-maximization."""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_lightning.explore.densities.base import LatentDensity


class GaussianMixtureDensity(LatentDensity):
    """Mixture of Gaussians with full covariances; one mixture per class of a conditional model.

    It is fitted by scikit-learn's expectation-maximization from k-means.

    Args:
        latent_dim: See `LatentDensity`.
        num_classes: See `LatentDensity`.
        components: Number of Gaussians K.

    Raises:
        ValueError: If a number is not positive.

    References:
        Ghosh et al. (2020), From variational to deterministic autoencoders,
        https://arxiv.org/abs/1903.12436 (10 components on MNIST)

    Example:
        >>> density = GaussianMixtureDensity(latent_dim=2, components=3)
        >>> density.fit(torch.randn(100, 2))
        >>> density.sample(5).shape
        torch.Size([5, 2])
    """

    name = "gmm"
    log_weights: Tensor
    centers: Tensor
    scale_trils: Tensor

    def __init__(self, latent_dim: int, num_classes: int = 0, components: int = 10) -> None:
        super().__init__(latent_dim, num_classes)
        if components < 1:
            raise ValueError(f"components must be positive, got {components}")
        self.components = components
        mixtures, size = max(1, num_classes), latent_dim
        self.register_buffer("log_weights", torch.zeros(mixtures, components))
        self.register_buffer("centers", torch.zeros(mixtures, components, size))
        self.register_buffer("scale_trils", torch.eye(size).repeat(mixtures, components, 1, 1))

    def _fit(self, z: Tensor, label: Tensor | None, seed: int) -> None:
        from sklearn.mixture import GaussianMixture

        for i in range(len(self.log_weights)):
            chosen = z if label is None else z[label == i]
            if len(chosen) < max(2, self.components):
                of = "" if label is None else f" of class {i}"
                raise ValueError(
                    f"{self.components} components need at least as many latents, and there are "
                    f"{len(chosen)}{of}: use fewer components"
                )
            made = GaussianMixture(self.components, random_state=seed, max_iter=300)
            made.fit(chosen.double().numpy())
            covariances = torch.from_numpy(made.covariances_)
            self.log_weights[i] = torch.from_numpy(made.weights_).log().float()
            self.centers[i] = torch.from_numpy(made.means_).float()
            self.scale_trils[i] = torch.linalg.cholesky(covariances).float()

    def _log_prob(self, z: Tensor, label: Tensor | None) -> Tensor:
        found = z.new_empty(len(z))
        for i in range(len(self.log_weights)):
            here = torch.ones(len(z), dtype=torch.bool) if label is None else label == i
            gaussians = MultivariateNormal(self.centers[i], scale_tril=self.scale_trils[i])
            log_probs = gaussians.log_prob(z[here][:, None]) + self.log_weights[i]
            found[here] = log_probs.logsumexp(1)
        return found

    def _sample(self, n: int, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        mixture = torch.zeros(n, dtype=torch.int64) if label is None else label
        weights = self.log_weights.exp()[mixture]
        component = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(n, self.latent_dim, 1, generator=generator)
        scale = self.scale_trils[mixture, component]
        return self.centers[mixture, component] + (scale @ noise)[:, :, 0]
