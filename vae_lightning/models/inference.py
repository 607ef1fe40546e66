"""The inference API that all models share: plain modules, used without Lightning."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vae_lightning.distributions.likelihoods import Likelihood
from vae_lightning.distributions.posteriors import Latents
from vae_lightning.distributions.variables import Variable
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import ImageModel, Labels, ObjectiveTerms
from vae_lightning.randomness import Noise
from vae_lightning.results import LOSS

Codes = Tensor | tuple[Tensor, ...]
"""Code indices, int64: a map (B, h, w), one with several codes per position (B, h, w, depth), or a
tuple of these for a model with several levels, the uppermost first."""


class GenerativeModel(ImageModel, ABC):
    """A model of images with an encoder, a decoder and a likelihood, and what is done with it.

    `embed`, `decode`, `reconstruct`, `sample` and `log_prob` run in evaluation mode without
    gradients, whatever mode the model is in, and take their randomness from a generator or a seed,
    so they never disturb a training run.

    Attributes:
        likelihood: p(x|z).
        encoder: Network from images to features.
        decoder: Network from latents to the parameters of the likelihood.
    """

    likelihood: Likelihood
    encoder: nn.Module
    decoder: nn.Module

    samples_likelihood: ClassVar[bool] = True
    """Whether `log_marginal` draws importance samples, or returns a bound without any."""

    # What a model implements

    @abstractmethod
    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Return what ``vae predict`` writes about the latents of a batch, by name, (B, ...)."""

    @abstractmethod
    def embed(self, x: Tensor, label: Labels = None) -> Latents:
        """Return the latents of images, without noise, as `decode` takes them.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            label: The class of all images or of each, (B,), for conditional models.
        """

    def predict(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Return the reconstructions and the latents of a batch, by name, each (B, ...)."""
        label = self.used_labels(label)
        with self.inference():
            latents = self.encode(x, self.encode_labels(label, len(x)))
        return {"reconstruction": self.reconstruct(x, label), **latents}

    def is_normalized(self, binary: bool) -> bool:
        """See `ImageModel.is_normalized`: a Bernoulli of gray pixels is only a cross-entropy."""
        return self.likelihood.normalized and (binary or not self.likelihood.binary)

    def unit_of(self, terms: ObjectiveTerms, name: str) -> str:
        """See `ImageModel.unit_of`; a loss that is no likelihood is not in nats."""
        if name == "reconstruction" and not self.likelihood.normalized:
            return LOSS
        return super().unit_of(terms, name)

    @property
    def bound_unit(self) -> str:
        """See `ImageModel.bound_unit`; with a loss that is no likelihood, there is no bound."""
        return super().bound_unit if self.likelihood.normalized else LOSS

    # Inference

    def sample(
        self, n: int, label: Labels = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw images: the means of p(x|z) for z from the prior.

        Args:
            n: Number of images.
            label: For conditional models: the class of all images or of each, (n,); by default the
                classes in turn: 0, 1, 2, ..., 0, 1, ...
            generator: A CPU generator; by default torch's global one.

        Returns:
            (n, C, H, W), in [0, 1] unless the data are unbounded.

        Raises:
            MissingCapabilityError: If the model has no prior to sample from.
        """
        if n < 1:
            raise ValueError(f"the number of samples must be positive, got {n}")
        self.require(Capability.SAMPLES)
        label = self.cycle_labels(n) if label is None else label
        with self.inference():
            z = self.sample_latents(n, self.encode_labels(label, n), generator)
        return self.decode(z, label)

    def sample_latents(
        self, n: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> Latents:
        """Draw ``n`` latents from the prior, as `decode` takes them."""
        raise self.missing(Capability.SAMPLES)

    def decode(self, z: Latents, label: Labels = None) -> Tensor:
        """Decode latents to images: the means of p(x|z), (B, C, H, W).

        They are in [0, 1], except for models of unbounded data.

        Args:
            z: Latents as `embed` returns them.
            label: The class of all images or of each, (B,), for conditional models.
        """
        n = len(z) if isinstance(z, Tensor) else len(z[0])
        with self.inference():
            return self.mean_image(self.likelihood_params(z, self.network_condition(label, n)))

    def network_condition(self, label: Labels, n: int) -> Tensor | None:
        """Return the labels of ``n`` images as encoder and decoder see them; None for no classes.

        See `ImageModel.encode_labels`.
        """
        return self.encode_labels(label, n)

    def mean_image(self, params: Tensor) -> Tensor:
        """Return the mean of p(x|z), given what the decoder returned; clipped to bounded data."""
        return self.clipped(self.likelihood.mean(params))

    def clipped(self, x: Tensor) -> Tensor:
        """Return images clipped to [0, 1], unless the data are unbounded."""
        return x.clamp(0, 1) if self.bounded else x

    def to_items(self, x: Tensor) -> npt.NDArray[np.float32]:
        """Return images in the units and with the axes of the data, see `DataRecord.to_items`."""
        return x.float().cpu().numpy() if self.record is None else self.record.to_items(x)

    def to_picture(self, x: Tensor) -> Tensor:
        """Return images as a picture shows them, in [0, 1]: see `DataRecord.to_picture`."""
        if self.bounded:
            return x
        if self.record is None:  # of data of which nothing is known
            return x / 6 + 0.5
        return self.record.to_picture(x)

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """Return the parameters of p(x|z) for latents (B, ...), with gradients."""
        assert isinstance(z, Tensor)
        return cast(Tensor, self.decoder(self.to_device_dtype(z), condition))

    def reconstruct(self, x: Tensor, label: Labels = None) -> Tensor:
        """Encode and decode images (B, C, H, W) without noise; see `embed`, `decode`."""
        return self.decode(self.embed(x, label), label)

    def latent_vectors(self, x: Tensor, label: Labels = None) -> Tensor:
        """Return one vector per image, (B, D), for scatter plots and the like.

        A map of vectors is averaged over its positions (`has_latent_maps`); the levels of a
        hierarchy are concatenated.
        """
        z = self.embed(x, label)
        levels = [z] if isinstance(z, Tensor) else list(z)
        flat = [level.flatten(2).mean(2) if level.ndim > 2 else level for level in levels]
        return torch.cat(flat, 1)

    @cached_property
    def has_latent_maps(self) -> bool:
        """Whether latents are maps of vectors, found by embedding a black image."""
        x = torch.zeros(1, *self.image_shape, device=self.device)
        z = self.embed(self.to_device_dtype(x), 0 if self.conditional else None)
        levels = [z] if isinstance(z, Tensor) else list(z)
        return any(level.ndim > 2 for level in levels)

    def log_prob(
        self, x: Tensor, label: Labels = None, num_samples: int = 64, seed: int = 0
    ) -> Tensor:
        """Estimate log p(x), or log p(x|y) of a conditional model, by importance sampling.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            label: The class of all images or of each, (B,), for conditional models.
            num_samples: Number of importance samples K.
            seed: Seed of the samples.

        Returns:
            Nats, (B,). A lower bound in expectation, which rises with K. With a likelihood that is
            not normalized (`is_normalized`), the same formula of a loss: no log-likelihood.

        Raises:
            MissingCapabilityError: If the model has no density.
            ValueError: If ``num_samples`` is not positive.
        """
        self.check_images(x)
        if num_samples < 1:
            raise ValueError(f"num_samples must be positive, got {num_samples}")
        x = x.to(self.device)
        noise = Noise(torch.arange(len(x), device=self.device), seed, "log_prob")
        with self.inference():
            return self.log_marginal(x, self.encode_labels(label, len(x)), noise, num_samples)

    def log_marginal(
        self,
        x: Tensor,
        condition: Tensor | None,
        noise: Noise,
        num_samples: int,
        rows: int | None = None,
    ) -> Tensor:
        """Estimate log p(x|condition) by importance sampling, without gradients.

        Args:
            x: Images, (B, C, H, W).
            condition: One-hot classes, (B, num_classes), of a conditional model.
            noise: Source of the importance samples.
            num_samples: Number of importance samples per image.
            rows: Number of latents decoded at once; at least one per image.

        Returns:
            Nats, (B,), float64 where the device has it.
        """
        raise self.missing(Capability.DENSITY)

    def latent_kl(self, x: Tensor, label: Labels = None) -> Tensor:
        """Return KL(q(z|x) || p(z)) in nats, (B, latent_dim), or (B, N) for N variables.

        Raises:
            MissingCapabilityError: If it has no closed form.
        """
        raise self.missing(Capability.KL_PER_DIMENSION)

    def encode_indices(self, x: Tensor, label: Labels = None) -> Codes:
        """Return the code indices of images (B, C, H, W).

        Raises:
            MissingCapabilityError: If the model has no codebook.
        """
        raise self.missing(Capability.CODEBOOK)

    def latent_quantiles(self, p: Tensor) -> Tensor:
        """Return quantiles of the prior in each latent dimension, (P, L), for probabilities (P,).

        Only those of variables that are numbers mean anything.

        Raises:
            MissingCapabilityError: If no latent variable can be moved.
        """
        raise self.missing(Capability.TRAVERSABLE)

    @property
    def latent_variables(self) -> tuple[Variable, ...]:
        """The variables that the latent vector consists of; none if the latent is not a vector."""
        return ()

    @property
    def latent_size(self) -> int | None:
        """Size of the latent vector, None if the latent is not a single vector."""
        return None

    @property
    def latent_radius(self) -> float | None:
        """Radius of the ball that holds all latent vectors, None if they have no bound."""
        return None
