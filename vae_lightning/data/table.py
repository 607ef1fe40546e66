"""Tables of a user: CSV and Parquet files."""

import csv
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from vae_lightning.data.scaled import Labels, ScaledData
from vae_lightning.data.scaling import Scaling
from vae_lightning.errors import UserError, listed

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
        return f"row {self.rows[index] + 1}"


class Table(ScaledData):
    """Rows of a CSV or Parquet file, with numeric columns. They are read into memory.

    Each column is scaled by itself. Rows in which a value is missing are not trained on; they are
    listed in the run's folder. Columns of text are left out. For the networks, a row is an image of
    height and channel 1: use `MLPEncoder` and `MLPDecoder`, as ``--config table`` does, which is
    the default for tables. Needs pandas: ``pip install 'vae-lightning[table]'``.

    Args:
        root: A ``.csv``, ``.tsv`` or ``.parquet`` file.
        columns: Names of the columns; by default all numeric ones.
        labels: Name of a column of classes.
        delimiter: Character between the values of a CSV file; by default it is recognized.
        decimal: Decimal point or comma of a CSV file; by default it is recognized.
        header: Whether the first line of a CSV file has the names of the columns; by default,
            whether it has something other than numbers.
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
        delimiter: str | None = None,
        decimal: Literal[".", ","] | None = None,
        header: bool | None = None,
        scaling: Scaling = "standardize",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, scaling, **kwargs)
        self.columns = columns
        self.label_column = labels
        self.dialect = {"sep": delimiter, "decimal": decimal, "header": header}
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
        frame = read_table(self.root, **self.dialect)
        if isinstance(frame.columns[0], int | np.integer):
            self._remarks.append(
                "the first line has numbers, not names (if they are names: --data.header true)"
            )
        frame.columns = [str(name) for name in frame.columns]
        first = frame.columns[0]
        if first.startswith("Unnamed: ") and (frame[first] == np.arange(len(frame))).all():
            self._remarks.append("without the numbers of the rows in the first column")
            frame = frame.drop(columns=first)
        if self.label_column not in frame.columns and self._trained_on is not None:
            self.label_column = None  # no labels are needed for a trained model
        asked = [*(self._asked or ()), *([self.label_column] if self.label_column else [])]
        for name in asked:
            if name not in frame.columns:
                of = ", which the model was trained on" if self._trained_on is not None else ""
                raise UserError(
                    f"{self.root} has no column '{name}'{of}, but {listed(list(frame.columns))}"
                )
        return frame

    @property
    def _asked(self) -> Sequence[str] | None:
        """Names of the columns that are needed: those of a trained model, or those asked for."""
        return self.columns if self._trained_on is None else self._trained_on.channels

    @cached_property
    def _names(self) -> list[str]:
        """Names of the columns that are used."""
        frame = self._frame
        if self._asked is not None:
            for name in self._asked:
                if not _is_numeric(frame[name]):
                    raise UserError(
                        f"column '{name}' of {self.root} is not numeric, its values are such as "
                        f"{frame[name].dropna().iloc[0]!r}: leave it out of --data.columns"
                    )
            return list(self._asked)
        others = [name for name in frame.columns if name != self.label_column]
        names = [name for name in others if _is_numeric(frame[name])]
        empty = [name for name in names if not frame[name].notna().any()]
        text = [name for name in others if name not in names]
        if text:
            self._remarks.append(f"without columns that are not numeric: {listed(text)}")
        if empty:
            self._remarks.append(f"without columns that are empty: {listed(empty)}")
        names = [name for name in names if name not in empty]
        if not names:
            raise UserError(f"{self.root} has no numeric columns: {listed(list(frame.columns))}")
        return names

    @cached_property
    def _kept(self) -> npt.NDArray[np.bool_]:
        """Which rows have all values, (N,)."""
        values = self._frame[self._names].to_numpy(np.float64, na_value=np.nan)
        missing = ~np.isfinite(values)
        kept = ~missing.any(1)
        for row in np.flatnonzero(~kept).tolist():
            absent = [self._names[i] for i in np.flatnonzero(missing[row])]
            self._left_out.append((self._row(row), f"no finite value in {listed(absent)}"))
        if self.label_column:
            unknown = self._frame[self.label_column].isna().to_numpy()
            for row in np.flatnonzero(unknown & kept).tolist():
                self._left_out.append((self._row(row), f"no value in {self.label_column}"))
            kept &= ~unknown
        if not kept.any():
            worst = self._names[int(missing.sum(0).argmax())]
            raise UserError(
                f"all {len(kept):,} rows of {self.root} lack a value, most of them in '{worst}': "
                "choose other --data.columns, or fill the gaps"
            )
        return kept

    @staticmethod
    def _row(index: int) -> str:
        """Return the name of a row, counted from 1 without the names of the columns."""
        return f"row {index + 1}"

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
            self._remarks.append(f"constant: {listed(constant)}")
        return TableItems(np.ascontiguousarray(values[self._kept]), np.flatnonzero(self._kept))

    @cached_property
    def labels(self) -> Labels | None:
        """See `ScaledData.labels`."""
        if self.label_column is None:
            return None
        values = self._frame[self.label_column][self._kept]
        values = values.convert_dtypes() if values.dtype == object else values
        where = f"column '{self.label_column}' of {self.root}"
        kind = np.dtype(np.float64) if _is_numeric(values) else np.dtype(str)
        return Labels.of(values.to_numpy(kind), where)

    @property
    def shape_text(self) -> str:
        """The number of columns, and their names."""
        n = self.image_shape[2]
        return f"{n:,} {'column' if n == 1 else 'columns'} ({listed(self._names)})"

    @property
    def item_axes(self) -> str:
        """See `ScaledData.item_axes`."""
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


def read_table(path: Path, **dialect: Any) -> Any:
    """Read a CSV or Parquet file as a data frame of pandas.

    Args:
        path: The file.
        **dialect: How to read a CSV file, ``sep``, ``decimal`` and ``header``; None to recognize
            it.

    Raises:
        UserError: If it cannot be read, or a package is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in (*_PARQUET, *_TEXT):
        raise UserError(
            f"{path} is not a .csv, .tsv or .parquet file: export it as one of these, or use "
            "--data Arrays for .npy and .npz"
        )
    try:
        import pandas

        if suffix in _PARQUET:
            return pandas.read_parquet(path)
        return pandas.read_csv(path, **_dialect(path, **dialect))
    except ImportError as error:
        raise UserError(
            f"reading {path.name} needs more packages: pip install 'vae-lightning[table]'"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    except (OSError, ValueError) as error:  # those of pandas and pyarrow are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as a table ({reason})") from error


def _dialect(
    path: Path, sep: str | None, decimal: str | None, header: bool | None
) -> dict[str, Any]:
    """Return how to read a CSV file; what is None is recognized from its first lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read(_SAMPLE)
    if sep is None:
        try:
            sep = csv.Sniffer().sniff(text, _DELIMITERS).delimiter
        except csv.Error:  # a single column
            sep = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = list(csv.reader(text.splitlines(), delimiter=sep))
    cells = [cell.strip() for row in rows[1:-1] or rows[1:] for cell in row]
    if decimal is None:
        commas, points = (sum(_is_number(cell, mark) for cell in cells) for mark in ",.")
        decimal = "," if sep != "," and commas > points else "."
    if header is None:
        header = not all(_is_number(cell.strip(), decimal) for cell in next(iter(rows), [""]))
    return {
        "sep": sep,
        "decimal": decimal,
        "header": 0 if header else None,
        "encoding": "utf-8-sig",
        "skipinitialspace": True,
    }


def _is_number(cell: str, decimal: str) -> bool:
    return bool(re.fullmatch(rf"[-+]?(\d+[{decimal}]?\d*|[{decimal}]\d+)([eE][-+]?\d+)?", cell))


def _is_numeric(column: Any) -> bool:
    from pandas.api import types

    return bool(types.is_numeric_dtype(column)) and not types.is_complex_dtype(column)
