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
        "row 4": "no finite value in pressure",
        "row 8": "no finite value in temperature, cycles",
        "row 10": "no finite value in temperature",
        "row 12": "no value in state",
    }
    assert table.items.name(3) == "row 5"
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
        ({"labels": "temperature"}, "not classes"),
        ({"labels": "name"}, "not classes"),
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
        (b"caf\xe9,b\n1,2\n", "x.csv", "not UTF-8"),
        (b"a,b\nx,y\n", "x.csv", "no numeric columns: a, b"),
        (b"a,b\n1,\n2,\n,3\n", "x.csv", "lack a value"),
        (b"nonsense", "x.parquet", "cannot be read as a table"),
        (b"nonsense", "x.xlsx", "export it as one of these"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, name, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        _ = Table(tmp_path / name).items


def test_columns_of_a_trained_model_are_found_by_name(tmp_path):
    frame = frame_of(60)
    frame[NUMERIC].to_csv(tmp_path / "x.csv", index=False)
    record = Table(tmp_path / "x.csv").record
    frame[["cycles", "name", "pressure", "temperature"]].assign(more=1).to_csv(
        tmp_path / "new.csv", index=False
    )
    new = Table(tmp_path / "new.csv", labels="state")  # which is not there
    new.use_record(record)
    assert np.allclose(new.items.values, frame[NUMERIC])
    frame[["cycles", "temperature"]].to_csv(tmp_path / "less.csv", index=False)
    less = Table(tmp_path / "less.csv")
    less.use_record(record)
    with pytest.raises(UserError, match="no column 'pressure', which the model was trained on"):
        _ = less.items


def test_decimal_commas_beside_dates(tmp_path):
    (tmp_path / "x.csv").write_text("day;value\n" + "01.12.2020;0,5\n" * 5)
    assert Table(tmp_path / "x.csv").items.values.tolist() == [[0.5]] * 5


def test_names_that_are_numbers(tmp_path):
    np.savetxt(
        tmp_path / "x.csv", np.ones((9, 3)), delimiter=",", header="400,410,420", comments=""
    )
    guessed = Table(tmp_path / "x.csv")
    assert "--data.header true" in guessed.summary()
    assert len(guessed.items) == 10
    told = Table(tmp_path / "x.csv", header=True)
    assert list(told.channels) == ["400", "410", "420"]
    assert len(told.items) == 9


def test_the_index_of_a_data_frame_is_no_column(tmp_path):
    frame_of().to_csv(tmp_path / "x.csv")
    table = Table(tmp_path / "x.csv")
    assert list(table.channels) == NUMERIC
    assert "without the numbers of the rows" in table.summary()
