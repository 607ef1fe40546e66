"""A normal prior for each class."""

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import LatentDistribution
from vae_lightning.distributions.priors import Prior
from vae_lightning.functional import standard_normal_log_prob
from vae_lightning.randomness import standard_normal


class LabelNormal(Prior):
    r"""Normal distribution with a mean and variances of its own for each class, which are learned.

    .. math:: p(z|y) = N(z; \mu_y, \mathrm{diag}(\sigma_y^2))

    Use it with conditional models: the prior then knows the class as encoder and decoder do, and
    z need not hold what is common to a class. All classes start at N(0, I). With models that are
    not conditional, it is one Gaussian for all images.

    The KL divergence of a Gaussian posterior has a closed form.

    Args:
        latent_dim: See `Prior`.
        cond_features: See `Prior`.

    References:
        Sohn et al. (2015), Learning structured output representation using deep conditional
        generative models (priors that see the condition), https://papers.nips.cc/paper/5775
        https://github.com/nbip/IWAE, task 4 (IWAE on MNIST with such a prior)

    Example:
        >>> prior = LabelNormal(latent_dim=2, cond_features=10)
        >>> classes = torch.nn.functional.one_hot(torch.arange(8), 10).float()
        >>> prior.log_prob(torch.zeros(8, 1, 2), classes).shape
        torch.Size([8, 1])
    """

    def __init__(self, latent_dim: int, cond_features: int = 0) -> None:
        super().__init__(latent_dim, cond_features)
        classes = max(1, cond_features)
        self.mu = nn.Parameter(torch.zeros(classes, latent_dim))
        self.log_var = nn.Parameter(torch.zeros(classes, latent_dim))

    def parameters_of(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the means and the logarithms of the variances for classes.

        Args:
            condition: One-hot classes, (B, cond_features), or None without classes.

        Returns:
            Two tensors, (B, L) each, or (1, L) without classes.

        Raises:
            ValueError: If the classes are missing.
        """
        if condition is None:
            if self.cond_features:
                raise ValueError("LabelNormal is a prior given the class: give the classes")
            return self.mu.float(), self.log_var.float()
        chosen = condition.argmax(1).to(self.mu.device)
        return self.mu.float()[chosen], self.log_var.float()[chosen]

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`."""
        mu, log_var = self.parameters_of(condition)
        epsilon = (z - mu[:, None]) * (-0.5 * log_var).exp()[:, None]
        return standard_normal_log_prob(epsilon) - 0.5 * log_var.sum(1, keepdim=True)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        mu, log_var = self.parameters_of(condition)
        epsilon = standard_normal(n, self.latent_dim, generator, mu.device)
        return mu + (0.5 * log_var).exp() * epsilon

    def tempered(
        self, z: Tensor, temperature: float, condition: Tensor | None = None
    ) -> Tensor | None:
        """See `Prior.tempered`."""
        mu, _ = self.parameters_of(condition)
        return mu + temperature * (z - mu)

    def kl(self, q: LatentDistribution, condition: Tensor | None = None) -> Tensor | None:
        """See `Prior.kl`; exact for Gaussians."""
        return q.normal_kl(*self.parameters_of(condition))

    def marginal_log_prob(self, z: Tensor) -> Tensor | None:
        """See `Prior.marginal_log_prob`; None for conditional models."""
        if self.cond_features:
            return None
        epsilon = (z - self.mu) * (-0.5 * self.log_var).exp()
        return standard_normal_log_prob(epsilon[..., None]) - 0.5 * self.log_var
