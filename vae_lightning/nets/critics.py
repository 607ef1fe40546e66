"""Critics: networks that tell real images from generated ones."""

from collections.abc import Sequence

from torch import Tensor, nn

from vae_lightning.nets.base import ImageShape, concatenate, halved_sizes, positive
from vae_lightning.nets.conv import channels_for
from vae_lightning.nets.layers import FromMap, channels_last, convolution

_SLOPE = 0.2


class ConvCritic(nn.Module):
    """Convolutional critic, which also returns features by which images can be compared.

    Stride-2 convolutions (kernel 3, padding 1) are followed by leaky ReLU and a linear layer.
    After each convolution but the first, the map of an image is normalized to mean 0 and variance
    1. An image is never normalized by the others of its batch.

    Args:
        image_shape: Shape of an image, (C, H, W).
        cond_features: Size of the condition (a one-hot class), 0 without a condition. The
            condition is appended as constant input channels.
        channels: Output channels of each convolution, at least two; by default, `channels_for` the
            image.

    Raises:
        ValueError: If a size is not positive, or there is only one convolution.

    Example:
        >>> import torch
        >>> logit, features = ConvCritic((1, 28, 28))(torch.rand(8, 1, 28, 28))
        >>> logit.shape, features.shape
        (torch.Size([8]), torch.Size([8, 64, 7, 7]))
    """

    def __init__(
        self,
        image_shape: ImageShape,
        cond_features: int = 0,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        positive(self, image_shape=image_shape)
        channels = channels_for(image_shape) if channels is None else channels
        positive(self, channels=channels)
        if len(channels) < 2:
            raise ValueError(f"ConvCritic: channels must be at least two, got {list(channels)}")
        in_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for before, after in zip([in_channels + cond_features, *channels], channels, strict=False):
            if layers:
                layers.append(nn.LeakyReLU(_SLOPE))
            layers.append(convolution(before, after, 3, 2, height == 1))
            if len(layers) > 1:
                layers.append(nn.GroupNorm(1, after, affine=False))
        self.layers = nn.Sequential(*layers)
        smallest = halved_sizes(height, width, len(channels))[-1]
        self.head = nn.Sequential(nn.LeakyReLU(_SLOPE), FromMap((channels[-1], *smallest), 1))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logit that images are real, and their features.

        Args:
            x: Images, (B, C, H, W).
            condition: Condition of each image, (B, cond_features).

        Returns:
            Logits, (B,), and the normalized map of the last convolution, (B, D, h, w); both
            float32.
        """
        features = self.layers(channels_last(concatenate(x, condition)))
        return self.head(features)[:, 0].float(), features.float()
