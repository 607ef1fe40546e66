"""The contract of every model: what a variant implements, and what training uses.

A model is a plain ``nn.Module``: mathematics and inference. `vae_lightning.training` trains it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vae_lightning.distributions.priors import TrainingImages
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.nets import Decoder, Encoder
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS
from vae_lightning.schedules import Scheduled


@dataclass(frozen=True)
class Terms:
    """The terms of an objective: per image (B,), or of the whole batch ().

    Attributes:
        reconstruction: -log p(x|z) in nats, summed over the pixels, (B,).
    """

    reconstruction: Tensor

    batch_dependent: ClassVar[frozenset[str]] = frozenset()
    """Names of terms whose values depend on the other images of the batch."""

    def as_dict(self) -> dict[str, Tensor]:
        """Return every term by the name under which it is logged."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def code_indices(self) -> dict[str, Tensor]:
        """Return the indices chosen from each codebook, int64, by the name of the codebook."""
        return {}

    @classmethod
    def unit(cls, name: str) -> str:
        """Return the unit of a term."""
        return NATS


class BaseVAE(GenerativeModel, Scheduled, ABC):
    """A model that can be trained. Variants implement the abstract methods.

    Args:
        init_bias_from_data: Initialize the decoder's output bias at the mean training image (for a
            Bernoulli at its logit), so that training spends no time on learning it. Needs a decoder
            with a bias for each pixel.
        **kwargs: See `GenerativeModel`.

    Attributes:
        critic: Network with an optimizer of its own, such as a discriminator, or None.
    """

    critic: nn.Module | None

    def __init__(self, init_bias_from_data: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_module("critic", None)
        self.register_load_state_dict_post_hook(_mark_initialized)
        self.init_bias_from_data = init_bias_from_data

    # What a variant implements

    @abstractmethod
    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> Terms:
        """Compute the terms of the objective for a batch.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            condition: One-hot classes, (B, num_classes), of a conditional model.
            noise: Source of every random number.
        """

    @abstractmethod
    def objective(self, terms: Any) -> Tensor:
        """Return what is minimized, in nats per image.

        Args:
            terms: What `terms` returned.

        Returns:
            (B,). A term of the whole batch, (), is simply added: the mean over the batch leaves it
            as it is.
        """

    def critic_objective(self, terms: Any) -> Tensor:
        """Return what the critic minimizes, (B,) or (); only for models with a critic.

        Args:
            terms: What `terms` returned. The critic's loss must see detached inputs; the model's
                loss calls `frozen_critic`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define critic_objective")

    # What training uses

    def init_from_data(self, images: TrainingImages) -> None:
        """Initialize what depends on the training images; called before the first update."""
        if self.init_bias_from_data:
            params = self.likelihood.params_at(images.mean_image())
            cast(Decoder, self.decoder).start_at(self.to_device_dtype(params))

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that ``torch.compile`` may compile."""
        return [net for net in self.children() if isinstance(net, Encoder | Decoder)]

    def unsharded_parameters(self) -> list[nn.Parameter]:
        """Parameters that FSDP must not shard: scalars, which it refuses to cut."""
        return [parameter for parameter in self.parameters() if parameter.ndim == 0]

    # What variants use

    def frozen_critic(self, *args: Tensor) -> Any:
        """Call the critic with detached parameters: gradients reach the arguments only."""
        assert self.critic is not None
        named = {**dict(self.critic.named_parameters()), **dict(self.critic.named_buffers())}
        frozen = {name: value.detach() for name, value in named.items()}
        return torch.func.functional_call(self.critic, frozen, args)

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


def _mark_initialized(module: Any, incompatible_keys: Any) -> None:
    """Note that weights were loaded, which `BaseVAE.init_from_data` must not replace."""
    module.initialized = True
