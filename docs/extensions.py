"""Griffe extension that adapts this project's docstrings to Markdown.

Formulas are written for Sphinx and for terminals (``.. math::``), which Markdown does not know.
They become code blocks, because a typesetting script would have to come from another host.
``Example:`` becomes ``Examples:``, under which Griffe recognizes interactive examples.
"""

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^( *)\.\. math:: *(.*(?:\n(?=\1 +\S).*)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")


class MarkdownDocstrings(griffe.Extension):
    """Rewrite every docstring, and document every object once, in the module that defines it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = _BLOCK.sub(_fence, obj.docstring.value)
            text = _INLINE.sub(r"`\1`", text)
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", text)

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Forget ``__all__``, so that a package does not document its modules' objects again."""
        mod.exports = None


def _fence(match: re.Match[str]) -> str:
    indent, formula = match[1], match[2]
    lines = [line.strip() for line in formula.splitlines() if line.strip()]
    return "\n".join(f"{indent}{line}" for line in ("```tex", *lines, "```"))
