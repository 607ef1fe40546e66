"""Output on terminals of any encoding."""

import codecs
import contextlib
import io
import sys
from collections.abc import Iterator, Sequence

_PLAIN = {
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{SUPERSCRIPT TWO}": "^2",
    "\N{MULTIPLICATION SIGN}": "x",
}


@contextlib.contextmanager
def says(text: str) -> Iterator[None]:
    """Show a text on the terminal until a block has ended."""
    if not sys.stderr.isatty():
        yield
        return
    print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def list_left_out(left_out: Sequence[tuple[str, str]]) -> None:
    """Print the first few items that are not used, with the reasons."""
    for name, reason in left_out[:5]:
        print(f"Left out: {name}: {reason}")
    if len(left_out) > 5:
        print(f"Left out: {len(left_out) - 5} more")


def write_plainly() -> None:
    """Let the output write signs plainly that its encoding does not have, instead of failing."""
    codecs.register_error("vae_plain", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vae_plain")


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Return what to write instead of characters that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(plain), error.end
