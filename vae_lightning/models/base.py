"""The base of every autoencoder: variants implement the abstract methods of its bases."""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from vae_lightning.distributions.likelihoods import Bernoulli, Likelihood
from vae_lightning.distributions.priors import TrainingImages
from vae_lightning.models.image_model import ObjectiveTerms
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.part_checks import check_likelihood
from vae_lightning.nets import Decoder


@dataclass(frozen=True)
class Terms(ObjectiveTerms):
    """The terms of an objective: per image (B,), or of the whole batch ().

    Attributes:
        reconstruction: -log p(x|z) in nats, summed over the pixels, (B,).
    """

    reconstruction: Tensor


class BaseVAE(GenerativeModel, ABC):
    """An autoencoder. Variants implement `terms`, `objective` and what has to do with latents.

    Args:
        likelihood: p(x|z), of values in [0, 1] or of any real numbers, as the data have them.
        init_bias_from_data: Initialize the decoder's output bias at the mean training image (for a
            Bernoulli at its logit), so that training spends no time on learning it. Needs a decoder
            with a bias for each pixel.
        **kwargs: See `ImageModel`. Encoder and decoder of a conditional model see the class.
    """

    def __init__(
        self,
        likelihood: Callable[[], Likelihood] = Bernoulli,
        init_bias_from_data: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cond_features = self.num_classes if self.conditional else 0
        self.likelihood = likelihood()
        if self.likelihood.bounded and not self.bounded:
            name = type(self.likelihood).__name__
            kind = "distribution" if self.likelihood.normalized else "loss"
            raise ValueError(
                f"{name} is a {kind} of values in [0, 1], but these data are not scaled to them: "
                "choose another likelihood, such as Gaussian, or data.scaling minmax"
            )
        self.likelihood.check_shape(self.image_shape)
        check_likelihood(self.likelihood, self.image_shape)
        channels, height, width = self.image_shape
        self.params_shape = self.likelihood.n_params * channels, height, width
        self.init_bias_from_data = init_bias_from_data

    def init_from_data(self, images: TrainingImages) -> None:
        """Initialize what depends on the training images; called before the first update."""
        self.likelihood.init_from_data(images)
        if self.init_bias_from_data:
            params = self.likelihood.params_at(images.mean_image())
            cast(Decoder, self.decoder).start_at(self.to_device_dtype(params))

    def check_networks(self, features: Sequence[int], latent: Sequence[int]) -> None:
        """Run both networks once on zeros, so that a pair that does not fit is refused at once.

        Args:
            features: Shape that the encoder has to return for an image; 0 for any size.
            latent: Shape of one latent; 0 for the size that the encoder returned there.

        Raises:
            ValueError: If a network does not accept its input or returns another shape.
        """
        channels, height, width = self.image_shape
        label = torch.zeros(1, dtype=torch.int64) if self.conditional else None
        with self.inference():
            condition = self.encode_labels(label, 1)
            try:
                made = self.encoder(torch.zeros(1, channels, height, width), condition).shape[1:]
                if len(made) != len(features) or any(
                    b and a != b for a, b in zip(made, features, strict=True)
                ):
                    raise ValueError(f"the encoder returns {tuple(made)} for an image")
                size = [b or a for a, b in zip(made, latent, strict=True)]
                image = self.decoder(torch.zeros(1, *size), condition).shape[1:]
                if image != self.params_shape:
                    raise ValueError(f"the decoder returns {tuple(image)} for {self.image_shape}")
            except (ValueError, RuntimeError) as error:
                names = type(self.encoder).__name__, type(self.decoder).__name__
                raise ValueError(
                    f"{names[0]} and {names[1]} do not fit a {type(self).__name__} of "
                    f"{self.image_shape} images ({str(error).splitlines()[0]}): choose a pair of "
                    "the same family and sizes"
                ) from error
