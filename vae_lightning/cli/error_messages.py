"""Turn errors, mostly of the parser of options, into one sentence with the nearest valid name."""

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from vae_lightning.cli import option_list
from vae_lightning.cli.allowed_classes import OPTION_BASES, PROJECT_BASES, subclasses
from vae_lightning.distributions.likelihoods import Likelihood
from vae_lightning.distributions.posteriors import Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.errors import TRACEBACK, UserError, nearest
from vae_lightning.models.image_model import ImageModel
from vae_lightning.models.loading import find_imported
from vae_lightning.nets import Decoder, Encoder
from vae_lightning.nets.code_networks import CodeNetwork
from vae_lightning.nets.quantizers import Quantizer
from vae_lightning.schedules import Schedule

_BASES: dict[str, type] = {
    "model": ImageModel,
    "encoder": Encoder,
    "decoder": Decoder,
    "prior": Prior,
    "posterior": Posterior,
    "likelihood": Likelihood,
    "schedule": Schedule,
    "quantizer": Quantizer,
    "network": CodeNetwork,
}
"""Base classes of what options take, by the last part of their names."""

_PACKAGES = ("vae_lightning.nets", "vae_lightning")


@dataclass(frozen=True)
class Complaint:
    """A message of the parser, or of a library.

    Attributes:
        message: The message, of many lines.
        options: Names of the parser's options, such as ``trainer.max_epochs``.
    """

    message: str
    options: Collection[str] = ()

    @property
    def key(self) -> str:
        """Name of the option that the parser complains about."""
        return ".".join(re.findall(r'Parser key "([^"]+)"', self.message))

    @property
    def prefix(self) -> str:
        """The name of the option with a colon, if it is known."""
        return f"{self.key}: " if self.key else ""

    @property
    def given(self) -> str:
        """What the user gave, for messages that mention it only at their end."""
        found = re.search(r"(?:Given|Got) value: ([\w.]+)", self.message)
        return found[1] if found else "this"


Match = re.Match[str]
Rule = Callable[[Match, Complaint], str]


def sentence(error: Exception) -> str:
    """Return one sentence for an error that ended a command."""
    message = str(error)
    known = UserError, ValueError, OSError, MisconfigurationException
    if isinstance(error, known) or any(re.search(p, message, re.DOTALL) for p in _RULES):
        return explain(message)
    return (
        f"{type(error).__name__}: {_one_line(message)[:300]}; {TRACEBACK}=1 shows where; if none "
        "of your options and files explains it, please report it"
    )


def explain(message: str, options: Collection[str] = ()) -> str:
    """Return one sentence for a message of many lines.

    Args:
        message: What the parser says.
        options: Its options, such as ``trainer.max_epochs``.
    """
    for pattern, rule in _RULES.items():
        if match := re.search(pattern, message, re.DOTALL):
            return rule(match, Complaint(message, options))
    return _one_line(message)


def _one_line(message: str) -> str:
    return " ".join(message.split())


# Options and their names


def _unknown_option(match: Match, complaint: Complaint) -> str:
    name = match[1].lstrip("-").partition("=")[0]
    if not match[1].startswith("-") and "accept" not in match[0]:
        return f"'{name}' is not an option; a configuration is given as --config {name}"
    return option_list.unknown_option(name, complaint.options)


def _unknown_argument(match: Match, complaint: Complaint) -> str:
    """Complain about an argument that the class of an option does not have."""
    owners = re.findall(r"class_path(?:=| )'([\w.]+)'", complaint.message)
    owner = owners[-1].rpartition(".")[2] if owners else complaint.key
    kind = find_imported(owners[-1]) if owners else None
    same_kind = [
        base for base in PROJECT_BASES if isinstance(kind, type) and issubclass(kind, base)
    ]
    parts = _parts_with(match[1], owners[-1]) if owners else {}
    if parts:
        names = " or ".join(
            f"'{complaint.key}.{part}.{match[1]}' of {default}" for part, default in parts.items()
        )
        return f"{complaint.key}: {owner} has no option '{match[1]}'; did you mean {names}?"
    # A class of the same kind that has the option, or else one of its parts.
    others = _having(match[1], same_kind) or _having(match[1], PROJECT_BASES)
    hint = f"; {_listed(sorted(others))} one" if others else ""
    same = [name for name in complaint.options if name.rpartition(".")[2] == match[1]]
    if same and not others:
        hint = f"; did you mean '{same[0]}'?"
    elif not others:
        hint = nearest(match[1], sorted({n for path in owners for n in _arguments_of(path)}))
    return f"{complaint.key}: {owner} has no option '{match[1]}'{hint}"


