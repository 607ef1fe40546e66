"""Validation of the arguments of plotting functions.

Every function raises a `ValueError` that starts with ``where``, the name of the plotting function.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_tensor(where: str, name: str, value: Tensor, layout: str) -> None:
    """Check that ``value`` is a tensor with the dimensions in ``layout``, e.g. ``"N C H W"``."""
    expected = f"({', '.join(layout.split())})"
    if not isinstance(value, Tensor):
        raise ValueError(f"{where}: {name} is a {type(value).__name__}, pass a {expected} tensor.")
    if value.ndim != len(layout.split()):
        raise ValueError(
            f"{where}: {name} has shape {tuple(value.shape)}, pass {expected} instead."
        )


def check_images(where: str, name: str, images: Tensor, layout: str) -> Tensor:
    """Check an image tensor and return it on the CPU as float32.

    Any number of channels is accepted; see `to_rgb` for their colors.
    """
    check_tensor(where, name, images, layout)
    shape = tuple(images.shape)
    if 0 in shape:
        raise ValueError(f"{where}: {name} has shape {shape}, pass at least one image and pixel.")
    channels, height, width = shape[-3:]
    if width in (1, 3) and min(channels, height) > 6:  # (..., H, W, 1) or (..., H, W, 3)
        raise ValueError(
            f"{where}: {name} has {channels} channels and is {width} wide in shape {shape}, "
            "pass channels first, as images.movedim(-1, -3) has them."
        )
    if not images.is_floating_point():
        raise ValueError(
            f"{where}: {name} has dtype {images.dtype}, pass floats in [0, 1] (bytes / 255)."
        )
    return images.detach().to(device="cpu", dtype=torch.float32)


def check_pair(where: str, originals: Tensor, reconstructed: Tensor) -> Tensor:
    """Check originals and reconstructions of the same shape and stack them, (2, N, C, H, W)."""
    first = check_images(where, "originals", originals, "N C H W")
    second = check_images(where, "reconstructed", reconstructed, "N C H W")
    if first.shape != second.shape:
        raise ValueError(
            f"{where}: originals {tuple(first.shape)} and reconstructed {tuple(second.shape)} "
            "differ in shape, pass one reconstruction of the same size per original."
        )
    return torch.stack([first, second])


def check_length(where: str, name: str, entries: Sequence[Any], expected: int, per: str) -> None:
    """Check that there is one entry per row or column, as ``per`` says."""
    if len(entries) != expected:
        raise ValueError(
            f"{where}: {name} has {len(entries)} entries for {expected} {per}s, pass one per {per}."
        )


def check_values(where: str, values: Sequence[float], expected: int, per: str) -> list[float]:
    """Check the latent values along an axis and return them as floats."""
    check_length(where, "values", values, expected, per)
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{where}: values contains NaN or infinity, pass finite numbers.")
    return numbers
