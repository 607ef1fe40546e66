"""Errors that are the user's to mend: the command line prints their sentence, not a traceback."""

import contextlib
import difflib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NoReturn


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what to do instead."""

    def __init__(self, message: str) -> None:
        # torch hands on an error of a worker process with the whole traceback as the message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].strip())


class NonFinite(UserError):
    """A training whose loss or weights became NaN or infinite.

    Args:
        what: Which of them.
        step: Number of the batch, counted from 0 over all epochs.
        terms: What of the loss was not finite in that batch, by name.
    """

    def __init__(self, what: str, step: int, terms: Sequence[str] = ()) -> None:
        named = f"{what} ({', '.join(terms)})" if terms else what
        verb = "are" if what == "the weights" else "is"
        super().__init__(f"{named} {verb} not finite at step {step}")
        self.step = step
        self.terms = list(terms)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Name the file of a run that cannot be written, which the operating system often does not.

    Raises:
        UserError: In place of an error of the operating system.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({os.strerror(error.errno or 0)}): make room, or write "
            "access, then continue from the last checkpoint of the run"
        ) from error


def nearest(name: str, valid: Collection[str], cutoff: float = 0.5) -> str:
    """``; did you mean '...'?`` with the most similar valid name, or nothing."""
    by_lower = {other.lower(): other for other in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    found = [by_lower[match] for match in close]
    return f"; did you mean '{found[0]}'?" if found else ""


def fail(message: str, code: int) -> NoReturn:
    """End the process with one sentence.

    Raises:
        SystemExit: With the code.
    """
    print(f"vae: error: {message}", file=sys.stderr)
    raise SystemExit(code)
