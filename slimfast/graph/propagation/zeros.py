"""Track where a removed unit's value stays zero in the masked network.

Where the parameters of a unit are 0, so is what a linear layer computes for it, and a ReLU keeps it 0; a
sigmoid makes 0.5 of it. Consumers do not mind, because what they multiply it with is 0 as well. A product of
two computed tensors that sums over the units does, unless one of its factors is 0 for the removed ones.

Each operation says in its registry entry what it makes of zeros (``zeros=``); the functions here are those
that many operations share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, TypeAlias

import torch

from slimfast.graph.propagation.axis_labels import Axes, AxisLabels
from slimfast.graph.propagation.partition import Partition
from slimfast.graph.propagation.traced import TracedCall, TracedTensor
from slimfast.graph.recording.calls import Call, Ref, refs_in
from slimfast.graph.recording.op_registry import entry_of

# Of each axis of a tensor: whether it may be other than 0 at the index of a removed unit.
NonzeroByAxis: TypeAlias = "list[bool]"
# What an operation makes of zeros, by the axes of one of its results; a single bool stands for all numbers in
# it.
Zeros: TypeAlias = "Callable[[ZeroTracker, Call, Axes], NonzeroByAxis | bool]"

# What stands for an operand that need not be 0, a row for each: no function in use is 0 at all four numbers.
_GENERIC = ((-2.37, -0.31, 0.43, 1.73), (0.59, -1.91, 2.83, -0.47), (1.13, 0.71, -0.83, -3.19))
_EITHER = (True, False, True, False)
# Arguments that choose among values and are no values themselves.
_CHOOSING = frozenset({"index", "indices", "mask", "condition"})


class ZeroTracker:
    """Tracks which values of a propagation are 0 at the indices of removed units.

    No call is looked at before it is asked for, since few networks multiply what they compute.
    ``parameters``: values that are 0 there. All others that no call makes, the network's inputs and buffers,
    stay as they are when units are masked. ``values``: the tensors of the propagation by number, as it goes.
    """

    def __init__(
        self, parameters: Iterable[int], values: Mapping[int, TracedTensor], partition: Partition
    ) -> None:
        self._values = values
        self._partition = partition
        self._seen = 0
        self._parameters = frozenset(parameters)
        self._nonzero: dict[int, NonzeroByAxis] = {}
        self._made_of_zeros: set[int] = set()
        # the first operand of what made a value, which may share its memory
        self._views: dict[int, Ref] = {}

    def nonzero_after(self, calls: Sequence[TracedCall], ref: Ref, dim: int) -> bool:
        """Say whether this tensor, after these calls, may be other than 0 at the removed units of an axis.

        ``calls``: all so far, among them those of the questions before.
        """
        if ref.value not in self._parameters:
            for traced in calls[self._seen :]:
                self._look_at(traced)
            self._seen = len(calls)
        return self.may_be_nonzero(ref, dim)

    def may_be_nonzero(self, ref: Ref, dim: int) -> bool:
        """Answer as :meth:`nonzero_after` does, for the calls that have been looked at."""
        known = self._nonzero.get(ref.value)
        return ref.value not in self._parameters if known is None else known[dim]

    def broadcast_nonzero(self, ref: Ref, dim: int) -> bool:
        """Answer for an axis, counted from the end, of an operand that is broadcast.

        What is the same for all units is not masked with them.
        """
        same = len(ref.shape) < -dim or ref.shape[dim] == 1
        return ref.value not in self._made_of_zeros if same else self.may_be_nonzero(ref, dim)

    def handed_on(self, call: Call, axes: Axes) -> NonzeroByAxis:
        """Track zeros through an operation whose result holds no numbers but 0 and those of its operands."""
        operands = [refs_in(argument) for key, argument in call.arguments.items() if key not in _CHOOSING]
        given = [
            (axis, self.may_be_nonzero(ref, dim))
            for ref in chain.from_iterable(operands)
            for dim, axis in enumerate(self._values[ref.value].axes)
            if not axis.fixed
        ]
        return [axis.fixed or self._reached(given, axis) for axis in axes]

    def _reached(self, given: list[tuple[AxisLabels, bool]], axis: AxisLabels) -> bool:
        """Say whether an axis shares labels with an axis that is not 0 there, or with none of these."""
        if not any(nonzero for _, nonzero in given):
            return not given
        meet = self._partition.meet
        met = [nonzero for own, nonzero in given if own is axis or meet(own.labels, axis.labels)]
        return any(met) or not met

    def _look_at(self, traced: TracedCall) -> None:
        """Ask the entry of an operation what it makes of zeros, and remember it."""
        call = traced.call
        zeros: Zeros = entry_of(call.op).zeros or (by_outcome if call.pointwise else handed_on)
        in_place = call.op.endswith("_")
        for ref, axes in zip(call.outputs, traced.outputs, strict=True):
            made = zeros(self, call, axes)
            (self._made_of_zeros.add if made is False else self._made_of_zeros.discard)(ref.value)
            by_axis = self._nonzero[ref.value] = [made] * len(axes) if isinstance(made, bool) else made
            if in_place and any(n for axis, n in zip(axes, by_axis, strict=True) if not axis.fixed):
                self._write_through(ref.value)
            elif not in_place and isinstance(call.arguments.get("self"), Ref):
                self._views[ref.value] = call.arguments["self"]

    def _write_through(self, value: int) -> None:
        """Note that a tensor may be a view of another, which then holds what was written into it."""
        while value in self._views:
            source = self._views[value]
            value = source.value
            self._nonzero[value] = [True] * len(source.shape)
            self._made_of_zeros.discard(value)


def handed_on(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros through operations that move, select or sum what they are given."""
    return tracker.handed_on(call, axes)


