"""Turn what jsonargparse says about wrong options into one sentence with the nearest valid name."""

import inspect
import re
from collections.abc import Callable, Collection
from importlib import import_module

from lightning.fabric.utilities.exceptions import MisconfigurationException

from vae_lightning.checkpoint import misfit
from vae_lightning.errors import UserError, nearest
from vae_lightning.trust import KINDS, OURS, subclasses


def sentence(error: Exception, traceback: str) -> str:
    """One sentence for an error that ended a command.

    Args:
        error: The error.
        traceback: Environment variable that shows where an error came from.
    """
    message = str(error)
    if "loading state_dict" in message:
        return (
            "the weights of the checkpoint do not fit the model that the options describe "
            f"({misfit(message)}): leave out options that change its size or the images' shape"
        )
    known = UserError, ValueError, OSError, MisconfigurationException
    if isinstance(error, known) or any(re.search(p, message, re.DOTALL) for p, _ in _SENTENCES):
        return explain(message, ())
    return (
        f"{type(error).__name__}: {' '.join(message.split())[:300]}; {traceback}=1 shows where; if "
        "none of your options and files explains it, please report it"
    )


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


def _unknown_argument(
    match: re.Match[str], key: str, message: str, options: Collection[str]
) -> str:
    owners = re.findall(r"class_path(?:=| )'([\w.]+)'", message)
    valid = sorted({name for owner in owners for name in _arguments(owner)})
    owner = owners[-1].rpartition(".")[2] if owners else key
    others = {
        cls.__name__
        for base in OURS
        for cls in subclasses(base)
        if match[1] in inspect.signature(cls).parameters
    }
    verb = "has" if len(others) == 1 else "have"
    hint = f"; {' and '.join(sorted(others))} {verb} one" if others else nearest(match[1], valid)
    return f"{key}: {owner} has no option '{match[1]}'{hint}"


