"""The convolutional pair of the lesson: stride-2 convolutions and a linear layer, mirrored."""

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
    """Convolutions (kernel 3, stride 2, padding 1) with ReLU, then a linear layer.

    Each layer halves the image, rounding odd sizes up: 28 -> 14 -> 7 by default.

    Args:
        image_shape: See `Encoder`.
        features: See `Encoder`.
        condition_features: See `Encoder`; the condition enters as constant input channels.
        channels: Output channels of each convolution.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        features: int,
        condition_features: int = 0,
        channels: Sequence[int] = (32, 64),
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, features=features, channels=channels)
        in_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for before, after in zip(
            [in_channels + condition_features, *channels], channels, strict=False
        ):
            convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
            layers += [convolution, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        smallest = halved_sizes(height, width, len(channels))[-1]
        self.head = FromMap((channels[-1], *smallest), features)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, features)."""
        return self.head(self.layers(channels_last(concatenate(x, condition))))


class ConvDecoder(Decoder):
    """A linear layer, then transposed convolutions (kernel 4, stride 2, padding 1) with ReLU.

    Each layer doubles the map. Where the encoder rounded an odd size up, the last row and column
    are cut off, so the output has the size of the image whatever that is.

    Args:
        image_shape: See `Decoder`.
        features: See `Decoder`.
        condition_features: See `Decoder`; the condition is appended to the latent.
        channels: Input channels of each transposed convolution.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        features: int,
        condition_features: int = 0,
        channels: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape, features=features, channels=channels)
        out_channels, height, width = image_shape
        *self.sizes, smallest = halved_sizes(height, width, len(channels))
        self.head = ToMap(features + condition_features, (channels[0], *smallest))
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
                x = x.relu_()  # before the cut: in place on a part of a tensor, autograd copies it
            x = x[:, :, :height, :width]
        return x