def _listed(names: Sequence[str]) -> str:
    """Return names with their verb: ``"A has"``, ``"A, B and C have"``."""
    *first, last = names
    return f"{', '.join(first)} and {last} have" if first else f"{last} has"


def _having(option: str, bases: Iterable[type]) -> set[str]:
    """Return the names of the public classes derived from these that have an option."""
    return {
        cls.__name__
        for base in bases
        for cls in subclasses(base)
        if option in inspect.signature(cls).parameters and not cls.__name__.startswith("_")
    }


def _arguments_of(class_path: str) -> dict[str, Any]:
    """Return the defaults of the arguments of a class, also of those that it passes on, by name."""
    cls = find_imported(class_path)
    if not isinstance(cls, type):
        return {}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "of")
    names = vars(parser.get_defaults().get("of") or Namespace())
    signatures = (inspect.signature(vars(base).get("__init__", object)) for base in cls.__mro__)
    defaults: dict[str, Any] = {}
    for signature in signatures:
        defaults = {name: one.default for name, one in signature.parameters.items()} | defaults
    return {name: defaults.get(name) for name in names}


def _parts_with(option: str, class_path: str) -> dict[str, str]:
    """Return the default classes that have an option, by the argument of a class."""
    return {
        name: part.__name__
        for name, part in _arguments_of(class_path).items()
        if inspect.isclass(part)
        and part.__module__ != "builtins"
        and option in inspect.signature(part).parameters
    }


def _missing(match: Match, complaint: Complaint) -> str:
    name, owner = match[1], match[2]
    if owner:
        return f"{complaint.prefix}{owner.rpartition('.')[2]} needs {name}"
    command, _, option = name.partition(".")
    if option == "data" and command != "fit":
        return "the checkpoint does not say which data it was trained on: give --data NAME"
    if option in ("model", "data"):
        return f"give --{option} NAME"
    example = " such as val/loss" if name.rpartition(".")[2] == "monitor" else ""
    return f"give --{f'{complaint.key}.' if complaint.key else ''}{name}{example}"


# Classes


def _unknown_class(match: Match, complaint: Complaint) -> str:
    if "Expected a <class 'float'>" in complaint.message:  # a number, or a tensor
        return f"{complaint.key}: expected float, got '{match[1]}'"
    if match[1].lower() in ("true", "false"):
        return f"{complaint.prefix}expected a class, or null to leave it out, got '{match[1]}'"
    names = {cls.__name__ for base in OPTION_BASES for cls in subclasses(base)} - {match[1]}
    hint = nearest(match[1], sorted(names), 0.6)
    return f"{complaint.prefix}no class named '{match[1]}' here{hint}"


def _refused_class(match: Match, complaint: Complaint) -> str:
    base = _BASES.get(complaint.key.rpartition(".")[2])
    takes = f": it takes classes derived from {_signature(base)}" if base else ""
    name = match[1] or complaint.given
    return f"{complaint.prefix}{name} is not a class that this option takes{takes}"


def _signature(base: type) -> str:
    """Return the import path of a base class and the arguments that its subclasses take first."""
    package = next(p for p in _PACKAGES if base.__module__.startswith(p))
    path = f"{package if hasattr(sys.modules[package], base.__name__) else base.__module__}"
    section = inspect.cleandoc(base.__doc__ or "").partition("Args:")[2].partition("\n\n")[0]
    names = ", ".join(re.findall(r"^ {4}(\w+):", section, re.MULTILINE))
    return f"{path}.{base.__name__}" + (f", with the arguments {names}" if names else "")


def _missing_package(match: Match, complaint: Complaint) -> str:
    """Name the package that a class needs, and how to install it."""
    name, version = match[1], (match[2] or "").replace(" ", "")
    owner = re.findall(r"given class_path '([\w.]+)'", complaint.message)
    who = owner[-1].rpartition(".")[2] if owner else "this option"
    what = f"'{name}{version}'" if version else name
    return f"{who} needs the package {name}, which is not installed: pip install {what}"


def _missing_module(match: Match, complaint: Complaint) -> str:
    return f"{complaint.prefix}there is no module '{match[1]}' to import a class from"


def _abstract_class(match: Match, complaint: Complaint) -> str:
    name = (match[1] or complaint.given).rpartition(".")[2]
    found = [cls for base in OPTION_BASES for cls in subclasses(base) if cls.__name__ == name]
    usable = {c.__name__ for cls in found for c in subclasses(cls) if not inspect.isabstract(c)}
    choice = f"one of {', '.join(sorted(usable)[:12])}" if usable else "a class derived from it"
    missing = sorted(
        {method for cls in found for method in getattr(cls, "__abstractmethods__", ())}
    )
    if missing and not usable:
        return f"{complaint.prefix}{name} does not define {', '.join(missing)}, see its base class"
    return f"{complaint.prefix}{name} is abstract: choose {choice}"


