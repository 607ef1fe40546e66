"""Gumbel-softmax posterior (Jang et al., 2017), https://arxiv.org/abs/1611.01144.

References:
    Maddison et al. (2017), The concrete distribution, https://arxiv.org/abs/1611.00712
"""

from collections.abc import Callable

from torch import Tensor

from vae_lightning.distributions.categorical import Categorical, check_categories, one_hot_support
from vae_lightning.distributions.posteriors import Posterior
from vae_lightning.schedules import ExponentialDecay, Schedule, Scheduled


class GumbelSoftmaxPosterior(Posterior, Scheduled):
    """Categorical variables, relaxed in training with an annealed temperature.

    Validation, test and inference use exact one-hot draws, so their bounds are those of the
    discrete model.

    Args:
        latent_dim: See `Posterior`; the number of variables times ``num_categories``.
        num_categories: Number of categories K of each variable.
        temperature: Temperature at the start of the training.
        schedule: Factor of the temperature over the training.

    Raises:
        ValueError: If ``num_categories`` does not divide ``latent_dim``, or the temperature is not
            positive.

    Example:
        >>> posterior = GumbelSoftmaxPosterior(latent_dim=20, num_categories=10)
        >>> posterior(torch.zeros(8, posterior.in_features)).mean.shape
        torch.Size([8, 20])
    """

    relaxed_in_training = True

    def __init__(
        self,
        latent_dim: int,
        num_categories: int = 10,
        temperature: float = 1.0,
        schedule: Callable[[], Schedule] = ExponentialDecay,
    ) -> None:
        super().__init__(latent_dim)
        check_categories(self, latent_dim, num_categories)
        if not temperature > 0:
            raise ValueError(
                f"GumbelSoftmaxPosterior: temperature must be positive, got {temperature}"
            )
        self.num_categories = num_categories
        self.temperature = temperature
        self.schedule = schedule()
        self.support = one_hot_support(num_categories)

    @property
    def in_features(self) -> int:
        """A logit for each category of each variable."""
        return self.latent_dim

    def forward(self, features: Tensor) -> Categorical:
        """See `Posterior.forward`.

        Raises:
            ValueError: If the schedule has brought the temperature to 0.
        """
        logits = features.unflatten(1, (-1, self.num_categories)).log_softmax(-1)
        if not self.training:
            return Categorical(logits)
        temperature = self.temperature * self.schedule(self.step)
        if not temperature > 0:
            raise ValueError(
                f"GumbelSoftmaxPosterior: the schedule makes the temperature {temperature} at step "
                f"{self.step}, but it must be positive: choose a schedule with a minimum"
            )
        return Categorical(logits, temperature)
