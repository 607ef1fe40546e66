"""DIP-VAE (Kumar et al., 2018), https://arxiv.org/abs/1711.00848."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vae_lightning.distributed import join_rows
from vae_lightning.distributions.posteriors import DiagonalGaussian
from vae_lightning.functional import without_autocast
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise

Kind = Literal["i", "ii"]

_RATIOS = {"i": 10.0, "ii": 1.0}
"""Default of lambda_d / lambda_od."""


@dataclass(frozen=True)
class DIPTerms(ELBOTerms):
    """The terms of the ELBO, and the distance of a covariance from the identity.

    Attributes:
        off_diagonal: Sum of the squares of all entries beside the diagonal, ().
        diagonal: Sum over the diagonal of (entry - 1)^2, ().
    """

    off_diagonal: Tensor
    diagonal: Tensor

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        dip = name in ("off_diagonal", "diagonal")
        return "squared covariance" if dip else super().unit(name)


class DIPVAE(VAE):
    r"""VAE with a penalty on the covariance of the latents, which is pulled to the identity.

    .. math:: -ELBO + \lambda_{od} \sum_{i \ne j} C_{ij}^2 + \lambda_d \sum_i (C_{ii} - 1)^2

    where C is one of two covariances over the images of the joined batch of all processes:

    - type ``i``: that of the means, :math:`\operatorname{Cov}_x[\mu(x)]`;
    - type ``ii``: that of the aggregate posterior,
      :math:`\operatorname{Cov}_{q(z)}[z] = \operatorname{Cov}_x[\mu(x)] + E_x[\Sigma(x)]`.

    Each pair of dimensions counts twice. Type ``i`` suits data with as many factors as dimensions,
    because it keeps every mean varying; type ``ii`` lets dimensions be unused. Unlike `BetaVAE`, it
    does not trade reconstruction for independence directly, and unlike `BetaTCVAE` it only sees
    correlations. The reported bound is the negative ELBO.

    Args:
        kind: ``i`` or ``ii``.
        lambda_od: Weight of the entries beside the diagonal.
        lambda_d: Weight of the diagonal; by default 10 lambda_od for type ``i`` and lambda_od for
            type ``ii``, as in the paper.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If a weight is negative, there is no such type, or the posterior is not
            Gaussian.

    References:
        Kumar et al. (2018), Variational inference of disentangled latent concepts from unlabeled
        observations, equations 6 and 7, https://arxiv.org/abs/1711.00848

    Example:
        >>> DIPVAE(kind="i", lambda_od=5.0).lambda_d
        50.0
    """

    def __init__(
        self,
        kind: Kind = "ii",
        lambda_od: float = 10.0,
        lambda_d: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kind not in _RATIOS:
            raise ValueError(f"kind must be i or ii, got {kind!r}")
        self.kind: Kind = kind
        self.lambda_od = lambda_od
        self.lambda_d = _RATIOS[kind] * lambda_od if lambda_d is None else lambda_d
        for name, weight in {"lambda_od": self.lambda_od, "lambda_d": self.lambda_d}.items():
            if not weight >= 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        with torch.no_grad():
            q = self.posterior_family(torch.zeros(1, self.posterior_family.in_features))
        if not isinstance(q, DiagonalGaussian):
            name = type(self.posterior_family).__name__
            raise ValueError(f"DIPVAE needs a GaussianPosterior, not a {name}")

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> DIPTerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        assert isinstance(q, DiagonalGaussian)
        elbo = self.elbo_terms(q, x, condition, noise)
        covariance = covariance_of(join_rows(q.mu))
        if self.kind == "ii":
            covariance = covariance + join_rows(q.log_var).exp().mean(0).diag()
        diagonal = covariance.diagonal()
        return DIPTerms(
            elbo.reconstruction,
            elbo.kl,
            off_diagonal=(covariance - diagonal.diag()).square().sum(),
            diagonal=(diagonal - 1).square().sum(),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the negative ELBO plus the weighted distances from the identity, (B,)."""
        assert isinstance(terms, DIPTerms)
        penalty = self.lambda_od * terms.off_diagonal + self.lambda_d * terms.diagonal
        return terms.negative_elbo + penalty


def covariance_of(x: Tensor) -> Tensor:
    """Return the covariance of the rows of ``x`` (N, L) as a whole population, (L, L).

    Example:
        >>> covariance_of(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        tensor([[1., 2.],
                [2., 4.]])
    """
    with without_autocast(x):
        centered = x.float() - x.float().mean(0)
        return centered.T @ centered / len(x)
