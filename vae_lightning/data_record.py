"""What a checkpoint keeps of the data: shape, values, scaling, channels and classes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae_lightning.errors import UserError

LAYOUTS = ("D", "CD", "HW", "HWC", "CHW")
"""Axes of an item in an array: values D, channels C, height H, width W."""

SCALING_OF_8_BITS = "divided by 255"

_FACTOR = 50.0
"""Factor between the standard deviations of data from which on they have other units."""

_SHIFT = 20.0
"""Distance of the means, in standard deviations, from which on data have other units."""

_CLIPPED = 0.1
"""Share of the range of a model by which values are outside from which on this is said."""

_FEW_VALUES = 30
"""Number of values from which on their standard deviation says something."""


@dataclass(frozen=True)
class DataRecord:
    """The data that a model was trained on, as plain data.

    A model sees ``x = (value - offset) / scale``. Images of 8 bits count as values from 0 to 1, as
    in torchvision.

    Attributes:
        shape: Shape of an item as the model sees it, (C, H, W); (C, 1, D) for signals.
        dtype: Type of the values in the files, such as ``uint16``.
        scaling: Name of the scaling, such as ``minmax``.
        mean: Mean of all training values, or of each channel or column, in the units of the data.
        std: Their standard deviation.
        offset: Offset of all values, or of each channel or column.
        scale: The scale of the same values; positive.
        low: The smallest of the same values among the training items, in the units of the data.
        high: The largest of them.
        bounded: Whether the model sees values in [0, 1] only.
        binary: Whether it sees 0 and 1 only.
        layout: Axes of an item in the files; one of `LAYOUTS`.
        channels: Names of the channels, or of the columns of a table, where they are known.
        class_names: Names of the classes, empty without labels.
        class_counts: Number of training items of each class, empty where unknown.
    """

    shape: tuple[int, int, int]
    dtype: str = "uint8"
    scaling: str = SCALING_OF_8_BITS
    offset: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.3,)
    bounded: bool = True
    binary: bool = False
    layout: str = "CHW"
    channels: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Self:
        """Invert `to_dict`.

        Raises:
            ValueError: If an entry is missing or is not what it has to be.
        """
        try:
            entries = {field.name: _frozen(held[field.name]) for field in fields(cls)}
            record = cls(**entries)
            names = ("offset", "scale", "low", "high", "mean", "std")
            groups = [getattr(record, name) for name in names]
            is_valid = (
                len(record.shape) == 3
                and record.layout in LAYOUTS
                and len({len(group) for group in groups}) == 1
                and len(record.scale) in (1, record.shape[0], record.shape[2])
                and all(math.isfinite(value) for group in groups for value in group)
                and min(record.scale) > 0
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not is_valid:
            raise ValueError("its entries do not fit each other")
        return record

    @property
    def is_8_bit(self) -> bool:
        """Whether values are those of images of 8 bits, from 0 to 1."""
        return self.scaling == SCALING_OF_8_BITS

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of an item in the files."""
        channels, height, width = self.shape
        sizes = {"C": channels, "H": height, "W": width, "D": width}
        return tuple(sizes[axis] for axis in self.layout)

    # Values

    def broadcast(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return numbers of all values, or of each channel or column, as an array for (C, H, W)."""
        shape = (-1, 1, 1) if len(values) == self.shape[0] else (1, 1, -1)
        return np.asarray(values, dtype=np.float64).reshape(shape)

    def to_model(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Scale values (B, C, H, W) of the data to what the model sees, float32.

        Values outside the training range are clipped where the model sees [0, 1] only.

        Raises:
            UserError: If a value is too large for float32.
        """
        x = (values - self.broadcast(self.offset)) / self.broadcast(self.scale)
        if self.bounded:
            return x.clip(0, 1).astype(np.float32)
        if np.abs(x).max(initial=0) > np.finfo(np.float32).max:
            raise UserError(
                "the data have values that are too large for a network, up to "
                f"{np.abs(values).max():.3g}: use another --data.scaling"
            )
        return x.astype(np.float32)

    def to_units(self, x: Tensor) -> Tensor:
        """Return what a model sees or makes, (..., C, H, W), in the units of the data.

        They are float32, or float64 where float32 would lose digits of the data.
        """
        offset, scale = (torch.from_numpy(self.broadcast(v)) for v in (self.offset, self.scale))
        values = x.cpu().double() * scale + offset
        is_exact = np.dtype(self.dtype).itemsize > 4 or np.dtype(self.dtype) in ("int32", "uint32")
        return values if is_exact else values.float()

    def to_items(self, x: Tensor) -> npt.NDArray[Any]:
        """Return `to_units` as an array with the axes that the items have in the files."""
        values = self.to_units(x)
        if self.layout in ("D", "CD"):
            values = values.squeeze(-2)
        if self.layout in ("D", "HW"):
            values = values.squeeze(-2 if self.layout == "D" else -3)
        if self.layout == "HWC":
            values = values.movedim(-3, -1)
        return values.contiguous().numpy()

    def from_items(self, values: npt.NDArray[Any]) -> Tensor:
        """Invert `to_items`: return what the model sees, (N, C, H, W), float32."""
        if self.layout in ("D", "HW"):
            values = values[:, None]
        if self.layout in ("D", "CD"):
            values = values[:, :, None]
        if self.layout == "HWC":
            values = np.moveaxis(values, 3, 1)
        return torch.from_numpy(self.to_model(values))

    def to_picture(self, x: Tensor) -> Tensor:
        """Map what a model sees to [0, 1] for a picture: the training range becomes [0, 1]."""
        if self.bounded:
            return x
        low, high = (self.broadcast(values) for values in (self.low, self.high))
        width = np.where(high > low, high - low, 1.0)
        return ((self.to_units(x) - torch.from_numpy(low)) / torch.from_numpy(width)).float()

    # Texts and checks

    def describe(self) -> str:
        """Return a sentence about the values, such as ``uint16 values from 0 to 4095``."""
        if self.is_8_bit:
            return ""
        seen = {"none": "not scaled", "standardize": "standardized"}.get(
            self.scaling, f"scaled to [0, 1] ({self.scaling})"
        )
        if self.scaling == "percentile" and len(self.scale) == 1:
            top = self.offset[0] + self.scale[0]
            seen = f"{self.offset[0]:.6g} to {top:.6g} scaled to [0, 1] (percentile)"
        span = f"from {min(self.low):.6g} to {max(self.high):.6g}"
        return f"{self.dtype} values {span}, {seen}"

    def check_values(
        self, mean: npt.NDArray[Any], std: npt.NDArray[Any], count: int, name: str
    ) -> list[str]:
        """Check that other data can have the units of those that the model was trained on.

        They are refused if most of their channels or columns are far away, or spread much more or
        less. An unusual item is none of this.

        Args:
            mean: Means of the values, one for each entry of `mean`.
            std: Their standard deviations.
            count: Number of values of which these are.
            name: What they are, for the message.

        Returns:
            Names of single columns whose values are far away, if there are several columns.

        Raises:
            UserError: If they have other units.
        """
        known_mean, known_std = np.asarray(self.mean), np.asarray(self.std)
        varies = known_std > 0
        if mean.shape != known_mean.shape or not varies.any():
            return []
        shift = np.abs(mean - known_mean)[varies] / (std + known_std)[varies]
        ratio = std[varies] / known_std[varies]
        wrong = np.median(shift) > _SHIFT
        if count >= _FEW_VALUES:
            wrong |= 0 < np.median(ratio) < 1 / _FACTOR or np.median(ratio) > _FACTOR
        if wrong:
            i = int(varies.argmax())
            raise UserError(
                f"{name} has values of {mean[i]:.4g} \N{PLUS-MINUS SIGN} {std[i]:.2g}, but the "
                f"model was trained on values of {known_mean[i]:.4g} \N{PLUS-MINUS SIGN} "
                f"{known_std[i]:.2g}: convert them to the same units"
            )
        far = np.flatnonzero(varies)[shift > _SHIFT]
        names = self.channels if len(self.channels) == len(known_mean) > 1 else ()
        return [names[i] for i in far] if names else []

    def describe_clipped(self, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> str:
        """Return a sentence about values that are clipped, empty if none is far outside.

        Args:
            low: Smallest values of other data, one for each entry of `offset`.
            high: Their largest values.
        """
        bottom, width = np.asarray(self.offset), np.asarray(self.scale)
        if not self.bounded or self.is_8_bit or low.shape != bottom.shape:
            return ""
        far = (low < bottom - _CLIPPED * width) | (high > bottom + (1 + _CLIPPED) * width)
        if not far.any():
            return ""
        i = int(far.argmax())
        return (
            f"values from {low[i]:.6g} to {high[i]:.6g} are clipped to those that the model knows, "
            f"{bottom[i]:.6g} to {bottom[i] + width[i]:.6g}; a model that is trained with "
            "--data.scaling standardize keeps them"
        )

    def log_scale(self) -> float:
        """Return what a density of scaled values loses: the sum of log scale over an item, nats."""
        sizes = np.ones(self.shape)
        return float((np.log(self.broadcast(self.scale)) * sizes).sum())

    def check_classes(self, names: Sequence[str], where: str) -> None:
        """Check that other data have the same classes.

        Raises:
            UserError: If they do not.
        """
        here = [str(name) for name in names]
        if self.class_names and here and here != list(self.class_names):
            raise UserError(
                f"the classes of {where} are {', '.join(here[:10])}, but the model was trained on "
                f"{', '.join(self.class_names[:10])}: pass data with the same classes"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
