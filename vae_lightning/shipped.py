"""Where the files are that come with the package; found without importing torch."""

from pathlib import Path

from vae_lightning.errors import UserError, nearest


def config_folder() -> Path:
    """The shipped configurations: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped_file(name: str, kind: str = "configuration", folder: str = "") -> Path:
    """The file that somebody names: a path, or one of the files shipped, by its stem.

    Args:
        name: What was given.
        kind: What is looked for, in words.
        folder: Where in the shipped configurations.

    Raises:
        UserError: If there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in (config_folder() / folder).glob("*.yaml")}
    stem = name.removesuffix(".yaml")
    if stem in shipped:
        return shipped[stem]
    hint = nearest(stem, shipped) or f"; shipped are {', '.join(sorted(shipped))}"
    raise UserError(f"no {kind} file '{name}', nor one shipped under that name{hint}")
