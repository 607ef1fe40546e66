"""Turn what jsonargparse says about wrong options into one sentence with the nearest valid name."""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from importlib import import_module

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae_lightning.data import ImageData
from vae_lightning.likelihoods import Likelihood
from vae_lightning.models import BaseVAE
from vae_lightning.nets import Decoder, Encoder
from vae_lightning.quantizers import VectorQuantizer
from vae_lightning.schedules import Schedule

_OURS: tuple[type, ...] = (
    BaseVAE,
    ImageData,
    Encoder,
    Decoder,
    Likelihood,
    Schedule,
    VectorQuantizer,
)
_BASES: tuple[type, ...] = (*_OURS, Optimizer, LRScheduler, Logger, Callback)


def explain(message: str, options: Collection[str]) -> str:
    """One sentence for a parser's message of many lines.

    Args:
        message: What the parser says.
        options: Its options, such as ``trainer.max_epochs``.
    """
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    for pattern, sentence in _SENTENCES:
        if match := re.search(pattern, message, re.DOTALL):
            return sentence(match, key, message, options)
    return " ".join(message.split())


def nearest(name: str, valid: Collection[str]) -> str:
    """``; did you mean '...'?`` with the most similar valid name, or nothing."""
    by_lower = {other.lower(): other for other in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    found = [by_lower[match] for match in close]
    return f"; did you mean '{found[0]}'?" if found else ""


def _unknown_argument(
    match: re.Match[str], key: str, message: str, options: Collection[str]
) -> str:
    owners = re.findall(r"class_path(?:=| )'([\w.]+)'", message)
    valid = sorted({name for owner in owners for name in _arguments(owner)})
    owner = owners[-1].rpartition(".")[2] if owners else key
    others = {
        cls.__name__
        for base in _OURS
        for cls in _subclasses(base)
        if match[1] in inspect.signature(cls).parameters
    }
    hint = f"; {' and '.join(sorted(others))} has one" if others else nearest(match[1], valid)
    return f"{key}: {owner} has no option '{match[1]}'{hint}"


def _unknown_option(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    name = match[1].lstrip("-").partition("=")[0]
    if not match[1].startswith("-") and "accept" not in match[0]:
        return f"'{name}' is no option; a configuration is given as --config {name}"
    return f"no option '{name}'{nearest(name, options)}"


def _unknown_class(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    names = {cls.__name__ for base in _BASES for cls in _subclasses(base)} - {match[1]}
    hint = nearest(match[1], sorted(names))
    return f"{f'{key}: ' if key else ''}no class named '{match[1]}' here{hint}"


def _missing(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    owner = f"{match[2].rpartition('.')[2]} needs " if match[2] else "give "
    return f"{f'{key}: ' if key else ''}{owner}{match[1]}"


def _from_constructor(
    match: re.Match[str], key: str, message: str, options: Collection[str]
) -> str:
    return " ".join(match[1].split())


def _wrong_value(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    expected = re.findall(
        r"Expected (?:a|an) (?:<class '([\w.]+)'>|(?:typing\.)?([^.\n]+))", message
    )
    names = list(dict.fromkeys((a or b).strip() for a, b in expected))
    wanted = " or ".join(name for name in names if name != "NoneType") or "another value"
    inner = re.search(r"Got value: (.+?)(?:\. Got value|\n|$)", message)
    value = (inner or match)[1].strip()
    wanted = wanted.replace("collections.abc.Sequence", "a list such as [1, 2]")
    return f"{key}: expected {wanted}, got {value[:80]!r}"


_SENTENCES: list[tuple[str, Callable[[re.Match[str], str, str, Collection[str]], str]]] = [
    (r"does not accept option '([^']+)'", _unknown_option),
    (r"unrecognized arguments: (\S+)", _unknown_option),
    (r"Option '([^']+)' is not accepted", _unknown_argument),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (
        r"the following arguments are required: ([^\n]+?)(?:\. Got value: Namespace\(class_path='"
        r"([\w.]+)'.*)?(?:\n|$)",
        _missing,
    ),
    # What a class says of its arguments, wrapped by the parser that built it.
    (r"Errors:\s+- (?!Expected|Parser key|Problem)(.+?)\s+- Expected", _from_constructor),
    (r"Given value: ([^\n]*)", _wrong_value),
    (r"Got value: ([^\n]*)", _wrong_value),
]


def _arguments(class_path: str) -> set[str]:
    """Names of the arguments of a class and, as they may be passed on, of its bases."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    return {p for base in cls.__mro__ for p in inspect.signature(base.__init__).parameters}


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    subclass: type
    for subclass in cls.__subclasses__():
        yield from _subclasses(subclass)
