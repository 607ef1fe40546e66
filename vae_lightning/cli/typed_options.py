"""Options as they were typed."""

from collections.abc import Sequence
from dataclasses import dataclass

SPECIAL_CHECKPOINTS = ("best", "last", "hpc")
"""Words that Lightning takes for checkpoints of the same process."""


@dataclass(frozen=True)
class Option:
    """An option as it was typed.

    Attributes:
        flag: Its name without ``+``, such as ``--model.beta``.
        value: Its value, empty if there is none.
        appends: Whether the value is appended to a list (``--trainer.callbacks+=``).
    """

    flag: str
    value: str
    appends: bool = False


def typed_options(arguments: Sequence[str]) -> tuple[Option, ...]:
    """Return the options among arguments.

    Example:
        >>> typed_options(["--model.beta", "4", "--name=a"])[1]
        Option(flag='--name', value='a', appends=False)
    """
    options = []
    for i, argument in enumerate(arguments):
        if not argument.startswith("-") or not argument.lstrip("-")[:1].isalpha():
            continue
        flag, equals, value = argument.partition("=")
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        if not equals:
            value = "" if following.startswith("--") else following
        options.append(Option(flag.removesuffix("+"), value, flag.endswith("+")))
    return tuple(options)
