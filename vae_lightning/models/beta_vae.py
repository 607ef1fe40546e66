"""beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.schedules import Constant, Schedule


class BetaVAE(VAE):
    """VAE with a weighted KL term: -E_q[log p(x|z)] + beta KL(q(z|x) || p(z)).

    Args:
        beta: Weight of the KL term. 1 is the plain VAE; larger values trade reconstruction for
            independent latents.
        schedule: Factor of beta over the training. Validation and test use beta itself, so that
            their losses can be compared between epochs.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``beta`` is negative.
    """

    def __init__(
        self, beta: float = 4.0, schedule: Callable[[], Schedule] = Constant, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not beta >= 0:
            raise ValueError(f"beta must not be negative, got {beta}")
        self.beta = beta
        self.schedule = schedule()

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + beta KL, (B,)."""
        beta = self.beta * self.schedule(self.step) if self.training else self.beta
        return terms.reconstruction + beta * terms.kl
