"""``vae fit`` with callbacks of ``clocks.py``: ``python watched.py [options of vae fit]``.

Prints one line of JSON with what the callbacks found, the time to the first step, and the seconds
that the imports took.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

begun = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parent))  # for --trainer.callbacks+=clocks.FirstStep

import clocks  # noqa: E402

from vae_lightning.cli.main import run  # noqa: E402


def main() -> None:
    """Train and print what was found."""
    clocks.FirstStep.since = time.perf_counter()
    imports = clocks.FirstStep.since - begun
    with tempfile.TemporaryDirectory() as folder:
        own = [f"--output_dir={folder}", "--trainer.callbacks+=clocks.FirstStep"]
        run(["fit", *sys.argv[1:], *own])
    found = clocks.FirstStep.found | clocks.Workers.found
    print(json.dumps({"imports": imports, **found}))


if __name__ == "__main__":
    main()
