"""The integers that modules hold: where a number that an operation was given may have come from."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any, TypeAlias

from torch import Tensor, nn

from slimfast.graph.channel_graph import Axis, Operation

# An attribute: (module path, attribute or holder.attribute, index in it or None).
AttributeKey: TypeAlias = tuple[str, str, int | None]

# Methods that make or describe an object, and run in no forward.
_NOT_RUN = frozenset({"__init__", "extra_repr", "__repr__"})


@dataclass(frozen=True, slots=True, eq=False)
class NumberToChange:
    """A number that must become ``new``: the length of ``axis``, a constant or a dim of an output of an
    operation.
    """

    axis: Axis
    new: int
    operation: int
    constant: str | None = None
    output: tuple[int, int] = (0, 0)


def stack_of(module: str) -> list[str]:
    """List a module's path and those of the modules around it, innermost first; the model's is ``""``."""
    parts = module.split(".") if module else []
    return [".".join(parts[:k]) for k in range(len(parts), -1, -1)]


def integers_of(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Find (attribute, index, value) of the integers a module holds, its own before those of its objects."""
    own = {name: value for name, value in vars(module).items() if not isinstance(value, (Tensor, nn.Module))}
    yield from _plain_integers(own, "")
    for name, value in own.items():
        if not isinstance(value, type) and not callable(value) and hasattr(value, "__dict__"):
            yield from _plain_integers(vars(value), f"{name}.")


def _plain_integers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, int | None, int]]:
    for name, value in values.items():
        if type(value) is int:
            yield prefix + name, None, value
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                if type(item) is int:
                    yield prefix + name, index, item


def axis_at(operation: Operation, number: NumberToChange) -> Axis | None:
    """Find the axis of ``operation`` at the place where ``number`` was found in another."""
    if number.constant is not None:
        return next((c.axis for c in operation.constants if c.argument == number.constant), None)
    o, d = number.output
    return operation.outputs[o][d] if o < len(operation.outputs) and d < len(operation.outputs[o]) else None


@cache
def names_in_code(bases: tuple[type, ...]) -> frozenset[str]:
    """List the names that code which may run in a forward of a class with these bases has for variables and
    attributes.

    That is its methods, those of its bases, and the functions beside each of them. An attribute that is named
    in none is read by none, unless by a name that is computed.
    """
    names: set[str] = set()
    for base in bases[: bases.index(nn.Module)]:
        beside = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        functions = [value for value in beside.values() if inspect.isfunction(value)]
        functions += [value for name, value in vars(base).items() if name not in _NOT_RUN]
        waiting = [code for function in functions if (code := _code_of(function)) is not None]
        while waiting:
            code = waiting.pop()
            names.update(code.co_names)
            waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(names)


def _code_of(value: Any) -> CodeType | None:
    """Find the code of a method, through what wraps it; None where a value has none."""
    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    code = getattr(inspect.unwrap(inner), "__code__", None) if callable(inner) else None
    return code if isinstance(code, CodeType) else None
