"""Errors that users can fix, for which the command line prints one sentence and no traceback."""

import contextlib
import difflib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NoReturn


class UserError(ValueError):
    """Invalid input. The message is one sentence: what is wrong, where, and what to do instead."""

    def __init__(self, message: str) -> None:
        # torch re-raises errors of worker processes with the whole traceback as the message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].strip())


class NonFinite(UserError):
    """Non-finite loss or weights during training.

    Args:
        what: Name of the quantity that is not finite, such as ``the loss``.
        step: Number of the batch, counted from 0 over all epochs.
        terms: Names of the terms of the loss that are not finite.
    """

    def __init__(self, what: str, step: int, terms: Sequence[str] = ()) -> None:
        named = f"{what} ({', '.join(terms)})" if terms else what
        verb = "are" if what == "the weights" else "is"
        super().__init__(f"{named} {verb} not finite at step {step}")
        self.step = step
        self.terms = list(terms)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Convert an `OSError` while writing a file of a run to a `UserError` that names the file.

    Args:
        path: The file.

    Raises:
        UserError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({os.strerror(error.errno or 0)}): free disk space or "
            "get write access, then continue from the last checkpoint of the run"
        ) from error


def nearest(name: str, valid: Collection[str], cutoff: float = 0.5) -> str:
    """Return a hint with the most similar valid name, or an empty string.

    Args:
        name: An invalid name.
        valid: The valid names.
        cutoff: Required similarity, from 0 to 1.

    Example:
        >>> nearest("FashonMNIST", ["MNIST", "FashionMNIST"])
        "; did you mean 'FashionMNIST'?"
    """
    by_lower = {other.lower(): other for other in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    found = [by_lower[match] for match in close]
    return f"; did you mean '{found[0]}'?" if found else ""


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return several names, or the first of many, as text for a message.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


TRACEBACK = "VAE_TRACEBACK"
"""Environment variable that shows where an error came from."""


def wants_traceback() -> bool:
    """Return whether the user asks where errors come from."""
    return bool(os.environ.get(TRACEBACK))


def fail(message: str, code: int) -> NoReturn:
    """Print an error message and exit.

    Args:
        message: One sentence.
        code: Exit code.

    Raises:
        SystemExit: Always.
    """
    print(f"vae: error: {message}", file=sys.stderr)
    raise SystemExit(code)
