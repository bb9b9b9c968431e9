"""Follow fake quantisation, which rounds elements to the steps of a scale and leaves them where they are."""

from __future__ import annotations

from slimfast.graph.propagation.axis_labels import Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.zeros import handed_on
from slimfast.graph.recording.calls import Call, Ref
from slimfast.graph.recording.op_registry import op

# What is kept for each channel where the scale is not one for all.
_BY_CHANNEL = ("scale", "zero_point", "running_min", "running_max")


@op("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", zeros=handed_on, selects=True)
@op("fake_quantize_per_tensor_affine_cachemask", zeros=handed_on, selects=True)
@op("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", zeros=handed_on, selects=True)
@op("fake_quantize_per_channel_affine_cachemask", zeros=handed_on, selects=True)
def rounded(flow: Propagation, call: Call) -> list[Axes]:
    """Keep the axes; the scales of channels go along with them."""
    axes = list(flow.axes(call.arguments["self"]))
    if "axis" in call.arguments:
        _join_scales(flow, call, axes, call.arguments["axis"])
    return [axes for _ in call.outputs]


@op("_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant", zeros=handed_on, selects=True)
def observed(flow: Propagation, call: Call) -> list[Axes]:
    """Keep the axes, as above, and note that the scale follows the largest elements of all that is left."""
    axes = list(flow.axes(call.arguments["self"]))
    by_channel = call.arguments["per_row_fake_quant"]
    channel = call.arguments["ch_axis"] % len(axes)
    for dim, axis in enumerate(axes):
        if not (by_channel and dim == channel):
            flow.inexact(axis, Reason.STATISTICS)
    if by_channel:
        _join_scales(flow, call, axes, channel)
    return [axes for _ in call.outputs]


def _join_scales(flow: Propagation, call: Call, axes: Axes, channel: int) -> None:
    """Join the scale of each channel with the channel."""
    for name in _BY_CHANNEL:
        ref = call.arguments.get(name)
        if isinstance(ref, Ref) and ref.shape == (len(axes[channel]),):
            flow.unify(axes[channel], flow.axes(ref)[0])
        elif isinstance(ref, Ref) and ref.shape:
            # not observed yet: it gets its length in the forward
            flow.freeze(axes[channel], Reason.NO_RULE)
