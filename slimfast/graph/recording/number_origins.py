"""Integers that remember where they came from: from an attribute of a module, from a length, or from others.

No recorded operation says which attribute a size was read from. So the copy that a recording runs holds
traced integers where the network holds plain ones. They work like these, and sums, differences, products and
quotients of them are traced too; what PyTorch is called with is seen before it loses what it remembers.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.graph.recording.attributes import AttributeKey, stack_of
from slimfast.graph.recording.network import Network

# Objects in objects: as deep as the attributes of what a module holds are looked at.
_DEEPEST_HOLDER = 2
# Integers computed from integers: what is computed in more steps is a plain integer.
_DEEPEST = 32

_NESTS = frozenset({tuple, list, torch.Size})
_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}


class NumbersUpset(Exception):
    """Raised where a forward runs otherwise with traced integers than with plain ones."""


@dataclass(frozen=True, slots=True)
class AttributeRead:
    """An attribute that held ``number``, or an item of one, of the holder of modules numbered ``holder``."""

    holder: int
    name: str
    index: int | None
    number: int


@dataclass(frozen=True, slots=True)
class LengthRead:
    """The length of an axis, ``number``: which tensor of the recording it is of, and which dim."""

    tensor: int
    dim: int
    number: int


@dataclass(frozen=True, slots=True)
class Computed:
    """What an operator made of two numbers; of one without an origin there is the number itself."""

    operator: str
    left: Origin | int
    right: Origin | int
    depth: int


Read: TypeAlias = AttributeRead | LengthRead
Origin: TypeAlias = Read | Computed
# An attribute that a module's Python has found equal to a length, with the path of the module.
FoundEqual: TypeAlias = tuple[str, AttributeRead, LengthRead]


class _State(threading.local):
    """Who is told which numbers were found equal; None where nobody asks."""

    told: Callable[[Origin, Origin], None] | None = None


_state = _State()


@contextmanager
def telling_equal(told: Callable[[Origin, Origin], None]) -> Iterator[None]:
    """Tell of every comparison of two traced integers in this thread that finds them equal."""
    before, _state.told = _state.told, told
    try:
        yield
    finally:
        _state.told = before


class TracedInt(int):
    """An integer with its origin; arithmetic with integers keeps track, all other makes plain numbers."""

    origin: Origin

    def __eq__(self, other: object) -> bool:
        equal = int(self) == other if not isinstance(other, TracedInt) else int(self) == int(other)
        if equal and isinstance(other, TracedInt) and _state.told is not None:
            _state.told(self.origin, other.origin)
        return equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __add__(self, other: Any) -> Any:
        return _computed("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return _computed("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return _computed("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return _computed("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return _computed("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return _computed("*", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return _computed("//", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _computed("//", other, self)


def traced(number: int, origin: Origin) -> TracedInt:
    """Make an integer that remembers its origin."""
    made = TracedInt(number)
    made.origin = origin
    return made


def _computed(name: str, left: Any, right: Any) -> Any:
    """Compute what plain integers would make; ``NotImplemented`` where one of the two is no integer."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return NotImplemented
    number = _OPERATORS[name](int(left), int(right))
    origin = computed_origin(name, left, right)
    return number if origin is None else traced(number, origin)


def computed_origin(name: str, left: int, right: int) -> Computed | None:
    """Describe what an operator makes of two integers; None where that is no longer worth remembering."""
    first, second = (n.origin if isinstance(n, TracedInt) else int(n) for n in (left, right))
    depth = 1 + max(origin.depth if isinstance(origin, Computed) else 0 for origin in (first, second))
    return Computed(name, first, second, depth) if depth <= _DEEPEST else None


def evaluate(origin: Origin | int, now: Callable[[Read], int] = attrgetter("number")) -> int:
    """Compute a number again, with what ``now`` says for what it was read from: what it was, unless given."""
    if isinstance(origin, int):
        return origin
    if isinstance(origin, Computed):
        return _OPERATORS[origin.operator](evaluate(origin.left, now), evaluate(origin.right, now))
    return now(origin)


