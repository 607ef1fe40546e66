"""Residual encoder and decoder of the VQ-VAE paper, whose latent is a feature map.

References:
    van den Oord et al. (2017), Neural discrete representation learning, section 4.1,
    https://arxiv.org/abs/1711.00937
"""

from torch import Tensor, nn

from vae_lightning.nets.base import Decoder, Encoder, ImageShape, concatenate, positive
from vae_lightning.nets.layers import UpConv, channels_last, convolution


class ResidualBlock(nn.Module):
    """Residual block: x + conv1x1(relu(conv3x3(relu(x)))).

    Args:
        channels: Input and output channels.
        hidden: Channels between the convolutions.
        is_signal: Whether maps are signals, with a height of 1; see `convolution`.
    """

    def __init__(self, channels: int, hidden: int, is_signal: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            convolution(channels, hidden, 3, is_signal=is_signal),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        return x + self.layers(x)


class ResidualEncoder(Encoder):
    """Residual encoder: stride-2 convolutions (kernel 4), residual blocks and a 1x1 convolution.

    For images of height 1 (signals), the convolutions are one-dimensional.

    Args:
        image_shape: See `Encoder`.
        out_features: Channels of the output map.
        cond_features: See `Encoder`. The condition is appended as constant input channels.
        hidden: Channels of the convolutions. Residual blocks have half as many inside.
        downsamplings: Number of times the image is halved, with odd sizes rounded up.
        blocks: Number of residual blocks.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        out_features: int,
        cond_features: int = 0,
        hidden: int = 64,
        downsamplings: int = 2,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        positive(
            self, image_shape=image_shape, out_features=out_features, downsamplings=downsamplings
        )
        positive(self, hidden=hidden // 2, blocks=blocks)
        channels = image_shape[0] + cond_features
        is_signal = image_shape[1] == 1
        layers: list[nn.Module] = []
        for _ in range(downsamplings):
            layers += [convolution(channels, hidden, 4, 2, is_signal), nn.ReLU(inplace=True)]
            channels = hidden
        layers += [convolution(hidden, hidden, 3, is_signal=is_signal)]
        layers += [ResidualBlock(hidden, hidden // 2, is_signal) for _ in range(blocks)]
        layers += [nn.ReLU(inplace=True), nn.Conv2d(hidden, out_features, kernel_size=1)]
        self.layers = nn.Sequential(*layers)
        self.multiples = 1 if is_signal else 2**downsamplings, 2**downsamplings

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, out_features, h, w)."""
        # A kernel of size 4 needs even sizes, so other images are zero-padded.
        bottom, right = (
            -size % multiple for size, multiple in zip(x.shape[2:], self.multiples, strict=True)
        )
        x = nn.functional.pad(x, (0, right, 0, bottom))
        return self.layers(channels_last(concatenate(x, condition)))


class ResidualDecoder(Decoder):
    """Residual decoder: a 3x3 convolution, residual blocks and stride-2 transposed convolutions.

    For images of height 1 (signals), the convolutions are one-dimensional.

    Args:
        image_shape: See `Decoder`.
        in_features: Channels of the input map.
        cond_features: See `Decoder`. The condition is appended as constant input channels.
        hidden: Channels of the convolutions. Residual blocks have half as many inside.
        downsamplings: Number of times the map is doubled; the same as for the encoder.
        blocks: Number of residual blocks.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        in_features: int,
        cond_features: int = 0,
        hidden: int = 64,
        downsamplings: int = 2,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        positive(
            self, image_shape=image_shape, in_features=in_features, downsamplings=downsamplings
        )
        positive(self, hidden=hidden // 2, blocks=blocks)
        out_channels, self.height, self.width = image_shape
        is_signal = self.height == 1
        self.multiples = 1 if is_signal else 2**downsamplings, 2**downsamplings
        layers: list[nn.Module] = [
            convolution(in_features + cond_features, hidden, 3, is_signal=is_signal)
        ]
        layers += [ResidualBlock(hidden, hidden // 2, is_signal) for _ in range(blocks)]
        for i in range(downsamplings):
            after = out_channels if i == downsamplings - 1 else hidden
            layers += [nn.ReLU(inplace=True), UpConv(hidden, after, is_signal)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`."""
        x = self.layers(channels_last(concatenate(z, condition)))
        rows, columns = x.shape[2] - self.height, x.shape[3] - self.width
        if not (0 <= rows < self.multiples[0] and 0 <= columns < self.multiples[1]):
            raise ValueError(
                f"the decoder maps {tuple(z.shape[2:])} to {tuple(x.shape[2:])}, not to "
                f"{(self.height, self.width)}; use the same downsamplings as for the encoder"
            )
        return x[:, :, : self.height, : self.width]