# Values


def _wrong_value(match: Match, complaint: Complaint) -> str:
    a_type = r"Expected an? (?:<class '([\w.]+)'>|(?:typing\.)?([^.\n]+))"
    # For an argument of one of several classes, what that class says.
    nested = re.search(rf'Parser key "[^"]+":\s+{a_type}\. Got', complaint.message)
    is_nested = nested and "." in complaint.key
    expected = [nested.groups()] if nested and is_nested else re.findall(a_type, complaint.message)
    names = list(dict.fromkeys((a or b).partition(", but got")[0].strip() for a, b in expected))
    wanted = " or ".join(name for name in names if name != "NoneType") or "another value"
    inner = re.search(r"(?:Got|Given) value: (.+?)(?:\. Got value|\n|$)", complaint.message)
    value = (inner or match)[1].strip()
    wanted = wanted.replace("collections.abc.Sequence", "a list such as [1, 2]")
    wanted = re.sub(r"Literal\[([^]]+)\]", r"\1", wanted)
    hint = ""
    if value.strip("'\"").lower() in ("none", "nil", "~") and "NoneType" in names:
        # jsonargparse reads null as text in an option of a part of a part.
        is_deep = complaint.key.count(".") > 1
        hint = "; for no value, write null" + " in a configuration file" * is_deep
    return f"{complaint.prefix}expected {wanted}, got {value[:80]!r}{hint}"


def _from_constructor(match: Match, complaint: Complaint) -> str:
    """Repeat what a class says about its arguments, which the parser has wrapped."""
    return _one_line(match[1])


# Errors that come later


def _out_of_memory(match: Match, complaint: Complaint) -> str:
    found = re.search(r"tried to allocate ([\d,]+ bytes|[\d.]+ [KMGT]iB)", complaint.message)
    size = f" ({found[1]} at once)" if found else ""
    return (
        f"not enough memory{size}: make the model, the images, data.batch_size or the number of "
        "samples smaller"
    )


def _not_monitored(match: Match, complaint: Complaint) -> str:
    names = ", ".join(re.findall(r"['`]([^'` ]+/[^'` ]+)['`]", match[2]))
    return f"there is no '{match[1]}' to monitor: choose one of {names}"


def _always(text: str) -> Rule:
    return lambda match, complaint: match.expand(text)


_RULES: dict[str, Rule] = {
    r"(?:can't allocate memory|out of memory)": _out_of_memory,
    r"does not accept option '([^']+)'": _unknown_option,
    r"unrecognized arguments: (\S+)": _unknown_option,
    r"Option '([^']+)' is not accepted": _unknown_argument,
    r"`[\w.]+` requires `([\w.-]+)`((?: [<>=]+ [\w.]*\w)?)": _missing_package,
    r"Requirement '([\w-]+)([^']*)' not met": _missing_package,
    r"Importing '([^']+)' is not allowed": _refused_class,
    r"No module named '([^']+)'": _missing_module,
    r"instantiatable class, but (?:([\w.]+) )?is abstract(?=.*Given value: [\w.]+\s*$)": (
        _abstract_class
    ),
    r"Can't instantiate abstract class (\w+)": _abstract_class,
    r"the following arguments are required: ([^\n]+?)"
    r"(?:\. (?:Got|Given) value: Namespace\(class_path='([\w.]+)'.*)?(?:\n|$)": _missing,
    r"Expected '([\w.]+)' to be a subclass of": _refused_class,
    r"Import path (?:([\w.]+) )?does not correspond to a subclass of": _refused_class,
    r"Expected a dot import path string: (\S+)": _unknown_class,
    r"Errors:\s+- (?!Expected|Parser key|Problem)(.+?)\s+- Expected": _from_constructor,
    r"(?:monitor='|on metric `)([^'`]+)['`].*(?:could not find|is not available)(.*)": (
        _not_monitored
    ),
    r"argument (?:\S+/)?(\S+): expected one argument": _always(r"\1 needs a value"),
    r"Connection (?:closed|reset) by peer": _always(
        "another process of this run has ended; the reason is in what it printed"
    ),
    r"No supported gpu backend found|Accelerator` can not run on your system": _always(
        "trainer.accelerator: torch finds no such device on this machine: leave the option out, or "
        "give cpu"
    ),
    r"No API key configured": _always(
        "WandbLogger needs an account: run `wandb login`, or set WANDB_MODE=offline"
    ),
    r"Given value: ([^\n]*)": _wrong_value,
    r"(?:Got|Given) value: ([^\n]*)": _wrong_value,
}
"""What to say, by a pattern in the message; the first one that matches counts."""
