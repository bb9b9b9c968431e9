"""Examples of docstrings as programs on the site: an extension of griffe, which reads them."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:\n(?P<code>(?:    .*\n|[ \t]*\n)+)", re.M)


class DocstringExamples(griffe.Extension):
    """Set the code below ``Example:`` as code."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of a function or class that griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = with_code(obj.docstring.value)


def with_code(text: str) -> str:
    """Put the example of a docstring between fences."""

    def fenced(match: re.Match[str]) -> str:
        code = textwrap.dedent(match["code"]).strip()
        return "Example:\n" + textwrap.indent(f"```python\n{code}\n```\n", "    ")

    return _EXAMPLE.sub(fenced, f"{text}\n")
