"""Hold what the rules work on: the labels of every axis of every tensor in one recorded forward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
from torch import nn

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels, fixed_axis
from slimfast.graph.propagation.label_matrices import Labels, Mark, merge, widen
from slimfast.graph.propagation.network_labels import NetworkLabels
from slimfast.graph.propagation.reasons import FIXED_LENGTH, Cause, Reason
from slimfast.graph.propagation.traced import TracedCall, TracedTensor
from slimfast.graph.propagation.zeros import ZeroTracker
from slimfast.graph.recording.calls import Call, Ref, refs_in
from slimfast.graph.recording.forward import Recording
from slimfast.graph.recording.op_registry import entry_of

_NOTHING_RUNS = Call("", "", {}, (), False)


class Propagation:
    """Carries labels through one recorded forward; rules call its methods for the operation that is running.

    ``labels``: those of the network's own tensors, which several forwards share. ``training``: this forward
    runs in training only, and is followed after the one in eval mode. ``divides_mixed``: an axis that was
    made of channels and of something of another length was divided, in parts that may be others at another
    size of the input.
    """

    def __init__(self, labels: NetworkLabels, recording: Recording, *, training: bool = False) -> None:
        self.labels = labels
        self._recording = recording
        self.calls: list[TracedCall] = []
        self.divides_mixed = False
        self._partition = labels.partition
        self._training = training
        self._plain = recording.plain
        self._values = {value: labels.tensors[name] for value, name in recording.names.items()}
        parameters = [value for value, tensor in self._values.items() if tensor.sources]
        given = labels.causes.add(Reason.NETWORK_INPUT)
        for ref in recording.inputs:
            self._values[ref.value] = TracedTensor([fixed_axis(given, n) for n in ref.shape], True)
        self._zeros = ZeroTracker(parameters, self._values, self._partition)
        self._call = _NOTHING_RUNS
        self._operands: list[Ref] = []
        self._macs: tuple[int | AxisLabels, ...] = ()
        self._constants: list[tuple[str, int, AxisLabels]] = []

    def begin(self, call: Call) -> None:
        """Make ``call`` the running operation."""
        self._call, self._macs, self._constants = call, (), []
        self._operands = refs_in(call.arguments)
        for ref in self._operands:
            # a tensor that the model keeps outside its parameters and buffers is a constant: it cannot be cut
            if ref.value not in self._values:
                name = self._plain.get(ref.value)
                why = (
                    FIXED
                    if name is None
                    else fixed_axis(self.labels.causes.add(Reason.PLAIN_TENSOR, detail=name))
                )
                self._values[ref.value] = TracedTensor([why.of_length(n) for n in ref.shape], False)

    def finish(self, outputs: Sequence[Axes]) -> None:
        """Take these as the axes of the results of the running operation, and be done with it."""
        call, operands = self._call, [self.value(ref) for ref in self._operands]
        data = any(operand.data for operand in operands)
        # experts chosen by the input are still elements of the parameter they are chosen from
        made = data and not entry_of(call.op).selects
        sources = frozenset() if made else frozenset().union(*(operand.sources for operand in operands))
        for ref, axes in zip(call.outputs, outputs, strict=True):
            self._values[ref.value] = TracedTensor(axes, data, sources)
        self.calls.append(TracedCall(call, tuple(outputs), self._macs, tuple(self._constants)))

    def knows(self, value: int) -> bool:
        """Say whether the tensor with this number has been met in the recording."""
        return value in self._values

    def value(self, ref: Ref) -> TracedTensor:
        """Look up what is known of a tensor."""
        return self._values[ref.value]

    def made_by(self, ref: Ref) -> TracedCall | None:
        """Find the operation that a tensor is the result of; None for a tensor that was there before."""
        for traced in reversed(self.calls):
            if any(out.value == ref.value for out in traced.call.outputs):
                return traced
        return None

    def axes(self, ref: Ref) -> Axes:
        """Look up the axes of a tensor."""
        return self._values[ref.value].axes

    def axis_at(self, value: int, dim: int) -> AxisLabels:
        """Look up one axis of a tensor by the number of the tensor in the recording."""
        return self._values[value].axes[dim]

    def is_used(self, ref: Ref) -> bool:
        """Say whether the elements of a tensor have a part in what the forward returns, keeps or tells."""
        return ref.value in self._used

    @cached_property
    def _used(self) -> frozenset[int]:
        used = {ref.value for ref in self._recording.outputs}
        for call in reversed(self._recording.calls):
            made = {ref.value for ref in call.outputs}
            if not made or call.op.endswith("_") or not used.isdisjoint(made):
                used.update(ref.value for ref in refs_in(call.arguments))
        return frozenset(used)

    def may_be_nonzero(self, ref: Ref, dim: int) -> bool:
        """Say whether a tensor, as the running operation gets it, may hold anything but 0 at the removed
        units of an axis."""
        return self._zeros.nonzero_after(self.calls, ref, dim)

    def fresh(self, shape: Sequence[int]) -> Axes:
        """Make axes with new labels, for a tensor that is the same everywhere; those of length 1 are
        fixed."""
        return self.labels.fresh(shape)

    @property
    def module(self) -> nn.Module | None:
        """Find the module in which the running operation runs."""
        return self.labels.modules.get(self._call.module)

    def cause(self, reason: Reason, detail: str = "") -> Cause:
        """Name a reason, at the running operation and its module."""
        return self.labels.causes.add(reason, self._call.module, self._call.op, detail)

    def unify(self, a: AxisLabels, b: AxisLabels) -> None:
        """Make two axes of one length the same: index i of both is removed together."""
        if a is b:
            return
        if a.reason is not None and b.reason is not None:
            return
        if a.reason is not None or b.reason is not None:
            free, cause = (b, a.reason) if b.reason is None else (a, b.reason)
            if cause is None or cause is FIXED_LENGTH:
                self.freeze(free, Reason.JOINS_FIXED_AXIS)
            else:
                self._partition.freeze_classes(free.labels, cause.number)
            return
        self._partition.join_rows(a.labels, b.labels, self.cause(Reason.JOINS_FIXED_INDEX).number)

    def differ(self, a: AxisLabels, b: AxisLabels) -> bool:
        """Say whether two axes with labels and of one length are not the same axis yet."""
        if a.fixed or b.fixed or len(a) != len(b):
            return False
        return not np.array_equal(self._partition.resolve(a.labels), self._partition.resolve(b.labels))

    def freeze(self, axis: AxisLabels, reason: Reason = Reason.MIXES, detail: str = "") -> AxisLabels:
        """Forbid the removal of any index of an axis because of the running operation; return it as a fixed
        axis."""
        if axis.fixed:
            return axis
        cause = self.cause(reason, detail)
        self._partition.freeze_classes(axis.labels, cause.number)
        return fixed_axis(cause, len(axis))

    def tie(self, a: AxisLabels, b: AxisLabels) -> None:
        """Keep two axes equally long: they become the same axis unless one is a permutation of the other."""
        if a.fixed or b.fixed or not self._permuted(a.labels, b.labels):
            self.unify(a, b)

    def _permuted(self, a: Labels, b: Labels) -> bool:
        """Say whether two axes have the same rows of labels, in whatever order."""
        left, right = (_sorted_rows(self._partition.resolve(labels)) for labels in (a, b))
        return np.array_equal(left, right)

    def inexact(self, axis: AxisLabels, reason: Reason) -> None:
        """Note that removing an index of this axis changes what the operation computes for the others."""
        if not axis.fixed:
            self._partition.make_inexact(axis.labels, self.cause(reason).number)

    def mark(self, axis: AxisLabels, mark: Mark) -> None:
        """Add a mark to the labels of an axis."""
        if not axis.fixed:
            self._partition.add_mark(axis.labels, mark)

    def known(self, axis: AxisLabels) -> AxisLabels:
        """Replace an axis of which no index can be removed by now with a fixed one; return any other as it
        is.

        Frozen labels say no more than that, but windows, shifts and pads make more of them at every step.
        """
        if axis.fixed:
            return axis
        reasons = self._partition.frozen_reasons(self._partition.classes(axis.labels))
        if not len(reasons) or not reasons.all():
            return axis
        return fixed_axis(self.labels.causes[int(reasons.min())], len(axis))

    def merge(self, outer: AxisLabels, inner: AxisLabels) -> AxisLabels:
        """Join the axes (a) and (b) to the axis (a * b) that a reshape makes of them."""
        if len(inner) == 1:
            return outer
        if len(outer) == 1:
            return inner
        outer, inner = self.known(outer), self.known(inner)
        if outer.reason is not None and inner.reason is not None:
            # the one that was found last says most
            last = max(outer.reason, inner.reason, key=attrgetter("number"))
            return fixed_axis(last, len(outer) * len(inner))
        mixed = outer.fixed or inner.fixed or outer.mixed or inner.mixed
        return AxisLabels(merge(outer.labels, inner.labels), mixed=mixed)

    def split(self, axis: AxisLabels, a: int) -> tuple[AxisLabels, AxisLabels]:
        """Divide the axis (a * b) into the axes (a) and (b) that a reshape makes of it."""
        b = len(axis) // a
        if b == 1:
            return axis, FIXED
        if a == 1:
            return FIXED, axis
        axis = self.known(axis)
        if axis.fixed:
            return axis.of_length(a), axis.of_length(b)
        self.divides_mixed = self.divides_mixed or axis.mixed
        cause = self.cause(Reason.SPLITS)
        outer, inner = self._partition.split_grid(axis.labels, a, b, cause.number)
        return _axis_of(outer), _axis_of(inner)

    def concatenate(self, parts: Sequence[AxisLabels]) -> AxisLabels:
        """Put axes one after the other."""
        if all(axis.fixed for axis in parts):
            return parts[0].of_length(sum(map(len, parts))) if parts else FIXED
        k = max(axis.labels.shape[1] for axis in parts)
        joined = np.concatenate([widen(axis.labels, k) for axis in parts])
        return AxisLabels(joined, mixed=any(axis.mixed for axis in parts))

    def produce(self, ref: Ref, axis: AxisLabels) -> None:
        """Note that ``axis`` of a weight starts a new axis of the result."""
        for own in self.labels.use(self.value(ref).sources, axis, "producer"):
            if self._training:
                self.freeze(own, Reason.TRAINING_ONLY)

    def consume(self, ref: Ref, axis: AxisLabels) -> None:
        """Note that ``axis`` of a weight is summed over."""
        self.labels.use(self.value(ref).sources, axis, "consumer")

    def macs(self, *factors: int | AxisLabels) -> None:
        """Note what the operation costs: the product of these numbers and lengths, in multiply-adds."""
        constant = 1
        free: list[AxisLabels] = []
        for factor in factors:
            if isinstance(factor, int):
                constant *= factor
            elif factor.fixed:
                constant *= len(factor)
            else:
                free.append(factor)
        self._macs = (constant, *free)

    def constant(self, argument: str, value: Any, axis: AxisLabels) -> None:
        """Note that this integer argument is the length of an axis that may shrink."""
        if not axis.fixed and isinstance(value, int) and value >= 0:
            self._constants.append((argument, value, axis))


def _sorted_rows(labels: Labels) -> Labels:
    """Sort the labels of each row, and the rows, so that equal sets of rows are equal arrays."""
    rows = np.sort(labels, axis=1)
    return rows[np.lexsort(rows.T)] if rows.shape[1] else rows


def _axis_of(labels: Labels) -> AxisLabels:
    """Make an axis of a label matrix, a fixed one where it has no labels."""
    return AxisLabels(labels) if labels.shape[1] else FIXED.of_length(len(labels))
