"""One small rule per ATen operation: how labels pass from its inputs to its outputs.

A rule takes the flow and the call and returns the axes of each output tensor. What has no rule freezes all
it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from slimfast.graph.propagation.axis_labels import Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.recording.forward import Call

Rule: TypeAlias = Callable[[Propagation, Call], list[Axes]]

RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations (all overloads; ``name_`` in place follows ``name``)."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[f"aten.{op}"] = function
        return function

    return register


def find_rule(call: Call) -> Rule:
    """The rule for a call: its own, its out-of-place twin's, the pointwise one, or the one that freezes."""
    found = RULES.get(call.op) or RULES.get(call.op.rstrip("_"))
    if found is not None:
        return found
    return RULES["aten.pointwise"] if call.pointwise else RULES["aten.unknown"]
