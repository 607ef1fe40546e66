"""VAE (Kingma and Welling, 2014), https://arxiv.org/abs/1312.6114."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from vae_lightning.distributions.posteriors import Draws, LatentDistribution
from vae_lightning.models.base import Terms
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class ELBOTerms(Terms):
    """The two terms of the evidence lower bound, each in nats per image, (B,).

    Attributes:
        reconstruction: -log p(x|z), summed over the pixels.
        kl: KL(q(z|x) || p(z)), summed over the latent dimensions.
    """

    kl: Tensor

    @cached_property
    def negative_elbo(self) -> Tensor:
        """The bound on -log p(x): both terms with weight 1, whatever is trained on, (B,)."""
        return self.reconstruction + self.kl

    def as_dict(self) -> dict[str, Tensor]:
        """Return the terms and the bound."""
        return {**super().as_dict(), "negative_elbo": self.negative_elbo}


class VAE(LatentVariableModel):
    """Variational autoencoder: -E_q[log p(x|z)] + KL(q(z|x) || p(z)).

    Args:
        **kwargs: See `LatentVariableModel`.

    Raises:
        ValueError: If draws of the posterior have no density in training, and the KL term has no
            closed form.
    """

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> ELBOTerms:
        """See `BaseVAE.terms`."""
        return self.elbo_terms(self.posterior(x, condition), x, condition, noise)

    def elbo_terms(
        self, q: LatentDistribution, x: Tensor, condition: Tensor | None, noise: Noise
    ) -> ELBOTerms:
        """Return the terms of the ELBO, given the posterior of a batch."""
        draws = q.rsample(noise, self.num_samples)
        log_likelihood = self.log_likelihood(x, draws.z, condition)
        return ELBOTerms(-log_likelihood.mean(1), self.kl(q, draws, condition))

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return the negative ELBO, (B,)."""
        return terms.negative_elbo

    def kl(
        self,
        q: LatentDistribution,
        draws: Draws,
        condition: Tensor | None = None,
        log_ratio: Tensor | None = None,
    ) -> Tensor:
        """Return KL(q(z|x) || p(z)) in nats, (B,): exact, or else estimated from draws.

        Args:
            q: Posterior of the batch.
            draws: Draws from it.
            condition: One-hot classes, (B, num_classes), of a conditional model.
            log_ratio: What `log_ratio` returned for these draws, if it is known already.
        """
        exact = self.prior.kl(q, condition)
        if exact is not None:
            return exact.sum(1)
        return -(self.log_ratio(draws, condition) if log_ratio is None else log_ratio).mean(1)

    def check_parts(self) -> None:
        """See `LatentVariableModel.check_parts`; a KL term trains the prior and needs densities."""
        if self.has_closed_form_kl:
            return
        family, prior = self.posterior_family, self.prior
        if family.relaxed_in_training or not family.has_density:
            raise ValueError(
                f"{type(self).__name__} has a KL term, for which the draws of "
                f"{type(family).__name__} have no density in training: choose another posterior, "
                "such as GaussianPosterior"
            )
        if not prior.has_density:
            raise ValueError(
                f"{type(self).__name__} has a KL term, for which {type(prior).__name__} has no "
                "density: choose another prior, such as StandardNormal"
            )
