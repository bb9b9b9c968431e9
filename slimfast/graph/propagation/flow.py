"""The state that the rules work on: which labels run along each axis of each tensor of a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from slimfast.graph.channel_graph import Role
from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels, fixed_axis
from slimfast.graph.propagation.label_matrices import Labels, Mark, merge, widen
from slimfast.graph.propagation.partition import Partition
from slimfast.graph.propagation.reasons import FIXED_LENGTH, Cause, Causes, Reason
from slimfast.graph.recording.calls import Call, Ref


@dataclass(slots=True, eq=False)
class TracedTensor:
    """A tensor while it is traced. ``data``: depends on the network's input or on chance; ``sources``: the
    parameters that a value which does not is made of, or which it holds elements of."""

    axes: Axes
    data: bool
    sources: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class TracedCall:
    """A call with what its rule found: the axes of its outputs, its MACs and its size arguments."""

    call: Call
    outputs: list[Axes] = field(default_factory=list)
    macs: list[int | AxisLabels] = field(default_factory=list)
    constants: list[tuple[str, int, AxisLabels]] = field(default_factory=list)


class Propagation:
    """Labels on their way through the network. Rules call its methods; ``step`` is the operation being
    handled. ``training``: what is followed now runs in training only, after all that runs in eval mode.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | None = None) -> None:
        self.modules = modules or {}
        self.partition = Partition()
        self.causes = Causes()
        self.values: dict[int, TracedTensor] = {}
        self.tensors: dict[str, TracedTensor] = {}
        self.roles: dict[tuple[str, int], Role] = {}
        self.steps: list[TracedCall] = []
        self.step = TracedCall(Call("", "", {}, (), False))
        self.training = False
        # whether a tensor may be other than 0 at removed units of an axis, when the running operation gets it
        self.may_be_nonzero: Callable[[Ref, int], bool] = lambda ref, dim: True

    # Axes

    def value(self, ref: Ref) -> TracedTensor:
        return self.values[ref.value]

    def axes(self, ref: Ref) -> Axes:
        return self.values[ref.value].axes

    def fresh(self, shape: Sequence[int]) -> Axes:
        """Free labels along every axis longer than 1: of a parameter, or of a constant that is the same
        everywhere."""
        return [AxisLabels(self.partition.fresh(n)[:, None]) if n > 1 else FIXED.of_length(n) for n in shape]

    def cause(self, reason: Reason, detail: str = "") -> Cause:
        """A reason at the running operation."""
        call = self.step.call
        return self.causes.add(reason, call.module, call.op, detail)

    def unify(self, a: AxisLabels, b: AxisLabels) -> None:
        """Two axes of the same length are one axis."""
        if a is b:
            return
        if a.reason is not None and b.reason is not None:
            return
        if a.reason is not None or b.reason is not None:
            free, cause = (b, a.reason) if b.reason is None else (a, b.reason)
            if cause is None or cause is FIXED_LENGTH:
                self.freeze(free, Reason.JOINS_FIXED_AXIS)
            else:
                self.partition.freeze_classes(free.labels, cause.number)
            return
        self.partition.join_rows(a.labels, b.labels, self.cause(Reason.JOINS_FIXED_INDEX).number)

    def differ(self, a: AxisLabels, b: AxisLabels) -> bool:
        """Whether two labelled axes of one length are not one axis yet."""
        if a.fixed or b.fixed or len(a) != len(b):
            return False
        return not np.array_equal(self.partition.resolve(a.labels), self.partition.resolve(b.labels))

    def freeze(self, axis: AxisLabels, reason: Reason = Reason.MIXES, detail: str = "") -> AxisLabels:
        """No index of this axis may be removed, because of the running operation; returns it as a fixed
        one."""
        if axis.fixed:
            return axis
        cause = self.cause(reason, detail)
        self.partition.freeze_classes(axis.labels, cause.number)
        return fixed_axis(cause, len(axis))

    def freeze_for(self, axes: Sequence[AxisLabels], cause: Cause) -> None:
        """No index of these axes may be removed, because of something else than the running operation."""
        for axis in axes:
            if not axis.fixed:
                self.partition.freeze_classes(axis.labels, cause.number)

    def tie(self, a: AxisLabels, b: AxisLabels) -> None:
        """Two axes must stay equally long. Where they are not permutations of each other they become one
        axis."""
        if a.fixed or b.fixed or not self._permuted(a.labels, b.labels):
            self.unify(a, b)

    def _permuted(self, a: Labels, b: Labels) -> bool:
        left, right = (_sorted_rows(self.partition.resolve(labels)) for labels in (a, b))
        return np.array_equal(left, right)

    def inexact(self, axis: AxisLabels, reason: Reason) -> None:
        """Removing an index of this axis changes what the operation computes for the others."""
        if not axis.fixed:
            self.partition.make_inexact(axis.labels, self.cause(reason).number)

    def mark(self, axis: AxisLabels, mark: Mark) -> None:
        if not axis.fixed:
            self.partition.add_mark(axis.labels, mark)

    def known(self, axis: AxisLabels) -> AxisLabels:
        """The same axis; a fixed one where by now no index of it can be removed.

        Frozen labels say no more than that, but windows, shifts and pads make more of them at every step.
        """
        if axis.fixed:
            return axis
        roots = self.partition.resolve(axis.labels)
        reasons = self.partition.frozen_reasons(roots[roots > 0])
        if not len(reasons) or not reasons.all():
            return axis
        return fixed_axis(self.causes[int(reasons.min())], len(axis))

    def merge(self, outer: AxisLabels, inner: AxisLabels) -> AxisLabels:
        """The axis (a * b) that a reshape makes of the axes (a) and (b)."""
        if len(inner) == 1:
            return outer
        if len(outer) == 1:
            return inner
        outer, inner = self.known(outer), self.known(inner)
        if outer.fixed and inner.fixed:
            return outer.of_length(len(outer) * len(inner))
        return AxisLabels(merge(outer.labels, inner.labels))

    def split(self, axis: AxisLabels, a: int) -> tuple[AxisLabels, AxisLabels]:
        """The axes (a) and (b) that a reshape makes of the axis (a * b)."""
        b = len(axis) // a
        if b == 1:
            return axis, FIXED
        if a == 1:
            return FIXED, axis
        axis = self.known(axis)
        if axis.fixed:
            return axis.of_length(a), axis.of_length(b)
        cause = self.cause(Reason.SPLITS)
        outer, inner = self.partition.split_grid(axis.labels, a, b, cause.number)
        return _axis_of(outer), _axis_of(inner)

    def concatenate(self, parts: Sequence[AxisLabels]) -> AxisLabels:
        """The axis made of these axes one after the other."""
        if all(axis.fixed for axis in parts):
            return parts[0].of_length(sum(map(len, parts))) if parts else FIXED
        k = max(axis.labels.shape[1] for axis in parts)
        return AxisLabels(np.concatenate([widen(axis.labels, k) for axis in parts]))

    # What the running operation computes, counts and was told

    def produce(self, ref: Ref, axis: AxisLabels) -> None:
        """``axis`` of ``ref`` starts a new axis of the output."""
        self._role(ref, axis, "producer")

    def consume(self, ref: Ref, axis: AxisLabels) -> None:
        """``axis`` of ``ref`` is summed over."""
        self._role(ref, axis, "consumer")

    def _role(self, ref: Ref, axis: AxisLabels, role: Role) -> None:
        """The first use of a weight decides: an embedding that is also the classifier produces."""
        value = self.value(ref)
        if axis.fixed:
            return
        for name in sorted(value.sources):
            for dim, own in enumerate(self.tensors[name].axes):
                if (name, dim) in self.roles or own.fixed:
                    continue
                if own is axis or self.partition.meet(own.labels, axis.labels):
                    self.roles[name, dim] = role
                    if self.training and role == "producer":
                        self.freeze(own, Reason.TRAINING_ONLY)

    def macs(self, *factors: int | AxisLabels) -> None:
        """The operation costs the product of these numbers and lengths."""
        constant = 1
        free: list[AxisLabels] = []
        for factor in factors:
            if isinstance(factor, int):
                constant *= factor
            elif factor.fixed:
                constant *= len(factor)
            else:
                free.append(factor)
        self.step.macs = [constant, *free]

    def constant(self, argument: str, value: Any, axis: AxisLabels) -> None:
        """The integer argument is the length of this axis, which may shrink."""
        if not axis.fixed and isinstance(value, int) and value >= 0:
            self.step.constants.append((argument, value, axis))


def _sorted_rows(labels: Labels) -> Labels:
    """The rows as sets, in an order of their own."""
    rows = np.sort(labels, axis=1)
    return rows[np.lexsort(rows.T)] if rows.shape[1] else rows


def _axis_of(labels: Labels) -> AxisLabels:
    """The axis of these labels, fixed where there are none."""
    return AxisLabels(labels) if labels.shape[1] else FIXED.of_length(len(labels))
