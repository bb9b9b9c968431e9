"""Register what is known of each ATen operation in one entry, which recording, propagation and trial ask.

The entries are made beside the rules, in :mod:`slimfast.graph.propagation.rules`, so that adding an operation
touches one file. The registry lies in the lowest room that asks it: which operations a recording writes down
whole, which of their shapes are known, which take the sizes of their result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar

from slimfast.errors import ArgumentError

# The result of an operation on the meta device, from its arguments by name; None: ask PyTorch.
MetaShape: TypeAlias = Callable[[Mapping[str, Any]], Any]

Rule = TypeVar("Rule", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, eq=False)
class OpEntry:
    """What is known of one operation.

    For the propagation, which has the types of these functions: ``rule`` passes labels from the operands to
    the results, ``zeros`` tells where a removed unit is still 0 (unless given, by whether the operation works
    element by element). ``selects``: what the result holds are elements of its operand. ``weighs``: it has a
    weight, as a "layer" or a "norm" that names it so, or as a "product" whose second factor may be one.

    For the recording: ``meta_shape`` knows the result on the meta device. ``whole``: a composite operation
    that is written down as it was called and not decomposed. ``stands_for``: a composite operation that is
    another one with these arguments added. ``shape_dependent``: one that decomposes into other operations at
    other lengths, 1 above all. ``sized``: its sizes are those of its result, dim by dim. ``lifts``: takes in
    a tensor that Python made, of which a single number is written down. ``masks``: takes masks among its
    ``indices``.

    For the comparison with the thin network: ``copies``: a recording of other lengths may have more or fewer
    of it. ``reshapes``: a reshape, under one of the names it has with and without a copy before it.
    ``plain_view``: neither computes nor reorders, so that code which repeats something n times leaves it out
    for n = 1. ``certain``: its prediction is beyond doubt and needs no trial cut.
    """

    rule: Callable[..., Any] | None = None
    zeros: Callable[..., Any] | None = None
    selects: bool = False
    weighs: Literal["layer", "product", "norm"] | None = None
    meta_shape: MetaShape | None = None
    whole: bool = False
    stands_for: tuple[str, Mapping[str, Any]] | None = None
    shape_dependent: bool = False
    sized: bool = False
    lifts: bool = False
    masks: bool = False
    copies: bool = False
    reshapes: bool = False
    plain_view: bool = False
    certain: bool = False


_ENTRIES: dict[str, OpEntry] = {}
_UNKNOWN = OpEntry()


def register(entry: OpEntry, *names: str) -> None:
    """Make this the entry of ATen operations, with all of their overloads; ``name_`` in place follows
    ``name``."""
    for name in names:
        if f"aten.{name}" in _ENTRIES:
            raise ArgumentError(f"register: expected one entry for aten.{name}, got two")
        _ENTRIES[f"aten.{name}"] = entry
    entry_of.cache_clear()


def put_entry(name: str, entry: OpEntry | None) -> OpEntry | None:
    """Make this the entry of an operation (``mylib.gate``), none for None; return the one it had."""
    before = _ENTRIES.pop(name, None)
    if entry is not None:
        _ENTRIES[name] = entry
    entry_of.cache_clear()
    return before


def op(*names: str, **facts: Any) -> Callable[[Rule], Rule]:
    """Register the rule of ATen operations together with other facts, which are fields of OpEntry."""

    def decorate(rule: Rule) -> Rule:
        register(OpEntry(rule=rule, **facts), *names)
        return rule

    return decorate


@cache
def entry_of(operation: str) -> OpEntry:
    """Look up the entry of an operation (``aten.add_``): its own, that of its twin out of place, or an empty
    one."""
    return _ENTRIES.get(operation) or _ENTRIES.get(operation.rstrip("_"), _UNKNOWN)


def sized_operations() -> frozenset[str]:
    """List the operations that take the sizes of their result, by their names without ``aten.``."""
    return frozenset(name.removeprefix("aten.") for name, entry in _ENTRIES.items() if entry.sized)