def _unknown_option(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    name = match[1].lstrip("-").partition("=")[0]
    if not match[1].startswith("-") and "accept" not in match[0]:
        return f"'{name}' is no option; a configuration is given as --config {name}"
    return f"no option '{name}'{nearest(name, options)}"


def _unknown_class(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    if "Expected a <class 'float'>" in message:  # a number, or a tensor
        return f"{key}: expected float, got '{match[1]}'"
    names = {cls.__name__ for base in KINDS for cls in subclasses(base)} - {match[1]}
    hint = nearest(match[1], sorted(names), 0.6)
    return f"{f'{key}: ' if key else ''}no class named '{match[1]}' here{hint}"


def _missing(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    if match[2]:
        return f"{f'{key}: ' if key else ''}{match[2].rpartition('.')[2]} needs {match[1]}"
    if match[1] in ("test.data", "validate.data", "predict.data"):
        return "the checkpoint does not say which data it was trained on: give --data NAME"
    if match[1] in ("fit.model", "fit.data"):
        return f"give --{match[1].removeprefix('fit.')} NAME"
    return f"give --{f'{key}.' if key else ''}{match[1]}"


def _refused(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    given = match[1] or _given(message)
    return f"{f'{key}: ' if key else ''}{given} is not a class that this option takes"


def _absent(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    return f"{f'{key}: ' if key else ''}there is no module '{match[1]}' here to import a class from"


def _abstract(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    name = (match[1] or _given(message)).rpartition(".")[2]
    found = [cls for base in KINDS for cls in subclasses(base) if cls.__name__ == name]
    usable = {c.__name__ for cls in found for c in subclasses(cls) if not inspect.isabstract(c)}
    choice = f"one of {', '.join(sorted(usable)[:12])}" if usable else "a class derived from it"
    return f"{f'{key}: ' if key else ''}{name} is abstract: choose {choice}"


def _given(message: str) -> str:
    """What the user gave, where the parser leaves it out of its complaint."""
    found = re.search(r"(?:Given|Got) value: ([\w.]+)", message)
    return found[1] if found else "this"


def _no_memory(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    found = re.search(r"tried to allocate ([\d,]+ bytes|[\d.]+ [KMGT]iB)", message)
    size = f" ({found[1]} at once)" if found else ""
    return (
        f"not enough memory{size}: make the model, the images, data.batch_size or the number of "
        "samples smaller"
    )


def _not_monitored(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    names = ", ".join(re.findall(r"['`]([^'` ]+/[^'` ]+)['`]", match[2]))
    return f"there is no '{match[1]}' to monitor: choose one of {names}"


def _always(text: str) -> Callable[[re.Match[str], str, str, Collection[str]], str]:
    return lambda match, key, message, options: match.expand(text)


def _from_constructor(
    match: re.Match[str], key: str, message: str, options: Collection[str]
) -> str:
    return " ".join(match[1].split())


def _wrong_value(match: re.Match[str], key: str, message: str, options: Collection[str]) -> str:
    a_type = r"Expected an? (?:<class '([\w.]+)'>|(?:typing\.)?([^.\n]+))"
    # Of an argument of one of several classes, what that class says.
    nested = re.search(rf'Parser key "[^"]+":\s+{a_type}\. Got', message)
    expected = [nested.groups()] if nested and "." in key else re.findall(a_type, message)
    names = list(dict.fromkeys((a or b).strip() for a, b in expected))
    wanted = " or ".join(name for name in names if name != "NoneType") or "another value"
    inner = re.search(r"Got value: (.+?)(?:\. Got value|\n|$)", message)
    value = (inner or match)[1].strip()
    wanted = wanted.replace("collections.abc.Sequence", "a list such as [1, 2]")
    wanted = re.sub(r"Literal\[([^]]+)\]", r"\1", wanted)
    return f"{key}: expected {wanted}, got {value[:80]!r}"


_SENTENCES: list[tuple[str, Callable[[re.Match[str], str, str, Collection[str]], str]]] = [
    (r"(?:can't allocate memory|out of memory)", _no_memory),
    (r"does not accept option '([^']+)'", _unknown_option),
    (r"unrecognized arguments: (\S+)", _unknown_option),
    (r"Option '([^']+)' is not accepted", _unknown_argument),
    (r"Importing '([^']+)' is not allowed", _refused),
    (r"No module named '([^']+)'", _absent),
    (
        r"instantiatable class, but (?:([\w.]+) )?is abstract(?=.*Given value: [\w.]+\s*$)",
        _abstract,
    ),
    (r"Can't instantiate abstract class (\w+)", _abstract),
    (r"Expected '([\w.]+)' to be a subclass of", _refused),
    (r"Import path (?:([\w.]+) )?does not correspond to a subclass of", _refused),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (
        r"the following arguments are required: ([^\n]+?)(?:\. Got value: Namespace\(class_path='"
        r"([\w.]+)'.*)?(?:\n|$)",
        _missing,
    ),
    # What a class says of its arguments, wrapped by the parser that built it.
    (r"Errors:\s+- (?!Expected|Parser key|Problem)(.+?)\s+- Expected", _from_constructor),
    (
        r"(?:monitor='|on metric `)([^'`]+)['`].*(?:could not find|is not available)(.*)",
        _not_monitored,
    ),
    (r"argument (?:\S+/)?(\S+): expected one argument", _always(r"\1 needs a value")),
    (
        r"Connection (?:closed|reset) by peer",
        _always("another process of this run has ended; the reason is in what it printed"),
    ),
    (
        r"No API key configured",
        _always("WandbLogger needs an account: run `wandb login`, or set WANDB_MODE=offline"),
    ),
    (
        r"(\S+) is not in bounds, numpy accepts from (\d+) to (\d+)",
        _always(r"seed_everything must be between \2 and \3, got \1"),
    ),
    (
        r"`devices` selected with `CPUAccelerator` should be",
        _always("trainer.devices: for a CPU give the number of processes, at least 1"),
    ),
    (
        r"`Trainer\(devices=(.+?)\)` value is not a valid input using (\w+) accelerator",
        _always(r"trainer.devices: \1 means no device of the \2: give a number of at least 1"),
    ),
    (
        r"No supported gpu backend found",
        _always("trainer.accelerator: there is no GPU here that torch can use: leave it out"),
    ),
    (r"Given value: ([^\n]*)", _wrong_value),
    (r"Got value: ([^\n]*)", _wrong_value),
]


def _arguments(class_path: str) -> set[str]:
    """Names of the arguments of a class and, as they may be passed on, of its bases."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    return {p for base in cls.__mro__ for p in inspect.signature(base.__init__).parameters}
