"""Tables of a user: CSV and Parquet files."""

import csv
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vae_lightning.data.scaled import Labels, ScaledData
from vae_lightning.data.scaling import Scaling
from vae_lightning.errors import UserError

_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".txt")
_DELIMITERS = ",;\t|"
_SAMPLE = 2**16
"""Characters from which the delimiter is recognized."""


class TableItems:
    """See `RawItems`: the rows of a table.

    Args:
        values: The numbers, float64, (N, F).
        rows: Number of each row in the file, from 0, (N,).
    """

    dtype = np.dtype(np.float64)

    def __init__(self, values: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> None:
        self.values = values
        self.rows = rows
        self.shape = 1, 1, values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """See `RawItems.read`."""
        return self.values[indices][:, None, None]

    def name(self, index: int) -> str:
        """See `RawItems.name`."""
        return f"row {self.rows[index]}"


class Table(ScaledData):
    """Rows of a CSV or Parquet file, with numeric columns.

    Each column is scaled by itself. Rows in which a value is missing are not trained on; they are
    listed in the run's folder. Columns of text are left out. For the networks, a row is an image of
    height and channel 1: use `MLPEncoder` and `MLPDecoder`, as ``--config table`` does, which is
    the default for tables. Needs pandas: ``pip install 'vae-lightning[table]'``.

    Args:
        root: A ``.csv``, ``.tsv`` or ``.parquet`` file. The delimiter of a CSV file and its decimal
            comma are recognized.
        columns: Names of the columns; by default all numeric ones.
        labels: Name of a column of classes.
        scaling: See `ScaledData`.
        **kwargs: See `ScaledData`.

    Raises:
        UserError: If the file cannot be read, or it has no such column, or a column is not numeric.
    """

    default_config: ClassVar[str] = "table"
    left_out_noun = "row"
    noun = "row"
    groups = "column"

    def __init__(
        self,
        root: str,
        columns: list[str] | None = None,
        labels: str | None = None,
        scaling: Scaling = "standardize",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, scaling, **kwargs)
        self.columns = columns
        self.label_column = labels
        self._remarks: list[str] = []
        self._left_out: list[tuple[str, str]] = []

    @cached_property
    def _frame(self) -> Any:
        """The file as a data frame."""
        if not self.root.is_file():
            raise UserError(
                f"{self.root.absolute()} does not exist: pass a .csv or .parquet file as "
                "--data.root"
            )
        frame = read_table(self.root)
        frame.columns = [str(name) for name in frame.columns]
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise UserError(f"{self.root} has several columns called '{twice[0]}': rename them")
        asked = [*(self.columns or ()), *([self.label_column] if self.label_column else [])]
        for name in asked:
            if name not in frame.columns:
                raise UserError(
                    f"{self.root} has no column '{name}', but {_listed(list(frame.columns))}"
                )
        return frame

    @cached_property
    def _names(self) -> list[str]:
        """Names of the columns that are used."""
        frame = self._frame
        if self.columns is not None:
            for name in self.columns:
                if not _is_numeric(frame[name]):
                    raise UserError(
                        f"column '{name}' of {self.root} is not numeric, its values are such as "
                        f"{frame[name].dropna().iloc[0]!r}: leave it out of --data.columns"
                    )
            return list(self.columns)
        others = [name for name in frame.columns if name != self.label_column]
        names = [name for name in others if _is_numeric(frame[name])]
        empty = [name for name in names if not frame[name].notna().any()]
        text = [name for name in others if name not in names]
        if text:
            self._remarks.append(f"without columns that are not numeric: {_listed(text)}")
        if empty:
            self._remarks.append(f"without columns that are empty: {_listed(empty)}")
        names = [name for name in names if name not in empty]
        if not names:
            raise UserError(f"{self.root} has no numeric columns: {_listed(list(frame.columns))}")
        return names

    @cached_property
    def _kept(self) -> npt.NDArray[np.bool_]:
        """Which rows have all values, (N,)."""
        values = self._frame[self._names].to_numpy(np.float64, na_value=np.nan)
        missing = ~np.isfinite(values)
        kept = ~missing.any(1)
        for row in np.flatnonzero(~kept).tolist():
            absent = [self._names[i] for i in np.flatnonzero(missing[row])]
            self._left_out.append((f"row {row}", f"no value in {_listed(absent)}"))
        if self.label_column:
            unknown = self._frame[self.label_column].isna().to_numpy()
            for row in np.flatnonzero(unknown & kept).tolist():
                self._left_out.append((f"row {row}", f"no value in {self.label_column}"))
            kept &= ~unknown
        if not kept.any():
            worst = self._names[int(missing.sum(0).argmax())]
            raise UserError(
                f"all {len(kept):,} rows of {self.root} lack a value, most of them in '{worst}': "
                "choose other --data.columns, or fill the gaps"
            )
        return kept

    @cached_property
    def items(self) -> TableItems:
        """See `ScaledData.items`."""
        values = self._frame[self._names].to_numpy(np.float64, na_value=np.nan)
        constant = [
            name
            for name, column in zip(self._names, values[self._kept].T, strict=True)
            if (column == column[0]).all()
        ]
        if constant:
            self._remarks.append(f"constant: {_listed(constant)}")
        return TableItems(np.ascontiguousarray(values[self._kept]), np.flatnonzero(self._kept))

    @cached_property
    def labels(self) -> Labels | None:
        """See `ScaledData.labels`."""
        if self.label_column is None:
            return None
        values = self._frame[self.label_column][self._kept]
        where = f"column '{self.label_column}' of {self.root}"
        array = values.to_numpy()
        if array.dtype.kind not in "biuf":
            array = values.astype(str).to_numpy(str)
        return Labels.of(array, where)

    @property
    def shape_text(self) -> str:
        """The number of columns."""
        n = self.image_shape[2]
        return f"{n:,} {'column' if n == 1 else 'columns'}"

    @property
    def layout(self) -> str:
        """See `ScaledData.layout`."""
        return "D"

    @property
    def channels(self) -> Sequence[str]:
        """Names of the columns."""
        return self._names

    @property
    def remarks(self) -> Sequence[str]:  # type: ignore[override]
        """See `ImageSource.remarks`."""
        _ = self.items
        return self._remarks

    @property
    def left_out(self) -> Sequence[tuple[str, str]]:  # type: ignore[override]
        """Rows that are not used, with what they lack."""
        _ = self._kept
        return self._left_out


def read_table(path: Path) -> Any:
    """Read a CSV or Parquet file as a data frame of pandas.

    Raises:
        UserError: If it cannot be read, or a package is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in (*_PARQUET, *_TEXT):
        raise UserError(
            f"{path} is no .csv, .tsv or .parquet file: export it as one of these, or use "
            "--data Arrays for .npy and .npz"
        )
    try:
        import pandas

        if suffix in _PARQUET:
            return pandas.read_parquet(path)
        return pandas.read_csv(path, **_dialect(path))
    except ImportError as error:
        raise UserError(
            f"reading {path.name} needs more packages: pip install 'vae-lightning[table]'"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    except (OSError, ValueError) as error:  # those of pandas and pyarrow are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as a table ({reason})") from error


def _dialect(path: Path) -> dict[str, Any]:
    """Return how to read a CSV file: delimiter, decimal comma, header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read(_SAMPLE)
    try:
        delimiter = csv.Sniffer().sniff(text, _DELIMITERS).delimiter
    except csv.Error:  # a single column
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    first, _, rest = text.partition("\n")
    has_comma = delimiter != "," and re.search(r"\d,\d", rest) and not re.search(r"\d\.\d", rest)
    decimal = "," if has_comma else "."
    names = next(csv.reader([first], delimiter=delimiter), [])
    number = re.compile(rf"\s*[-+]?(\d+\{decimal}?\d*|\{decimal}\d+)([eE][-+]?\d+)?\s*")
    has_header = not all(number.fullmatch(name) for name in names)
    return {
        "sep": delimiter,
        "decimal": decimal,
        "header": 0 if has_header else None,
        "encoding": "utf-8-sig",
        "skipinitialspace": True,
    }


def _is_numeric(column: Any) -> bool:
    from pandas.api import types

    return bool(types.is_numeric_dtype(column)) and not types.is_complex_dtype(column)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
