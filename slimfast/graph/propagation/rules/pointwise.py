"""Operations that work element by element, and those without a rule."""

from __future__ import annotations

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels, first_free, fixed_axis
from slimfast.graph.propagation.flow import Propagation, refs_in
from slimfast.graph.propagation.label_matrices import Mark
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.registry import rule
from slimfast.graph.recording.forward import Call, Ref


def align(flow: Propagation, shape: tuple[int, ...], operands: list[Ref]) -> Axes:
    """The axes of a result of ``shape`` that these operands broadcast to: axes that meet are one axis."""
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
    if not met:
        return FIXED
    first = first_free(met, met[0])
    for axis in met:
        flow.unify(first, axis)
    return first


# Element by element, but without PyTorch's tag: what hands on what it is given, and functions.
COPYING = ("clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "dropout")
UNTAGGED = (
    *("copy", "where"),
    *("hardswish", "hardsigmoid", "hardtanh", "elu", "leaky_relu", "softplus", "softshrink", "hardshrink"),
    *("threshold", "log_sigmoid_forward", "_prelu_kernel", "rrelu_with_noise", "mish", "silu", "gelu"),
    *("polar", "complex"),
)


@rule("pointwise", *COPYING, *UNTAGGED)
def elementwise(flow: Propagation, call: Call) -> list[Axes]:
    operands = list(refs_in(call.arguments))
    adds = call.op.rstrip("_") in ("aten.add", "aten.sub", "aten.rsub")
    joined = _joined_axes(flow, operands) if adds else []
    axes = [align(flow, out.shape, operands) for out in call.outputs]
    for axis in joined:
        flow.mark(axis, Mark.ADDED)
    return axes


def _joined_axes(flow: Propagation, operands: list[Ref]) -> Axes:
    """Axes of computed tensors that this addition is the first to join."""
    computed = [ref for ref in operands if flow.value(ref).data]
    if len(computed) < 2:
        return []
    a, b = (flow.axes(ref) for ref in computed)
    return [x for x, y in zip(a[::-1], b[::-1], strict=False) if flow.differ(x, y)]


@rule("fill_", "zero_", "zeros_like", "ones_like", "full_like", "empty_like", "normal_", "uniform_",
      "resolve_conj", "resolve_neg", "contiguous", "_conj", "native_dropout")  # fmt: skip
def same(flow: Propagation, call: Call) -> list[Axes]:
    """Each output has the axes of the first tensor."""
    source = next(refs_in(call.arguments))
    return [list(flow.axes(source)) for _ in call.outputs]


@rule("zeros", "ones", "full", "empty", "empty_strided", "new_zeros", "new_ones", "new_full", "new_empty",
      "new_empty_strided")  # fmt: skip
def constant(flow: Propagation, call: Call) -> list[Axes]:
    """The same value everywhere: any index may go, if the size argument goes along."""
    axes = flow.fresh(call.outputs[0].shape)
    for dim, (axis, size) in enumerate(zip(axes, call.outputs[0].shape, strict=True)):
        flow.constant(f"size[{dim}]", size, axis)
    return [axes]


@rule("arange", "linspace", "eye", "rand", "randn", "randint", "randperm", "scalar_tensor", "tril_indices",
      "triu_indices", "bernoulli", "rand_like", "randn_like", "hann_window")  # fmt: skip
def positions(flow: Propagation, call: Call) -> list[Axes]:
    """Values that depend on the index or on chance: nothing of them may go."""
    return [[FIXED] * len(out.shape) for out in call.outputs]


@rule("tril", "triu")
def triangle(flow: Propagation, call: Call) -> list[Axes]:
    axes = list(flow.axes(call.arguments["self"]))
    for axis in axes[-2:]:
        flow.freeze(axis)
    return [axes]


@rule(
    "_assert_async", "_assert_tensor_metadata", "_assert_scalar", "_functional_assert_async", "record_stream"
)
def nothing(flow: Propagation, call: Call) -> list[Axes]:
    return [[FIXED] * len(out.shape) for out in call.outputs]


@rule("unknown")
def unknown(flow: Propagation, call: Call) -> list[Axes]:
    """Whatever goes in or comes out stays as it is."""
    whole = fixed_axis(flow.cause(Reason.NO_RULE))
    for ref in refs_in(call.arguments):
        for axis in flow.axes(ref):
            if len(ref.shape) > 1:
                # weights that it uses are told among what is left alone
                flow.consume(ref, axis)
            flow.freeze(axis, Reason.NO_RULE)
    return [[whole] * len(out.shape) for out in call.outputs]
