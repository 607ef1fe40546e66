"""Convolutional encoder and decoder with stride-2 convolutions and a linear layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from vae_lightning.nets.base import (
    Decoder,
    Encoder,
    ImageShape,
    concatenate,
    halved_sizes,
    levels_for,
    positive,
)
from vae_lightning.nets.layers import (
    FromMap,
    ToMap,
    UpConv,
    channels_last,
    convolution,
    he_initialize,
)

_DEEP = 5
"""Most convolutions that torch's initialization is used for.

It divides the variance of a map by 6 at each convolution with ReLU, so that little of the image is
left after many: an autoencoder with 8 did not learn anything in 200 steps, but does with the
initialization of He et al.
"""


def channels_for(image_shape: ImageShape) -> list[int]:
    """Return the channels of the encoder's convolutions, from the largest map to the smallest.

    Channels double from 32 up to 256 whenever a map has a quarter of the positions, so that all
    layers cost about the same: at each level of an image, at every second one of a signal.
    `levels_for` says how many levels there are.

    Example:
        >>> channels_for((1, 28, 28)), channels_for((3, 256, 256))
        ([32, 64], [32, 64, 128, 256, 256])
        >>> channels_for((1, 1, 1000))
        [32, 32, 64, 64]
    """
    _, height, width = image_shape
    levels_per_doubling = 2 if height == 1 else 1
    return [
        min(32 * 2 ** (level // levels_per_doubling), 256)
        for level in range(levels_for(height, width))
    ]


class ConvEncoder(Encoder):
    """Convolutional encoder.

    Stride-2 convolutions (kernel 3, padding 1) with ReLU are followed by a linear layer. Every
    convolution halves the image and rounds odd sizes up: 28 -> 14 -> 7. For images of height 1
    (signals), the convolutions are one-dimensional. Networks of more than 5 convolutions start with
    the initialization of `he_initialize`.

    Args:
        image_shape: See `Encoder`.
        out_features: See `Encoder`.
        cond_features: See `Encoder`. The condition is appended as constant input channels.
        channels: Output channels of each convolution; by default, `channels_for` the image.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        out_features: int,
        cond_features: int = 0,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, out_features=out_features)
        channels = channels_for(image_shape) if channels is None else channels
        positive(self, channels=channels)
        in_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for before, after in zip([in_channels + cond_features, *channels], channels, strict=False):
            layers += [convolution(before, after, 3, 2, height == 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        if len(channels) > _DEEP:
            he_initialize(self.layers)
        smallest = halved_sizes(height, width, len(channels))[-1]
        self.head = FromMap((channels[-1], *smallest), out_features)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, out_features)."""
        return self.head(self.layers(channels_last(concatenate(x, condition))))


class ConvDecoder(Decoder):
    """Convolutional decoder.

    A linear layer is followed by stride-2 transposed convolutions (kernel 4, padding 1) with ReLU.
    Every layer doubles the map. Where the encoder rounded an odd size up, the last row or column is
    removed, so images of any size are supported. For images of height 1 (signals), the layers are
    one-dimensional. Networks of more than 5 layers start with the initialization of
    `he_initialize`.

    Args:
        image_shape: See `Decoder`.
        in_features: See `Decoder`.
        cond_features: See `Decoder`. The condition is appended to the latent.
        channels: Input channels of each transposed convolution; by default, those of the encoder
            in reverse order.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        in_features: int,
        cond_features: int = 0,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, in_features=in_features)
        channels = channels_for(image_shape)[::-1] if channels is None else channels
        positive(self, channels=channels)
        out_channels, height, width = image_shape
        *self.sizes, smallest = halved_sizes(height, width, len(channels))
        self.head = ToMap(in_features + cond_features, (channels[0], *smallest))
        self.layers = nn.ModuleList(
            UpConv(before, after, height == 1)
            for before, after in zip(channels, [*channels[1:], out_channels], strict=True)
        )
        if len(channels) > _DEEP:
            he_initialize(self.layers)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`."""
        x = self.head(concatenate(z, condition))
        for layer, (height, width) in zip(self.layers, reversed(self.sizes), strict=True):
            x = layer(x)
            if layer is not self.layers[-1]:
                x = x.relu_()  # before slicing, because autograd copies in-place changes of slices
            x = x[:, :, :height, :width]
        return x
