"""What models of latent vectors share: a prior, a posterior, and what follows from them."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from vae_lightning.distributed import gather_rows, several_processes, total
from vae_lightning.distributions.posteriors import (
    REAL,
    Draws,
    GaussianPosterior,
    LatentDistribution,
    Latents,
    Posterior,
)
from vae_lightning.distributions.priors import Prior, StandardNormal, TrainingImages
from vae_lightning.distributions.variables import Variable
from vae_lightning.models import part_checks
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.nets import ConvDecoder, ConvEncoder, Decoder, Encoder, ImageShape
from vae_lightning.randomness import Noise

_ROWS = 256
"""Number of latents decoded at once by default."""

_DRAWN = 64
"""Number of latents drawn at once for each one decoded at once: vectors are small."""


class LatentVariableModel(BaseVAE):
    """A model of latent vectors: p(x, z) = p(z) p(x|z), and q(z|x). Variants add the objective.

    Args:
        latent_dim: Size of the latent vector z.
        num_samples: Number of draws of z per image in training and in the reported terms.
        prior: p(z), or p(z|y) of a conditional model.
        posterior: The family of q(z|x).
        encoder: Network from images to the parameters of the posterior.
        decoder: Network from z to the parameters of the likelihood.
        **kwargs: See `BaseVAE`.

    Raises:
        ValueError: If ``latent_dim`` or ``num_samples`` is not positive, or the parts do not fit
            each other.
    """

    draws_are_small: ClassVar[bool] = True
    """Whether many more latents can be drawn at once than decoded."""

    def __init__(
        self,
        latent_dim: int = 20,
        num_samples: int = 1,
        prior: Callable[[int, int], Prior] = StandardNormal,
        posterior: Callable[[int], Posterior] = GaussianPosterior,
        encoder: Callable[[ImageShape, int, int], Encoder] = ConvEncoder,
        decoder: Callable[[ImageShape, int, int], Decoder] = ConvDecoder,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"latent_dim": latent_dim, "num_samples": num_samples}.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.latent_dim = latent_dim
        self.num_samples = num_samples
        self.posterior_family = posterior(latent_dim)
        part_checks.check_posterior(self.posterior_family)
        features = self.encoder_features
        self.encoder = encoder(self.image_shape, features, self.cond_features)
        self.decoder = decoder(self.params_shape, latent_dim, self.cond_features)
        self.check_networks(features=(features,), latent=(latent_dim,))
        self.prior = prior(self.prior_dim, self.cond_features)
        part_checks.check_signature(self.prior)
        self._check_support()
        self.attach_prior()

    def _check_support(self) -> None:
        family, prior = self.posterior_family, self.prior
        if prior.support != family.support:
            raise ValueError(
                f"{type(family).__name__} draws {family.support}, but {type(prior).__name__} is a "
                f"distribution of {prior.support}: choose a prior and a posterior of the same kind"
            )

    def attach_prior(self) -> None:
        """Give the prior what it needs of the model, and check that the parts suit the objective.

        A subclass whose posterior needs parts of its own calls it once more when they are there.

        Raises:
            ValueError: If they do not.
        """
        self.attach_prior_to(self.posterior)

    def attach_prior_to(self, posterior: Callable[[Tensor], LatentDistribution]) -> None:
        """Attach the prior as `attach_prior` does, and offer it this posterior of images."""
        self.prior.bounded = self.bounded
        with self.inference():
            self.prior.attach(posterior, self.image_shape)
            part_checks.check_prior(self.prior)
        self.check_parts()

    def check_parts(self) -> None:
        """Check that prior and posterior suit the objective.

        Raises:
            ValueError: If they do not: here, if the prior has parameters, which only an objective
                with log p(z) would train.
        """
        if any(parameter.requires_grad for parameter in self.prior.parameters()):
            raise ValueError(
                f"{type(self).__name__} does not train its prior, but {type(self.prior).__name__} "
                "has parameters: choose a prior without, such as StandardNormal"
            )

    @property
    def encoder_features(self) -> int:
        """Number of features that the encoder has to provide."""
        return self.posterior_family.in_features

    @property
    def prior_dim(self) -> int:
        """Size of the latent that the prior is a distribution of."""
        return self.latent_dim

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `GenerativeModel.capabilities`."""
        found = {Capability.SAMPLES, Capability.LATENT_VECTOR}
        if self.posterior_family.has_density and self.prior.has_density:
            found.add(Capability.DENSITY)
        if self.posterior_family.support == REAL:
            found.add(Capability.CONTINUOUS_LATENT)
        if any(variable.is_movable for variable in self.prior.variables):
            found.add(Capability.TRAVERSABLE)
        if self.has_closed_form_kl:
            found.add(Capability.KL_PER_DIMENSION)
        if self.has_posterior_density:
            found.add(Capability.POSTERIOR_DENSITY)
        if self.conditional:
            found.add(Capability.CONDITIONAL)
        return frozenset(found)

    @cached_property
    def has_closed_form_kl(self) -> bool:
        """Whether KL(q(z|x) || p(z)) has a closed form."""
        with torch.no_grad():
            q = self.posterior_family(torch.zeros(1, self.posterior_family.in_features))
            condition = torch.zeros(1, self.cond_features) if self.cond_features else None
            return self.prior.kl(q, condition) is not None

    @cached_property
    def has_posterior_density(self) -> bool:
        """Whether q(z|x) can be evaluated at any z: see `LatentDistribution.log_prob`.

        False for models that define another `posterior` than one by `posterior_family`.
        """
        if type(self).posterior is not LatentVariableModel.posterior:
            return False
        family = self.posterior_family
        with torch.no_grad():
            q = family(torch.zeros(1, family.in_features))
            return family.has_density and q.log_prob(q.mean[:, None]) is not None

    # The distributions of the model

    def posterior_features(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return what `posterior_family` takes of images (B, C, H, W), float32, with gradients."""
        return self.encoder(self.to_device_dtype(x), condition).float()

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> LatentDistribution:
        """Return q(z|x) of images (B, C, H, W), in float32, with gradients."""
        q: LatentDistribution = self.posterior_family(self.posterior_features(x, condition))
        return q

    def log_prior(self, z: Latents, condition: Tensor | None = None) -> Tensor:
        """Return log p(z) of draws (B, n, L) in nats, (B, n)."""
        assert isinstance(z, Tensor)
        log_prob: Tensor = self.prior.log_prob(z, condition)
        return log_prob

    def log_likelihood(self, x: Tensor, z: Latents, condition: Tensor | None = None) -> Tensor:
        """Return log p(x|z) of images (B, C, H, W) for draws z (B, n, L): (B, n), nats."""
        levels = (z,) if isinstance(z, Tensor) else z
        n = levels[0].shape[1]
        if condition is not None:
            condition = condition.repeat_interleave(n, 0)
        flat = tuple(level.flatten(0, 1) for level in levels)
        params = self.likelihood_params(flat[0] if isinstance(z, Tensor) else flat, condition)
        return self.likelihood.log_prob(params.unflatten(0, (-1, n)), x[:, None])

    def log_ratio(self, draws: Draws, condition: Tensor | None = None) -> Tensor:
        """Return log p(z) - log q(z|x) of draws from q(z|x) in nats, (B, n).

        With `log_likelihood` added, it is the importance weight log p(x, z) - log q(z|x): the only
        definition of it, which IWAE, `log_prob` and the metrics share.
        """
        return self.log_prior(draws.z, condition) - draws.log_prob

    def init_from_data(self, images: TrainingImages) -> None:
        """See `BaseVAE.init_from_data`; the prior is initialized, too."""
        super().init_from_data(images)
        self.prior.init_from_data(images)

    # Inference

    def log_marginal(
        self,
        x: Tensor,
        condition: Tensor | None,
        noise: Noise,
        num_samples: int,
        rows: int | None = None,
    ) -> Tensor:
        """See `GenerativeModel.log_marginal`; memory does not grow with ``num_samples``."""
        self.require(Capability.DENSITY)
        rows = max(len(x), _ROWS) if rows is None else rows
        with self.inference():
            q = self.posterior(x, condition)
            exact = torch.float32 if x.is_mps else torch.float64
            log_sum = torch.full((len(x),), -torch.inf, dtype=exact, device=self.device)
            images = max(1, len(x))
            decoded = max(1, rows // images)
            drawn = max(1, _DRAWN * rows // images) if self.draws_are_small else decoded
            for first in range(0, num_samples, drawn):
                draws = q.rsample(noise.restart(), min(drawn, num_samples - first), first)
                log_ratio = self.log_ratio(draws, condition)
                for part in torch.arange(log_ratio.shape[1]).split(decoded):
                    chosen = slice(int(part[0]), int(part[-1]) + 1)
                    log_likelihood = self.log_likelihood(x, _take(draws.z, chosen), condition)
                    log_weights = (log_likelihood + log_ratio[:, chosen]).to(exact)
                    log_sum = log_sum.logaddexp(log_weights.logsumexp(1))
            return log_sum - math.log(num_samples)

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Return the parameters of q(z|x), such as ``mu`` and ``log_var``, each (B, ...)."""
        return self.posterior(x, condition).parameters()

    def embed(self, x: Tensor, label: Labels = None) -> Latents:
        """Return the means of q(z|x), (B, latent_dim)."""
        self.check_images(x)
        with self.inference():
            return self.posterior(x, self.encode_labels(label, len(x))).point_estimate

    def latent_kl(self, x: Tensor, label: Labels = None) -> Tensor:
        """See `GenerativeModel.latent_kl`."""
        self.require(Capability.KL_PER_DIMENSION)
        self.check_images(x)
        with self.inference():
            condition = self.encode_labels(label, len(x))
            kl = self.prior.kl(self.posterior(x, condition), condition)
        assert kl is not None
        return kl

    def joined_prior_samples(self, n: int, condition: Tensor | None, noise: Noise) -> Tensor:
        """Draw a latent from the prior for every image of the joined batch of all processes.

        Args:
            n: Number of images of this process.
            condition: Their one-hot classes, (n, num_classes), of a conditional model.
            noise: Noise of the batch.

        Returns:
            The same in all processes, (N, L), in the order of `join_rows`; `own_rows` are those of
            this process.
        """
        size = int(total(torch.tensor(n, device=self.device))) if several_processes() else n
        classes = None if condition is None else gather_rows(condition)
        z: Tensor = self.prior.sample(size, classes, noise.generator("prior"))
        return z.to(self.device)

    @property
    def latent_size(self) -> int | None:
        """See `GenerativeModel.latent_size`."""
        return self.latent_dim if self.has(Capability.LATENT_VECTOR) else None

    @property
    def latent_radius(self) -> float | None:
        """See `GenerativeModel.latent_radius`."""
        return self.prior.radius if self.has(Capability.LATENT_VECTOR) else None

    @property
    def latent_variables(self) -> tuple[Variable, ...]:
        """See `GenerativeModel.latent_variables`."""
        return self.prior.variables if self.has(Capability.LATENT_VECTOR) else ()

    def latent_quantiles(self, p: Tensor) -> Tensor:
        """See `GenerativeModel.latent_quantiles`."""
        self.require(Capability.TRAVERSABLE)
        with self.inference():
            return self.prior.marginal_quantiles(p).cpu()

    def sample_latents(
        self, n: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> Latents:
        """See `GenerativeModel.sample_latents`."""
        return self.prior.sample(n, condition, generator)

    def tempered(self, z: Latents, temperature: float, condition: Tensor | None = None) -> Latents:
        """Return draws as they would be with other standard deviations.

        Args:
            z: What `sample_latents` returned.
            temperature: Factor of every standard deviation.
            condition: One-hot classes, (n, num_classes), of a conditional model.

        Raises:
            ValueError: If that is not defined for the prior.
        """
        assert isinstance(z, Tensor)
        return self._tempered_prior(z, temperature, condition)

    def _tempered_prior(self, z: Tensor, temperature: float, condition: Tensor | None) -> Tensor:
        tempered = self.prior.tempered(z, temperature, condition)
        if tempered is None:
            raise ValueError(
                "a temperature is defined for samples from a normal prior or a prior over codes, "
                f"and this {type(self).__name__} has a {type(self.prior).__name__}: leave it out"
            )
        return tempered


def _take(z: Latents, draws: slice) -> Latents:
    """Return some of the draws of latents (B, n, ...)."""
    levels = (z,) if isinstance(z, Tensor) else z
    if draws.stop - draws.start == levels[0].shape[1]:
        return z  # with what a hierarchy has computed from it
    return z[:, draws] if isinstance(z, Tensor) else tuple(level[:, draws] for level in z)
