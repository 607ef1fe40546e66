"""YAML files of settings: one loader for all of them, found without importing torch."""

import re
from pathlib import Path
from typing import Any

import yaml

from vae_lightning.errors import UserError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A loader that reads ``1e-4`` as a number, as YAML 1.2 does, not as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def is_inline(value: str) -> bool:
    """Return whether the value of ``--config`` holds the settings themselves, as JSON."""
    return value.lstrip().startswith("{")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of settings.

    Raises:
        UserError: If it cannot be read, or is not a YAML file with settings by name.
    """
    return parse_yaml(read_utf8(path), str(path))


def read_utf8(path: Path) -> str:
    """Read a YAML file as text.

    Raises:
        UserError: If it cannot be read, or is not a text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a YAML file in UTF-8: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse settings.

    Args:
        text: YAML or JSON.
        where: Where it is from, for messages.

    Raises:
        UserError: If it does not hold settings by name.
    """
    content = parse_value(text, where)
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold options by name, such as 'model: VAE'")
    unnamed = [key for key in content if not isinstance(key, str)]
    if unnamed:
        raise UserError(f"{where}: {unnamed[0]!r} is not the name of an option")
    return content


def parse_value(text: str, where: str) -> Any:
    """Parse any YAML value.

    Raises:
        UserError: If it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not a YAML file: {' '.join(str(error).split())}") from error
