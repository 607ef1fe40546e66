"""What the README shows has to work."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from vae_lightning import cli, layers, shipped
from vae_lightning.callbacks import FIGURES
from vae_lightning.metrics import MEASURES
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
    and (match := re.search(r"(?:vae fit|-m vae_lightning fit|slurm\.sbatch)(.*)", command))
]


class ParseOnly(cli._Command):
    def before_instantiate_classes(self):
        pass

    def instantiate_classes(self):
        pass

    def _run_subcommand(self, subcommand):
        pass


def test_commands_are_found():
    assert len(FITS) >= 10
    assert COMMANDS[:2] == ["pip install -e .", "pip install -e '.[dev]' && pytest"]


@pytest.mark.parametrize("options", FITS)
def test_options_of_every_command_are_valid(options):
    parsed = ParseOnly(layers.with_layers(["fit", *shlex.split(options)]))
    assert parsed.config.fit.model.class_path


def test_every_configuration_and_figure_is_in_the_tables():
    for path in shipped.config_folder().glob("*.yaml"):
        assert f"`{path.stem}`" in README or path.stem == layers.DEFAULT_CONFIG
    for name in FIGURES:
        assert f"`figures.{name}`" in README
    for name in MEASURES:
        assert f"`metrics.{name}`" in README


def test_the_variant_of_ones_own(batch):
    (source,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "class CapacityVAE" in block
    )
    namespace: dict = {"__name__": "capacity_vae"}
    exec(source, namespace)
    model = namespace["CapacityVAE"](image_shape=(1, 8, 8), capacity=2.0, gamma=3.0)
    terms = model.terms(batch.x, None, Noise(batch.indices))
    expected = terms.reconstruction + 3 * (terms.kl - 2).abs()
    torch.testing.assert_close(model.objective(terms), expected)
    (config,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert yaml.safe_load(config)["model"] == "CapacityVAE"
