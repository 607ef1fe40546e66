"""beta-TCVAE (Chen et al., 2018), https://arxiv.org/abs/1802.04942."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_lightning.distributed import join_rows
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class TCTerms(ELBOTerms):
    """The terms of the ELBO, and the decomposition of its KL term, each in nats per image, (B,).

    Attributes:
        mutual_information: log q(z|x) - log q(z), the index-code mutual information.
        total_correlation: log q(z) - sum_j log q(z_j).
        dimension_kl: sum_j log q(z_j) - log p(z).
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor

    batch_dependent = frozenset({"mutual_information", "total_correlation", "dimension_kl"})


class BetaTCVAE(VAE):
    r"""VAE whose KL term is decomposed, with a larger weight on the total correlation.

    .. math:: -E_q[\log p(x|z)] + \alpha I(z; n) + \beta \, TC(z)
        + \gamma \sum_j KL(q(z_j) \| p(z_j))

    The densities of the aggregate posterior q(z) are estimated from the joined batch of all
    processes by minibatch-weighted sampling (appendix C.1 of the paper).

    Args:
        beta: Weight of the total correlation.
        alpha: Weight of the mutual information.
        gamma: Weight of the KL of the single dimensions.
        num_train: Number of training images N. The command line takes it from the data.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If a weight is negative, ``num_train`` is not positive, or the posterior is not
            Gaussian.
    """

    def __init__(
        self,
        beta: float = 6.0,
        alpha: float = 1.0,
        gamma: float = 1.0,
        num_train: int = 50_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, weight in {"beta": beta, "alpha": alpha, "gamma": gamma}.items():
            if not weight >= 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        if num_train < 1:
            raise ValueError(f"num_train must be positive, got {num_train}")
        with torch.no_grad():
            q = self.posterior_family(torch.zeros(1, self.posterior_family.in_features))
        if not isinstance(q, DiagonalGaussian):
            name = type(self.posterior_family).__name__
            raise ValueError(f"BetaTCVAE needs a GaussianPosterior, not a {name}")
        self.beta = beta
        self.alpha = alpha
        self.gamma = gamma
        self.num_train = num_train

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> TCTerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        assert isinstance(q, DiagonalGaussian)
        draws = q.rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        log_q_z, log_q_dimensions = self.aggregate_log_probs(draws.z, q)
        log_prior = self.log_prior(draws.z, condition)
        return TCTerms(
            reconstruction=-log_likelihood.mean(1),
            kl=self.kl(q, draws, condition),
            mutual_information=(draws.log_prob - log_q_z).mean(1),
            total_correlation=(log_q_z - log_q_dimensions).mean(1),
            dimension_kl=(log_q_dimensions - log_prior).mean(1),
        )

    def aggregate_log_probs(self, z: Tensor, q: DiagonalGaussian) -> tuple[Tensor, Tensor]:
        """Estimate log q(z) and sum_j log q(z_j) of draws by minibatch-weighted sampling.

        Args:
            z: Draws of this process, (B, n, L).
            q: Their posterior.

        Returns:
            Two tensors in nats, each (B, n).
        """
        mu, log_var = join_rows(q.mu), join_rows(q.log_var)  # (M, L)
        squares = (z[:, :, None] - mu).square() * (-log_var).exp()
        log_q = -0.5 * (squares + log_var + math.log(2 * math.pi))  # (B, n, M, L)
        log_size = math.log(len(mu) * self.num_train)
        joint = log_q.sum(3).logsumexp(2) - log_size
        return joint, (log_q.logsumexp(2) - log_size).sum(2)

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + alpha MI + beta TC + gamma KL of the dimensions, (B,)."""
        assert isinstance(terms, TCTerms)
        return (
            terms.reconstruction
            + self.alpha * terms.mutual_information
            + self.beta * terms.total_correlation
            + self.gamma * terms.dimension_kl
        )
