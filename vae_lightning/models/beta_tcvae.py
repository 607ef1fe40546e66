"""beta-TCVAE (Chen et al., 2018), https://arxiv.org/abs/1802.04942."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vae_lightning.distributed import join_rows, own_rows
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise

Estimator = Literal["weighted", "stratified"]


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


@dataclass(frozen=True)
class WeightedTCTerms(TCTerms):
    """The same terms with the constant offsets of minibatch-weighted sampling."""

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        offset = " + offset of the weighted estimator" if name in cls.batch_dependent else ""
        return super().unit(name) + offset


class BetaTCVAE(VAE):
    r"""VAE whose KL term is decomposed, with a larger weight on the total correlation.

    .. math:: -E_q[\log p(x|z)] + \alpha I(z; n) + \beta \, TC(z)
        + \gamma \sum_j KL(q(z_j) \| p(z_j))

    The densities of the aggregate posterior q(z) = (1/N) sum_n q(z|x_n) over the N training images
    are estimated from the joined batch of M images of all processes:

    - ``weighted`` (minibatch-weighted sampling, appendix C.1 of the paper, used in its
      experiments) takes 1/(NM) times the sum over the batch. This is not an estimate of q(z): the
      image that z is from counts M times too little, and the others N times. An estimated log q(z)
      or log q(z_j) is too small by log N where the others matter most, and by log M where the image
      itself does. So with L latent dimensions, the mutual information is too large by up to log N,
      the total correlation by about (L - 1) log N, and the dimensions' KL is too small by about
      L log N. Constants move no gradient, but the terms are not the quantities that they are named
      after.
    - ``stratified`` (minibatch-stratified sampling, appendix C.2) gives the image itself its weight
      1/N and the others (N - 1)/N, shared equally: the paper's weights, averaged over the order of
      the others. The densities have no bias, and the terms are estimates of these quantities. The
      mutual information is at most log N; where few images of the batch are near each other, it
      is close to it, and the total correlation is too small.

    Args:
        beta: Weight of the total correlation.
        alpha: Weight of the mutual information.
        gamma: Weight of the KL of the single dimensions.
        num_train: Number of training images N. The command line takes it from the data.
        estimator: ``weighted`` or ``stratified``.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If a weight is negative, ``num_train`` is not positive, there is no such
            estimator, or the posterior is not Gaussian.

    References:
        Chen et al. (2018), Isolating sources of disentanglement in variational autoencoders,
        https://arxiv.org/abs/1802.04942

    Example:
        >>> BetaTCVAE(estimator="stratified", latent_dim=10).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        beta: float = 6.0,
        alpha: float = 1.0,
        gamma: float = 1.0,
        num_train: int = 50_000,
        estimator: Estimator = "weighted",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, weight in {"beta": beta, "alpha": alpha, "gamma": gamma}.items():
            if not weight >= 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        if num_train < 1:
            raise ValueError(f"num_train must be positive, got {num_train}")
        if estimator not in ("weighted", "stratified"):
            raise ValueError(f"estimator must be weighted or stratified, got {estimator!r}")
        with torch.no_grad():
            q = self.posterior_family(torch.zeros(1, self.posterior_family.in_features))
        if not isinstance(q, DiagonalGaussian):
            name = type(self.posterior_family).__name__
            raise ValueError(f"BetaTCVAE needs a GaussianPosterior, not a {name}")
        self.beta = beta
        self.alpha = alpha
        self.gamma = gamma
        self.num_train = num_train
        self.estimator: Estimator = estimator

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> TCTerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        assert isinstance(q, DiagonalGaussian)
        draws = q.rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        log_q_z, log_q_dimensions = self.aggregate_log_probs(draws.z, q)
        log_prior = self.log_prior(draws.z, condition)
        kind = WeightedTCTerms if self.estimator == "weighted" else TCTerms
        return kind(
            reconstruction=-log_likelihood.mean(1),
            kl=self.kl(q, draws, condition),
            mutual_information=(draws.log_prob - log_q_z).mean(1),
            total_correlation=(log_q_z - log_q_dimensions).mean(1),
            dimension_kl=(log_q_dimensions - log_prior).mean(1),
        )

    def aggregate_log_probs(self, z: Tensor, q: DiagonalGaussian) -> tuple[Tensor, Tensor]:
        """Estimate log q(z) and sum_j log q(z_j) of draws from the joined batch.

        Args:
            z: Draws of this process, (B, n, L).
            q: Their posterior.

        Returns:
            Two tensors in nats, each (B, n).
        """
        mu, log_var = join_rows(q.mu), join_rows(q.log_var)  # (M, L)
        squares = (z[:, :, None] - mu).square() * (-log_var).exp()
        log_q = -0.5 * (squares + log_var + math.log(2 * math.pi))  # (B, n, M, L)
        log_weights = self._log_weights(z, len(mu))[:, None]  # (B, 1, M)
        joint = (log_q.sum(3) + log_weights).logsumexp(2)
        return joint, (log_q + log_weights[..., None]).logsumexp(2).sum(2)

    def _log_weights(self, z: Tensor, size: int) -> Tensor:
        """Return the logs of the weights of the images of a joined batch, (B, M) or (1, M).

        Args:
            z: Draws of this process, (B, n, L).
            size: Number of images M of the joined batch.
        """
        if self.estimator == "weighted":
            return z.new_full((1, size), -math.log(size * self.num_train))
        if size == 1:
            return z.new_zeros(1, 1)
        others = (self.num_train - 1) / (self.num_train * (size - 1))
        weights = z.new_full((len(z), size), others)
        return weights.scatter(1, own_rows(z)[:, None], 1 / self.num_train).log()

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + alpha MI + beta TC + gamma KL of the dimensions, (B,)."""
        assert isinstance(terms, TCTerms)
        return (
            terms.reconstruction
            + self.alpha * terms.mutual_information
            + self.beta * terms.total_correlation
            + self.gamma * terms.dimension_kl
        )
