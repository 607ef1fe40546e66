"""Relative paths in options, made absolute so that a run can be used from any folder."""

import os
import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

_NAME = re.compile(r"(?:^|_)(?:root|path|folder|dir|dirpath|directory|file)$")
"""Names of arguments that are paths."""

_RUN_FOLDER = "."
"""``save_dir`` of a tracker that writes into the run's folder."""


def make_absolute(config: Namespace) -> None:
    """Make the paths in options absolute that a checkpoint or ``config.yaml`` will hold.

    Args:
        config: The options of a command; changed in place.
    """
    for part in config.data, config.model, config.get("checkpoint"), config.trainer:
        _make_absolute(part)
    if config.get("init_from"):
        config.init_from = os.path.abspath(Path(config.init_from).expanduser())


def _make_absolute(part: Any) -> None:
    if isinstance(part, list):
        for item in part:
            _make_absolute(item)
    if not isinstance(part, Namespace):
        return
    for name, value in list(vars(part).items()):
        if name == "save_dir" and value == _RUN_FOLDER:
            continue
        is_path = name != "class_path" and _NAME.search(name)
        if is_path and isinstance(value, str | Path) and value and not _is_url(value):
            part[name] = os.path.abspath(Path(value).expanduser())
        else:
            _make_absolute(value)


def _is_url(value: str | Path) -> bool:
    return "://" in str(value)
