"""Categorical latents, as one-hot vectors, and a uniform prior over them."""

import math

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import Draws, LatentDistribution
from vae_lightning.distributions.priors import Prior
from vae_lightning.distributions.variables import Kind, Variable, variables
from vae_lightning.randomness import Noise


class Categorical(LatentDistribution):
    """Independent categorical variables; z is the concatenation of their one-hot vectors.

    Args:
        logits: Normalized log-probabilities, (B, N, K): N variables with K categories.
        temperature: Temperature of relaxed draws; None for exact one-hot draws.

    Example:
        >>> q = Categorical(logits=torch.zeros(8, 3, 4).log_softmax(-1))  # 3 variables
        >>> q.rsample(Noise(torch.arange(8), "example")).z.sum(-1).unique()
        tensor([3.])
    """

    def __init__(self, logits: Tensor, temperature: float | None = None) -> None:
        self.logits = logits
        self.temperature = temperature

    @property
    def mean(self) -> Tensor:
        """Probabilities, (B, N K)."""
        return self.logits.exp().flatten(1)

    @property
    def point_estimate(self) -> Tensor:
        """The most probable categories as one-hot vectors, (B, N K)."""
        return _one_hot(self.logits).flatten(1)

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """Draw relaxed vectors in training, through which gradients flow, else one-hot vectors.

        See `LatentDistribution.rsample`. Relaxed draws have no density under a categorical prior,
        so their `Draws.log_prob` raises an error.
        """
        size = self.logits[0].numel()
        uniform = noise.uniform(n * size, first * size)
        gumbel = -(-uniform.log()).log()
        perturbed = self.logits[:, None] + gumbel.view(-1, n, *self.logits.shape[1:])
        if self.temperature is not None:
            z = (perturbed / self.temperature).softmax(-1)
            return Draws(z.flatten(2), _no_density)
        z = _one_hot(perturbed)
        return Draws(z.flatten(2), lambda: (z * self.logits[:, None]).sum((2, 3)))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x) of any one-hot vectors (B, n, N K) in nats, (B, n)."""
        return self.marginal_log_prob(z).sum(2)

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """Return the log-probability of each variable of one-hot vectors, (B, n, N)."""
        return (z.unflatten(2, self.logits.shape[1:]) * self.logits[:, None]).sum(3)

    def parameters(self) -> dict[str, Tensor]:
        """Return ``logits``, (B, N, K)."""
        return {"logits": self.logits}


def _one_hot(scores: Tensor) -> Tensor:
    """Return the largest of the last dimension as a one-hot vector."""
    return nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def _no_density() -> Tensor:
    raise ValueError(
        "relaxed Gumbel-softmax draws have no density under a categorical prior: train this "
        "posterior with the ELBO, not with importance weights"
    )


class UniformCategorical(Prior):
    """Independent categorical variables with equal probabilities.

    Args:
        latent_dim: See `Prior`; the number of variables times ``num_categories``.
        cond_features: See `Prior`; ignored.
        num_categories: Number of categories K of each variable.

    Raises:
        ValueError: If ``num_categories`` does not divide ``latent_dim``.

    Example:
        >>> prior = UniformCategorical(latent_dim=20, num_categories=10)
        >>> prior.sample(5).sum(1)
        tensor([2., 2., 2., 2., 2.])
    """

    def __init__(self, latent_dim: int, cond_features: int = 0, num_categories: int = 10) -> None:
        super().__init__(latent_dim, cond_features)
        check_categories(self, latent_dim, num_categories)
        self.num_categories = num_categories
        self.num_variables = latent_dim // num_categories
        self.support = one_hot_support(num_categories)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The categorical variables."""
        return variables(Kind.CATEGORY, self.latent_dim, self.num_categories)

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`; the probability of one-hot vectors."""
        return z.new_full(z.shape[:-1], -self.num_variables * math.log(self.num_categories))

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        size = n, self.num_variables
        categories = torch.randint(self.num_categories, size, generator=generator)
        return nn.functional.one_hot(categories, self.num_categories).float().flatten(1)

    def marginal_log_prob(self, z: Tensor) -> Tensor:
        """See `Prior.marginal_log_prob`."""
        return z.new_full((*z.shape[:-1], self.num_variables), -math.log(self.num_categories))

    def kl(self, q: LatentDistribution, condition: Tensor | None = None) -> Tensor | None:
        """Return KL(q(z|x) || p(z)) of each variable in nats, (B, N)."""
        if not isinstance(q, Categorical):
            return None
        return (q.logits.exp() * q.logits).sum(2) + math.log(self.num_categories)


def one_hot_support(num_categories: int) -> str:
    """Return the support of one-hot vectors, see `Prior.support`."""
    return f"one-hot vectors of {num_categories} categories"


def check_categories(owner: object, latent_dim: int, num_categories: int) -> None:
    """Raise a ValueError unless a latent vector consists of variables with that many categories."""
    if num_categories < 2 or latent_dim % num_categories:
        raise ValueError(
            f"{type(owner).__name__}: num_categories must be at least 2 and divide latent_dim, got "
            f"{num_categories} and {latent_dim}"
        )
