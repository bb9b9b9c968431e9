"""Look up what is known of an ATen operation by its schema and its entry, once for each overload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from slimfast.graph.recording.decisions import Decides
from slimfast.graph.recording.meta_shortcuts import shortcut_of
from slimfast.graph.recording.op_registry import MetaShape, entry_of

_NO_DEFAULT = object()


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of an ATen operation by its schema. ``parameters``: (name, default) in order.

    ``decides``: how its result depends on values beyond the elements of tensors.
    """

    name: str
    silent: bool
    composite: bool
    stands_for: tuple[str, Mapping[str, Any]] | None
    shape_dependent: bool
    sized: bool
    lifts: bool
    pointwise: bool
    shortcut: MetaShape | None
    decides: Decides
    parameters: tuple[tuple[str, Any], ...]


@cache
def operator_of(func: Any) -> Operator:
    """Look up what is known of an operation, once for each overload."""
    schema = func._schema
    name = schema.name.replace("::", ".")
    entry = entry_of(name)
    # prim::device and its like ask about a tensor; the dispatcher knows no such operation
    silent = func.namespace == "prim"
    composite = not (silent or entry.whole) and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    return Operator(
        name=name,
        silent=silent,
        composite=bool(composite),
        stands_for=None if schema.overload_name else entry.stands_for,
        shape_dependent=entry.shape_dependent,
        sized=entry.sized,
        lifts=entry.lifts,
        pointwise=torch.Tag.pointwise in func.tags,
        shortcut=shortcut_of(name),
        decides=_decides(func, name),
        parameters=tuple(
            (parameter.name, parameter.default_value if parameter.has_default_value() else _NO_DEFAULT)
            for parameter in schema.arguments
        ),
    )


def _decides(func: Any, name: str) -> Decides:
    """Say how the result of an operation depends on values."""
    if entry_of(name).masks:
        return "mask"
    if torch.Tag.dynamic_output_shape in func.tags:
        return "length"
    if torch.Tag.data_dependent_output in func.tags:
        return "number"
    return "" if func.namespace in ("aten", "prim", "prims") else "perhaps"


def bind(operator: Operator, args: Any, kwargs: Any) -> dict[str, Any]:
    """Sort arguments by name, with defaults filled in."""
    given: dict[str, Any] = {}
    for position, (name, default) in enumerate(operator.parameters):
        if position < len(args):
            given[name] = args[position]
        elif name in kwargs:
            given[name] = kwargs[name]
        elif default is not _NO_DEFAULT:
            given[name] = default
    return given
