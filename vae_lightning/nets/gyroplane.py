"""Decoders of latents in hyperbolic space."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from vae_lightning.functional import without_autocast
from vae_lightning.nets.base import Decoder, ImageShape, positive
from vae_lightning.nets.mlp import MLPDecoder
from vae_lightning.poincare_ball import PoincareBall


class GyroplaneLayer(nn.Module):
    r"""The linear layer of hyperbolic space: signed distances of a point from hyperplanes.

    .. math:: f_k(z) = \frac{\|a_k\|}{\sqrt{c}} \operatorname{arsinh} \frac{2 \sqrt{c}
        \langle -p_k \oplus z, a_k \rangle}{\|a_k\| (1 - c \|-p_k \oplus z\|^2)}

    where the hyperplane k contains the point p_k and is perpendicular to a_k there. For c towards
    0, it is the linear layer 2 a_k (z - p_k).

    Args:
        in_features: Dimension L of the space.
        out_features: Number K of hyperplanes.
        curvature: c: minus the curvature of the space.

    References:
        Ganea et al. (2018), Hyperbolic neural networks, section 3.1,
        https://arxiv.org/abs/1805.09112

    Example:
        >>> GyroplaneLayer(2, 5)(torch.zeros(3, 2)).shape
        torch.Size([3, 5])
    """

    def __init__(self, in_features: int, out_features: int, curvature: float = 1.0) -> None:
        super().__init__()
        self.ball = PoincareBall(curvature)
        self.normals = nn.Parameter(torch.empty(out_features, in_features))
        self.offsets = nn.Parameter(torch.empty(out_features, in_features))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.normals, -bound, bound)
        # Hyperplanes near the center, where latents are at first.
        nn.init.uniform_(self.offsets, -bound, bound)

    def forward(self, z: Tensor) -> Tensor:
        """Map points of the ball (B, L) to (B, K)."""
        with without_autocast(z):
            c, root = self.ball.curvature, self.ball.root
            p = self.ball.exp(torch.zeros_like(self.offsets), self.offsets)
            length = self.normals.square().sum(1).clamp(min=1e-30).sqrt()
            a = self.normals / length[:, None]
            # <-p + z, a> / (1 - c |-p + z|^2), multiplied out: no (B, K, L) is needed.
            square_p = p.square().sum(1)
            square_z = z.square().sum(1, keepdim=True)
            apart = (square_z - 2 * (z @ p.t()) + square_p).clamp(min=0)
            bend = c * (p * a).sum(1) / (1 - c * square_p)
            height = z @ a.t() - (p * a).sum(1) - apart * bend
            room = (1 - c * square_z).clamp(min=1e-7)
            return (length / root) * (2 * root * height / room).asinh()


class GyroplaneDecoder(Decoder):
    """Decoder of points of a Poincaré ball: a `GyroplaneLayer`, ReLU, and any other decoder.

    Args:
        image_shape: See `Decoder`.
        in_features: See `Decoder`; the dimension of the ball.
        cond_features: See `Decoder`; the condition is given to the decoder behind.
        curvature: c: minus the curvature of the space, as of prior and posterior.
        width: Number of hyperplanes.
        decoder: The decoder of their distances.

    Raises:
        ValueError: If ``width`` or ``curvature`` is not positive.

    References:
        Mathieu et al. (2019), Continuous hierarchical representations with Poincaré variational
        auto-encoders, section 3.2, https://arxiv.org/abs/1901.06033

    Example:
        >>> decoder = GyroplaneDecoder((1, 28, 28), in_features=2, width=50)
        >>> decoder(torch.zeros(3, 2)).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        in_features: int,
        cond_features: int = 0,
        curvature: float = 1.0,
        width: int = 256,
        decoder: Callable[[ImageShape, int, int], Decoder] = MLPDecoder,
    ) -> None:
        super().__init__()
        positive(self, width=width)
        self.first = GyroplaneLayer(in_features, width, curvature)
        self.decoder = decoder(image_shape, width, cond_features)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`."""
        return cast(Tensor, self.decoder(self.first(z).relu(), condition))

    def start_at(self, params: Tensor) -> None:
        """See `Decoder.start_at`."""
        self.decoder.start_at(params)