def reads_of(origin: Origin | int) -> Iterator[Read]:
    """Yield what a number was read from, or what it was computed from."""
    if isinstance(origin, Computed):
        yield from reads_of(origin.left)
        yield from reads_of(origin.right)
    elif not isinstance(origin, int):
        yield origin


def numbers_in(arguments: Iterable[Any]) -> tuple[int, ...]:
    """List the integers that a function is called with, in order."""
    found: list[int] = []
    _collect(arguments, found)
    return tuple(found)


def _collect(nest: Iterable[Any], found: list[int]) -> None:
    for item in nest:
        kind = type(item)
        if kind is int or kind is TracedInt:
            found.append(item)
        elif kind in _NESTS:
            _collect(item, found)
        elif kind is slice:
            _collect((item.start, item.stop, item.step), found)
        elif kind is dict:
            _collect(item.values(), found)
        elif isinstance(item, TracedInt):
            found.append(item)


class AttributeReads:
    """The attributes that a recording may have read integers from.

    A module may hold an object, such as a configuration, with others: which of them read a number of it, the
    module says that used the number.
    """

    def __init__(self) -> None:
        # of each holder the modules that have it, and what the names of its attributes begin with there
        self._places: list[dict[str, str]] = []
        self._numbers: dict[int, int] = {}

    def keys_of(self, read: AttributeRead, module: str) -> AttributeKey:
        """Name the attribute that was read for a number which ``module`` used."""
        places = self._places[read.holder]
        around = (path for path in stack_of(module) if path in places)
        path = next(around, next(iter(places)))
        return path, places[path] + read.name, read.index

    @classmethod
    def in_copy(cls, copy: Network, original: Network) -> AttributeReads:
        """Put traced integers into a copy of a network which is nobody else's.

        What the copy shares with the original stays as it is.
        """
        reads = cls()
        for path, module in copy.modules.items():
            reads._trace(vars(module), vars(original.modules[path]), path, "", module)
        return reads

    def _trace(
        self, held: dict[str, Any], own: Mapping[str, Any], path: str, prefix: str, holder: Any
    ) -> None:
        known = id(holder) in self._numbers
        number = self._numbers.setdefault(id(holder), len(self._places))
        if not known:
            self._places.append({})
        self._places[number].setdefault(path, prefix)
        for name, value in list(held.items()):
            if not known:
                held[name] = _with_origins(value, own.get(name), number, name)
            copied = type(own.get(name)) is type(value) and value is not own[name]
            if copied and _holds_numbers(value) and prefix.count(".") < _DEEPEST_HOLDER:
                self._trace(vars(value), vars(own[name]), path, f"{prefix}{name}.", value)


def _holds_numbers(value: Any) -> bool:
    """Say whether a value is an object with attributes that may be sizes: no tensor, module or function."""
    plain = isinstance(value, (Tensor, nn.Module, type)) or callable(value)
    return not plain and type(getattr(value, "__dict__", None)) is dict


def _with_origins(value: Any, own: Any, holder: int, name: str) -> Any:
    """Replace the integers of an attribute, or of the list or tuple that it is."""
    if type(value) is int:
        return _traced_item(value, AttributeRead(holder, name, None, value))
    if type(value) not in _NESTS or not any(type(item) is int for item in value):
        return value
    items = [
        _traced_item(item, AttributeRead(holder, name, index, item)) if type(item) is int else item
        for index, item in enumerate(value)
    ]
    if type(value) is list:
        if value is not own:
            # others may hold the same list
            value[:] = items
        return value
    return type(value)(items)


def _traced_item(number: int, read: AttributeRead) -> int:
    """Trace a number that may be a width or a part of one: 0, 1 and negative numbers are none."""
    return traced(number, read) if number > 1 else number
