"""Find the attributes that must follow the widths by the origins of the numbers that operations were given.

An operation that is given ``self.heads`` for the length of an axis says that this attribute is the axis's
length; ``self.heads * self.head_dim`` says so of both, where the axis is a grid. Where one attribute would be
the lengths of two axes, their groups are joined if they fit, and left whole otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slimfast.graph.channel_graph import Axis, ChannelGraph, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.attributes import AttributeKey
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.forward import Recording
from slimfast.graph.recording.number_origins import (
    AttributeRead,
    Computed,
    LengthRead,
    Origin,
    Read,
    TracedInt,
    evaluate,
    reads_of,
)
from slimfast.graph.trial.axis_pieces import cut_at, grid, signature, tiled
from slimfast.graph.trial.given_numbers import axes_of_values, given_as, lengths_among, may_be_computed
from slimfast.graph.trial.rewrite import GroupChange, GroupRewrite, at_once, folding, joining
from slimfast.graph.trial.trial_widths import ConstantKeys, trial_keeps

# A product of more numbers is not taken apart.
_MOST_FACTORS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """A number that an operation was given for the length of an axis, and where the number came from."""

    operation: int
    argument: str
    axis: Axis
    origin: Origin


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """What the origins of numbers say about a graph.

    Attributes:
        graph: The graph, with groups joined or left whole because of attributes.
        attributes: The axis that each attribute follows.
        uncuttable: The module and the reason of each group that is left whole.
        explained: The constants that need no search: they follow attributes, or PyTorch computes them.
        seen: Every attribute that a function of PyTorch was seen to be given, or what was computed from it.
    """

    graph: ChannelGraph
    attributes: Mapping[AttributeKey, Axis] = field(default_factory=dict)
    uncuttable: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    explained: ConstantKeys = field(default_factory=set)
    seen: Collection[AttributeKey] = ()


def find_origins(graph: ChannelGraph, recording: Recording) -> Origins:
    """Find the attributes that the numbers of a recording were read from, and what they ask of the groups."""
    if recording.reads is None:
        return Origins(graph)
    uncuttable: dict[str, tuple[str, str]] = {}
    while True:
        solved = _Solution(graph, recording)
        changes = solved.changes()
        if not changes:
            break
        uncuttable |= {name: solved.reasons[name] for name, change in changes.items() if change is None}
        graph = GroupRewrite(changes).graph(graph)
    solved.explain(Cut(graph, trial_keeps(graph)))
    seen = frozenset(_attributes_given(recording))
    return Origins(graph, solved.attributes, uncuttable, solved.explained, seen)


def _attributes_given(recording: Recording) -> Iterator[AttributeKey]:
    """Yield the attributes that the numbers of a recording come from."""
    reads = recording.reads
    if reads is None:
        return
    for call in recording.calls:
        for number in call.numbers:
            for read in reads_of(number.origin) if isinstance(number, TracedInt) else ():
                if isinstance(read, AttributeRead):
                    yield reads.keys_of(read, call.module)


class _Solution:
    """The attributes that one pass over the operations finds, and the demands that do not agree."""

    def __init__(self, graph: ChannelGraph, recording: Recording) -> None:
        self._graph = graph
        self._reads = recording.reads
        self._lengths = axes_of_values(graph, recording)
        self._demands: list[Demand] = []
        self._first: dict[AttributeKey, tuple[Axis, Demand]] = {}
        self._conflicts: list[tuple[Axis, Axis, tuple[Demand, Demand]]] = []
        self._signatures: dict[Axis, tuple[Any, ...]] = {}
        self._divisors_stay = False
        self.explained: ConstantKeys = set()
        self.reasons: dict[str, tuple[str, str]] = {}
        for i, (operation, call) in enumerate(zip(graph.operations, recording.calls, strict=True)):
            self._read(i, operation, call)
        self._solve()
        self._checked = {
            recording.reads.keys_of(read, module): self._lengths[length.tensor, length.dim]
            for module, read, length in recording.equal
            if recording.reads is not None and (length.tensor, length.dim) in self._lengths
        }

    @property
    def attributes(self) -> dict[AttributeKey, Axis]:
        """The attributes that may have to change, each with its axis.

        Of one of which nothing else is known, a length that it was found equal to says what it follows.
        """
        axes = {key: axis for key, axis in self._checked.items() if key not in self._first}
        axes |= {key: axis for key, (axis, _) in self._first.items()}
        return {key: axis for key, axis in axes.items() if axis.places}

    def _read(self, number: int, operation: Operation, call: Call) -> None:
        """Collect what the numbers of one operation ask for."""
        for argument, axis in lengths_among(operation, call):
            given = given_as(call, argument)
            if isinstance(given, TracedInt):
                if not axis.places and may_be_computed(call, argument):
                    continue
                self._demands.append(Demand(number, argument, axis, given.origin))
            elif given is None:
                # computed by PyTorch from what it works on
                self.explained.add((number, argument))

    def _solve(self) -> None:
        computed = []
        for demand in self._demands:
            if isinstance(demand.origin, AttributeRead):
                self._follow(self._key(demand, demand.origin), demand.axis, demand)
            elif isinstance(demand.origin, Computed):
                computed.append(demand)
        # what one number tells may be what another one lacks; a divisor stays if none tells what it follows
        for self._divisors_stay in (False, True):
            before = -1
            while len(self._first) > before:
                before = len(self._first)
                for demand in computed:
                    for key, axis in (self._fit(demand, demand.origin, demand.axis) or {}).items():
                        # of what stays, a part may be the quotient of two that change alike
                        if demand.axis.places or axis.places:
                            self._follow(key, axis, demand)

    def _key(self, demand: Demand, read: AttributeRead) -> AttributeKey:
        assert self._reads is not None
        return self._reads.keys_of(read, self._graph.operations[demand.operation].module)

    def _follow(self, key: AttributeKey, axis: Axis, demand: Demand) -> None:
        """Let an attribute follow an axis."""
        first = self._first.setdefault(key, (axis, demand))
        if not self._alike(first[0], axis):
            self._conflicts.append((first[0], axis, (first[1], demand)))

    def _alike(self, a: Axis, b: Axis) -> bool:
        """Say whether two axes are equally long after every cut: one has the units of the other, in whatever
        order."""
        return a is b or (a.length == b.length and self._signature(a) == self._signature(b))

    def _signature(self, axis: Axis) -> tuple[Any, ...]:
        if axis not in self._signatures:
            self._signatures[axis] = signature(axis)
        return self._signatures[axis]

    def _fit(self, demand: Demand, origin: Origin | int, axis: Axis) -> dict[AttributeKey, Axis] | None:
        """Find what attributes must follow for a number to be the length of an axis; None where it cannot be,
        by what is known of them so far.

        A sum puts axes one after the other, a product is a grid of them.
        """
        if isinstance(origin, Computed):
            return self._fit_computed(demand, origin, axis)
        known = self._known_axis(demand, origin)
        if known is not None or isinstance(origin, int):
            return {} if self._alike(known or Axis(axis.length), axis) else None
        return {self._key(demand, origin): axis} if isinstance(origin, AttributeRead) else {}

    def _fit_computed(self, demand: Demand, origin: Computed, axis: Axis) -> dict[AttributeKey, Axis] | None:
        left, right = origin.left, origin.right
        if origin.operator == "+":
            found = self._fit_all(demand, (left, right), cut_at(axis, evaluate(left)))
            return found or self._fit_all(demand, (right, left), cut_at(axis, evaluate(right))) or found
        if origin.operator == "//" and isinstance(left, AttributeRead):
            if (divisor := self._divisor(demand, origin, axis)) is not None:
                return divisor
            outer = self._known_axis(demand, right)
            if outer is None and isinstance(right, AttributeRead) and not self._divisors_stay:
                return {}
            outer = outer or Axis(evaluate(right))
            return (
                self._fit(demand, left, tiled(outer, axis))
                if left.number == outer.length * axis.length
                else {}
            )
        if origin.operator != "*":
            return {}
        factors = _factors(origin)
        for order in itertools.permutations(factors) if len(factors) <= _MOST_FACTORS else ():
            found = self._fit_all(demand, order, grid(axis, [evaluate(factor) for factor in order]))
            if found is not None:
                return found
        return None

    def _divisor(self, demand: Demand, origin: Computed, axis: Axis) -> dict[AttributeKey, Axis] | None:
        """Find what a divisor must follow for the quotient to be the length of an axis, of a dividend that is
        known; None where that does not tell."""
        dividend, right = self._known_axis(demand, origin.left), origin.right
        if dividend is None or not isinstance(right, AttributeRead) or self._known_axis(demand, right):
            return None
        for sizes in ((right.number, axis.length), (axis.length, right.number)):
            parts = grid(dividend, sizes) or ()
            for part, other in zip(parts, parts[::-1], strict=True):
                if part.length == right.number and self._alike(other, axis):
                    return {self._key(demand, right): part}
        return None

    def _fit_all(
        self, demand: Demand, origins: Sequence[Origin | int], axes: Sequence[Axis] | None
    ) -> dict[AttributeKey, Axis] | None:
        """Fit several numbers to an axis each."""
        found: dict[AttributeKey, Axis] = {}
        if axes is None:
            return None
        for origin, axis in zip(origins, axes, strict=True):
            more = self._fit(demand, origin, axis)
            if more is None:
                return None
            found |= more
        return found

    def _known_axis(self, demand: Demand, number: Origin | int) -> Axis | None:
        """Find the axis that a number is known to follow."""
        if isinstance(number, LengthRead):
            return self._lengths.get((number.tensor, number.dim))
        if isinstance(number, AttributeRead) and (first := self._first.get(self._key(demand, number))):
            return first[0]
        return None

    def changes(self) -> dict[str, GroupChange]:
        """Find the groups to join, or where there are none those to leave whole, for one attribute each."""
        sizes = {group.name: group.n for group in self._graph}
        changes: dict[str, GroupChange] = {}
        for a, b, _ in self._conflicts:
            parts = [a, *(other for axis, other, _ in self._conflicts if axis is a)]
            more = joining(a, b, sizes) or joining(b, a, sizes) or folding(parts, sizes) or {}
            # what cannot be done at once waits for the next pass
            if at_once(changes, more):
                changes |= more
        if changes:
            return changes
        for a, b, demands in self._conflicts:
            mine, other = (set(axis.groups) for axis in (a, b))
            demand = demands[1] if b.places else demands[0]
            for name in sorted(mine ^ other or mine | other):
                changes[name] = None
                self.reasons.setdefault(name, self._reason(demand))
        return changes

    def _reason(self, demand: Demand) -> tuple[str, str]:
        operation = self._graph.operations[demand.operation]
        number = f"{demand.argument} = {demand.axis.length} of {operation.name}"
        return operation.module, f"{number} cannot be made to follow its width"

    def explain(self, cut: Cut) -> None:
        """Note which numbers become what this cut asks for when the attributes follow their axes."""
        for demand in self._demands:
            if self._after(demand, cut) == cut.kept_length(demand.axis):
                self.explained.add((demand.operation, demand.argument))

    def _after(self, demand: Demand, cut: Cut) -> int:
        """Compute what a number is after a cut."""

        def now(read: Read) -> int:
            axis = self._known_axis(demand, read)
            return read.number if axis is None else cut.kept_length(axis)

        return evaluate(demand.origin, now)


def _factors(origin: Origin | int) -> list[Origin | int]:
    """List the factors of a number, in order."""
    if isinstance(origin, Computed) and origin.operator == "*":
        return [*_factors(origin.left), *_factors(origin.right)]
    return [origin]
