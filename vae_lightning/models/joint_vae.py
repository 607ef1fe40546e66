"""JointVAE (Dupont, 2018), https://arxiv.org/abs/1804.00104."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from vae_lightning.distributions.categorical import UniformCategorical
from vae_lightning.distributions.gumbel_softmax import GumbelSoftmaxPosterior
from vae_lightning.distributions.posteriors import GaussianPosterior, LatentDistribution
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.distributions.product import ProductPosterior, ProductPrior
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise
from vae_lightning.schedules import Constant, Schedule


@dataclass(frozen=True)
class JointTerms(ELBOTerms):
    """The terms of the ELBO, and the KL of both kinds of latents in nats per image, (B,).

    Attributes:
        kl_continuous: KL of the continuous latents.
        kl_discrete: KL of the categorical latents.
    """

    kl_continuous: Tensor
    kl_discrete: Tensor


class JointVAE(VAE):
    r"""VAE with continuous and categorical latents, whose KL terms are held at two capacities.

    .. math:: -E_q[\log p(x|z, c)] + \gamma \, | KL(q(z|x) \| p(z)) - C_z |
        + \gamma \, | KL(q(c|x) \| p(c)) - C_c |

    The categorical variables are relaxed in training by the Gumbel-softmax; validation and test
    draw one-hot vectors, so the reported bound, the negative ELBO, is that of the model with
    discrete latents. Without a capacity of their own, categorical variables are hardly used,
    because continuous ones hold the same information at a lower cost in training. Use it where
    classes and continuous factors are to be found without labels. The distances are those of each
    image, while the authors' code takes those of the mean over the batch; see `CapacityVAE`. Both
    capacities should grow from 0: what helps the reconstruction most then comes first.

    Args:
        num_continuous: Number of continuous latents.
        categories: Number of categories of each categorical latent.
        gamma: Weight of the distances from the capacities. With a large one, little is learned but
            to spend exactly the capacities on every image.
        continuous_capacity: Capacity C_z in nats per image, at the end of the schedule.
        discrete_capacity: Capacity C_c, likewise, but never more than the categories can hold: the
            sum of the logarithms of their numbers, which is also the default. With a larger one, it
            has grown to that before the end of the schedule.
        schedule: Factor of both capacities over the training, such as `LinearWarmup`. Validation
            and test use the whole capacities, so that their losses can be compared between epochs.
        temperature: Temperature of the relaxation at the start of the training.
        temperature_schedule: Factor of the temperature over the training.
        **kwargs: See `VAE`, without ``latent_dim``, ``prior`` and ``posterior``.

    Raises:
        ValueError: If a number is out of range.

    References:
        Dupont (2018), Learning disentangled joint continuous and discrete representations,
        https://arxiv.org/abs/1804.00104 (on MNIST: 10 continuous latents, one of 10 categories,
        gamma 30, both capacities from 0 to 5 nats in 25,000 steps, temperature 0.67)

    Example:
        >>> JointVAE(num_continuous=4, categories=[10, 2]).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        num_continuous: int = 10,
        categories: Sequence[int] = (10,),
        gamma: float = 10.0,
        continuous_capacity: float = 5.0,
        discrete_capacity: float | None = None,
        schedule: Callable[[], Schedule] = Constant,
        temperature: float = 0.67,
        temperature_schedule: Callable[[], Schedule] = Constant,
        **kwargs: Any,
    ) -> None:
        if num_continuous < 1 or not categories or min(categories) < 2:
            raise ValueError(
                "JointVAE: num_continuous must be positive, and categories numbers of at least 2, "
                f"got {num_continuous} and {list(categories)}"
            )
        most = sum(math.log(k) for k in categories)
        discrete_capacity = most if discrete_capacity is None else discrete_capacity
        given = {
            "gamma": gamma,
            "continuous_capacity": continuous_capacity,
            "discrete_capacity": discrete_capacity,
        }
        for name, value in given.items():
            if not value >= 0:
                raise ValueError(f"JointVAE: {name} must not be negative, got {value}")
        sizes = [num_continuous, *categories]
        posteriors = [
            partial(
                GumbelSoftmaxPosterior,
                num_categories=k,
                temperature=temperature,
                schedule=temperature_schedule,
            )
            for k in categories
        ]
        priors = [partial(UniformCategorical, num_categories=k) for k in categories]
        super().__init__(
            latent_dim=sum(sizes),
            prior=partial(ProductPrior, priors=(StandardNormal, *priors), sizes=sizes),
            posterior=partial(
                ProductPosterior, posteriors=(GaussianPosterior, *posteriors), sizes=sizes
            ),
            **kwargs,
        )
        self.num_continuous = num_continuous
        self.gamma = gamma
        self.continuous_capacity = continuous_capacity
        self.discrete_capacity = discrete_capacity
        self.largest_capacity = most
        self.schedule = schedule()

    def elbo_terms(
        self, q: LatentDistribution, x: Tensor, condition: Tensor | None, noise: Noise
    ) -> JointTerms:
        """See `VAE.elbo_terms`."""
        terms = super().elbo_terms(q, x, condition, noise)
        kl = self.prior.kl(q, condition)
        assert kl is not None
        return JointTerms(
            terms.reconstruction,
            terms.kl,
            kl_continuous=kl[:, : self.num_continuous].sum(1),
            kl_discrete=kl[:, self.num_continuous :].sum(1),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + gamma |KL_z - C_z| + gamma |KL_c - C_c|, (B,)."""
        assert isinstance(terms, JointTerms)
        share = self.schedule(self.step) if self.training else 1.0
        continuous = terms.kl_continuous - share * self.continuous_capacity
        discrete = terms.kl_discrete - min(share * self.discrete_capacity, self.largest_capacity)
        return terms.reconstruction + self.gamma * (continuous.abs() + discrete.abs())
