"""InfoVAE (Zhao et al., 2019), https://arxiv.org/abs/1706.02262."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_lightning.discrepancies import Kernel, check_kernel, squared_mmd
from vae_lightning.distributed import join_rows
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class InfoTerms(ELBOTerms):
    """The terms of the ELBO, and the distance of the latents from the prior.

    Attributes:
        mmd: Squared maximum mean discrepancy of the joined batch from the prior, ().
    """

    mmd: Tensor

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return "squared MMD" if name == "mmd" else super().unit(name)


class InfoVAE(VAE):
    r"""VAE that keeps information about the image in z, and matches the latents to the prior.

    .. math:: -E_q[\log p(x|z)] + (1 - \alpha) KL(q(z|x) \| p(z))
        + (\alpha + \lambda - 1) \, MMD^2(q(z), p(z))

    It is the negative ELBO minus alpha times the mutual information of x and z, plus lambda - 1
    times a divergence of the aggregate posterior q(z) from the prior, for which the squared MMD of
    the joined batch of all processes stands. alpha = 0 and lambda = 1 is the VAE, alpha = 1 the
    MMD-VAE, a `WAE` with a Gaussian encoder. Use it where a strong decoder ignores the latent, or
    samples of a VAE suffer from an aggregate posterior that is not the prior. The reported bound is
    the one with KL weight 1.

    Args:
        alpha: Weight of the mutual information, at most 1.
        lambd: Weight lambda of the divergence of q(z) from p(z), at least 1 - alpha.
        kernel: ``imq`` (inverse multiquadratic) or ``rbf`` (Gaussian), see
            `discrepancies.squared_mmd`.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If the weight of one of the terms is negative, the kernel is unknown, or the
            prior has parameters and alpha is 1: without a KL term, nothing would train them.

    References:
        Zhao et al. (2019), InfoVAE: balancing learning and inference in variational autoencoders,
        https://arxiv.org/abs/1706.02262

    Example:
        >>> InfoVAE(alpha=0.5, lambd=10.0, latent_dim=2).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self, alpha: float = 0.5, lambd: float = 100.0, kernel: Kernel = "imq", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not alpha <= 1:
            raise ValueError(f"alpha must be at most 1, got {alpha}")
        if not alpha + lambd >= 1:
            raise ValueError(f"alpha + lambd must be at least 1, got {alpha} and {lambd}")
        check_kernel(kernel)
        if alpha == 1:  # the MMD sees draws of the prior, through which few priors could learn
            LatentVariableModel.check_parts(self)
        self.alpha = alpha
        self.lambd = lambd
        self.kernel: Kernel = kernel

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> InfoTerms:
        """See `BaseVAE.terms`; the MMD is that of the first draw of each image."""
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        prior = self.joined_prior_samples(len(x), condition, noise)
        return InfoTerms(
            reconstruction=-log_likelihood.mean(1),
            kl=self.kl(q, draws, condition),
            mmd=squared_mmd(join_rows(draws.z[:, 0]), prior, self.kernel),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + (1 - alpha) KL + (alpha + lambda - 1) MMD^2, (B,)."""
        assert isinstance(terms, InfoTerms)
        return (
            terms.reconstruction
            + (1 - self.alpha) * terms.kl
            + (self.alpha + self.lambd - 1) * terms.mmd
        )
