"""Convolutional encoder and decoder with stride-2 convolutions and a linear layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from vae_lightning.nets.base import (
    Decoder,
    Encoder,
    ImageShape,
    concatenate,
    halved_sizes,
    positive,
)
from vae_lightning.nets.layers import FromMap, ToMap, UpConv, channels_last


class ConvEncoder(Encoder):
    """Convolutional encoder.

    Stride-2 convolutions (kernel 3, padding 1) with ReLU are followed by a linear layer. Every
    convolution halves the image and rounds odd sizes up: 28 -> 14 -> 7 by default.

    Args:
        image_shape: See `Encoder`.
        out_features: See `Encoder`.
        cond_features: See `Encoder`. The condition is appended as constant input channels.
        channels: Output channels of each convolution.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        out_features: int,
        cond_features: int = 0,
        channels: Sequence[int] = (32, 64),
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, out_features=out_features, channels=channels)
        in_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for before, after in zip([in_channels + cond_features, *channels], channels, strict=False):
            convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
            layers += [convolution, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        smallest = halved_sizes(height, width, len(channels))[-1]
        self.head = FromMap((channels[-1], *smallest), out_features)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, out_features)."""
        return self.head(self.layers(channels_last(concatenate(x, condition))))


class ConvDecoder(Decoder):
    """Convolutional decoder.

    A linear layer is followed by stride-2 transposed convolutions (kernel 4, padding 1) with ReLU.
    Every layer doubles the map. Where the encoder rounded an odd size up, the last row or column is
    removed, so images of any size are supported.

    Args:
        image_shape: See `Decoder`.
        in_features: See `Decoder`.
        cond_features: See `Decoder`. The condition is appended to the latent.
        channels: Input channels of each transposed convolution.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        in_features: int,
        cond_features: int = 0,
        channels: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, in_features=in_features, channels=channels)
        out_channels, height, width = image_shape
        *self.sizes, smallest = halved_sizes(height, width, len(channels))
        self.head = ToMap(in_features + cond_features, (channels[0], *smallest))
        self.layers = nn.ModuleList(
            UpConv(before, after)
            for before, after in zip(channels, [*channels[1:], out_channels], strict=True)
        )

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`."""
        x = self.head(concatenate(z, condition))
        for layer, (height, width) in zip(self.layers, reversed(self.sizes), strict=True):
            x = layer(x)
            if layer is not self.layers[-1]:
                x = x.relu_()  # before slicing, because autograd copies in-place changes of slices
            x = x[:, :, :height, :width]
        return x
