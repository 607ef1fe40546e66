"""The options of all commands from a file, so that help and completion need not wait for torch.

``python -m vae_lightning.cli.collect_options`` writes it; a test compares it with the parsers.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("options.json")

POSITIONAL = ""
"""Flag of the argument without one, if it takes one of some names."""

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")


@cache
def read() -> dict[str, Any]:
    """Return the content of the file.

    ``options`` has, by command and flag, what an option does (``help``) and its ``default`` and
    ``choices`` where it has such. ``classes`` has the names of the classes that an option takes,
    ``summaries`` the first sentence about those of this project, and ``arguments`` the flags of
    their arguments.
    """
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content
