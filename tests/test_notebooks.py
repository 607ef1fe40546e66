"""The notebooks run from top to bottom, with what they assert, and hold the outputs of a run."""

import runpy
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def execute():
    """The script that stores outputs."""
    return runpy.run_path(str(FOLDER / "execute.py"))["execute"]


def pictures(notebook):
    """The number of pictures below each cell."""
    return [
        sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        for cell in notebook.cells
    ]


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # those of Jupyter's own packages
def test_runs_and_shows_what_is_stored(path, execute):
    stored, executed = nbformat.read(path, as_version=4), execute(path)
    assert pictures(executed) == pictures(stored)
    shown = [bool(cell.get("outputs")) for cell in executed.cells]
    assert shown == [bool(cell.get("outputs")) for cell in stored.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_a_lesson(path):
    """It begins with how to open it, asserts what it claims, and ends with something to do."""
    notebook = nbformat.read(path, as_version=4)
    assert f"blob/main/notebooks/{path.name}" in notebook.cells[0].source
    assert "## Three things to try" in notebook.cells[-1].source
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert code.count("assert") >= 3
    assert sum(pictures(notebook)) >= 2
    assert path.stat().st_size < 1_000_000
