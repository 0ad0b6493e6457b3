r"""The notation of doc-strings on the site: formulas as arithmatex reads them.

Doc-strings write formulas as reStructuredText does, ``:math:`x``` in a line and ``.. math::`` on
lines of their own, which editors and ``help`` show well. Pages are Markdown, where the same are
``\(x\)`` and ``\[ \]``. The section of examples is called Example, and griffe knows Examples.
"""

__all__ = ["Formulas", "as_markdown"]

import re
import textwrap
from typing import Any

from griffe import Extension, Object

DISPLAY = re.compile(r"^( *)\.\. math::(.*\n(?:\1 +\S.*\n|\s*\n)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
ROLE = re.compile(r":\w+:`~?([^`]+)`")


def as_markdown(text: str) -> str:
    """A doc-string with its formulas between brackets."""

    def shown(match: re.Match[str]) -> str:
        formula = textwrap.dedent(match[2]).strip()
        inside = textwrap.indent(f"\\[\n{formula}\n\\]", match[1])
        return f"\n{inside}\n\n"

    text = DISPLAY.sub(shown, text + "\n")
    text = INLINE.sub(lambda m: rf"\({' '.join(m[1].split())}\)", text)
    return EXAMPLE.sub(r"\1Examples:", ROLE.sub(r"`\1`", text))


class Formulas(Extension):
    """Rewrites every doc-string once it is read."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Called by griffe for modules, classes, functions and attributes."""

        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
