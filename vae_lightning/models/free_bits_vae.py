"""VAE with free bits (Kingma et al., 2016), https://arxiv.org/abs/1606.04934."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_lightning.distributed import join_rows
from vae_lightning.models.part_checks import check_closed_form_kl
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class FreeBitsTerms(ELBOTerms):
    """The terms of the ELBO, and the KL term that is trained on.

    Attributes:
        limited_kl: Sum over the groups of the larger of lambda and their mean KL over the joined
            batch, in nats, ().
    """

    limited_kl: Tensor


class FreeBitsVAE(VAE):
    r"""VAE in which the first nats of each latent dimension, or group of them, cost nothing.

    .. math:: -E_q[\log p(x|z)] + \sum_j \max\!\Big(\lambda, \frac{1}{N} \sum_n
        KL(q(z_j|x_n) \| p(z_j))\Big)

    where j counts groups of latent dimensions, and the mean is that over the joined batch of all
    processes. A group has no reason to use less than lambda nats, so it does not collapse early in
    the training. Use it instead of a warm-up of the KL term; too large a lambda leaves nats that
    tell nothing of the image. The reported bound is the negative ELBO, with every nat counted.

    Args:
        free_bits: The free nats lambda of each group.
        groups: Number of groups of consecutive dimensions; by default each dimension is one.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``free_bits`` is negative, the dimensions cannot be divided into the groups,
            or the KL of each dimension has no closed form.

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        appendix C.8, https://arxiv.org/abs/1606.04934

    Example:
        >>> FreeBitsVAE(free_bits=0.25, latent_dim=10).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(self, free_bits: float = 0.125, groups: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not free_bits >= 0:
            raise ValueError(f"free_bits must not be negative, got {free_bits}")
        with torch.no_grad():
            q = self.posterior_family(torch.zeros(1, self.posterior_family.in_features))
            condition = torch.zeros(1, self.cond_features) if self.cond_features else None
            kl = self.prior.kl(q, condition)
        assert kl is not None
        variables = kl.shape[1]
        if groups is not None and (groups < 1 or variables % groups):
            raise ValueError(f"groups must divide the {variables} latent variables, got {groups}")
        self.free_bits = free_bits
        self.groups = variables if groups is None else groups

    def check_parts(self) -> None:
        """See `LatentVariableModel.check_parts`; each dimension needs a KL of its own."""
        check_closed_form_kl(self, "limits the KL of each latent dimension")
        super().check_parts()

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> FreeBitsTerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        draws = q.rsample(noise, self.num_samples)
        kl = self.prior.kl(q, condition)
        assert kl is not None
        return FreeBitsTerms(
            reconstruction=-self.log_likelihood(x, draws.z, condition).mean(1),
            kl=kl.sum(1),
            limited_kl=limited_kl(join_rows(kl), self.free_bits, self.groups),
        )

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + limited KL, (B,)."""
        assert isinstance(terms, FreeBitsTerms)
        return terms.reconstruction + terms.limited_kl


def limited_kl(kl: Tensor, free_bits: float, groups: int) -> Tensor:
    """Return the sum over groups of the larger of ``free_bits`` and their mean KL over a batch.

    Args:
        kl: KL of each latent dimension in nats, (B, L).
        free_bits: Free nats of each group.
        groups: Number of groups of consecutive dimensions, which divides L.

    Returns:
        Nats, ().

    Example:
        >>> kl = torch.tensor([[0.0, 1.0, 3.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
        >>> limited_kl(kl, free_bits=1.0, groups=2)  # means 0.5 and 3
        tensor(4.)
    """
    of_group: Tensor = kl.unflatten(1, (groups, -1)).sum(2)
    return of_group.mean(0).clamp(min=free_bits).sum()
