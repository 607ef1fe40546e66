"""Multilayer perceptrons on flattened images."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from vae_lightning.nets.base import Decoder, Encoder, ImageShape, concatenate, positive

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU, "gated": nn.GLU}


def _mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Return linear layers with activations in between.

    With tanh, weights are initialized as in Glorot and Bengio (2010), Understanding the difficulty
    of training deep feedforward neural networks. Gated layers multiply one half of their output by
    the sigmoid of the other half (Dauphin et al., 2017, https://arxiv.org/abs/1612.08083).
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        width = 2 * after if activation == "gated" else after
        layers += [nn.Linear(before, width), _ACTIVATIONS[activation]()]
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    if activation == "tanh":
        for layer in layers[::2]:
            nn.init.xavier_uniform_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)
    return nn.Sequential(*layers)


def critic_mlp(in_features: int, hidden: Sequence[int]) -> nn.Sequential:
    """Build a critic of latents: linear layers with leaky ReLU, and one logit.

    Args:
        in_features: Size of the input.
        hidden: Sizes of the hidden layers.
    """
    sizes = [in_features, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1))


class MLPEncoder(Encoder):
    """Fully connected encoder.

    Args:
        image_shape: See `Encoder`.
        out_features: See `Encoder`.
        cond_features: See `Encoder`. The condition is appended to the pixels.
        hidden: Sizes of the hidden layers.
        activation: ``relu``, ``tanh``, ``silu``, ``gelu`` or ``gated``.

    Raises:
        ValueError: If a size is not positive or the activation is unknown.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        out_features: int,
        cond_features: int = 0,
        hidden: Sequence[int] = (512, 256),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, out_features=out_features, hidden=hidden)
        pixels = math.prod(image_shape)
        self.layers = _mlp([pixels + cond_features, *hidden, out_features], activation)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, out_features)."""
        return self.layers(concatenate(x.flatten(1), condition))


class MLPDecoder(Decoder):
    """Fully connected decoder.

    Args:
        image_shape: See `Decoder`.
        in_features: See `Decoder`.
        cond_features: See `Decoder`. The condition is appended to the latent.
        hidden: Sizes of the hidden layers.
        activation: ``relu``, ``tanh``, ``silu``, ``gelu`` or ``gated``.

    Raises:
        ValueError: If a size is not positive or the activation is unknown.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        in_features: int,
        cond_features: int = 0,
        hidden: Sequence[int] = (256, 512),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, in_features=in_features, hidden=hidden)
        pixels = math.prod(image_shape)
        self.layers = _mlp([in_features + cond_features, *hidden, pixels], activation)
        self.unflatten = nn.Unflatten(1, image_shape)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`."""
        return self.unflatten(self.layers(concatenate(z, condition)))

    def start_at(self, params: Tensor) -> None:
        """See `Decoder.start_at`."""
        cast(nn.Linear, self.layers[-1]).bias.data.copy_(params.flatten())
