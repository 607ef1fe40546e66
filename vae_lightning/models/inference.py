"""The inference API that all models share: plain modules, used without Lightning."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from vae_lightning.distributions.likelihoods import Bernoulli, Likelihood
from vae_lightning.distributions.posteriors import Latents
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.nets import ImageShape
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS
from vae_lightning.settings import Configurable

_OVERSHOOT = 1e-3

Labels = Tensor | int | None
"""Classes of images: int64 (B,), one class for all of them, or none."""


class GenerativeModel(Configurable, nn.Module, ABC):
    """A model of images with an encoder, a decoder and a likelihood: what can be done with it.

    `embed`, `decode`, `reconstruct`, `sample` and `log_prob` run in evaluation mode without
    gradients, whatever mode the model is in, and take their randomness from a generator or a seed,
    so they never disturb a training run.

    Args:
        image_shape: (C, H, W) of the images. The command line takes it from the data.
        num_classes: Number of classes of the data, 0 without labels. Taken from the data, too.
        conditional: Whether encoder and decoder see the class of each image.
        likelihood: p(x|z).

    Attributes:
        initialized: Whether the model has been trained, or initialized from data.

    Raises:
        ValueError: If the model is conditional and the data have no labels.
        TypeError: If an argument cannot be stored in a checkpoint as plain data.
    """

    encoder: nn.Module
    decoder: nn.Module
    initialized: bool = False

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 0,
        conditional: bool = False,
        likelihood: Callable[[], Likelihood] = Bernoulli,
    ) -> None:
        super().__init__()
        _ = self.settings  # refuses at once what a checkpoint could not hold
        if conditional and num_classes < 1:
            raise ValueError(
                f"{type(self).__name__} is conditional and needs labeled images, but the data "
                "have no classes: use data with labels, or a model that is not conditional"
            )
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        self.num_classes = num_classes
        self.conditional = conditional
        self.cond_features = num_classes if conditional else 0
        self.likelihood = likelihood()
        self.params_shape = self.likelihood.n_params * channels, height, width

    # What a model implements

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[Capability]:
        """What this model can do."""

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
            (n, C, H, W), in [0, 1].

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
        raise MissingCapabilityError(type(self).__name__, Capability.SAMPLES)

    def decode(self, z: Latents, label: Labels = None) -> Tensor:
        """Decode latents to images: the means of p(x|z), (B, C, H, W), in [0, 1].

        Args:
            z: Latents as `embed` returns them.
            label: The class of all images or of each, (B,), for conditional models.
        """
        n = len(z) if isinstance(z, Tensor) else len(z[0])
        with self.inference():
            return self.likelihood.mean(self.likelihood_params(z, self.encode_labels(label, n)))

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """Return the parameters of p(x|z) for latents (B, ...), with gradients."""
        assert isinstance(z, Tensor)
        return cast(Tensor, self.decoder(self.to_device_dtype(z), condition))

    def reconstruct(self, x: Tensor, label: Labels = None) -> Tensor:
        """Encode and decode images (B, C, H, W) in [0, 1] without noise; see `embed`, `decode`."""
        return self.decode(self.embed(x, label), label)

    def latent_vectors(self, x: Tensor, label: Labels = None) -> Tensor:
        """Return one vector per image, (B, D), for scatter plots and the like.

        A map of vectors is averaged over its positions; the levels of a hierarchy are concatenated.
        """
        z = self.embed(x, label)
        levels = [z] if isinstance(z, Tensor) else list(z)
        flat = [level.flatten(2).mean(2) if level.ndim > 2 else level for level in levels]
        return torch.cat(flat, 1)

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
            Nats, (B,). A lower bound in expectation, which rises with K.

        Raises:
            MissingCapabilityError: If the model has no density.
        """
        self.check_images(x)
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
        raise MissingCapabilityError(type(self).__name__, Capability.DENSITY)

    def latent_kl(self, x: Tensor, label: Labels = None) -> Tensor:
        """Return KL(q(z|x) || p(z)) in nats, (B, latent_dim), or (B, N) for N variables.

        Raises:
            MissingCapabilityError: If it has no closed form.
        """
        raise MissingCapabilityError(type(self).__name__, Capability.KL_PER_DIMENSION)

    def encode_indices(self, x: Tensor, label: Labels = None) -> Tensor:
        """Return the map of code indices, int64, (B, h, w).

        Raises:
            MissingCapabilityError: If the model has no codebook.
        """
        raise MissingCapabilityError(type(self).__name__, Capability.CODEBOOK)

    def latent_quantiles(self, p: Tensor) -> Tensor:
        """Return quantiles of the prior in each latent dimension, (P, L), for probabilities (P,).

        Raises:
            MissingCapabilityError: If the latent is not a continuous vector with a prior.
        """
        raise MissingCapabilityError(type(self).__name__, Capability.CONTINUOUS_LATENT)

    # Capabilities

    def has(self, *capabilities: Capability) -> bool:
        """Return whether the model has all of these capabilities."""
        return self.capabilities.issuperset(capabilities)

    def require(self, capability: Capability) -> None:
        """Check that the model has a capability.

        Raises:
            MissingCapabilityError: If it does not.
        """
        if not self.has(capability):
            raise MissingCapabilityError(type(self).__name__, capability)

    @property
    def latent_size(self) -> int | None:
        """Size of the latent vector, None if the latent is not a single vector."""
        return None

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """The vectors of the codes, (K, D), by the names in `Terms.code_indices`."""
        return {}

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """Numbers of codes of the codebooks."""
        return {name: len(vectors) for name, vectors in self.codebooks.items()}

    @property
    def bound_unit(self) -> str:
        """Unit of bounds of log p(x), or of log p(x|y)."""
        return f"{NATS} given its class" if self.conditional else NATS

    # Inputs

    def check_images(self, x: Tensor, values: bool = True) -> None:
        """Check that ``x`` can be encoded.

        Args:
            x: Images.
            values: Check the range of the pixels, for which a GPU has to be waited for.

        Raises:
            ValueError: If it is not a float tensor (B, C, H, W) of the model's image shape, or has
                values outside [0, 1].
        """
        _check_images(x, self.image_shape, type(self).__name__, values)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def to_device_dtype(self, x: Tensor) -> Tensor:
        """Move ``x`` to the device and the floating-point type of the model."""
        parameter = next(self.parameters())
        return x.to(parameter.device, parameter.dtype)

    def encode_labels(self, label: Labels, n: int, validate: bool = True) -> Tensor | None:
        """Return one-hot classes, (n, num_classes), for a conditional model, None for another.

        Args:
            label: The class of all images or of each, (n,).
            n: Number of images.
            validate: Check the values, for which a GPU has to be waited for.

        Raises:
            ValueError: If a label is missing, unwanted, out of range, or their number is not n.
        """
        name = type(self).__name__
        if not self.conditional:
            if label is not None:
                raise ValueError(f"this {name} is not conditional: it takes no label")
            return None
        if label is None:
            raise ValueError(
                f"this {name} is conditional: give a label in 0..{self.num_classes - 1}"
            )
        return self.to_device_dtype(_one_hot(label, n, self.num_classes, self.device, validate))

    def used_labels(self, label: Tensor | None) -> Tensor | None:
        """Return the labels if the model is conditional, else None, for data that have labels."""
        return label if self.conditional else None

    def cycle_labels(self, n: int) -> Tensor | None:
        """Return labels 0, 1, 2, ..., 0, 1, ... for ``n`` samples of a conditional model."""
        return torch.arange(n) % self.num_classes if self.conditional else None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Switch to evaluation mode without gradients; restore the mode of every submodule."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training


