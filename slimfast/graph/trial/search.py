"""Finding the Python attributes that a cut must change, by cutting, recording and comparing.

Reshapes, splits and pads take Python integers, and where one of them came from cannot be seen in a recording.
So the network is cut, recorded again and compared with the prediction; at the first operation that disagrees,
attributes of the modules around it that hold the old number are set to the new one, until it agrees. What
works for one module is tried on all others of its class. Where two groups would need one attribute to hold
two numbers they are joined if they fit; groups that nothing makes right are given up with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slimfast.graph.channel_graph import Axis, ChannelGraph, Constant, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.patches import read_attribute
from slimfast.graph.cutting.prediction import item_of
from slimfast.graph.recording.attributes import Key, Wanted, axis_at, stack_of
from slimfast.graph.recording.forward import Call, Recording
from slimfast.graph.recording.network import Network
from slimfast.graph.trial.candidates import Candidates, named_alike
from slimfast.graph.trial.factors import changed_factors
from slimfast.graph.trial.rewrite import Fate, Regroup, joined_by
from slimfast.graph.trial.runner import Probe, Reach
from slimfast.graph.trial.trial_widths import Told, telling_keeps, told_by, trial_keeps

# Sets of attributes tried at one operation before its groups are given up; each try records up to that
# operation.
_MAX_TRIES = 48
# Cuts tried, one after the other, until every constant has been seen to change on its own.
_MAX_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class _Conflict:
    """An attribute that follows the axis ``own`` stands where ``axis`` is wanted, as that constant of the
    operation or (None) in its shape."""

    key: Key
    own: Axis
    axis: Axis
    constant: str | None


class Search:
    """The state of one trial cut: what is cut, which attributes follow which axes, what has been given up."""

    def __init__(self, network: Network, graph: ChannelGraph, recording: Recording) -> None:
        self.cut = Cut(graph, trial_keeps(graph))
        self.wide = recording.calls
        self.probe = Probe(network, graph, recording.place)
        self.modules = network.modules
        self.inside: dict[str, list[int]] = {}
        for i, operation in enumerate(graph.operations):
            for path in stack_of(operation.module):
                self.inside.setdefault(path, []).append(i)
        self.attributes: dict[Key, Axis] = {}
        self.settled: set[Key] = set()
        self.uncuttable: dict[str, tuple[str, str]] = {}
        self.inexact: dict[str, str] = {}
        self.idle: set[Key] = set()
        self.checked: set[Key] = set()
        self.hopeless: set[tuple[Any, ...]] = set()
        self.told: Told = set()
        self.calls: tuple[Call, ...] = ()

    def run(self) -> None:
        self.attributes |= named_alike(self.cut.graph, self.modules)
        self._make_right()
        for _ in range(_MAX_ROUNDS - 1):
            keeps = telling_keeps(self.cut, self.told)
            if keeps is None:
                break
            self.cut = Cut(self.cut.graph, keeps)
            self._make_right()
        self._find_factors()

    def _make_right(self) -> None:
        """Adopt attributes, join groups and give up others until the network runs as predicted."""
        self.settled.clear()
        reach = self.probe.reach(self.cut, self.attributes)
        while reach.index is not None and self.cut.keeps:
            reach = self._resolve(reach, reach.index)
        self.calls = reach.calls
        self.told |= told_by(self.cut)

    def _resolve(self, reach: Reach, index: int) -> Reach:
        """Make operation ``index`` right by the least that does it, and say how far the trial gets then."""
        operation = self.cut.graph.operations[index] if index < len(self.cut.graph.operations) else None
        stack = list(
            dict.fromkeys(
                [*stack_of(operation.module if operation else reach.module), *stack_of(reach.module)]
            )
        )
        conflicts = self._conflicts(operation, stack) if operation else []
        self.idle.clear()
        self.checked.clear()
        candidates = Candidates(self.cut, self.modules, self.inside, self.settled)
        found = self._explain(itertools.islice(candidates.own(index, stack), _MAX_TRIES), index)
        found = found or self._join(conflicts, index)
        place = self._place(index)
        if found is None and not conflicts and place not in self.hopeless:
            found = self._explain(itertools.islice(candidates.nearby(stack), _MAX_TRIES), index)
            if found is None:
                self.hopeless.add(place)
        return found or self._give_up(index, conflicts)

    def _explain(self, assignments: Iterable[dict[Key, Wanted]], index: int) -> Reach | None:
        """Adopt the first set of attributes that makes operation ``index`` right; None where none does.

        An attribute that changes nothing there alone is not tried with others, but for those that change
        the error alone: they passed one check of several.
        """
        before = None
        assignments = iter(assignments)
        for assignment in assignments:
            idle = len(assignment) > 1 and not self.idle.isdisjoint(assignment)
            if idle and self.checked.isdisjoint(assignment):
                continue
            reach = self.probe.reach(self.cut, self._with(assignment), index)
            if reach.right(index):
                alike = [other for other in assignments if other.keys() == assignment.keys()]
                return self._furthest([assignment, *alike])
            if len(assignment) == 1:
                before = before or self.probe.reach(self.cut, self.attributes, index).seen()
                self.idle |= assignment.keys() if reach.seen() == before else set()
                passed = reach.error != before[1] and reach.seen()[0] == before[0]
                self.checked |= assignment.keys() if passed else set()
        return None

    def _with(self, assignment: Mapping[Key, Wanted]) -> dict[Key, Axis]:
        """The attributes so far and these, in all modules of their classes."""
        chosen = {key: wanted.axis for key, wanted in assignment.items()}
        return {**self.attributes, **self._generalised(assignment), **chosen}

    def _furthest(self, assignments: list[dict[Key, Wanted]]) -> Reach:
        """Adopt the set that gets furthest of those that tie the same attributes to one axis or another.

        All make the operation in question right: where heads are as many as their dimensions, one
        operation may not tell which of the two an attribute counts.
        """
        best = assignments[0]
        furthest = self.probe.reach(self.cut, self._with(best))
        for other in assignments[1:]:
            if furthest.index is None:
                break
            reach = self.probe.reach(self.cut, self._with(other))
            if reach.right(furthest.index):
                best, furthest = other, reach
        self.attributes = self._with(best)
        self.settled |= best.keys()
        return furthest

    def _conflicts(self, operation: Operation, stack: list[str]) -> list[_Conflict]:
        """Attributes that follow another axis than one here of the same old and another new length, constants
        first.
        """
        axes = {constant.argument: constant.axis for constant in operation.constants}
        here: list[tuple[str | None, Axis]] = [*axes.items()]
        here += [
            (None, axis)
            for output in operation.outputs
            for axis in output
            if self.cut.kept_length(axis) == axis.length
        ]
        width = self.cut.kept_length
        return [
            _Conflict(key, own, axis, constant)
            for constant, axis in here
            for key, own in self.attributes.items()
            if key[0] in stack and own.length == axis.length and width(own) != width(axis)
        ]

    def _join(self, conflicts: list[_Conflict], index: int) -> Reach | None:
        """Where one attribute holds the widths of two groups, make them one group, here and in the like of
        this module; None where they do not fit.
        """
        for conflict in conflicts:
            fates = self._fates(conflict.own, conflict.axis)
            if fates is not None:
                self._regroup({**self._fates_elsewhere(conflict, index, fates), **fates})
                return self.probe.reach(self.cut, self.attributes)
        return None

    def _fates(self, own: Axis, axis: Axis) -> dict[str, Fate] | None:
        sizes = {group.name: group.n for group in self.cut.graph}
        return joined_by(own, axis, sizes) or joined_by(axis, own, sizes)

    def _fates_elsewhere(self, conflict: _Conflict, index: int, fates: Mapping[str, Fate]) -> dict[str, Fate]:
        """What the same conflict in other modules of the class makes of their groups, as far as it can be
        done at once: no group joins one that joins another.
        """
        found: dict[str, Fate] = {}
        path, name, place = conflict.key
        for other, operation in self._counterparts(path, index) if conflict.constant else ():
            own = self.attributes.get((other, name, place))
            axis = next((c.axis for c in operation.constants if c.argument == conflict.constant), None)
            more = self._fates(own, axis) if own is not None and axis is not None else None
            goals = {fate[0] for fate in {**fates, **found, **(more or {})}.values() if fate is not None}
            if more and not goals & {*fates, *found, *more}:
                found |= more
        return found

    def _regroup(self, names: Mapping[str, Fate]) -> None:
        change = Regroup(names)
        self.attributes = {key: change.axis(axis) for key, axis in self.attributes.items()}
        self.cut = Cut(change.graph(self.cut.graph), self._without(names).keeps)

    def _place(self, index: int) -> tuple[Any, ...]:
        """Which operation of which class of module this is: what fails in one block fails in the next."""
        if index == len(self.cut.graph.operations):
            return ()
        operation = self.cut.graph.operations[index]
        step = self.inside[operation.module].index(index)
        return type(self.modules[operation.module]), operation.name, step

    def _give_up(self, index: int, conflicts: list[_Conflict]) -> Reach:
        """Leave alone the groups without which operation ``index`` is right, and their like elsewhere."""
        operation = self.cut.graph.operations[min(index, len(self.cut.graph.operations) - 1)]
        changed = [c for c in operation.constants if self.cut.kept_length(c.axis) != c.value]
        # Constants that may be to blame, and the groups to leave alone then; the least comes first.
        suspects: list[tuple[list[Constant], list[str]]] = [
            *(([c], self._groups_in([c.axis])) for c in (changed if len(changed) > 1 else ())),
            (changed, self._groups_in([c.axis for c in changed])),
            ([], self._groups_in([conflict.own for conflict in conflicts])),
            ([], self._groups_in([axis for axes in operation.outputs for axis in axes])),
        ]
        suspects = [suspect for suspect in suspects if suspect[1]]
        for blamed, names in suspects:  # noqa: B007 (read after the loop)
            if self.probe.reach(self._without(names), self.attributes, index).right(index):
                break
        else:
            blamed, names = (changed, self._groups_in([c.axis for c in changed]))
            names = names or next((names for _, names in suspects), []) or [self._culprit()]
        told = ", ".join(f"{c.argument} = {c.value}" for c in blamed) or "the shape"
        reason = f"{told} of {operation.name} cannot be made to follow its width"
        arguments = {c.argument for c in blamed}
        for _, other in self._counterparts(operation.module, index) if blamed else ():
            names = names + self._groups_in([c.axis for c in other.constants if c.argument in arguments])
        self.uncuttable |= dict.fromkeys(names, (operation.module, reason))
        self._regroup(dict.fromkeys(names))
        return self.probe.reach(self.cut, self.attributes)

    def _without(self, names: Iterable[str]) -> Cut:
        return self._only(self.cut.keeps.keys() - set(names))

    def _only(self, names: Collection[str]) -> Cut:
        """The cut of these groups alone."""
        return Cut(self.cut.graph, {name: keep for name, keep in self.cut.keeps.items() if name in names})

    def _generalised(self, assignment: Mapping[Key, Wanted]) -> dict[Key, Axis]:
        """The same attributes of other modules of the same class, where the same operation takes their
        number.
        """
        more: dict[Key, Axis] = {}
        for (path, name, index), wanted in assignment.items():
            for other, operation in self._counterparts(path, wanted.operation):
                axis = axis_at(operation, wanted)
                key = (other, name, index)
                held = item_of(read_attribute(self.modules[other], name), index)
                if axis is not None and held == axis.length and key not in self.attributes:
                    more[key] = axis
        return more

    def _counterparts(self, path: str, index: int) -> Iterator[tuple[str, Operation]]:
        """Other modules of the class of ``path``, with the operation that runs there as ``index`` runs in
        ``path``.
        """
        steps = self.inside.get(path, [])
        if index not in steps:
            return
        step, name = steps.index(index), self.cut.graph.operations[index].name
        for other, module in self.modules.items():
            there = self.inside.get(other, [])
            if type(module) is type(self.modules[path]) and other != path and step < len(there):
                operation = self.cut.graph.operations[there[step]]
                if operation.name == name:
                    yield other, operation

    def _runs_beside(self, i: int, j: int) -> bool:
        return self.cut.graph.operations[i].module == self.cut.graph.operations[j].module

    def _outputs(self, index: int) -> list[Axis]:
        """The axes of what an operation makes."""
        return [axis for axes in self.cut.graph.operations[index].outputs for axis in axes]

    def _groups_in(self, axes: list[Axis]) -> list[str]:
        return [name for axis in axes for name, _ in axis.parts if name in self.cut.keeps]

    def _culprit(self) -> str:
        """The first group whose cut, with all before it, makes the network disagree; found by halving."""
        names = list(self.cut.keeps)
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            reach = self.probe.reach(self._only(names[:middle]), self.attributes)
            low, high = (low, middle) if reach.index is not None else (middle, high)
        return names[low]

    def _find_factors(self) -> None:
        """Groups whose width changes a number in the arithmetic: removing their units is not masking them."""
        if not changed_factors(self.cut, self.wide, self.calls):
            return
        cut_groups = [group for group in self.cut.graph if group.name in self.cut.keeps]
        for kind in sorted({group.kind for group in cut_groups}):
            some = self._only({group.name for group in cut_groups if group.kind == kind})
            calls = self.probe.reach(some, self.attributes).calls
            changed = changed_factors(some, self.wide, calls)
            for i, (before, after) in changed.items():
                operation = self.cut.graph.operations[i]
                axes = self._outputs(i)
                axes += [a for key, a in self.attributes.items() if key[0] in stack_of(operation.module)]
                where = operation.module or "the model itself"
                # a tensor that Python made of the number is an operation without any of the axes
                near = [j for j in self.inside[operation.module] if self._runs_beside(i, j)]
                around = [axis for j in near for axis in self._outputs(j)]
                found = [[n for n in self._groups_in(a) if n in some.keeps] for a in (axes, around)]
                for name in found[0] or found[1]:
                    change = f"{before:g} to {after:g} in {operation.name} at {where}"
                    self.inexact.setdefault(name, f"its width changes a factor: {change}")
