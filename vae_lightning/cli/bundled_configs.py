"""The configurations that come with the package; found without importing torch."""

from pathlib import Path

from vae_lightning.errors import UserError, nearest
from vae_lightning.files import expand


def config_folder() -> Path:
    """Return the folder of configurations: in the package if installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _list(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more in {config_folder()}" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def find_config(name: str, kind: str = "configuration", folder: str = "") -> Path:
    """Find a file by its path, or a bundled one by its name.

    Args:
        name: Path, or name of a bundled file with or without ``.yaml``.
        kind: What is looked for, for the message.
        folder: Folder inside the bundled configurations.

    Raises:
        UserError: If there is neither.
    """
    if expand(name).is_file():
        return expand(name)
    bundled = {path.stem: path for path in (config_folder() / folder).glob("*.yaml")}
    stem = name.removesuffix(".yaml")
    if stem in bundled:
        return bundled[stem]
    hint = nearest(stem, bundled) or f"; bundled are {_list(sorted(bundled))}"
    raise UserError(f"there is no {kind} file '{name}', and no bundled one of that name{hint}")
