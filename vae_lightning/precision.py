"""Modules that keep the precision of their parameters."""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class Float32Module(nn.Module):
    """Module whose parameters and buffers keep their types when a model is converted to another.

    It is meant for parts that need the digits of float32. They are moved to other devices as usual.

    Example:
        >>> import torch
        >>> class Part(Float32Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(2))
        >>> nn.Sequential(Part()).to(torch.bfloat16)[0].weight.dtype
        torch.float32
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move tensors as ``fn`` does, without changing their types."""

        def moved(x: Tensor) -> Tensor:
            changed = fn(x)
            return changed if changed.dtype == x.dtype else x.to(changed.device)

        return super()._apply(moved, recurse)
