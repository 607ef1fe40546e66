"""The options of all commands from a file, so that help and completion need not wait for torch.

``python -m vae_lightning.cli.collect_options`` writes it; a test compares it with the parsers.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from vae_lightning.errors import nearest

FILE = Path(__file__).with_name("options.json")

POSITIONAL = ""
"""Flag of the argument without one, if it takes one of some names."""

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")

_SHORT_NAMES = {
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "bs": "data.batch_size",
    "dataset": "data",
    "data_dir": "data.root",
    "workers": "data.num_workers",
    "seed": "seed_everything",
    "resume": "ckpt_path",
    "checkpoint_path": "ckpt_path",
    "out": "output_dir",
    "z_dim": "model.latent_dim",
}
"""Options by the names that they have elsewhere."""

_GROUPS = ("model", "data", "trainer", "optimizer")
"""Groups of options, those that people mean most often first."""


@cache
def read() -> dict[str, Any]:
    """Return the content of the file.

    ``options`` has, by command and flag, what an option does (``help``) and its ``default`` and
    ``choices`` where it has such. ``classes`` has the names of the classes that an option takes,
    ``summaries`` the first sentence about those of this project, and ``arguments`` the flags of
    their arguments.
    """
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def unknown_option(name: str, options: Iterable[str]) -> str:
    """Return the sentence about an option that does not exist."""
    names = {*options}
    groups = {option.partition(".")[0] for option in names}
    arguments = (flag.removeprefix("--") for flag in read()["arguments"])
    names |= {argument for argument in arguments if argument.partition(".")[0] in groups}
    # Usual short names, and options that end in the name.
    ends = [option for option in sorted(names) if option.rpartition(".")[2] == name]
    short = _SHORT_NAMES.get(name)
    if short and short.partition(".")[0] in groups:
        ends = [short]
    if ends:
        return f"no option '{name}'; did you mean '{min(ends, key=_by_group)}'?"
    return f"no option '{name}'{nearest(name, sorted(names))}"


def _by_group(option: str) -> int:
    """Return the place of an option among those with the same end."""
    group = option.partition(".")[0]
    return _GROUPS.index(group) if group in _GROUPS else len(_GROUPS)
