"""Residual encoder and decoder of the VQ-VAE paper, whose latent is a feature map.

References:
    van den Oord et al. (2017), Neural discrete representation learning, section 4.1,
    https://arxiv.org/abs/1711.00937
"""

from torch import Tensor, nn

from vae_lightning.nets.base import Decoder, Encoder, ImageShape, concatenate, positive
from vae_lightning.nets.layers import UpConv, channels_last


class ResidualBlock(nn.Module):
    """Residual block: x + conv1x1(relu(conv3x3(relu(x)))).

    Args:
        channels: Input and output channels.
        hidden: Channels between the convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, hidden, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        return x + self.layers(x)


class ResidualEncoder(Encoder):
    """Residual encoder: stride-2 convolutions (kernel 4), residual blocks and a 1x1 convolution.

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
        layers: list[nn.Module] = []
        for _ in range(downsamplings):
            convolution = nn.Conv2d(channels, hidden, kernel_size=4, stride=2, padding=1)
            layers += [convolution, nn.ReLU(inplace=True)]
            channels = hidden
        layers += [nn.Conv2d(hidden, hidden, kernel_size=3, padding=1)]
        layers += [ResidualBlock(hidden, hidden // 2) for _ in range(blocks)]
        layers += [nn.ReLU(inplace=True), nn.Conv2d(hidden, out_features, kernel_size=1)]
        self.layers = nn.Sequential(*layers)
        self.multiple = 2**downsamplings

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, out_features, h, w)."""
        # A kernel of size 4 needs even sizes, so other images are zero-padded.
        height, width = x.shape[2:]
        x = nn.functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        return self.layers(channels_last(concatenate(x, condition)))


class ResidualDecoder(Decoder):
    """Residual decoder: a 3x3 convolution, residual blocks and stride-2 transposed convolutions.

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
        self.multiple = 2**downsamplings
        layers: list[nn.Module] = [
            nn.Conv2d(in_features + cond_features, hidden, kernel_size=3, padding=1)
        ]
        layers += [ResidualBlock(hidden, hidden // 2) for _ in range(blocks)]
        for i in range(downsamplings):
            after = out_channels if i == downsamplings - 1 else hidden
            layers += [nn.ReLU(inplace=True), UpConv(hidden, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`."""
        x = self.layers(channels_last(concatenate(z, condition)))
        rows, columns = x.shape[2] - self.height, x.shape[3] - self.width
        if not (0 <= rows < self.multiple and 0 <= columns < self.multiple):
            raise ValueError(
                f"the decoder maps {tuple(z.shape[2:])} to {tuple(x.shape[2:])}, not to "
                f"{(self.height, self.width)}; use the same downsamplings as for the encoder"
            )
        return x[:, :, : self.height, : self.width]
