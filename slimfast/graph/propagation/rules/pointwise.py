"""Follow operations that work element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels, first_free
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.zeros import by_outcome, handed_on
from slimfast.graph.recording.calls import Call, Ref, refs_in
from slimfast.graph.recording.meta_shortcuts import broadcast, empty, plain
from slimfast.graph.recording.op_registry import op


def align(flow: Propagation, shape: tuple[int, ...], operands: list[Ref]) -> Axes:
    """List the axes of a result of ``shape`` that these operands broadcast to; axes that meet become one."""
    axes: Axes = []
    for dim, size in enumerate(shape):
        met: Axes = []
        for ref in operands:
            at = dim - len(shape) + len(ref.shape)
            if at >= 0 and ref.shape[at] == size:
                met.append(flow.axes(ref)[at])
        axes.append(_join(flow, met) if size > 1 else FIXED)
    return axes


def _join(flow: Propagation, met: Axes) -> AxisLabels:
    """Make axes one, and return the first that is not fixed."""
    if not met:
        return FIXED
    first = first_free(met, met[0])
    for axis in met:
        flow.unify(first, axis)
    return first


def _shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of an operation on one tensor, on two, or on one and a number, in the dtype of the
    first."""
    first, second = a["self"], a.get("other")
    if isinstance(second, (bool, complex)) or not (plain(first) and _all_numbers(a)):
        return None
    if not isinstance(second, Tensor):
        return empty(first, first.shape)
    if not plain(first, second) or a.get("rounding_mode") is not None:
        return None
    shape = broadcast(first.shape, second.shape)
    return None if shape is None else empty(first, shape)


def _all_numbers(a: Mapping[str, Any]) -> bool:
    """Say whether all arguments but the operands are plain numbers, words or nothing."""
    return all(
        isinstance(value, (bool, int, float, str, type(None)))
        for name, value in a.items()
        if name not in ("self", "other")
    )


@op("clone", "alias", zeros=handed_on, selects=True, copies=True, certain=True)
@op("detach", zeros=handed_on, selects=True, certain=True)
@op("_to_copy", zeros=handed_on, selects=True)
@op("lift_fresh", zeros=handed_on, lifts=True)
@op("lift_fresh_copy", zeros=handed_on)
@op("dropout", zeros=handed_on, certain=True)
@op("add", "sub", "mul", "div", zeros=by_outcome, meta_shape=_shape, certain=True)
@op("relu", "relu6", "elu", "gelu", "silu", "mish", zeros=by_outcome, meta_shape=_shape, certain=True)
@op("sigmoid", "tanh", "hardtanh", "hardswish", zeros=by_outcome, meta_shape=_shape, certain=True)
@op("hardsigmoid", "leaky_relu", "softplus", zeros=by_outcome, meta_shape=_shape, certain=True)
@op("clamp", "clamp_min", "clamp_max", "rsub", "neg", zeros=by_outcome, meta_shape=_shape)
@op("exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "erf", zeros=by_outcome, meta_shape=_shape)
@op("_prelu_kernel", zeros=by_outcome, certain=True)
@op("copy", "where", "softshrink", "hardshrink", "threshold", zeros=by_outcome)
@op("log_sigmoid_forward", "rrelu_with_noise", "polar", "complex", zeros=by_outcome)
def elementwise(flow: Propagation, call: Call) -> list[Axes]:
    """Join the axes that meet; an addition marks those that it is the first to join."""
    operands = refs_in(call.arguments)
    adds = call.op.rstrip("_") in ("aten.add", "aten.sub", "aten.rsub")
    joined = _joined_axes(flow, operands) if adds else []
    axes = [align(flow, out.shape, operands) for out in call.outputs]
    for axis in joined:
        flow.mark(axis, Mark.ADDED)
    return axes


def _joined_axes(flow: Propagation, operands: list[Ref]) -> Axes:
    """List the axes of computed tensors that this addition is the first to join."""
    computed = [ref for ref in operands if flow.value(ref).data]
    if len(computed) < 2:
        return []
    a, b = (flow.axes(ref) for ref in computed)
    return [x for x, y in zip(a[::-1], b[::-1], strict=False) if flow.differ(x, y)]


@op("tril", "triu")
def triangle(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the last two axes, whose positions decide what becomes 0."""
    axes = list(flow.axes(call.arguments["self"]))
    for axis in axes[-2:]:
        flow.freeze(axis)
    return [axes]
