"""The Python attributes that the numbers of an operation may come from, the likeliest first."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from slimfast.graph.channel_graph import Axis, ChannelGraph, Constant, Operation
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.patches import read_attribute
from slimfast.graph.cutting.prediction import item_of, split_argument
from slimfast.graph.recording.attributes import (
    AttributeKey,
    NumberToChange,
    axis_at,
    integers_of,
    names_in_code,
    stack_of,
)

# Attributes, each with the number that it is to follow.
Assignment: TypeAlias = Mapping[AttributeKey, NumberToChange]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the operations of a network run: ``inside`` has the numbers of those in each module, in order.

    ``names``: what each operation is called.
    """

    modules: Mapping[str, nn.Module]
    inside: Mapping[str, Sequence[int]]
    names: Sequence[str]

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], graph: ChannelGraph) -> Layout:
        """Sort the operations of a graph by module."""
        inside: dict[str, list[int]] = {}
        for i, operation in enumerate(graph.operations):
            for path in stack_of(operation.module):
                inside.setdefault(path, []).append(i)
        return cls(modules, inside, [operation.name for operation in graph.operations])

    def kind_of(self, index: int, path: str) -> tuple[Any, ...]:
        """Say which operation of which class of module this is."""
        return type(self.modules[path]), self.names[index], self.inside[path].index(index)

    def counterparts(self, path: str, index: int) -> Iterator[tuple[str, int]]:
        """Find other modules of the class of ``path``, with the operation that runs in each as ``index`` does
        in ``path``.
        """
        numbers = self.inside.get(path, [])
        if index not in numbers:
            return
        step = numbers.index(index)
        for other, module in self.modules.items():
            there = self.inside.get(other, [])
            alike = type(module) is type(self.modules[path]) and other != path and step < len(there)
            if alike and self.names[there[step]] == self.names[index]:
                yield other, there[step]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Sets of attributes to try at an operation of a network that is cut.

    ``settled``: attributes of which it is known what they follow, or that they follow nothing. ``explained``:
    (number of an operation, argument) of the constants that are known to come from elsewhere.
    """

    cut: Cut
    layout: Layout
    settled: Collection[AttributeKey]
    explained: Collection[tuple[int, str]]

    def own(self, index: int, stack: Sequence[str]) -> Iterator[Assignment]:
        """Find attributes that the constants of an operation may come from, fewest first.

        A number that comes from the shape of a tensor needs no attribute: each constant may go without.
        """
        constants = [
            number
            for number in self._numbers(index)
            if number.constant is not None and (index, number.constant) not in self.explained
        ]
        yield from self._in_order(constants, stack)
        choices: list[list[tuple[AttributeKey, NumberToChange] | None]] = []
        for number in constants[:4]:
            keys = [key for path in stack for key in self._keys(path, number)]
            choices.append([None, *((key, number) for key in keys[:6])])
        for picks in sorted(itertools.product(*choices), key=lambda p: sum(pick is not None for pick in p)):
            assignment = {pick[0]: pick[1] for pick in picks if pick is not None}
            if assignment and len(assignment) == sum(pick is not None for pick in picks):
                yield assignment

    def _in_order(self, constants: Sequence[NumberToChange], stack: Sequence[str]) -> Iterator[Assignment]:
        """Find tuples and lists that hold all of these constants in their order, like those of splits."""
        runs: dict[tuple[str, str, int], dict[AttributeKey, NumberToChange]] = {}
        for number in constants:
            place = split_argument(number.constant or "")[1]
            for key in (key for path in stack for key in self._keys(path, number)):
                if place is not None and key[2] is not None:
                    runs.setdefault((*key[:2], key[2] - place), {})[key] = number
        yield from (run for run in runs.values() if len(run) == len(constants) > 1)

    def nearby(self, stack: Sequence[str]) -> Iterator[Assignment]:
        """Find attributes that hold a length that changes in a module around the operation, alone and in
        pairs. What runs after the innermost of these modules has no say.
        """
        last = max(self.layout.inside.get(stack[0], ()), default=0)
        pairs: list[tuple[AttributeKey, NumberToChange]] = []
        for path in stack:
            # each change once, whichever operation shows it
            changes: dict[tuple[int, int], NumberToChange] = {}
            for i in (i for i in self.layout.inside.get(path, ()) if i <= last):
                for number in self._numbers(i):
                    changes.setdefault((number.axis.length, number.new), number)
            pairs += [(key, number) for number in changes.values() for key in self._keys(path, number)]
        for single in pairs:
            yield dict([single])
        for first, second in itertools.combinations(pairs[:8], 2):
            if first[0] != second[0]:
                yield dict([first, second])

    def _numbers(self, index: int) -> Iterator[NumberToChange]:
        """Find the numbers of an operation that change: its constants, then the lengths of what it makes."""
        operation = self.cut.graph.operations[index]
        places: list[tuple[Axis, str | None, tuple[int, int]]] = [
            *((constant.axis, constant.argument, (0, 0)) for constant in operation.constants),
            *((a, None, (o, d)) for o, axes in enumerate(operation.outputs) for d, a in enumerate(axes)),
        ]
        for axis, constant, output in places:
            new = self.cut.kept_length(axis)
            if new != axis.length:
                yield NumberToChange(axis, new, index, constant, output)

    def _keys(self, path: str, number: NumberToChange) -> Iterator[AttributeKey]:
        """Find the attributes of a module that hold the old length, of which nothing is known yet, and which
        the code of the module, or of one around it, names.
        """
        modules = self.layout.modules
        for name, index, value in integers_of(modules[path]):
            if value == number.axis.length and (path, name, index) not in self.settled:
                parts = name.split(".")
                if any(names_in_code(type(modules[p]).__mro__).issuperset(parts) for p in stack_of(path)):
                    yield path, name, index


def same_elsewhere(
    assignment: Assignment, layout: Layout, operations: Sequence[Operation]
) -> dict[AttributeKey, Axis]:
    """Find the same attributes of other modules of the class, where the same operation takes their number."""
    more: dict[AttributeKey, Axis] = {}
    for (path, name, index), number in assignment.items():
        for other, i in layout.counterparts(path, number.operation):
            axis = axis_at(operations[i], number)
            held = item_of(read_attribute(layout.modules[other], name), index)
            if axis is not None and held == axis.length:
                more[other, name, index] = axis
    return more


def named_alike(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> dict[AttributeKey, Axis]:
    """Find attributes named like the argument they are passed for; they need no trial."""
    return {key: constant.axis for _, constant, key in _by_name(graph, modules) if key is not None}


def followed_by_name(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], computed: Collection[int]
) -> dict[AttributeKey, Axis] | None:
    """Find attributes named alike where nothing else is needed.

    None where that leaves a constant that can change, or an attribute would follow two axes. ``computed``:
    operations whose constants PyTorch computes.
    """
    attributes: dict[AttributeKey, Axis] = {}
    for i, constant, key in _by_name(graph, modules):
        if i in computed:
            continue
        if key is None or attributes.setdefault(key, constant.axis) is not constant.axis:
            return None
    return attributes


def _by_name(
    graph: ChannelGraph, modules: Mapping[str, nn.Module]
) -> Iterator[tuple[int, Constant, AttributeKey | None]]:
    """Match (operation, constant, attribute named like it) for each constant that can change."""
    for i, operation in enumerate(graph.operations):
        for constant in operation.constants:
            if not constant.axis.places:
                continue
            name, index = split_argument(constant.argument)
            name = "num_groups" if name == "group" else name
            held = item_of(getattr(modules[operation.module], name, None), index)
            alike = held == constant.value and not isinstance(held, bool)
            yield i, constant, (operation.module, name, index) if alike else None
