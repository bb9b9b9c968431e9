"""Finding the Python attributes that a cut must change, by cutting, recording and comparing.

Reshapes, splits and pads take Python integers, and where one of them came from cannot be seen in a recording.
So the network is cut, recorded again and compared with the prediction; at the first operation that disagrees,
attributes of the modules around it that hold the old number are set to the new one, until it agrees. What
works for one module is tried on all others of its class. Where two groups would need one attribute to hold
two numbers they are joined if they fit; groups that nothing makes right are given up with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slimfast.graph.channel_graph import Axis, Constant, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.attributes import AttributeKey, stack_of
from slimfast.graph.recording.forward import Call
from slimfast.graph.recording.number_origins import NumbersUpset
from slimfast.graph.trial.candidates import Assignment, Candidates, Layout, same_elsewhere
from slimfast.graph.trial.origins import Origins
from slimfast.graph.trial.rewrite import GroupChange, at_once, joining
from slimfast.graph.trial.runner import Trial, TrialResult, TrialRunner
from slimfast.graph.trial.trial_widths import constants_told_apart, distinguishing_widths

# Sets of attributes tried at one operation before its groups are given up; each try records up to that
# operation.
_MAX_TRIES = 48
# Cuts tried, one after the other, until every constant has been seen to change on its own.
_MAX_ROUNDS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Settlement:
    """What a search has found: the last trial, which runs as predicted, with its ``calls``.

    ``uncuttable``: the module and the reason of each group that was given up.
    """

    trial: Trial
    calls: tuple[Call, ...]
    uncuttable: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Conflict:
    """An attribute that follows the axis ``own`` stands where ``axis`` is wanted, as that constant of the
    operation or (None) in its shape."""

    key: AttributeKey
    own: Axis
    axis: Axis
    constant: str | None


@dataclass(frozen=True, slots=True)
class _Alone:
    """What attributes did at an operation when they were tried alone: those that changed nothing, and those
    that changed the error alone, because they passed one check of several.
    """

    idle: set[AttributeKey] = field(default_factory=set)
    checked: set[AttributeKey] = field(default_factory=set)

    def rules_out(self, assignment: Assignment) -> bool:
        """Say whether it is no use to try these attributes together."""
        idle = len(assignment) > 1 and not self.idle.isdisjoint(assignment)
        return idle and self.checked.isdisjoint(assignment)

    def note(self, assignment: Assignment, before: TrialResult, after: TrialResult) -> None:
        """Compare a trial without this attribute with one in which it follows."""
        if after.seen() == before.seen():
            self.idle.update(assignment)
        if after.error != before.error and len(after.calls) == len(before.calls):
            self.checked.update(assignment)


class AttributeSearch:
    """Makes a trial cut of every group right, operation by operation, beginning with ``trial``."""

    def __init__(self, runner: TrialRunner, layout: Layout, known: Origins, trial: Trial) -> None:
        self._runner = runner
        self._layout = layout
        self._trial = trial
        self._known = known
        # whether the network, not cut, is known to run as it was recorded
        self._trusted = False
        self._settled: set[AttributeKey] = set()
        self._hopeless: set[tuple[Any, ...]] = set()
        self._uncuttable = dict(known.uncuttable)

    def run(self, first: TrialResult) -> Settlement:
        """Cut until every constant that can change has been seen to follow its axis and no other.

        ``first``: how far the trial got that it begins with.
        Raises :class:`NumbersUpset` where the network, not cut, does not run as it was recorded.
        """
        result = self._make_right(first)
        told_apart = self._known.explained | constants_told_apart(self._trial.cut)
        for _ in range(_MAX_ROUNDS - 1):
            keeps = distinguishing_widths(self._trial.cut, told_apart)
            if keeps is None:
                break
            self._trial = replace(self._trial, cut=Cut(self._trial.cut.graph, keeps))
            result = self._make_right(self._runner.run(self._trial))
            told_apart |= constants_told_apart(self._trial.cut)
        return Settlement(self._trial, result.calls, self._uncuttable)

    @property
    def _operations(self) -> Sequence[Operation]:
        return self._trial.cut.graph.operations

    def _make_right(self, result: TrialResult) -> TrialResult:
        """Adopt attributes, join groups and give up others until the network runs as predicted."""
        self._settled.clear()
        if result.index is not None and self._known.seen and not self._trusted:
            self._trusted = True
            if self._runner.run(self._trial.only(())).index is not None:
                raise NumbersUpset
        while result.index is not None and self._trial.cut.keeps:
            result = self._resolve(result, result.index)
        return result

    def _resolve(self, result: TrialResult, index: int) -> TrialResult:
        """Make operation ``index`` right by the least that does it, and say how far the trial gets then."""
        operation = self._operations[index] if index < len(self._operations) else None
        running = stack_of(result.module)
        stack = list(dict.fromkeys([*(stack_of(operation.module) if operation else ()), *running]))
        conflicts = self._conflicts(operation, stack) if operation else []
        settled = self._settled.union(self._known.seen)
        candidates = Candidates(self._trial.cut, self._layout, settled, self._known.explained)
        alone = _Alone()
        # what stops the forward after its last operation has no numbers of its own
        own = candidates.own(index, stack) if operation else iter(())
        better = self._explain(own, index, alone) or self._join(conflicts, index)
        kind = self._layout.kind_of(index, operation.module) if operation else ()
        if better is None and not conflicts and kind not in self._hopeless:
            better = self._explain(candidates.nearby(stack), index, alone)
            if better is None:
                # what fails in one block fails in the next
                self._hopeless.add(kind)
        return better or self._give_up(index, conflicts)

    def _explain(self, assignments: Iterator[Assignment], index: int, alone: _Alone) -> TrialResult | None:
        """Adopt the first set of attributes that makes operation ``index`` right; None where none does."""
        before = None
        assignments = itertools.islice(assignments, _MAX_TRIES)
        for assignment in assignments:
            if alone.rules_out(assignment):
                continue
            result = self._runner.run(self._with(assignment), index)
            if result.is_right(index):
                alike = [other for other in assignments if other.keys() == assignment.keys()]
                return self._adopt_furthest([assignment, *alike])
            if len(assignment) == 1:
                before = before or self._runner.run(self._trial, index)
                alone.note(assignment, before, result)
        return None

    def _with(self, assignment: Assignment) -> Trial:
        """Let these attributes follow too, in all modules of their classes."""
        attributes = self._trial.attributes
        elsewhere = same_elsewhere(assignment, self._layout, self._operations)
        more = {key: axis for key, axis in elsewhere.items() if key not in attributes}
        chosen = {key: number.axis for key, number in assignment.items()}
        return replace(self._trial, attributes={**attributes, **more, **chosen})

    def _adopt_furthest(self, assignments: list[Assignment]) -> TrialResult:
        """Adopt the set that gets furthest of those that tie the same attributes to one axis or another.

        All make the operation in question right: where heads are as many as their dimensions, one
        operation may not tell which of the two an attribute counts.
        """
        best = self._with(assignments[0])
        furthest = self._runner.run(best)
        for assignment in assignments[1:]:
            if furthest.index is None:
                break
            other = self._with(assignment)
            result = self._runner.run(other)
            if result.is_right(furthest.index):
                best, furthest = other, result
        self._trial = best
        self._settled |= assignments[0].keys()
        return furthest

    def _conflicts(self, operation: Operation, stack: list[str]) -> list[_Conflict]:
        """Find attributes that follow another axis than one here of the same old and another new length,
        constants first.
        """
        width = self._trial.cut.kept_length
        axes = {constant.argument: constant.axis for constant in operation.constants}
        here: list[tuple[str | None, Axis]] = [*axes.items()]
        here += [(None, axis) for axes in operation.outputs for axis in axes if width(axis) == axis.length]
        return [
            _Conflict(key, own, axis, constant)
            for constant, axis in here
            for key, own in self._trial.attributes.items()
            if key[0] in stack and own.length == axis.length and width(own) != width(axis)
        ]

    def _join(self, conflicts: list[_Conflict], index: int) -> TrialResult | None:
        """Where one attribute holds the widths of two groups, make them one group, here and in the like of
        this module; None where they do not fit.
        """
        for conflict in conflicts:
            changes = self._joining(conflict.own, conflict.axis)
            if changes is not None:
                return self._rewrite({**self._joining_elsewhere(conflict, index, changes), **changes})
        return None

    def _joining(self, own: Axis, axis: Axis) -> dict[str, GroupChange] | None:
        sizes = {group.name: group.n for group in self._trial.cut.graph}
        return joining(own, axis, sizes) or joining(axis, own, sizes)

    def _joining_elsewhere(
        self, conflict: _Conflict, index: int, changes: Mapping[str, GroupChange]
    ) -> dict[str, GroupChange]:
        """Join what the same conflict in other modules of the class asks for, as far as it can be done at
        once: no group joins one that joins another.
        """
        elsewhere: dict[str, GroupChange] = {}
        path, name, place = conflict.key
        for other, number in self._layout.counterparts(path, index) if conflict.constant else ():
            own = self._trial.attributes.get((other, name, place))
            constants = self._operations[number].constants
            axis = next((c.axis for c in constants if c.argument == conflict.constant), None)
            more = self._joining(own, axis) if own is not None and axis is not None else None
            if more and at_once({**changes, **elsewhere}, more):
                elsewhere |= more
        return elsewhere

    def _rewrite(self, changes: Mapping[str, GroupChange]) -> TrialResult:
        self._trial = self._trial.rewritten(changes)
        return self._runner.run(self._trial)

    def _give_up(self, index: int, conflicts: list[_Conflict]) -> TrialResult:
        """Leave alone the groups without which operation ``index`` is right, and their like elsewhere."""
        operation = self._operations[min(index, len(self._operations) - 1)]
        blamed, names = self._blame(operation, index, conflicts)
        numbers = ", ".join(f"{c.argument} = {c.value}" for c in blamed) or "the shape"
        reason = f"{numbers} of {operation.name} cannot be made to follow its width"
        arguments = {c.argument for c in blamed}
        for _, number in self._layout.counterparts(operation.module, index) if blamed else ():
            alike = [c.axis for c in self._operations[number].constants if c.argument in arguments]
            names = names + self._trial.groups_in(alike)
        self._uncuttable |= dict.fromkeys(names, (operation.module, reason))
        return self._rewrite(dict.fromkeys(names))

    def _blame(
        self, operation: Operation, index: int, conflicts: list[_Conflict]
    ) -> tuple[list[Constant], list[str]]:
        """Find the constants that are to blame, and the groups to leave alone for it."""
        groups_in, width = self._trial.groups_in, self._trial.cut.kept_length
        changed = [c for c in operation.constants if width(c.axis) != c.value]
        all_changed = (changed, groups_in(c.axis for c in changed))
        # the least comes first
        suspects: list[tuple[list[Constant], list[str]]] = [
            *(([c], groups_in([c.axis])) for c in (changed if len(changed) > 1 else ())),
            all_changed,
            ([], groups_in(conflict.own for conflict in conflicts)),
            ([], groups_in(axis for axes in operation.outputs for axis in axes)),
        ]
        suspects = [suspect for suspect in suspects if suspect[1]]
        for suspect in suspects:
            if self._runner.run(self._trial.without(suspect[1]), index).is_right(index):
                return suspect
        names = all_changed[1] or next((names for _, names in suspects), [])
        return changed, names or self._met_before(index) or [self._culprit()]

    def _met_before(self, index: int) -> list[str]:
        """Find the groups that were met last before operation ``index``, if it is right without them."""
        for operation in reversed(self._operations[:index]):
            names = self._trial.groups_in(axis for axes in operation.outputs for axis in axes)
            if names:
                return names if self._runner.run(self._trial.without(names), index).is_right(index) else []
        return []

    def _culprit(self) -> str:
        """Find the first group whose cut, with all before it, makes the network disagree, by halving."""
        names = list(self._trial.cut.keeps)
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            disagrees = self._runner.run(self._trial.only(names[:middle])).index is not None
            low, high = (low, middle) if disagrees else (middle, high)
        return names[low]
