"""Execute notebooks and store their outputs, without paths and noise.

    python notebooks/execute.py notebooks/1_from_autoencoder_to_vae.ipynb

runs each notebook in an empty folder. Without arguments, all of them.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
MAX_PICTURE = 300_000
"""Largest size of a stored picture, in bytes."""


def execute(path: Path) -> NotebookNode:
    """Return a notebook with the outputs of a run in an empty folder.

    Args:
        path: The notebook, whose stored outputs are ignored.

    Raises:
        CellExecutionError: If a cell raises an error.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()
        return cleaned(notebook, Path(folder))


def cleaned(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Return a notebook without messages of libraries, times, and the paths of this machine.

    Raises:
        ValueError: If a picture is too large, or a path is left.
    """
    private = [str(folder.resolve()), str(folder), str(Path.home()), str(FOLDER.resolve().parent)]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("metadata", {}).clear()
            if "text" in output:
                output.text = output.text.replace(f"{folder}/", "")
            data = output.get("data", {})
            data.pop("text/html", None)
            picture = data.get("image/png", "")
            if len(picture) * 3 / 4 > MAX_PICTURE:
                raise ValueError(f"the picture of cell {number} has more than {MAX_PICTURE} bytes")
            if picture:
                data.pop("text/plain", None)
            text = output.get("text", "") + data.get("text/plain", "")
            if found := [name for name in private if len(name) > 1 and name in text]:
                raise ValueError(f"cell {number} prints {found[0]}")
            if re.search(r"0x[0-9a-f]{8,}", text):
                raise ValueError(f"cell {number} prints an address in memory")
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return notebook


def main() -> None:
    """Execute the notebooks that are named, or all."""
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        start = time.perf_counter()
        nbformat.write(execute(path), path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
