"""What is left of a removed unit in the masked network: 0, until an operation makes another number of it.

Where the parameters of a unit are 0, so is what a linear layer computes for it, and a ReLU keeps it 0; a
sigmoid makes 0.5 of it. Consumers do not mind, because what they multiply it with is 0 as well. A product of
two computed tensors that sums over the units does, unless one of its factors is 0 for the removed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain
from typing import Any, TypeAlias

import torch

from slimfast.graph.propagation.axis_labels import Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation, TracedCall, refs_in
from slimfast.graph.propagation.rules.norms import NORMS
from slimfast.graph.propagation.rules.pointwise import COPYING, UNTAGGED
from slimfast.graph.propagation.rules.products import CONVOLUTIONS, PRODUCTS, factors
from slimfast.graph.recording.forward import Call, Ref

# Of each axis of a tensor: whether it may be other than 0 at the index of a removed unit.
NonzeroByAxis: TypeAlias = "list[bool]"

# Numbers that no function is 0 at all of, for each operand of a pointwise operation that need not be 0.
_GENERIC = ((-2.37, -0.31, 0.43, 1.73), (0.59, -1.91, 2.83, -0.47), (1.13, 0.71, -0.83, -3.19))
_EITHER = (True, False, True, False)
# Arguments that choose among values and are none.
_CHOOSING = frozenset({"index", "indices", "mask", "condition"})

_FILLED = ("scalar_tensor", "full", "new_full", "full_like", "fill")
_ZEROS = frozenset({"zeros", "new_zeros", "zeros_like", "zero"})
# What is made of numbers, sets some of them, or makes some of 0: not looked into.
_NUMBERS = frozenset({"new_ones", "ones_like", "new_empty", "empty_like", "new_empty_strided", "rand_like",
                      "randn_like", "normal", "uniform", "bernoulli", "logsumexp", "_softmax", "softmax",
                      "_log_softmax", "_safe_softmax", "log_softmax", "all", "scatter", "scatter_add",
                      "scatter_reduce", "index_put", "index_fill", "index_copy", "index_add",
                      "masked_scatter", "put", "_cdist_forward", "_euclidean_dist"})  # fmt: skip


class ZeroTracker:
    """What the values of a flow are at the indices of removed units.

    The steps of ``flow`` grow while the network is followed; none is looked at before it is asked for, since
    few networks multiply what they compute. ``parameters``: values that are 0 there. All others that no step
    makes, the network's inputs and buffers, stay as they are when units are masked.
    """

    def __init__(self, flow: Propagation, parameters: Iterable[int]) -> None:
        self._flow = flow
        self._steps = flow.steps
        self._seen = 0
        self._parameters = frozenset(parameters)
        self._left: dict[int, NonzeroByAxis] = {}
        self._zeros: set[int] = set()
        # the first operand of what made a value, which may share its memory
        self._views: dict[int, Ref] = {}

    def may_be_nonzero(self, ref: Ref, dim: int) -> bool:
        """Whether this tensor, as it is after the last step, may be other than 0 at removed units of an
        axis."""
        if ref.value not in self._parameters:
            for step in self._steps[self._seen :]:
                self._look_at(step)
            self._seen = len(self._steps)
        return self.left(ref, dim)

    def left(self, ref: Ref, dim: int) -> bool:
        """:meth:`may_be_nonzero` as far as steps have been looked at."""
        known = self._left.get(ref.value)
        return ref.value not in self._parameters if known is None else known[dim]

    def is_zero(self, ref: Ref) -> bool:
        """Whether this tensor was made of zeros."""
        return ref.value in self._zeros

    def _look_at(self, step: TracedCall) -> None:
        call = step.call
        name = call.op.removeprefix("aten.").rstrip("_")
        zeros = name in _ZEROS or (name in _FILLED and not _filled_with(call))
        in_place = call.op.endswith("_")
        for ref, axes in zip(call.outputs, step.outputs, strict=True):
            made = self._left[ref.value] = self._makes(name, call, axes)
            (self._zeros.add if zeros else self._zeros.discard)(ref.value)
            if in_place and any(left for axis, left in zip(axes, made, strict=True) if not axis.fixed):
                self._write_through(ref.value)
            elif not in_place and isinstance(call.arguments.get("self"), Ref):
                self._views[ref.value] = call.arguments["self"]

    def _write_through(self, value: int) -> None:
        """What a tensor may be a view of may hold what was written into the tensor."""
        while value in self._views:
            source = self._views[value]
            value = source.value
            self._left[value] = [True] * len(source.shape)
            self._zeros.discard(value)

    def _makes(self, name: str, call: Call, axes: Axes) -> NonzeroByAxis:
        if name in _RULES:
            return _RULES[name](self, call, len(axes))
        if name in _ZEROS or name in _NUMBERS:
            return [name in _NUMBERS] * len(axes)
        if (call.pointwise or name in UNTAGGED) and name not in COPYING:
            from_end = range(-len(axes), 0)
            return [axes[dim].fixed or self._outcome(name, call, dim) for dim in from_end]
        operands = [refs_in(argument) for key, argument in call.arguments.items() if key not in _CHOOSING]
        given = [
            (axis, self.left(ref, dim))
            for ref in chain.from_iterable(operands)
            for dim, axis in enumerate(self._flow.axes(ref))
            if not axis.fixed
        ]
        return [axis.fixed or self._handed_on(given, axis) for axis in axes]

    def _outcome(self, name: str, call: Call, dim: int) -> bool:
        """Whether a pointwise operation makes anything but 0 at removed units of ``dim``, from the end."""

        def kind(argument: Any) -> Any:
            if isinstance(argument, list):
                return tuple(map(kind, argument))
            if not isinstance(argument, Ref):
                return argument
            return _SOME if _at(self, argument, dim) else _NOTHING

        return _outcome(name, tuple((key, kind(argument)) for key, argument in call.arguments.items()))

    def _handed_on(self, given: list[tuple[AxisLabels, bool]], axis: AxisLabels) -> bool:
        """Whether an axis has labels of an axis that is not 0 there, or of none of these."""
        if not any(left for _, left in given):
            return not given
        meet = self._flow.partition.meet
        found = [left for own, left in given if own is axis or meet(own.labels, axis.labels)]
        return any(found) or not found


class _Tensor:
    """Stands for a tensor of 0, or of other numbers."""


_NOTHING, _SOME = _Tensor(), _Tensor()


@cache
def _outcome(name: str, given: tuple[tuple[str, Any], ...]) -> bool:
    """Whether the operation makes anything but 0 of what it is given, found by running it."""
    numbers = iter(_GENERIC)

    def tensor(key: str, kind: Any) -> Any:
        if key in _CHOOSING:
            return torch.tensor(_EITHER)
        if isinstance(kind, tuple):
            return [tensor(key, item) for item in kind]
        if kind is _NOTHING:
            return torch.zeros(len(_EITHER))
        return torch.tensor(next(numbers)) if kind is _SOME else kind

    try:
        result = getattr(torch.ops.aten, name)(**{key: tensor(key, kind) for key, kind in given})
        return bool((result != 0).any())
    except (RuntimeError, TypeError, StopIteration):
        return True  # an operation of integers, or of more operands: nothing is known of it


def _linear(masked: ZeroTracker, call: Call, rank: int) -> NonzeroByAxis:
    """Rows of the weight are the last axis of the result; a removed index of another leaves the bias."""
    source, weight, bias = _operands(call)
    rest = range(rank - (len(weight.shape) == 2))
    others = [bias is not None or masked.left(source, dim) for dim in rest]
    return others if len(others) == rank else [*others, _shifted(masked, weight, bias)]


def _convolution(masked: ZeroTracker, call: Call, rank: int) -> NonzeroByAxis:
    """As :func:`_linear`; the channels are in front of the positions."""
    source, weight, bias = _operands(call)
    found = [bias is not None or masked.left(source, dim) for dim in range(rank)]
    at = rank - len(weight.shape) + 1
    found[at] = _shifted(masked, weight, bias, 1 if call.arguments.get("transposed") else 0)
    return found


def _operands(call: Call) -> tuple[Ref, Any, Any]:
    """The input of a layer, its weight and its bias, which may be None."""
    return call.arguments["input"], call.arguments.get("weight"), call.arguments.get("bias")


def _shifted(masked: ZeroTracker, weight: Ref, bias: Ref | None, dim: int = 0) -> bool:
    return masked.left(weight, dim) or (bias is not None and masked.left(bias, 0))


def _norm(masked: ZeroTracker, call: Call, rank: int) -> NonzeroByAxis:
    """A scale and a shift that are parameters make 0 of a removed channel, and the shift is left of a removed
    index of another axis. What is left of the mean of a batch norm is not 0."""
    source, weight, bias = _operands(call)
    shape = call.arguments.get("normalized_shape")
    own = [1] if shape is None else list(range(rank - len(shape), rank))
    batch = "running_mean" in call.arguments
    found = [batch or bias is not None or masked.left(source, dim) for dim in range(rank)]
    for dim in own if weight is not None else ():
        scale = masked.left(weight, dim - own[0])
        found[dim] = scale or (bias is not None and masked.left(bias, dim - own[0]))
    return found


def _product(masked: ZeroTracker, call: Call, rank: int) -> NonzeroByAxis:
    """The first factor has the rows, the second the columns, both the axes in front."""
    a, b, added = factors(call)
    rows, columns = len(a.shape) > 1, len(b.shape) > 1
    front = rank - rows - columns
    both = [_at(masked, a, dim - front - 2) and _at(masked, b, dim - front - 2) for dim in range(front)]
    found = [*both, *([masked.left(a, -2)] if rows else []), *([masked.left(b, -1)] if columns else [])]
    more = [isinstance(added, Ref) and _at(masked, added, dim - rank) for dim in range(rank)]
    return [left or term for left, term in zip(found, more, strict=True)]


def _at(masked: ZeroTracker, ref: Ref, dim: int) -> bool:
    """What is left at an axis, from the end, of an operand that is broadcast: where it is the same for all
    units it is not masked with them."""
    same = len(ref.shape) < -dim or ref.shape[dim] == 1
    return not masked.is_zero(ref) if same else masked.left(ref, dim)


def _attention(masked: ZeroTracker, call: Call, rank: int) -> NonzeroByAxis:
    """A softmax of 0 is not 0, but what it weighs is; the positions are those of the query."""
    value = call.arguments["value"]
    return [*(_at(masked, value, dim - rank) for dim in range(rank - 2)), True, masked.left(value, -1)]


def _pad(masked: ZeroTracker, call: Call, rank: int) -> NonzeroByAxis:
    """Axes keep their places; positions that were not there are not masked."""
    return [call.arguments["value"] != 0 or masked.left(call.arguments["self"], dim) for dim in range(rank)]


def _filled(masked: ZeroTracker, call: Call, rank: int) -> NonzeroByAxis:
    return [_filled_with(call)] * rank


def _filled_with(call: Call) -> bool:
    """Whether the number that a tensor is filled with may be other than 0."""
    number = next(call.arguments[key] for key in ("s", "fill_value", "value") if key in call.arguments)
    return isinstance(number, Ref) or number != 0


_RULES: dict[str, Callable[[ZeroTracker, Call, int], NonzeroByAxis]] = {
    "linear": _linear,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(PRODUCTS, _product),
    "scaled_dot_product_attention": _attention,
    "constant_pad_nd": _pad,
    **dict.fromkeys(_FILLED, _filled),
}
