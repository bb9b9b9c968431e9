"""Pooling, resampling, padding and unfolding: operations along trailing positions that leave the channels
alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.meta_shortcuts import empty, plain
from slimfast.graph.recording.op_registry import op


def _upsample_shape(a: Mapping[str, Any]) -> Tensor | None:
    source, size = a["self"], a["output_size"]
    if source.dim() != 4 or not plain(source) or min(*size, *source.shape) < 1:
        return None
    return empty(source, [*source.shape[:2], *size])


@op("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", certain=True)
@op("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool3d_with_indices")
@op("avg_pool1d", "avg_pool3d", "fractional_max_pool2d", "fractional_max_pool3d")
@op("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
@op("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d")
@op("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@op("replication_pad1d", "replication_pad2d", "replication_pad3d")
@op("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", meta_shape=_upsample_shape)
@op("upsample_nearest1d", "upsample_nearest3d", "upsample_linear1d", "upsample_trilinear3d")
@op("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")
@op("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def positions(flow: Propagation, call: Call) -> list[Axes]:
    """Along as many trailing axes as the name says (``2d``) each index is made of several."""
    source = call.arguments["input"] if "input" in call.arguments else call.arguments["self"]
    axes, n = flow.axes(source), _dims_in(call.op)
    for axis in axes[-n:]:
        flow.freeze(axis)
    return [[*axes[:-n], *[FIXED] * n] for _ in call.outputs]


def _dims_in(op: str) -> int:
    """The number of positions in the name of an operation: 2 in ``aten.max_pool2d``."""
    return int(next(character for character in op if character.isdigit()))


@op("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(flow: Propagation, call: Call) -> list[Axes]:
    """(N, C, ...) read at the places of a grid (N, ..., coordinates), which stays as it is."""
    axes = flow.axes(call.arguments["input"])
    for axis in (*axes[2:], *flow.axes(call.arguments["grid"])):
        flow.freeze(axis, Reason.SAMPLES)
    return [[*axes[:2], *[FIXED] * (len(axes) - 2)]]


@op("max_unpool2d", "max_unpool3d")
def unpool(flow: Propagation, call: Call) -> list[Axes]:
    """Values back to the places in their own channel that ``indices`` tell."""
    n = _dims_in(call.op)
    axes, places = flow.axes(call.arguments["self"]), flow.axes(call.arguments["indices"])
    for axis, place in zip(axes[:-n], places[:-n], strict=True):
        flow.unify(axis, place)
    for axis in (*axes[-n:], *places[-n:]):
        flow.freeze(axis)
    return [[*axes[:-n], *[FIXED] * n]]


@op("im2col")
def im2col(flow: Propagation, call: Call) -> list[Axes]:
    """(..., C, H, W) to (..., C k, L)."""
    source, out = call.arguments["self"], call.outputs[0]
    axes = flow.axes(source)
    for axis in axes[-2:]:
        flow.freeze(axis)
    return [[*axes[:-3], flow.merge(axes[-3], FIXED.of_length(out.shape[-2] // source.shape[-3])), FIXED]]


@op("col2im")
def col2im(flow: Propagation, call: Call) -> list[Axes]:
    """(..., C k, L) to (..., C, H, W)."""
    axes, out = flow.axes(call.arguments["self"]), call.outputs[0]
    outer, inner = flow.split(axes[-2], out.shape[-3])
    flow.freeze(inner)
    flow.freeze(axes[-1])
    return [[*axes[:-2], outer, FIXED, FIXED]]


@op("unfold")
def unfold(flow: Propagation, call: Call) -> list[Axes]:
    axes = list(flow.axes(call.arguments["self"]))
    dim = call.arguments["dimension"]
    flow.freeze(axes[dim])
    axes[dim] = FIXED
    return [[*axes, FIXED]]


@op("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(flow: Propagation, call: Call) -> list[Axes]:
    """Frequencies along some axes are made of all positions there; the others pass."""
    axes = list(flow.axes(call.arguments["self"]))
    for dim in call.arguments["dim"]:
        axes[dim] = flow.freeze(axes[dim], Reason.MIXES)
    return [axes]
