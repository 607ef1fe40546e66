"""Write the options of all commands to the file of `option_list`.

``python -m vae_lightning.cli.collect_options``
"""

import argparse
import inspect
import json
import re
from importlib import import_module
from typing import Any

from vae_lightning.cli.commands import EXPLORE
from vae_lightning.cli.option_list import FILE, LIGHTNING_COMMANDS, POSITIONAL


def collect() -> dict[str, Any]:
    """Collect the options from the parsers."""
    options = {name: _lightning_options(name) for name in LIGHTNING_COMMANDS}
    options |= {name: _explore_options(name) for name in EXPLORE}
    return {
        "options": options,
        "classes": _classes(),
        "summaries": _summaries(),
        "arguments": _arguments(),
    }


def _lightning_options(command: str) -> dict[str, dict[str, Any]]:
    """Return the options of a command that needs Lightning, without those of classes."""
    from vae_lightning.cli.command import options_parser
    from vae_lightning.training.compat import options_of

    found = {}
    for flag, (text, default) in options_of(options_parser(command)).items():
        if not flag.endswith((".help", "+")) and flag != "-h" and text != argparse.SUPPRESS:
            found[flag] = _entry(text, default)
    return found


def _explore_options(command: str) -> dict[str, dict[str, Any]]:
    """Return the options of a command without Lightning."""
    parser = import_module(f"vae_lightning.cli.explore.{command}").parser()
    return {
        flag: _entry(action.help, None, action.choices)
        for action in parser.added
        for flag in (action.option_strings or [POSITIONAL])
        if flag != POSITIONAL or action.choices
    }


def _entry(text: str | None, default: Any, choices: Any = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"help": " ".join((text or "").split()).partition(". ")[0]}
    is_shown = isinstance(default, int | float | str) and not isinstance(default, bool)
    if is_shown and default != argparse.SUPPRESS:
        entry["default"] = default
    if choices:
        entry["choices"] = list(choices)
    return entry


def _bases() -> dict[str, type]:
    from vae_lightning.data import ImageData
    from vae_lightning.distributions.likelihoods import Likelihood
    from vae_lightning.distributions.posteriors import Posterior
    from vae_lightning.distributions.priors import Prior
    from vae_lightning.models.image_model import ImageModel
    from vae_lightning.nets import Decoder, Encoder

    return {
        "--model": ImageModel,
        "--data": ImageData,
        "--model.prior": Prior,
        "--model.posterior": Posterior,
        "--model.likelihood": Likelihood,
        "--model.encoder": Encoder,
        "--model.decoder": Decoder,
    }


def _public(base: type) -> list[type]:
    """Return the classes of this project that an option takes."""
    found, left = {}, [base]
    while left:
        cls = left.pop()
        left += cls.__subclasses__()
        is_ours = cls.__module__.startswith("vae_lightning.")
        if is_ours and not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found[cls.__name__] = cls
    return [found[name] for name in sorted(found)]


def _classes() -> dict[str, list[str]]:
    import torch.optim

    found = {flag: [cls.__name__ for cls in _public(base)] for flag, base in _bases().items()}
    for flag, module, base in (
        ("--optimizer", torch.optim, torch.optim.Optimizer),
        ("--lr_scheduler", torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    ):
        named = [cls for cls in vars(module).values() if isinstance(cls, type)]
        found[flag] = sorted(
            cls.__name__
            for cls in named
            if issubclass(cls, base) and cls is not base and not cls.__name__.startswith("_")
        )
    return found


def _summaries() -> dict[str, dict[str, str]]:
    """Return the first sentence of the docstring of each class, and its paper."""
    return {
        flag: {cls.__name__: _summary(cls) for cls in _public(base)}
        for flag, base in _bases().items()
    }


def _summary(cls: type) -> str:
    text = inspect.getdoc(cls) or ""
    first = " ".join(re.split(r"\n\n|\.\s", text)[0].split()).rstrip(".:").replace("`", "")
    title = (inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0]
    paper = re.search(r"\(([^()]+, \d{4})\)", title)
    if paper:
        return f"{first} ({paper[1]})"
    listed = re.search(r"([^()\s][^()\n]+) \((\d{4})\)", text.partition("References:")[2])
    return f"{first} ({listed[1].strip()}, {listed[2]})" if listed else first


def _arguments() -> list[str]:
    """Return the flags of the arguments of models and data modules, such as ``--model.beta``."""
    from vae_lightning.cli.command_line import LINKED

    flags = set()
    for flag in ("--model", "--data"):
        for cls in _public(_bases()[flag]):
            for base in cls.__mro__:
                if not base.__module__.startswith("vae_lightning.") or "__init__" not in vars(base):
                    continue
                for name, parameter in list(
                    inspect.signature(vars(base)["__init__"]).parameters.items()
                )[1:]:
                    if parameter.kind is not parameter.VAR_KEYWORD and name not in LINKED:
                        flags.add(f"{flag}.{name}")
    return sorted(flags)


def write() -> None:
    """Write the file."""
    FILE.write_text(json.dumps(collect(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
