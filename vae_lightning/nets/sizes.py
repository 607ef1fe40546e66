"""Sizes of the linear layers that see all pixels of an image, or all positions of a map, at once.

They grow with the image, and convolutions do not.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

from torch import nn

from vae_lightning.nets.layers import FromMap, ToMap
from vae_lightning.nets.mlp import MLPDecoder, MLPEncoder

_HUGE = 10_000_000
"""Parameters from which on `LinearSize` is huge: 40 MB of weights, 160 MB in training with Adam."""


class LinearSize(NamedTuple):
    """Number of parameters of linear layers between images or maps and vectors.

    Attributes:
        parameters: Parameters of these layers.
        total: Parameters of the whole networks.
        flat_size: Values of the largest image or map that such a layer flattens; 0 without one.
    """

    parameters: int
    total: int
    flat_size: int

    @property
    def share(self) -> float:
        """Share of these layers in all parameters, from 0 to 1."""
        return self.parameters / self.total if self.total else 0.0

    @property
    def is_huge(self) -> bool:
        """Whether most parameters are in these layers, and they are at least ten million."""
        return self.parameters >= _HUGE and self.share > 0.5


def linear_size(*networks: nn.Module) -> LinearSize:
    """Count the parameters of the linear layers between images or maps and vectors.

    These are `FromMap` and `ToMap`, the first layer of an `MLPEncoder` and the last one of an
    `MLPDecoder`, also inside other modules.

    Args:
        networks: Encoders and decoders, or whole models.

    Example:
        >>> from vae_lightning.nets import MLPDecoder, MLPEncoder
        >>> size = linear_size(MLPEncoder((3, 256, 256), 40), MLPDecoder((3, 256, 256), 20))
        >>> size.parameters, size.flat_size, size.is_huge
        (201523712, 196608, True)
    """
    modules = {module for network in networks for module in network.modules()}
    inward: list[nn.Linear] = [m for m in modules if isinstance(m, FromMap)]
    inward += [cast(nn.Linear, m.layers[0]) for m in modules if isinstance(m, MLPEncoder)]
    outward: list[nn.Linear] = [m for m in modules if isinstance(m, ToMap)]
    outward += [cast(nn.Linear, m.layers[-1]) for m in modules if isinstance(m, MLPDecoder)]
    flat = [layer.in_features for layer in inward] + [layer.out_features for layer in outward]
    return LinearSize(
        parameters=_count(inward + outward), total=_count(networks), flat_size=max(flat, default=0)
    )


def _count(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters, each counted once."""
    parameters = {parameter for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in parameters)
