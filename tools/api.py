"""The public API page, made from ``slimfast.__all__``: ``python tools/api.py [--check]``."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import slimfast

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "api.md"
BEGIN, END = "<!-- made by tools/api.py -->", "<!-- end -->"


def entries() -> str:
    """One line for each public name: how it is called, and the first sentence on it."""
    kinds: dict[str, list[str]] = {"Verbs": [], "Data": [], "Exceptions": []}
    for name in slimfast.__all__:
        value = getattr(slimfast, name)
        if not inspect.isclass(value):
            kind = "Verbs"
        else:
            kind = "Exceptions" if issubclass(value, BaseException) else "Data"
        kinds[kind].append(
            f"- `{name}{_arguments(value) if kind != 'Exceptions' else ''}`  \n  {_sentence(value)}"
        )
    return "\n\n".join("\n".join([f"### {kind}", "", *lines]) for kind, lines in kinds.items())


def fill(text: str) -> str:
    """The page with its list made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{entries()}\n\n{END}{after}"


def _arguments(value: Any) -> str:
    """The parameters with their types and defaults, and of a function what it returns."""
    signature = inspect.signature(value)
    words: list[str] = []
    starred = False
    for parameter in signature.parameters.values():
        if parameter.name.startswith("_"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        words.append(_parameter(parameter))
    returned = signature.return_annotation
    returns = "" if inspect.isclass(value) or returned is signature.empty else f" -> {_type(returned)}"
    return f"({', '.join(words)}){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    """One parameter as it is written in Python."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    typed = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
    equals = " = " if typed else "="
    default = "" if parameter.default is parameter.empty else f"{equals}{parameter.default!r}"
    return f"{stars}{parameter.name}{typed}{default}"


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _sentence(value: Any) -> str:
    text = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return text.replace(":func:", "").replace(":class:", "")


def main() -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    old = PAGE.read_text(encoding="utf-8")
    new = fill(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print("docs/reference/api.md is out of date: python tools/api.py", file=sys.stderr)
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