def by_outcome(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros through operations that work element by element: try what they make of 0."""
    if not call.op.startswith("aten."):
        # an operation of others, which may compute anything
        return [True] * len(axes)
    name = call.op.removeprefix("aten.").rstrip("_")

    def kind(argument: Any, dim: int) -> Any:
        if isinstance(argument, list):
            return tuple(kind(item, dim) for item in argument)
        if not isinstance(argument, Ref):
            return argument
        return _SOME if tracker.broadcast_nonzero(argument, dim) else _NOTHING

    def outcome(dim: int) -> bool:
        return _outcome(name, tuple((key, kind(argument, dim)) for key, argument in call.arguments.items()))

    return [axes[dim].fixed or outcome(dim) for dim in range(-len(axes), 0)]


def all_zero(tracker: ZeroTracker, call: Call, axes: Axes) -> bool:
    """Answer for operations that make zeros."""
    return False


def all_nonzero(tracker: ZeroTracker, call: Call, axes: Axes) -> bool:
    """Answer for operations that make numbers, set some or make some of 0, and are not looked into."""
    return True


class _Tensor:
    """Stands for a tensor of 0, or of other numbers."""


_NOTHING, _SOME = _Tensor(), _Tensor()


@cache
def _outcome(name: str, given: tuple[tuple[str, Any], ...]) -> bool:
    """Say whether the operation makes anything but 0 of what it is given, by running it."""
    numbers = iter(_GENERIC)

    def tensor(key: str, kind: Any) -> Any:
        if key in _CHOOSING:
            return torch.tensor(_EITHER, device="cpu")
        if isinstance(kind, tuple):
            return [tensor(key, item) for item in kind]
        if kind is _NOTHING:
            return torch.zeros(len(_EITHER), device="cpu")
        return torch.tensor(next(numbers), device="cpu") if kind is _SOME else kind

    try:
        result = getattr(torch.ops.aten, name)(**{key: tensor(key, kind) for key, kind in given})
        return bool((result != 0).any())
    except (RuntimeError, TypeError, StopIteration):
        return True  # an operation of integers, or of more operands: nothing is known of it
