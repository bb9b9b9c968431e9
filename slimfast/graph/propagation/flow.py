"""The state that the rules work on: which labels run along each axis of each tensor of a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from slimfast.graph.channel_graph import Role
from slimfast.graph.propagation.label_matrices import Labels, merge, widen
from slimfast.graph.propagation.partition import Partition
from slimfast.graph.recording.forward import Call, Ref

# The labels of an axis (length, k), or, where no index of it can ever be removed, the number of the reason.
Way: TypeAlias = "Labels | int"

# Fixed for no reason worth telling: kernel taps, axes of length 1, positions made by an operation.
FIXED = 1


@dataclass(slots=True, eq=False)
class Value:
    """A tensor while it is traced. ``data``: depends on the network's input or on chance; ``sources``: the
    parameters that a value which does not is made of, or which it holds elements of."""

    ways: list[Way]
    data: bool
    sources: frozenset[str] = frozenset()
    shape: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Span:
    """An axis to be described once tracing is done: its labels and its length."""

    way: Way
    length: int


@dataclass(slots=True, eq=False)
class Step:
    """A call with what its rule found: the ways of its outputs, its MACs and its size arguments."""

    call: Call
    outputs: list[list[Span]] = field(default_factory=list)
    macs: list[int | Span] = field(default_factory=list)
    constants: list[tuple[str, int, Span]] = field(default_factory=list)


class Flow:
    """Labels on their way through the network. Rules call its methods; ``step`` is the operation being
    handled. ``training``: what is followed now runs in training only, after all that runs in eval mode.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | None = None) -> None:
        self.modules = modules or {}
        self.partition = Partition()
        self.reasons: list[tuple[str, str]] = [("", ""), ("its length is fixed", "")]
        self.values: dict[int, Value] = {}
        self.tensors: dict[str, Value] = {}
        self.roles: dict[tuple[str, int], Role] = {}
        self.steps: list[Step] = []
        self.step = Step(Call("", "", {}, (), False))
        self.training = False
        # whether a tensor may be other than 0 at removed units of an axis, when the running operation gets it
        self.nonzero: Callable[[Ref, int], bool] = lambda ref, dim: True
        self._reason_numbers: dict[tuple[str, str], int] = {}

    # Reasons

    def reason(self, text: str, module: str | None = None) -> int:
        """The number of a reason at a module (default: the one running)."""
        key = (text, self.step.call.module if module is None else module)
        if key not in self._reason_numbers:
            self._reason_numbers[key] = len(self.reasons)
            self.reasons.append(key)
        return self._reason_numbers[key]

    # Axes

    def value(self, ref: Ref) -> Value:
        return self.values[ref.value]

    def ways(self, ref: Ref) -> list[Way]:
        return self.values[ref.value].ways

    def fresh(self, shape: Sequence[int]) -> list[Way]:
        """Free labels along every axis longer than 1: of a parameter, or of a constant that is the same
        everywhere."""
        return [self.partition.fresh(n)[:, None] if n > 1 else FIXED for n in shape]

    def unify(self, a: Way, b: Way) -> None:
        """Two axes of the same length are one axis."""
        if a is b:
            return
        if isinstance(a, int) and isinstance(b, int):
            return
        if isinstance(a, int) or isinstance(b, int):
            fixed, free = (a, b) if isinstance(a, int) else (b, a)
            if fixed == FIXED:
                self.freeze(free, f"{self.step.call.op} joins it with a fixed axis")
            else:
                self.partition.freeze(free, fixed)  # type: ignore[arg-type]
            return
        self.partition.unify(a, b, self.reason(f"{self.step.call.op} joins it with a fixed index"))

    def differ(self, a: Way, b: Way) -> bool:
        """Whether two labelled axes of one length are not one axis yet."""
        if isinstance(a, int) or isinstance(b, int) or len(a) != len(b):
            return False
        return not np.array_equal(self.partition.resolve(a), self.partition.resolve(b))

    def freeze(self, way: Way, text: str | None = None) -> int:
        """No index of this axis may be removed, because of the running operation; returns the reason's
        number."""
        if isinstance(way, int):
            return way
        reason = self.reason(text or f"{self.step.call.op} mixes along it")
        self.partition.freeze(way, reason)
        return reason

    def tie(self, a: Way, b: Way) -> None:
        """Two axes must stay equally long. Where they are not permutations of each other they become one
        axis."""
        if isinstance(a, int) or isinstance(b, int) or not self._permuted(a, b):
            self.unify(a, b)

    def _permuted(self, a: Labels, b: Labels) -> bool:
        left, right = (_sorted_rows(self.partition.resolve(labels)) for labels in (a, b))
        return np.array_equal(left, right)

    def inexact(self, way: Way, text: str) -> None:
        """Removing an index of this axis changes what the operation computes for the others."""
        if not isinstance(way, int):
            self.partition.make_inexact(way, self.reason(text))

    def mark(self, way: Way, mark: int) -> None:
        if not isinstance(way, int):
            self.partition.mark(way, mark)

    def known(self, way: Way) -> Way:
        """The same axis; the number of a reason where by now no index of it can be removed.

        Frozen labels say no more than that, but windows, shifts and pads make more of them at every step.
        """
        if isinstance(way, int):
            return way
        roots = self.partition.resolve(way)
        reasons = self.partition.frozen_reasons(roots[roots > 0])
        if not len(reasons) or not reasons.all():
            return way
        return int(reasons.min())

    def merge(self, outer: Way, a: int, inner: Way, b: int) -> Way:
        """The axis (a * b) that a reshape makes of the axes (a) and (b)."""
        if b == 1:
            return outer
        if a == 1:
            return inner
        outer, inner = self.known(outer), self.known(inner)
        if isinstance(outer, int) and isinstance(inner, int):
            return outer
        return merge(as_labels(outer, a), as_labels(inner, b))

    def split(self, way: Way, a: int, b: int) -> tuple[Way, Way]:
        """The axes (a) and (b) that a reshape makes of the axis (a * b)."""
        if b == 1:
            return way, FIXED
        if a == 1:
            return FIXED, way
        way = self.known(way)
        if isinstance(way, int):
            return way, way
        reason = self.reason(f"{self.step.call.op} splits an axis of which it is a part")
        outer, inner = self.partition.split(way, a, b, reason)
        return outer if outer.shape[1] else FIXED, inner if inner.shape[1] else FIXED

    def concatenate(self, parts: Sequence[tuple[Way, int]]) -> Way:
        """The axis made of these axes (with lengths) one after the other."""
        if all(isinstance(way, int) for way, _ in parts):
            return parts[0][0] if parts else FIXED
        labels = [as_labels(way, n) for way, n in parts]
        k = max(part.shape[1] for part in labels)
        return np.concatenate([widen(part, k) for part in labels])

    # What the running operation computes, counts and was told

    def produce(self, ref: Ref, way: Way) -> None:
        """``way`` is an axis of ``ref`` that starts a new axis of the output."""
        self._role(ref, way, "producer")

    def consume(self, ref: Ref, way: Way) -> None:
        """``way`` is an axis of ``ref`` that is summed over."""
        self._role(ref, way, "consumer")

    def _role(self, ref: Ref, way: Way, role: Role) -> None:
        """The first use of a weight decides: an embedding that is also the classifier produces."""
        value = self.value(ref)
        if isinstance(way, int):
            return
        for name in sorted(value.sources):
            for dim, own in enumerate(self.tensors[name].ways):
                if (name, dim) in self.roles or isinstance(own, int):
                    continue
                if own is way or self.partition.meet(own, way):
                    self.roles[name, dim] = role
                    if self.training and role == "producer":
                        self.freeze(own, "it is used in training only")

    def macs(self, *factors: int | tuple[Way, int]) -> None:
        """The operation costs the product of these lengths."""
        constant = 1
        spans = []
        for factor in factors:
            if isinstance(factor, int):
                constant *= factor
            elif isinstance(factor[0], int):
                constant *= factor[1]
            else:
                spans.append(Span(*factor))
        self.step.macs = [constant, *spans]

    def constant(self, argument: str, value: Any, way: Way, length: int) -> None:
        """The integer argument is the length of this axis, which may shrink."""
        if not isinstance(way, int) and isinstance(value, int) and value >= 0:
            self.step.constants.append((argument, value, Span(way, length)))


def _sorted_rows(labels: Labels) -> Labels:
    """The rows as sets, in an order of their own."""
    rows = np.sort(labels, axis=1)
    return rows[np.lexsort(rows.T)] if rows.shape[1] else rows


def as_labels(way: Way, length: int) -> Labels:
    """The label matrix of an axis, without columns where the axis is fixed."""
    return np.zeros((length, 0), dtype=np.int64) if isinstance(way, int) else way


def refs_in(argument: Any) -> Iterator[Ref]:
    """The tensors of a recorded argument, in order."""
    if isinstance(argument, Ref):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from refs_in(item)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from refs_in(item)
