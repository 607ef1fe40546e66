"""Where the files are that come with the package; found without importing torch."""

from pathlib import Path


def config_folder() -> Path:
    """The shipped configurations: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
