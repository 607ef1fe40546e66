"""What the README shows has to work."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from vae_lightning.__main__ import EXPLORE
from vae_lightning.cli import bundled_configs
from vae_lightning.cli.allowed_classes import imports_restricted
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.distributions.posteriors import Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.figures import FIGURES
from vae_lightning.metrics import METRICS
from vae_lightning.models.base import BaseVAE
from vae_lightning.models.vae import VAE
from vae_lightning.randomness import Noise

README = (Path(__file__).parents[1] / "README.md").read_text()
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
    assert len(FITS) >= 10
    assert COMMANDS[:2] == ["pip install -e .", "pip install -e '.[dev]' && pytest"]


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
        elif column and (name := re.match(r"`(\w+)`", cells[column])):
            found.add(name[1])
    assert len(found) >= 10
    assert found <= bundled


def test_every_figure_and_metric_is_in_the_tables():
    for name in FIGURES:
        assert f"`figures.{name}`" in README
    for name in METRICS:
        assert f"`metrics.{name}`" in README


SOURCES = [
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if re.search(r"^class ", block, re.MULTILINE)
]


def shown_classes(source):
    """The classes that a file in the README defines."""
    namespace = {"__name__": "shown_in_the_readme"}
    exec(source, namespace)
    return [
        value
        for value in namespace.values()
        if isinstance(value, type) and value.__module__ == "shown_in_the_readme"
    ]


def test_there_are_classes():
    assert len(SOURCES) >= 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda text: text.partition("\n")[0].strip('".'))
def test_variants_work(source, batch):
    """A model that the README shows, or one with the prior or the posterior that it shows."""
    shape = {"image_shape": (1, 8, 8)}
    models = []
    for cls in shown_classes(source):
        if issubclass(cls, BaseVAE):
            models.append(cls(**shape))
        elif issubclass(cls, Prior):
            models.append(VAE(prior=cls, **shape))
        elif issubclass(cls, Posterior):
            models.append(VAE(posterior=cls, **shape))
    assert models
    for model in models:
        terms = model.terms(batch.x, None, Noise(batch.indices))
        objective = model.objective(terms)
        assert objective.shape == batch.x.shape[:1]
        assert objective.isfinite().all()
        objective.mean().backward()
        assert model.encoder.layers[0].weight.grad.abs().sum() > 0
        ordinary = VAE(**shape)
        ordinary.load_state_dict(model.state_dict(), strict=False)
        usual = ordinary.objective(ordinary.terms(batch.x, None, Noise(batch.indices)))
        assert not objective.equal(usual)
        assert model.sample(3).shape == (3, 1, 8, 8)


def test_a_configuration_that_is_shown_names_a_class_that_is_shown():
    configs = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert configs
    names = {cls.__name__ for source in SOURCES for cls in shown_classes(source)}
    assert {yaml.safe_load(config)["model"] for config in configs} <= names
