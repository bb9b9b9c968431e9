"""Follow operations on trailing positions, which leave the channels alone: pooling, resampling, padding,
unfolding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.zeros import NonzeroByAxis, ZeroTracker
from slimfast.graph.recording.attributes import integers_of
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.meta_shortcuts import empty, plain, without_data
from slimfast.graph.recording.op_registry import OpEntry, op, put_entry


def _upsample_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of a contiguous image that is resampled."""
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
    """Freeze as many trailing axes as the name says (``2d``), of which each index is made of several."""
    source = call.arguments["input"] if "input" in call.arguments else call.arguments["self"]
    axes, n = flow.axes(source), _dims_in(call.op)
    for axis in axes[-n:]:
        flow.freeze(axis)
    return [[*axes[:-n], *[FIXED] * n] for _ in call.outputs]


def _dims_in(op: str) -> int:
    """Read the number of positions off the name of an operation: 2 in ``aten.max_pool2d``."""
    return int(next(character for character in op if character.isdigit()))


def _sampled_shape(a: Mapping[str, Any]) -> Tensor | None:
    """Know the shape of an image that is read at the places of a grid: contiguous, whatever the two are."""
    source, grid = a["input"], a["grid"]
    fits = source.dim() == grid.dim() == 4 and len(source) == len(grid) and grid.shape[-1] == 2
    if not fits or not without_data(source, grid) or min(*source.shape, *grid.shape) < 1:
        return None
    return empty(source, [*source.shape[:2], *grid.shape[1:3]])


@op("grid_sampler_2d", meta_shape=_sampled_shape)
@op("grid_sampler", "grid_sampler_3d")
def grid_sampler(flow: Propagation, call: Call) -> list[Axes]:
    """Follow an input (N, C, ...) read at the places of a grid (N, ..., coordinates), which stays whole."""
    axes = flow.axes(call.arguments["input"])
    for axis in (*axes[2:], *flow.axes(call.arguments["grid"])):
        flow.freeze(axis, Reason.SAMPLES)
    return [[*axes[:2], *[FIXED] * (len(axes) - 2)]]


def regions(flow: Propagation, call: Call) -> list[Axes]:
    """Follow an image (N, C, H, W) of which parts are sampled, one for each region (image, corners)."""
    axes, regions = flow.axes(call.arguments["input"]), flow.axes(call.arguments["rois"])
    for axis in (axes[0], *axes[2:], regions[1]):
        flow.freeze(axis, Reason.SAMPLES)
    return [[regions[0], axes[1], FIXED, FIXED] for _ in call.outputs]


# torchvision's own, where they are loaded
for _name in ("roi_align", "roi_pool"):
    put_entry(f"torchvision.{_name}", OpEntry(rule=regions))


@op("max_unpool2d", "max_unpool3d")
def unpool(flow: Propagation, call: Call) -> list[Axes]:
    """Put values back to the places in their own channel that ``indices`` hold."""
    n = _dims_in(call.op)
    axes, places = flow.axes(call.arguments["self"]), flow.axes(call.arguments["indices"])
    for axis, place in zip(axes[:-n], places[:-n], strict=True):
        flow.unify(axis, place)
    for axis in (*axes[-n:], *places[-n:]):
        flow.freeze(axis)
    return [[*axes[:-n], *[FIXED] * n]]


@op("im2col")
def im2col(flow: Propagation, call: Call) -> list[Axes]:
    """Unfold (..., C, H, W) to (..., C k, L)."""
    source, out = call.arguments["self"], call.outputs[0]
    axes = flow.axes(source)
    for axis in axes[-2:]:
        flow.freeze(axis)
    return [[*axes[:-3], flow.merge(axes[-3], FIXED.of_length(out.shape[-2] // source.shape[-3])), FIXED]]


@op("col2im")
def col2im(flow: Propagation, call: Call) -> list[Axes]:
    """Fold (..., C k, L) to (..., C, H, W)."""
    axes, out = flow.axes(call.arguments["self"]), call.outputs[0]
    outer, inner = flow.split(axes[-2], out.shape[-3])
    flow.freeze(inner)
    flow.freeze(axes[-1])
    return [[*axes[:-2], outer, FIXED, FIXED]]


@op("unfold")
def unfold(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axis that is taken apart into windows."""
    axes = list(flow.axes(call.arguments["self"]))
    dim = call.arguments["dimension"]
    flow.freeze(axes[dim])
    axes[dim] = FIXED
    return [[*axes, FIXED]]


@op("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze the axes whose frequencies are made of all positions; the others pass."""
    axes = list(flow.axes(call.arguments["self"]))
    for dim in call.arguments["dim"]:
        axes[dim] = flow.freeze(axes[dim], Reason.MIXES)
    return [axes]


@op("pixel_shuffle")
def pixel_shuffle(flow: Propagation, call: Call) -> list[Axes]:
    """Move (..., C r r, H, W) to (..., C, H r, W r): the r positions of a block stay."""
    source, out = call.arguments["self"], call.outputs[0]
    axes = list(flow.axes(source))
    channels, inside = flow.split(axes[-3], out.shape[-3])
    for axis in (inside, axes[-2], axes[-1]):
        flow.freeze(axis)
    return [[*axes[:-3], channels, FIXED, FIXED]]


@op("pixel_unshuffle")
def pixel_unshuffle(flow: Propagation, call: Call) -> list[Axes]:
    """Move (..., C, H r, W r) to (..., C r r, H, W)."""
    source, out = call.arguments["self"], call.outputs[0]
    axes = list(flow.axes(source))
    for axis in axes[-2:]:
        flow.freeze(axis)
    inside = FIXED.of_length(out.shape[-3] // source.shape[-3])
    return [[*axes[:-3], flow.merge(axes[-3], inside), FIXED, FIXED]]


def _pad_zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros: axes keep their places, and positions that were not there are not masked."""
    source, value = call.arguments["self"], call.arguments["value"]
    return [value != 0 or tracker.may_be_nonzero(source, dim) for dim in range(len(axes))]


@op("constant_pad_nd", zeros=_pad_zeros)
def pad(flow: Propagation, call: Call) -> list[Axes]:
    """Add free labels for what is padded: what it is added to, or read by, decides what becomes of it.

    Equal amounts before and after shrink together, unless the module holds two numbers they may come from.
    """
    source, amounts = call.arguments["self"], call.arguments["pad"]
    axes = list(flow.axes(source))
    for i in range(len(amounts) // 2):
        dim = len(axes) - 1 - i
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if before or after:
            axes[dim] = flow.known(axes[dim])
        if axes[dim].fixed and source.shape[dim] > 1:
            continue
        if before < 0 or after < 0:
            axes[dim] = flow.freeze(axes[dim], Reason.CROPS)
            continue
        front = _padding(flow, 2 * i, before)
        back = _padding(flow, 2 * i + 1, after)
        if before == after and not _holds_twice(flow, before):
            flow.unify(front, back)
        axes[dim] = flow.concatenate([front, axes[dim], back])
    return [axes]


def _holds_twice(flow: Propagation, number: int) -> bool:
    """Say whether the running module has two attributes, or two places in one, with this value."""
    held = integers_of(flow.module) if flow.module is not None else ()
    return sum(value == number for _, _, value in held) > 1


def _padding(flow: Propagation, position: int, amount: int) -> AxisLabels:
    """Make the labels of one side of a padded axis."""
    axis = AxisLabels(flow.labels.partition.fresh(amount)[:, None])
    flow.constant(f"pad[{position}]", amount, axis)
    return axis