def _check_images(x: Tensor, image_shape: ImageShape, name: str, values: bool) -> None:
    """See `GenerativeModel.check_images`."""
    shape = ", ".join(map(str, image_shape))
    takes = f"this {name} takes float images (B, {shape}) with values in [0, 1]"
    if x.shape[1:] != torch.Size(image_shape) or not x.is_floating_point():
        raise ValueError(f"{takes}, got {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}")
    if values and x.numel():
        low, high = (bound.item() for bound in x.detach().aminmax())
        # Written so that NaN is refused too; interpolation may overshoot a little.
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
            hint = "divide them by 255" if 1 < high <= 255 and low >= 0 else "scale them"
            raise ValueError(f"{takes}, got values from {low:.4g} to {high:.4g}: {hint}")


def _one_hot(
    label: Tensor | int, n: int, num_classes: int, device: torch.device, validate: bool
) -> Tensor:
    """Return one-hot classes, (n, num_classes)."""
    if not isinstance(label, Tensor | int):
        raise ValueError(f"a label must be an integer or a tensor of them, got {label!r}")
    label = torch.as_tensor(label, device=device)
    if label.ndim == 0:
        label = label.expand(n)
    if label.shape != (n,):
        raise ValueError(f"{n} images need {n} labels or one, got shape {tuple(label.shape)}")
    if validate and (label.is_floating_point() or label.lt(0).any() or label.ge(num_classes).any()):
        wrong = label.unique().tolist()[:5]
        raise ValueError(f"labels must be integers in 0..{num_classes - 1}, got {wrong}")
    return nn.functional.one_hot(label.long(), num_classes)
