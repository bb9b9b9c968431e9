"""Strict reading of JSON that a stranger may have written: types, ranges, depth, duplicates, unknown and
missing fields.

Every problem is a :class:`SlimfastError` of one line that names the place in the document and what was found
there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

from slimfast.errors import SlimfastError, shown
from slimfast.storage.atomic import cannot_read, check_file

# The largest count a document may hold: what int64 holds.
LARGEST = 2**63 - 1
# Levels of lists and objects in a document: ours have fewer, and whatever walks one by recursion stays safe.
DEEPEST = 64


def parse_object(text: str | bytes, what: str) -> Fields:
    """Parse the object at the top of a JSON document; ``what`` names the document in messages."""
    try:
        value = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
        _check_depth(value)
        _check_characters(value)
    except SlimfastError as error:
        raise SlimfastError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise SlimfastError(f"{what}: not valid JSON: {error}") from None
    return Fields(value, what)


def first_repeated(names: Iterable[str]) -> str | None:
    """Find the first of the names that was there before; None where all are distinct."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def read_text(path: str | os.PathLike[str]) -> str:
    """Read the text of a file; :class:`SlimfastError` naming it where it cannot be read."""
    try:
        return check_file(path).read_text(encoding="utf-8")
    except OSError as error:
        raise cannot_read(path, error) from None
    except UnicodeDecodeError:
        raise cannot_read(path, "not a text file") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise SlimfastError(f"field {shown(first_repeated(name for name, _ in pairs))} is there twice")
    return fields


def _no_constant(name: str) -> None:
    raise SlimfastError(f"expected finite numbers, got {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise SlimfastError(f"expected finite numbers, got {shown(text)}")
    return value


def _check_depth(value: object) -> None:
    level = _nests([value])
    for _ in range(DEEPEST):
        level = [nest for parent in level for nest in _nests(parent)]
        if not level:
            return
    raise SlimfastError(f"expected at most {DEEPEST} levels of lists and objects, got more")


def _nests(parent: list[Any] | dict[str, Any]) -> list[list[Any] | dict[str, Any]]:
    children = parent.values() if isinstance(parent, dict) else parent
    return [child for child in children if isinstance(child, (dict, list))]


def _check_characters(value: object) -> None:
    """Refuse the halves of a surrogate pair, which JSON can escape alone, and no file or terminal takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise SlimfastError(f"expected whole characters, got the half {half!a} of one") from None


def check_integer(value: object, where: str, low: int = 0, high: int = LARGEST) -> int:
    """Return ``value`` as an int in low..high, or one line naming ``where``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SlimfastError(f"{where}: expected an integer in {low}..{high}, got {shown(value)}")
    return value


class Fields:
    """The fields of one JSON object, each read once under the type it must have; :meth:`done` refuses the
    rest.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise SlimfastError(f"{where}: expected an object, got {shown(value)}")
        self.where = where
        self._left: dict[str, Any] = dict(value)

    def names(self) -> list[str]:
        """Name the fields not read yet."""
        return list(self._left)

    def raw(self, name: str) -> Any:
        """Read a field of any type."""
        if name not in self._left:
            raise SlimfastError(f"{self.where}: field {name!r} is missing")
        return self._left.pop(name)

    def at(self, name: str) -> str:
        """Say the place of a field in the document, for a message: short, whatever the name."""
        return f"{self.where}: {name if len(name) <= 200 else f'{name[:197]}...'}"

    def _wrong(self, name: str, expected: str, value: object) -> SlimfastError:
        return SlimfastError(f"{self.at(name)}: expected {expected}, got {shown(value)}")

    def integer(self, name: str, low: int = 0, high: int = LARGEST) -> int:
        """Read an integer in low..high."""
        return check_integer(self.raw(name), self.at(name), low, high)

    def number(self, name: str, low: float, high: float) -> float:
        """Read a finite number in low..high."""
        value = self.raw(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self._wrong(name, f"a number in {low:g}..{high:g}", value)
        try:
            return float(value)
        except OverflowError:
            raise self._wrong(name, "a finite number", value) from None

    def string(self, name: str, choices: tuple[str, ...] = ()) -> str:
        """Read a string, one of ``choices`` where some are given."""
        value = self.raw(name)
        if not isinstance(value, str) or (choices and value not in choices):
            raise self._wrong(name, f"one of {', '.join(choices)}" if choices else "a string", value)
        return value

    def boolean(self, name: str) -> bool:
        """Read true or false."""
        value = self.raw(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def is_null(self, name: str) -> bool:
        """Whether the field is null; it is then read."""
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return True
        return False

    def has(self, name: str) -> bool:
        """Whether the field is there and was not read yet."""
        return name in self._left

    def holds_object(self, name: str) -> bool:
        """Whether the field is an object; it is not read."""
        return isinstance(self._left.get(name), dict)

    def integers(self, name: str, low: int = 0, high: int = LARGEST) -> tuple[int, ...]:
        """Read a list of integers, each in low..high."""
        value = self.raw(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list of integers", value)
        where = self.at(name)
        return tuple(check_integer(v, f"{where}[{i}]", low, high) for i, v in enumerate(value))

    def object(self, name: str) -> Fields:
        """Read a nested object."""
        return Fields(self.raw(name), self.at(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """Read a list of objects, one by one."""
        value = self.raw(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        for i, item in enumerate(value):
            yield Fields(item, f"{self.at(name)}[{i}]")

    def schema(self, kind: str, version: int, *, oldest: int | None = None) -> int:
        """Read the two fields every document begins with: what it is, and the version of its schema.

        Returns that version. ``oldest``: the first that can still be read, by default ``version`` alone.
        """
        found = self._left.pop("kind", None)
        if found != kind:
            raise SlimfastError(f"{self.where}: expected a document of kind {kind!r}, got {shown(found)}")
        number = self.raw("schema")
        first = version if oldest is None else oldest
        if not isinstance(number, int) or isinstance(number, bool) or not first <= number <= version:
            known = f"{version}" if first == version else f"{first} to {version}"
            raise SlimfastError(f"{self.where}: expected schema {known} of {kind}, got {shown(number)}")
        return number

    def done(self) -> None:
        """Raise if a field was not read."""
        if self._left:
            raise SlimfastError(f"{self.where}: unknown field {shown(next(iter(self._left)))}")
