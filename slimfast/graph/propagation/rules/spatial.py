"""Pooling, resampling, padding and unfolding: operations along trailing positions that leave the channels
alone."""

from __future__ import annotations

from slimfast.graph.propagation.axis_labels import FIXED, Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.registry import rule
from slimfast.graph.recording.forward import Call

_POOLS = ("max_pool{n}d_with_indices", "max_pool{n}d", "avg_pool{n}d", "adaptive_avg_pool{n}d",
          "_adaptive_avg_pool{n}d", "adaptive_max_pool{n}d", "fractional_max_pool{n}d", "reflection_pad{n}d",
          "replication_pad{n}d")  # fmt: skip
_RESAMPLERS = ("upsample_nearest{n}d", "_upsample_nearest_exact{n}d", "upsample_linear{n}d",
               "upsample_bilinear{n}d", "_upsample_bilinear{n}d_aa", "upsample_bicubic{n}d",
               "_upsample_bicubic{n}d_aa", "upsample_trilinear{n}d")  # fmt: skip


def _register(n: int) -> None:
    @rule(*(name.format(n=n) for name in [*_POOLS, *_RESAMPLERS]))
    def positions(flow: Propagation, call: Call) -> list[Axes]:
        source = call.arguments["input"] if "input" in call.arguments else call.arguments["self"]
        axes = flow.axes(source)
        for axis in axes[-n:]:
            flow.freeze(axis)
        return [[*axes[:-n], *[FIXED] * n] for _ in call.outputs]


for _dims in (1, 2, 3):
    _register(_dims)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(flow: Propagation, call: Call) -> list[Axes]:
    """(N, C, ...) read at the places of a grid (N, ..., coordinates), which stays as it is."""
    axes = flow.axes(call.arguments["input"])
    for axis in (*axes[2:], *flow.axes(call.arguments["grid"])):
        flow.freeze(axis, Reason.SAMPLES)
    return [[*axes[:2], *[FIXED] * (len(axes) - 2)]]


@rule("max_unpool2d", "max_unpool3d")
def unpool(flow: Propagation, call: Call) -> list[Axes]:
    """Values back to the places in their own channel that ``indices`` tell."""
    n = 3 if call.op.endswith("3d") else 2
    axes, places = flow.axes(call.arguments["self"]), flow.axes(call.arguments["indices"])
    for axis, place in zip(axes[:-n], places[:-n], strict=True):
        flow.unify(axis, place)
    for axis in (*axes[-n:], *places[-n:]):
        flow.freeze(axis)
    return [[*axes[:-n], *[FIXED] * n]]


@rule("im2col")
def im2col(flow: Propagation, call: Call) -> list[Axes]:
    """(..., C, H, W) to (..., C k, L)."""
    source, out = call.arguments["self"], call.outputs[0]
    axes = flow.axes(source)
    for axis in axes[-2:]:
        flow.freeze(axis)
    return [[*axes[:-3], flow.merge(axes[-3], FIXED.of_length(out.shape[-2] // source.shape[-3])), FIXED]]


@rule("col2im")
def col2im(flow: Propagation, call: Call) -> list[Axes]:
    """(..., C k, L) to (..., C, H, W)."""
    axes, out = flow.axes(call.arguments["self"]), call.outputs[0]
    outer, inner = flow.split(axes[-2], out.shape[-3])
    flow.freeze(inner)
    flow.freeze(axes[-1])
    return [[*axes[:-2], outer, FIXED, FIXED]]


@rule("unfold")
def unfold(flow: Propagation, call: Call) -> list[Axes]:
    axes = list(flow.axes(call.arguments["self"]))
    dim = call.arguments["dimension"]
    flow.freeze(axes[dim])
    axes[dim] = FIXED
    return [[*axes, FIXED]]


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(flow: Propagation, call: Call) -> list[Axes]:
    """Frequencies along some axes are made of all positions there; the others pass."""
    axes = list(flow.axes(call.arguments["self"]))
    for dim in call.arguments["dim"]:
        axes[dim] = flow.freeze(axes[dim], Reason.MIXES)
    return [axes]
