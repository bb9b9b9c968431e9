"""Follow normalisations of batches, layers, groups and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.products import layer_operands
from slimfast.graph.propagation.zeros import NonzeroByAxis, ZeroTracker
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.meta_shortcuts import empty, plain, without_data
from slimfast.graph.recording.op_registry import op


def _zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros through a norm.

    A scale and a shift that are parameters make 0 of a removed channel; the shift stays at a removed index of
    another axis. What a batch norm makes of its mean is not 0.
    """
    source, weight, bias = layer_operands(call)
    shape, rank = call.arguments.get("normalized_shape"), len(axes)
    own = [1] if shape is None else list(range(rank - len(shape), rank))
    batch = "running_mean" in call.arguments
    made = [batch or bias is not None or tracker.may_be_nonzero(source, dim) for dim in range(rank)]
    for dim in own if weight is not None else ():
        scale = tracker.may_be_nonzero(weight, dim - own[0])
        made[dim] = scale or (bias is not None and tracker.may_be_nonzero(bias, dim - own[0]))
    return made


def _batch_norm_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of a batch norm of contiguous tensors."""
    source = a["input"]
    of_channels = [a[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if not plain(source, *of_channels) or source.dim() < 2:
        return None
    fit = all(t is None or t.shape == source.shape[1:2] for t in of_channels)
    return empty(source, source.shape) if fit else None


@op("batch_norm", zeros=_zeros, meta_shape=_batch_norm_shape, whole=True, certain=True, weighs="norm")
@op("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", zeros=_zeros, weighs="norm")
@op("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", zeros=_zeros)
@op("_batch_norm_no_update", "_batch_norm_with_update", zeros=_zeros)
def batch_norm(flow: Propagation, call: Call) -> list[Axes]:
    """Join the channels with the statistics, scale and shift that each of them has."""
    source = call.arguments["input"]
    axes = list(flow.axes(source))
    tensors = [call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for ref in tensors:
        if isinstance(ref, Ref):
            flow.unify(axes[1], flow.axes(ref)[0])
    if call.arguments.get("training") or not isinstance(call.arguments.get("running_mean"), Ref):
        for axis in (axes[0], *axes[2:]):
            flow.inexact(axis, Reason.STATISTICS)
    return [axes, *(_statistics(out, axes[1], source.shape[1]) for out in call.outputs[1:])]


def _statistics(out: Ref, channels: AxisLabels, length: int) -> Axes:
    """Describe the axes of the statistics that a batch norm returns."""
    return [channels if n == length and n > 1 else FIXED for n in out.shape]


def _layer_norm_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of a layer norm, whose result is contiguous whatever its input is."""
    source, weight, bias = a["input"], a["weight"], a.get("bias")
    shape = tuple(a["normalized_shape"])
    # the result is contiguous, whatever the layout of the input
    if not without_data(source, weight, bias) or tuple(source.shape[-len(shape) :]) != shape:
        return None
    fit = all(own is None or tuple(own.shape) == shape for own in (weight, bias))
    return empty(source, source.shape) if fit else None


@op("layer_norm", zeros=_zeros, meta_shape=_layer_norm_shape, whole=True, certain=True)
@op("rms_norm", zeros=_zeros, meta_shape=_layer_norm_shape, certain=True)
@op("native_layer_norm", "_fused_rms_norm", zeros=_zeros)
def layer_norm(flow: Propagation, call: Call) -> list[Axes]:
    """Join the last axes with those of scale and shift; a mean over fewer channels is another mean."""
    source, shape = call.arguments["input"], call.arguments["normalized_shape"]
    axes = list(flow.axes(source))
    first = len(axes) - len(shape)
    for name in ("weight", "bias"):
        ref = call.arguments.get(name)
        if isinstance(ref, Ref):
            for dim, axis in enumerate(flow.axes(ref)):
                flow.unify(axes[first + dim], axis)
    for dim, size in enumerate(shape):
        flow.inexact(axes[first + dim], Reason.LAYER_NORM)
        flow.constant(f"normalized_shape[{dim}]", size, axes[first + dim])
    rest: Axes = [*axes[:first], *[FIXED] * len(shape)]
    return [axes, *(rest for _ in call.outputs[1:])]


def _group_norm_shape(a: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Know the shapes of a group norm of contiguous tensors and of its statistics."""
    source, groups = a["input"], a["group"]
    if not plain(source, a["weight"], a["bias"]) or source.dim() < 2 or a["C"] % groups:
        return None
    if any(t is not None and tuple(t.shape) != (a["C"],) for t in (a["weight"], a["bias"])):
        return None
    if tuple(source.shape[:2]) != (a["N"], a["C"]) or source.numel() != a["N"] * a["C"] * a["HxW"]:
        return None
    statistics = (a["N"], groups)
    return empty(source, source.shape), empty(source, statistics), empty(source, statistics)


@op("native_group_norm", zeros=_zeros, meta_shape=_group_norm_shape)
@op("group_norm", zeros=_zeros)
def group_norm(flow: Propagation, call: Call) -> list[Axes]:
    """Split the channels into groups, which go whole; a single group is a layer norm over all channels."""
    source = call.arguments["input"]
    groups = call.arguments["group"] if "group" in call.arguments else call.arguments["num_groups"]
    axes = list(flow.axes(source))
    channels = source.shape[1]
    for name in ("weight", "bias"):
        ref = call.arguments.get(name)
        if isinstance(ref, Ref):
            flow.unify(axes[1], flow.axes(ref)[0])
    per_group: AxisLabels = FIXED
    if groups == 1:
        flow.inexact(axes[1], Reason.ONE_GROUP_NORM)
    elif groups < channels:
        outer, inner = flow.split(axes[1], groups)
        flow.freeze(inner, Reason.GROUP_NORM)
        flow.mark(outer, Mark.BLOCK)
        flow.constant("group", groups, outer)
        per_group = outer
    else:
        flow.constant("group", groups, axes[1])
        per_group = axes[1]
    return [axes, *([FIXED, per_group] for _ in call.outputs[1:])]


@op("_weight_norm_interface", "_weight_norm")
def weight_norm(flow: Propagation, call: Call) -> list[Axes]:
    """Follow g * v / |v| with one norm for each index of ``dim``: the other axes enter the norm."""
    direction, scale, dim = call.arguments["v"], call.arguments["g"], call.arguments["dim"]
    axes = list(flow.axes(direction))
    for d, axis in enumerate(axes):
        if d == dim % len(axes):
            flow.unify(axis, flow.axes(scale)[d])
        else:
            flow.inexact(axis, Reason.WEIGHT_NORM)
    return [axes, *(list(flow.axes(scale)) for _ in call.outputs[1:])]
