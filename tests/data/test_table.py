"""Tables of a user: dialects, missing values, columns, classes, units."""

import numpy as np
import pytest

from vae_lightning.data.table import Table
from vae_lightning.errors import UserError

pandas = pytest.importorskip("pandas")


def frame_of(n=40):
    r = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "temperature": r.normal(20, 5, n),
            "pressure": r.normal(1e5, 1e3, n),
            "cycles": r.integers(0, 1000, n),
            "name": [f"unit {i}" for i in range(n)],
            "state": np.resize(["ok", "worn"], n),
        }
    )


NUMERIC = ["temperature", "pressure", "cycles"]


@pytest.mark.parametrize("form", ["comma", "semicolon", "tab", "bom", "parquet"])
def test_forms_of_a_table(tmp_path, form):
    frame = frame_of()
    path = tmp_path / {"tab": "x.tsv", "parquet": "x.parquet"}.get(form, "x.csv")
    if form == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif form == "semicolon":
        frame.to_csv(path, sep=";", decimal=",", index=False)
    else:
        sep = "\t" if form == "tab" else ","
        frame.to_csv(path, sep=sep, index=False, encoding="utf-8-sig" if form == "bom" else "utf-8")
    table = Table(path)
    assert list(table.channels) == NUMERIC
    assert table.image_shape == (1, 1, 3)
    assert np.allclose(table.items.values, frame[NUMERIC])
    assert "without columns that are not numeric: name, state" in table.summary()


def test_a_table_without_names(tmp_path):
    np.savetxt(tmp_path / "x.csv", np.random.default_rng(0).normal(size=(20, 4)), delimiter=",")
    table = Table(tmp_path / "x.csv")
    assert list(table.channels) == ["0", "1", "2", "3"]
    assert len(table.items) == 20


def test_missing_values_are_named_and_not_trained_on(tmp_path):
    frame = frame_of()
    frame.loc[3, "pressure"] = np.nan
    frame.loc[7, ["temperature", "cycles"]] = np.nan
    frame.loc[9, "temperature"] = np.inf
    frame.loc[11, "state"] = None
    frame["empty"] = np.nan
    frame.to_csv(tmp_path / "x.csv", index=False)
    table = Table(tmp_path / "x.csv", labels="state")
    assert len(table.items) == 36
    assert dict(table.left_out) == {
        "row 3": "no value in pressure",
        "row 7": "no value in temperature, cycles",
        "row 9": "no value in temperature",
        "row 11": "no value in state",
    }
    assert table.items.name(3) == "row 4"
    assert "empty: empty" in table.summary()
    assert len(table.y) == 36
    assert table.class_names == ["ok", "worn"]


def test_columns_are_scaled_by_themselves(tmp_path):
    frame_of(200).to_csv(tmp_path / "x.csv", index=False)
    table = Table(tmp_path / "x.csv", columns=["pressure", "temperature"])
    x = table.record.to_model(table.items.read(table.positions["train"]))[:, 0, 0]
    assert np.allclose(x.mean(0), 0, atol=1e-5)
    assert np.allclose(x.std(0), 1, atol=1e-5)
    assert not table.bounded
    rows = table.record.to_items(table.record.from_items(table.items.values))
    assert np.allclose(rows, table.items.values, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["speed"]}, "no column 'speed', but temperature"),
        ({"columns": ["name"]}, "'name' of .* is not numeric, its values are such as 'unit 0'"),
        ({"labels": "temperature"}, "no classes"),
        ({"labels": "name"}, "no classes"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, options, message):
    frame_of(300).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match=message):
        _ = Table(tmp_path / "x.csv", **options).summary()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "x.csv", "cannot be read as a table"),
        (b"a,b\n1,2\n1,2,3,4\n", "x.csv", "cannot be read as a table"),
        (b"a,a\n1,2\n", "x.csv", "no numeric"),
        (b"caf\xe9,b\n1,2\n", "x.csv", "not UTF-8"),
        (b"a,b\nx,y\n", "x.csv", "no numeric columns: a, b"),
        (b"a,b\n1,\n2,\n,3\n", "x.csv", "lack a value"),
        (b"nonsense", "x.parquet", "cannot be read as a table"),
        (b"nonsense", "x.xlsx", "export it as one of these"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, name, message):
    (tmp_path / name).write_bytes(content)
    if content == b"a,a\n1,2\n":  # pandas renames the second one
        assert list(Table(tmp_path / name).channels) == ["a", "a.1"]
        return
    with pytest.raises(UserError, match=message):
        _ = Table(tmp_path / name).items
