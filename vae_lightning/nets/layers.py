"""Layers that keep maps in the order in memory that convolutions on a CPU are fastest in.

That is with the channels innermost. Parameters are those of torch's layers, and so are the numbers
that come out, up to rounding.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEW_CHANNELS = 4
"""Output channels up to which `UpConv` goes another way on a CPU."""


def channels_last(x: Tensor) -> Tensor:
    """Images or maps (B, C, H, W); on a CPU with the channels innermost in memory."""
    if x.device.type != "cpu":
        return x
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    # Of one channel the two orders are the same in memory: only the strides say which is meant.
    return x.squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class FromMap(nn.Linear):
    """A linear layer on flattened maps.

    Args:
        shape: (C, h, w) of the maps.
        features: Size of the output.
    """

    def __init__(self, shape: tuple[int, int, int], features: int) -> None:
        super().__init__(math.prod(shape), features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, features)."""
        if not _is_channels_last(x):
            return super().forward(x.flatten(1))
        # The order of the weights is changed instead of that of the map: there are fewer of them.
        weight = self.weight.unflatten(1, x.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.bias)


class ToMap(nn.Linear):
    """A linear layer whose output is a map.

    Args:
        features: Size of the input.
        shape: (C, h, w) of the maps.
    """

    def __init__(self, features: int, shape: tuple[int, int, int]) -> None:
        super().__init__(features, math.prod(shape))
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, features) to (B, C, h, w)."""
        if z.device.type != "cpu":
            return super().forward(z).unflatten(1, self.shape)
        channels, height, width = self.shape
        weight = self.weight.unflatten(0, self.shape).permute(1, 2, 0, 3).flatten(0, 2)
        bias = self.bias.unflatten(0, self.shape).permute(1, 2, 0).flatten()
        x = F.linear(z, weight, bias).unflatten(1, (height, width, channels))
        return x.permute(0, 3, 1, 2)


def _sub_pixel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`UpConv` as a convolution with kernel 2 and four times as many output channels."""
    # The pixel at 2i + r - 1 sees pixel i through row r of the kernel, and i - 1 through r + 2.
    rows = weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(1, 3, 5, 0, 2, 4)
    four = F.conv2d(x, rows.flip(4, 5).flatten(0, 2), bias.repeat_interleave(4), padding=1)
    return F.pixel_shuffle(four, 2)[:, :, 1:-1, 1:-1].clone(memory_format=torch.contiguous_format)


class _SubPixel(torch.autograd.Function):
    """`_sub_pixel`, and back as torch's own layer goes, which is fast."""

    generate_vmap_rule = True
    forward = staticmethod(_sub_pixel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        sizes, needed = [weight.shape[1]], list(ctx.needs_input_grad)
        how = [2, 2], [1, 1], [1, 1], True, [0, 0], 1  # stride, padding, dilation, transposed
        return torch.ops.aten.convolution_backward(grads[0], x, weight, sizes, *how, needed)

    @staticmethod
    def jvp(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x_0, weight_0 = ctx.saved_tensors
        of_x = F.conv_transpose2d(x, weight_0, bias, stride=2, padding=1)
        return of_x + F.conv_transpose2d(x_0, weight, stride=2, padding=1)


class UpConv(nn.ConvTranspose2d):
    """A transposed convolution (kernel 4, stride 2, padding 1), which doubles the size of a map.

    With few output channels, as before an image, a transposed convolution takes a CPU as long as
    one with many. The same numbers come from a convolution with kernel 2 that has an output
    channel for each of the four pixels that a pixel becomes.

    Args:
        in_channels: Channels of the map that comes in.
        out_channels: Channels of the map that comes out.

    References:
        Shi et al. (2016), Is the deconvolution layer the same as a convolutional layer?,
        https://arxiv.org/abs/1609.07009
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, 2h, 2w)."""
        few = self.out_channels <= _FEW_CHANNELS and output_size is None
        if x.device.type != "cpu" or not few or torch.is_autocast_enabled("cpu"):
            return super().forward(x, output_size)
        assert self.bias is not None
        # torch.compile knows no functions that have a derivative in forward mode of their own.
        way = _sub_pixel if torch.compiler.is_compiling() else _SubPixel.apply
        return way(x, self.weight, self.bias)
