"""Markdown tables of results: how a benchmark declares its own, and what all of them are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

NOT_MEASURED = "not measured"
NOT_YET = "Not measured yet."

Result: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the documents: its name there, the files it is of, and what makes it of their contents.

    A ``*`` in the name stands for any letters, and for the same ones in the files: ``accuracy-oneshot-*`` is
    of ``oneshot-*.json``. A file that is not there is an empty result.
    """

    name: str
    files: tuple[str, ...]
    make: Callable[..., str]

    def fill(self, name: str, results: Path) -> str | None:
        """Make the table of that name from the files in ``results``; None where the name is not its own."""
        found = re.fullmatch(re.escape(self.name).replace(r"\*", "(.*)"), name)
        if found is None:
            return None
        letters = "".join(found.groups())
        return self.make(*(read(results / file.replace("*", letters)) for file in self.files))


def read(path: Path) -> Result:
    """Read a file of results; nothing where nothing was measured."""
    result: Result = json.loads(path.read_text()) if path.exists() else {}
    return result


def rows_of(lines: Sequence[Sequence[str]]) -> str:
    """Write cells as the lines of a table; the second line aligns the columns."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
