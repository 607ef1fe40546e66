"""A pair of multilayer perceptrons on flattened images."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_lightning.nets.base import Decoder, Encoder, ImageShape, concatenate, positive

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}


def _mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class MLPEncoder(Encoder):
    """Fully connected layers from the flattened image (and the condition) to the features.

    Args:
        image_shape: See `Encoder`.
        features: See `Encoder`.
        condition_features: See `Encoder`; the condition is appended to the pixels.
        hidden: Sizes of the hidden layers.
        activation: ``relu``, ``tanh``, ``silu`` or ``gelu``.

    Raises:
        ValueError: If a size is not positive or the activation is unknown.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        features: int,
        condition_features: int = 0,
        hidden: Sequence[int] = (512, 256),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, features=features, hidden=hidden)
        pixels = math.prod(image_shape)
        self.layers = _mlp([pixels + condition_features, *hidden, features], activation)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, features)."""
        return self.layers(concatenate(x.flatten(1), condition))


class MLPDecoder(Decoder):
    """Fully connected layers from the latent (and the condition) to the image.

    Args:
        image_shape: See `Decoder`.
        features: See `Decoder`.
        condition_features: See `Decoder`; the condition is appended to the latent.
        hidden: Sizes of the hidden layers.
        activation: ``relu``, ``tanh``, ``silu`` or ``gelu``.

    Raises:
        ValueError: If a size is not positive or the activation is unknown.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        features: int,
        condition_features: int = 0,
        hidden: Sequence[int] = (256, 512),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, features=features, hidden=hidden)
        pixels = math.prod(image_shape)
        self.layers = _mlp([features + condition_features, *hidden, pixels], activation)
        self.unflatten = nn.Unflatten(1, image_shape)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`."""
        return self.unflatten(self.layers(concatenate(z, condition)))
