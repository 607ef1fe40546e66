"""Layers that keep maps in channels-last memory format on a CPU, where convolutions are faster.

Their parameters, and up to rounding their outputs, are those of the corresponding torch layers.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEW_CHANNELS = 4
"""Largest number of output channels for which `UpConv` uses sub-pixel convolution on a CPU."""


def channels_last(x: Tensor) -> Tensor:
    """Return images or maps (B, C, H, W), on a CPU in channels-last memory format."""
    if x.device.type != "cpu":
        return x
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    # With one channel both formats are the same in memory and differ only in the strides.
    return x.squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, is_signal: bool = False
) -> nn.Conv2d:
    """Return a convolution whose output is the input's size divided by ``stride``.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        kernel_size: Height and width of the kernel.
        stride: Stride in both directions. With an even kernel, it has to divide the map's size.
        is_signal: Whether maps are signals, (B, C, 1, w). The kernel, stride and padding are then
            one-dimensional, because the other rows of a kernel would only meet padding.
    """
    padding = (kernel_size - 1) // 2
    if is_signal:
        return nn.Conv2d(in_channels, out_channels, (1, kernel_size), (1, stride), (0, padding))
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)


def he_initialize(layers: Iterable[nn.Module]) -> None:
    """Initialize (transposed) convolutions so that maps keep their variance from ReLU to ReLU.

    Weights are drawn from N(0, 2 / n), where n is the number of input values that an output value
    depends on; biases are zero. Other layers are left as they are.

    References:
        He et al. (2015), Delving deep into rectifiers, https://arxiv.org/abs/1502.01852
    """
    for layer in layers:
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        values = layer.in_channels * math.prod(layer.kernel_size)
        if isinstance(layer, nn.ConvTranspose2d):  # the stride spreads the kernel over outputs
            values //= math.prod(layer.stride)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / values))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class FromMap(nn.Linear):
    """Linear layer on flattened maps.

    Args:
        shape: Shape of the maps, (C, h, w).
        features: Number of output features.
    """

    def __init__(self, shape: tuple[int, int, int], features: int) -> None:
        super().__init__(math.prod(shape), features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, features)."""
        if not _is_channels_last(x):
            return super().forward(x.flatten(1))
        # Permute the weights instead of the maps, because they are smaller.
        weight = self.weight.unflatten(1, x.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.bias)


class ToMap(nn.Linear):
    """Linear layer whose output is a map.

    Args:
        features: Number of input features.
        shape: Shape of the maps, (C, h, w).
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
    """Compute `UpConv` by a convolution with kernel 2 and four times as many output channels.

    For a signal, they are twice as many.
    """
    # Output pixel 2i + r - 1 depends on input pixel i by row r of the kernel, on i - 1 by r + 2.
    if weight.shape[2] == 1:
        columns = weight.unflatten(3, (2, 2)).permute(1, 4, 0, 2, 3).flip(4).flatten(0, 1)
        two = F.conv2d(x, columns, bias.repeat_interleave(2), padding=(0, 1))
        signal = two.unflatten(1, (-1, 2)).movedim(2, 4).flatten(3)[..., 1:-1]
        return signal.clone(memory_format=torch.contiguous_format)
    rows = weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(1, 3, 5, 0, 2, 4)
    four = F.conv2d(x, rows.flip(4, 5).flatten(0, 2), bias.repeat_interleave(4), padding=1)
    return F.pixel_shuffle(four, 2)[:, :, 1:-1, 1:-1].clone(memory_format=torch.contiguous_format)


def _stride_and_padding(weight: Tensor) -> tuple[list[int], list[int]]:
    """Return the stride and the padding of an `UpConv` with these weights."""
    return ([1, 2], [0, 1]) if weight.shape[2] == 1 else ([2, 2], [1, 1])


class _SubPixel(torch.autograd.Function):
    """`_sub_pixel` with the backward pass of torch's transposed convolution, which is faster."""

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
        stride, padding = _stride_and_padding(weight)
        how = stride, padding, [1, 1], True, [0, 0], 1  # [1, 1] is the dilation, True "transposed"
        # `F.conv2d` with `torch.nn.grad.conv2d_weight` computes the same, but takes 1.5 to 8 times
        # as long (32 channels, 14x14 to 28x28, batch size 128: 13 ms instead of 1.6 ms).
        return torch.ops.aten.convolution_backward(grads[0], x, weight, sizes, *how, needed)

    # Forward-mode derivatives, so that `torch.func.jvp` works as for torch's own layer.
    @staticmethod
    def jvp(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x_0, weight_0 = ctx.saved_tensors
        stride, padding = _stride_and_padding(weight_0)
        of_x = F.conv_transpose2d(x, weight_0, bias, stride, padding)
        return of_x + F.conv_transpose2d(x_0, weight, None, stride, padding)


class UpConv(nn.ConvTranspose2d):
    """Transposed convolution (kernel 4, stride 2, padding 1), which doubles the size of a map.

    On a CPU, a transposed convolution with few output channels, as in the last layer of a decoder,
    takes as long as one with many. It is then computed by an equivalent convolution with kernel 2
    that has one output channel for each of the four (for a signal, two) output pixels of an input
    pixel.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        is_signal: Whether maps are signals, (B, C, 1, w), of which only the width is doubled.

    References:
        Shi et al. (2016), Is the deconvolution layer the same as a convolutional layer?,
        https://arxiv.org/abs/1609.07009
    """

    def __init__(self, in_channels: int, out_channels: int, is_signal: bool = False) -> None:
        if is_signal:
            super().__init__(in_channels, out_channels, (1, 4), (1, 2), (0, 1))
        else:
            super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, 2h, 2w), or 1 and w to 1 and 2w."""
        few = self.out_channels <= _FEW_CHANNELS and output_size is None
        if x.device.type != "cpu" or not few or torch.is_autocast_enabled("cpu"):
            return super().forward(x, output_size)
        assert self.bias is not None
        # torch.compile does not support functions with their own forward-mode derivative.
        up = _sub_pixel if torch.compiler.is_compiling() else _SubPixel.apply
        return up(x, self.weight, self.bias)
