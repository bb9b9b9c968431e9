"""Follow operations that make tensors: of one number, of chance, of positions, or shaped like another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, fixed_axis
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.zeros import ZeroTracker, all_nonzero, all_zero
from slimfast.graph.recording.calls import Call, Ref, refs_in
from slimfast.graph.recording.meta_shortcuts import empty, plain
from slimfast.graph.recording.number_origins import LengthRead, TracedInt, reads_of
from slimfast.graph.recording.op_registry import op


def _filled(tracker: ZeroTracker, call: Call, axes: Axes) -> bool:
    """Say whether the number that a tensor is filled with may be other than 0."""
    number = next(call.arguments[key] for key in ("s", "fill_value", "value") if key in call.arguments)
    return isinstance(number, Ref) or number != 0


def _dropped(a: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Know the shapes of what is left of a contiguous tensor and of the mask."""
    source = a["input"]
    if not plain(source):
        return None
    return empty(source, source.shape), empty(source, source.shape, torch.bool)


@op("zero_", "zeros_like", zeros=all_zero)
@op("fill_", "full_like", zeros=_filled)
@op("ones_like", "empty_like", "normal_", "uniform_", zeros=all_nonzero)
@op("contiguous", copies=True)
@op("native_dropout", meta_shape=_dropped)
@op("resolve_conj", "resolve_neg", "_conj")
def same(flow: Propagation, call: Call) -> list[Axes]:
    """Give each output the axes of the first tensor."""
    source = refs_in(call.arguments)[0]
    return [list(flow.axes(source)) for _ in call.outputs]


@op("zeros", "new_zeros", zeros=all_zero, sized=True)
@op("full", "new_full", zeros=_filled, sized=True)
@op("ones", "empty", "new_ones", "new_empty", zeros=all_nonzero, sized=True)
@op("empty_strided", "new_empty_strided", zeros=all_nonzero)
def constant(flow: Propagation, call: Call) -> list[Axes]:
    """Start free axes: the value is the same everywhere, so any index may go if the size argument goes
    along."""
    axes = flow.fresh(call.outputs[0].shape)
    for dim, (axis, size) in enumerate(zip(axes, call.outputs[0].shape, strict=True)):
        flow.constant(f"size[{dim}]", size, axis)
    return [axes]


@op("rand", "randn", zeros=all_nonzero, sized=True)
@op("rand_like", "randn_like", "bernoulli", zeros=all_nonzero)
def noise(flow: Propagation, call: Call) -> list[Axes]:
    """Draw fewer numbers where there are fewer units, as for a constant or as many as another tensor has.

    The numbers of a generator of the model's own are not chance: they stay as many.
    """
    if call.arguments.get("generator") is not None:
        return positions(flow, call)
    return same(flow, call) if refs_in(call.arguments) else constant(flow, call)


@op("arange", "linspace", "eye", "randperm", "hann_window", zeros=all_nonzero)
def numbers(flow: Propagation, call: Call) -> list[Axes]:
    """Fix all axes, and freeze an axis whose length was passed on: there are as many numbers as it has
    indices."""
    asked = {value for value in call.arguments.values() if type(value) is int}
    for number in call.numbers:
        if isinstance(number, TracedInt) and int(number) in asked:
            for read in reads_of(number.origin):
                if isinstance(read, LengthRead) and flow.knows(read.tensor):
                    flow.freeze(flow.axis_at(read.tensor, read.dim), Reason.NUMBERS)
    whole = fixed_axis(flow.cause(Reason.NUMBERS))
    return [[whole] * len(out.shape) for out in call.outputs]


@op("scalar_tensor", zeros=_filled)
@op("tril_indices", "triu_indices", "randint", zeros=all_nonzero)
def positions(flow: Propagation, call: Call) -> list[Axes]:
    """Fix all axes, for the values depend on the index or on chance."""
    return [[FIXED] * len(out.shape) for out in call.outputs]
