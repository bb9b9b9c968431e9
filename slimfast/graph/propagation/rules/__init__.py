"""Say what each ATen operation makes of the labels of its operands, in one registry entry an operation.

A rule takes the propagation and the call and returns the axes of each output. Importing a file registers its
entries. What has no rule freezes all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from slimfast.graph.propagation.axis_labels import Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.rules import (  # noqa: F401
    bilinear,
    convolutions,
    creation,
    experts,
    indexing,
    norms,
    products,
    quantisation,
    recurrent,
    reductions,
    spatial,
    views,
    writes,
)
from slimfast.graph.propagation.rules.frozen import unknown
from slimfast.graph.propagation.rules.pointwise import elementwise
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.op_registry import entry_of

__all__ = ["rule_of"]

Rule: TypeAlias = Callable[[Propagation, Call], list[Axes]]


def rule_of(call: Call) -> Rule:
    """Find the rule of a call: its own, else that of its twin out of place, else the pointwise one, else the
    one that freezes."""
    return entry_of(call.op).rule or (elementwise if call.pointwise else unknown)
