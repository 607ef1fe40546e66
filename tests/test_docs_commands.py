"""Every command of the documentation runs, page by page, on little data and for one epoch.

A block that is not run says why, in a comment before it: ``<!-- not run: needs GPUs -->``.
"""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vae_lightning.__main__ import main
from vae_lightning.cli import bundled_configs

PAGES = Path(__file__).parents[1] / "docs" / "pages"
BLOCK = re.compile(r"((?:^<!--.*?-->\n)?)^```(console|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMES = [str(p.relative_to(PAGES)) for p in sorted(PAGES.rglob("*.md")) if "$ vae" in p.read_text()]
SMALL = [
    *("--data", "Digits", "--data.train_size", "800", "--data.val_size", "50"),
    *("--data.test_size", "60", "--data.batch_size", "32"),
]
SHORT = [
    *("--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false"),
    *("--trainer.accelerator", "cpu"),
]

QUICK = "metrics: {disentanglement: {votes: 20}, log_likelihood: {num_samples: 4}}"


def data_of(words):
    """The data that a command of ``vae fit`` names, itself or by its configuration."""
    if "--data" in words:
        return words[words.index("--data") + 1]
    if "--config" in words:
        path = bundled_configs.config_folder() / f"{words[words.index('--config') + 1]}.yaml"
        data = yaml.safe_load(path.read_text()).get("data", "Digits")
        return data if isinstance(data, str) else data["class_path"]
    return "Digits"


def shortened(words):
    """The arguments of a command, with less to do."""
    if words[0] != "fit" or any(word.endswith("help") for word in words):
        quick = [] if words[0] == "predict" else ["--config", "quick.yaml"]
        is_slow = words[0] in ("test", "validate", "predict")
        return [words[0], *quick, *words[1:], *SHORT[2:4]] if is_slow else words
    if "--ckpt_path" in words:
        return [*words, *SHORT]
    epochs = [] if "--trainer.max_epochs" in words else ["--trainer.max_epochs", "1"]
    is_own = data_of(words) in ("ImageFolder", "Arrays", "Table") or "--init_from" in words
    return [*words, *([] if is_own else SMALL), *SHORT, *epochs]


def run(command, variables, monkeypatch):
    """Run a line of a console block."""
    command = re.split(r"\s+#", command)[0].strip()
    for name, value in variables.items():
        command = command.replace(f"${name}", value)
    words = shlex.split(command)
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        if not words:
            variables[name] = value
            return
        monkeypatch.setenv(name, value)
    assert words[0] == "vae", command
    try:
        main(shortened(words[1:]))
    except SystemExit as end:  # --help ends, too
        if end.code:
            raise


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "quick.yaml").write_text(QUICK)
    yield tmp_path
    for name in ("my_networks", "my_metrics"):
        sys.modules.pop(name, None)


def make_files(path):
    """Make a folder of photos, an array of spectra, or a table."""
    rng = np.random.default_rng(0)
    if path.suffix == ".npy":
        np.save(path, rng.normal(size=(60, 40)))
        return
    if path.suffix == ".csv":
        np.savetxt(path, rng.normal(size=(60, 3)), "%.3f", ",", header="a,b,c", comments="")
        return
    path.mkdir(parents=True)
    for i in range(20):
        pixels = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_commands_run(name, folder, monkeypatch):
    variables, source, lines = {}, "", 0
    for comment, kind, text in BLOCK.findall((PAGES / name).read_text()):
        if kind == "python":
            source = text
        elif not comment.startswith("<!-- not run: "):
            if given := re.fullmatch(r"<!-- given: (.*) -->\n", comment):
                for one in given[1].split(", "):
                    make_files(folder / one)
            elif file := re.fullmatch(r"<!-- file: (.*) -->\n", comment):
                (folder / file[1]).write_text(source)
            for line in text.splitlines():
                assert line.startswith("$ ")
                run(line[2:], variables, monkeypatch)
                lines += 1
    assert lines
