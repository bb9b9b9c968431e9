"""Pooling, resampling, padding and unfolding: operations along trailing positions that leave the channels
alone."""

from __future__ import annotations

from slimfast.graph.propagation.flow import FIXED, Flow
from slimfast.graph.propagation.rules.registry import Ways, rule
from slimfast.graph.recording.forward import Call

_POOLS = ("max_pool{n}d_with_indices", "max_pool{n}d", "avg_pool{n}d", "adaptive_avg_pool{n}d",
          "_adaptive_avg_pool{n}d", "adaptive_max_pool{n}d", "fractional_max_pool{n}d", "reflection_pad{n}d",
          "replication_pad{n}d")  # fmt: skip
_RESAMPLERS = ("upsample_nearest{n}d", "_upsample_nearest_exact{n}d", "upsample_linear{n}d",
               "upsample_bilinear{n}d", "_upsample_bilinear{n}d_aa", "upsample_bicubic{n}d",
               "_upsample_bicubic{n}d_aa", "upsample_trilinear{n}d")  # fmt: skip


def _register(n: int) -> None:
    @rule(*(name.format(n=n) for name in [*_POOLS, *_RESAMPLERS]))
    def positions(flow: Flow, call: Call) -> list[Ways]:
        source = call.arguments["input"] if "input" in call.arguments else call.arguments["self"]
        ways = flow.ways(source)
        for way in ways[-n:]:
            flow.freeze(way)
        return [[*ways[:-n], *[FIXED] * n] for _ in call.outputs]


for _dims in (1, 2, 3):
    _register(_dims)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(flow: Flow, call: Call) -> list[Ways]:
    """(N, C, ...) read at the places of a grid (N, ..., coordinates), which stays as it is."""
    ways = flow.ways(call.arguments["input"])
    for way in (*ways[2:], *flow.ways(call.arguments["grid"])):
        flow.freeze(way, f"{call.op} samples along it")
    return [[*ways[:2], *[FIXED] * (len(ways) - 2)]]


@rule("max_unpool2d", "max_unpool3d")
def unpool(flow: Flow, call: Call) -> list[Ways]:
    """Values back to the places in their own channel that ``indices`` tell."""
    n = 3 if call.op.endswith("3d") else 2
    ways, places = flow.ways(call.arguments["self"]), flow.ways(call.arguments["indices"])
    for way, place in zip(ways[:-n], places[:-n], strict=True):
        flow.unify(way, place)
    for way in (*ways[-n:], *places[-n:]):
        flow.freeze(way)
    return [[*ways[:-n], *[FIXED] * n]]


@rule("im2col")
def im2col(flow: Flow, call: Call) -> list[Ways]:
    """(..., C, H, W) to (..., C k, L)."""
    source, out = call.arguments["self"], call.outputs[0]
    ways = flow.ways(source)
    for way in ways[-2:]:
        flow.freeze(way)
    channels = source.shape[-3]
    return [[*ways[:-3], flow.merge(ways[-3], channels, FIXED, out.shape[-2] // channels), FIXED]]


@rule("col2im")
def col2im(flow: Flow, call: Call) -> list[Ways]:
    """(..., C k, L) to (..., C, H, W)."""
    source, out = call.arguments["self"], call.outputs[0]
    ways = flow.ways(source)
    channels = out.shape[-3]
    outer, inner = flow.split(ways[-2], channels, source.shape[-2] // channels)
    flow.freeze(inner)
    flow.freeze(ways[-1])
    return [[*ways[:-2], outer, FIXED, FIXED]]


@rule("unfold")
def unfold(flow: Flow, call: Call) -> list[Ways]:
    ways = list(flow.ways(call.arguments["self"]))
    dim = call.arguments["dimension"]
    flow.freeze(ways[dim])
    ways[dim] = FIXED
    return [[*ways, FIXED]]


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(flow: Flow, call: Call) -> list[Ways]:
    """Frequencies along some axes are made of all positions there; the others pass."""
    ways = list(flow.ways(call.arguments["self"]))
    for dim in call.arguments["dim"]:
        ways[dim] = flow.freeze(ways[dim], f"{call.op} mixes along it")
    return [ways]
