"""Follow convolutions: channels are summed over and new ones start, in groups, while positions slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.products import bias_or, layer_operands, sum_along
from slimfast.graph.propagation.zeros import NonzeroByAxis, ZeroTracker
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.meta_shortcuts import empty, plain
from slimfast.graph.recording.op_registry import OpEntry, op, register

# Composite operations that are a convolution. To decompose them takes longer than all the rest of recording
# them.
_CONVOLUTION = ("aten.convolution", {"transposed": False, "output_padding": [0]})
register(OpEntry(stands_for=_CONVOLUTION), "conv1d", "conv2d", "conv3d")


def _zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros as in a linear layer; the channels are in front of the positions."""
    source, weight, bias = layer_operands(call)
    made = [bias is not None or tracker.may_be_nonzero(source, dim) for dim in range(len(axes))]
    at = len(axes) - len(weight.shape) + 1
    made[at] = bias_or(tracker, weight, bias, 1 if call.arguments.get("transposed") else 0)
    return made


def _shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of a convolution of contiguous tensors."""
    source, weight, bias, groups = a["input"], a["weight"], a["bias"], a["groups"]
    taps = weight.dim() - 2
    if not plain(source, weight, bias) or source.dim() != weight.dim() or taps < 1:
        return None
    first, second = weight.shape[:2]
    incoming, outgoing = (first, second * groups) if a["transposed"] else (second * groups, first)
    if outgoing % groups or incoming % groups:
        return None
    if source.shape[1] != incoming:
        if groups > 1 or a["transposed"]:
            return None
        # As PyTorch says it, which imports a compiler to do so on the meta device.
        layer = f"groups={groups}, weight of size {list(weight.shape)}"
        raise RuntimeError(
            f"Given {layer}, expected input{list(source.shape)} to have {incoming} channels, but got "
            f"{source.shape[1]} channels instead"
        )
    if bias is not None and tuple(bias.shape) != (outgoing,):
        return None
    shape = [source.shape[0], outgoing, *_positions(a, source.shape[2:], weight.shape[2:])]
    return empty(source, shape) if min(shape) > 0 else None


def _positions(a: Mapping[str, Any], lengths: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Compute the lengths of a convolution's result, as the documentation of nn.Conv2d and nn.ConvTranspose2d
    has them."""
    names = ("stride", "padding", "dilation", "output_padding")
    per_dim = [a[name] if len(a[name]) == len(kernel) else list(a[name]) * len(kernel) for name in names]
    positions = []
    for n, k, s, p, d, more in zip(lengths, kernel, *per_dim, strict=True):
        reach = d * (k - 1) - 2 * p
        positions.append((n - 1) * s + reach + more + 1 if a["transposed"] else (n - reach - 1) // s + 1)
    return positions


@op("convolution", zeros=_zeros, meta_shape=_shape, certain=True, weighs="layer")
@op("_convolution", "cudnn_convolution", "mkldnn_convolution", zeros=_zeros, weighs="layer")
def convolution(flow: Propagation, call: Call) -> list[Axes]:
    """Join incoming channels with the weight's, start the outgoing ones, and freeze the positions that slide.

    Channels are (groups, positions in a group) on both sides; the weight has all outputs and one group's
    inputs, or, transposed, all inputs and one group's outputs. A filter of one tap mixes nothing along its
    axis.
    """
    source, weight = call.arguments["input"], call.arguments["weight"]
    bias, groups = call.arguments.get("bias"), call.arguments["groups"]
    transposed = bool(call.arguments.get("transposed", False))
    out = call.outputs[0]
    taps = len(weight.shape) - 2
    at = len(source.shape) - taps - 1
    axes = flow.axes(source)
    still = [_still(call, source, out, dim) for dim in range(-taps, 0)]
    for axis, stays in zip(axes[at + 1 :], still, strict=True):
        if not stays:
            flow.freeze(axis, Reason.SLIDES)
    channels = _channels(flow, call, axes[at], weight, transposed)
    if isinstance(bias, Ref):
        flow.unify(channels, flow.axes(bias)[0])
    weight_axes = flow.axes(weight)
    shared = (source if transposed else out).shape
    positions = [
        axis if stays else n for axis, n, stays in zip(axes[at + 1 :], shared[at + 1 :], still, strict=True)
    ]
    flow.macs(prod(weight.shape[2:]), *positions, *axes[:at], *weight_axes[:2])
    if groups > 1 and not channels.fixed:
        flow.constant("groups", groups, flow.split(channels, groups)[0])
    after = [axis if stays else FIXED for axis, stays in zip(axes[at + 1 :], still, strict=True)]
    return [[*axes[:at], channels, *after]]


def _still(call: Call, source: Ref, out: Ref, dim: int) -> bool:
    """Say whether each index along this axis is made of the one at its own place alone."""
    settings = [(call.arguments[name], value) for name, value in (("stride", 1), ("padding", 0))]
    alone = all(given[dim if len(given) > 1 else 0] == value for given, value in settings)
    return alone and call.arguments["weight"].shape[dim] == 1 and source.shape[dim] == out.shape[dim]


def _channels(flow: Propagation, call: Call, axis: AxisLabels, weight: Ref, transposed: bool) -> AxisLabels:
    """Join the incoming channels with the weight's and return the outgoing ones."""
    groups, source = call.arguments["groups"], call.arguments["input"]
    at = len(source.shape) - len(weight.shape) + 1
    first, second = flow.axes(weight)[:2]
    if groups == 1:
        consumed, produced = (first, second) if transposed else (second, first)
        flow.produce(weight, produced)
        flow.consume(weight, consumed)
        flow.unify(axis, consumed)
        sum_along(flow, consumed, (weight, 0 if transposed else 1), (source, at))
        return produced
    if transposed:
        flow.consume(weight, first)
        flow.produce(weight, second)
        flow.unify(axis, first)
        outer, _ = flow.split(first, groups)
        flow.mark(outer, Mark.BLOCK)
        return flow.merge(outer, second)
    # a depthwise filter scales the channel it is given; it makes no new one
    if not (groups == len(axis) == weight.shape[0] and not axis.fixed):
        flow.produce(weight, first)
    flow.consume(weight, second)
    outer, inner = flow.split(axis, groups)
    own_outer, _ = flow.split(first, groups)
    if groups < len(axis):
        flow.mark(outer, Mark.BLOCK)
    flow.unify(outer, own_outer)
    flow.unify(inner, second)
    sum_along(flow, second, (weight, 1), (source, at))
    return first
