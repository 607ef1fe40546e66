"""What the README shows has to work."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from vae_lightning.__main__ import EXPLORE
from vae_lightning.cli import bundled_configs
from vae_lightning.cli.allowed_classes import imports_restricted
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.figures import FIGURES
from vae_lightning.metrics import METRICS

README = (Path(__file__).parents[1] / "README.md").read_text()
DOCS = Path(__file__).parents[1] / "docs" / "pages"
COMMANDS = [
    line.split("$ ", 1)[1].split("  #")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
FITS = [
    match[1]
    for command in COMMANDS
    if "--ckpt_path" not in command
    and "..." not in command
    and (match := re.search(r"(?:vae fit|-m vae_lightning fit|slurm\.sbatch)(.*)", command))
]


def test_commands_are_found():
    assert len(FITS) >= 5
    assert "pip install -e ." in COMMANDS
    assert "pip install -e '.[dev]' && pytest" in COMMANDS


@pytest.mark.parametrize("options", FITS)
def test_options_of_every_command_are_valid(options, parse_only):
    command_line = CommandLine.read(["fit", *shlex.split(options)])
    with imports_restricted(command_line.named_classes):
        parsed = parse_only(command_line)
    assert parsed.config.fit.model.class_path


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.split()[1:2] and c.split()[1] in EXPLORE]
)
def test_options_of_commands_that_use_a_model_are_valid(command):
    _, name, *options = shlex.split(command)
    import_module(f"vae_lightning.cli.explore.{name}").parser().parse_args(options)


def test_configurations_in_the_tables_exist():
    bundled = {path.stem for path in bundled_configs.config_folder().glob("*.yaml")}
    column, found = None, set()
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if "`--config`" in cells:
            column = cells.index("`--config`")
        elif len(cells) < 2:
            column = None
        elif column:
            found |= set(re.findall(r"`(\w+)`", cells[column]))
    assert len(found) >= 20
    assert found <= bundled


def test_every_figure_and_metric_is_in_the_tables():
    measuring = (DOCS / "guides" / "measuring.md").read_text()
    for name in FIGURES:
        assert f"`figures.{name}`" in measuring
    for name in METRICS:
        assert f"`metrics.{name}`" in measuring


def test_is_short():
    assert len(README.split()) < 1000


def test_files_that_are_linked_exist():
    root = Path(__file__).parents[1]
    pages = [root / "README.md", root / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
