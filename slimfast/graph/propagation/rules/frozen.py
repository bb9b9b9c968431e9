"""Leave alone what an operation touches, where there is no rule for it or nothing to follow."""

from __future__ import annotations

from slimfast.graph.propagation.axis_labels import FIXED, Axes, fixed_axis
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.zeros import all_nonzero
from slimfast.graph.recording.calls import Call, refs_in
from slimfast.graph.recording.op_registry import OpEntry, op, register

# They decompose into other operations at other lengths; each of those has a rule of its own.
register(OpEntry(shape_dependent=True), "einsum", "tensordot")


@op("_assert_async", "_assert_tensor_metadata", "_assert_scalar", "_functional_assert_async", "record_stream")
def nothing(flow: Propagation, call: Call) -> list[Axes]:
    """Follow nothing: the operation checks something, and what it returns is no part of the network."""
    return [[FIXED] * len(out.shape) for out in call.outputs]


@op("put", zeros=all_nonzero)
def unknown(flow: Propagation, call: Call) -> list[Axes]:
    """Freeze all that goes in and comes out. This is the rule of every operation that has no other."""
    whole = fixed_axis(flow.cause(Reason.NO_RULE))
    for ref in refs_in(call.arguments):
        for axis in flow.axes(ref):
            if len(ref.shape) > 1:
                # the weights that it uses are listed among what is left alone
                flow.consume(ref, axis)
            flow.freeze(axis, Reason.NO_RULE)
    return [[whole] * len(out.shape) for out in call.outputs]
