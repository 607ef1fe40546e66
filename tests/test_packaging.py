"""What is shipped: the contents of the wheel, and the files that name the version."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from vae_lightning import __version__

ROOT = Path(__file__).parents[1]


def files_under(folder: Path) -> set[str]:
    """Files of a folder by relative path, without caches and hidden files."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The files in a wheel built from this checkout."""
    pytest.importorskip("hatchling", reason="needs hatchling, of the extra `dev`")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    # Reproducible builds read the time from here; nothing else of the environment matters.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_the_package_and_the_configurations_and_nothing_else(wheel):
    package = {f"vae_lightning/{name}" for name in files_under(ROOT / "vae_lightning")}
    configs = {f"vae_lightning/configs/{name}" for name in files_under(ROOT / "configs")}
    shipped = {name for name in wheel if not name.startswith("vae_lightning-")}
    assert shipped == package | configs
    assert {"vae_lightning/py.typed", "vae_lightning/configs/vae.yaml"} <= shipped


def test_metadata_of_the_wheel(wheel):
    (metadata,) = (text.decode() for name, text in wheel.items() if name.endswith("/METADATA"))
    assert f"\nVersion: {__version__}\n" in metadata
    (scripts,) = (
        text.decode() for name, text in wheel.items() if name.endswith("/entry_points.txt")
    )
    assert "vae = vae_lightning.__main__:main" in scripts


def test_every_dependency_has_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [item for extra in project["optional-dependencies"].values() for item in extra]
    needed = [item for item in [*project["dependencies"], *extras] if "vae-lightning[" not in item]
    unbounded = [item for item in needed if ">=" not in item]
    assert unbounded == []


def test_citation_names_the_current_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "MIT"
    # The fields that the format requires.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert all(author.get("name") for author in citation["authors"])


def test_changelog_has_a_section_for_the_current_version():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert sections[1] == __version__
