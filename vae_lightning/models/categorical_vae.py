"""Categorical VAE with Gumbel-softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144."""

from collections.abc import Callable
from functools import partial
from typing import Any

from vae_lightning.distributions.categorical import UniformCategorical
from vae_lightning.distributions.gumbel_softmax import GumbelSoftmaxPosterior
from vae_lightning.models.vae import VAE
from vae_lightning.schedules import ExponentialDecay, Schedule


class CategoricalVAE(VAE):
    """VAE whose latent is a vector of categorical variables, relaxed in training.

    Reported bounds are those of the discrete model: validation and test draw one-hot vectors.

    Args:
        num_variables: Number of categorical variables.
        num_categories: Number of categories of each variable.
        temperature: Temperature of the relaxation at the start of the training.
        schedule: Factor of the temperature over the training.
        **kwargs: See `VAE`, without ``latent_dim``, ``prior`` and ``posterior``.
    """

    def __init__(
        self,
        num_variables: int = 20,
        num_categories: int = 10,
        temperature: float = 1.0,
        schedule: Callable[[], Schedule] = ExponentialDecay,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            latent_dim=num_variables * num_categories,
            prior=partial(UniformCategorical, num_categories=num_categories),
            posterior=partial(
                GumbelSoftmaxPosterior,
                num_categories=num_categories,
                temperature=temperature,
                schedule=schedule,
            ),
            **kwargs,
        )
