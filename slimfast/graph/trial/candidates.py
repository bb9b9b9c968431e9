"""Which Python attributes may be where the numbers of an operation come from, the likeliest first."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from slimfast.graph.channel_graph import Axis, ChannelGraph, Constant
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import item_of, split_argument
from slimfast.graph.recording.attributes import Key, Wanted, integers_of


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Sets of attributes to try at an operation of a network that is cut.

    ``modules`` by path, ``inside``: the operations that run in each, ``settled``: attributes that are known
    to follow an axis.
    """

    cut: Cut
    modules: Mapping[str, nn.Module]
    inside: Mapping[str, list[int]]
    settled: Collection[Key]

    def own(self, index: int, stack: list[str]) -> Iterator[dict[Key, Wanted]]:
        """Attributes that the constants of an operation may come from, fewest first.

        A number that comes from the shape of a tensor needs no attribute: each constant may go without.
        """
        constants = self._wanted([index], constants_only=True)
        yield from self._in_order(constants, stack)
        choices: list[list[tuple[Key, Wanted] | None]] = []
        for wanted in constants[:4]:
            keys = [key for path in stack for key in self._keys(path, wanted)]
            choices.append([None, *((key, wanted) for key in keys[:6])])
        for picks in sorted(itertools.product(*choices), key=lambda p: sum(pick is not None for pick in p)):
            assignment = {pick[0]: pick[1] for pick in picks if pick is not None}
            if assignment and len(assignment) == sum(pick is not None for pick in picks):
                yield assignment

    def _in_order(self, constants: list[Wanted], stack: list[str]) -> Iterator[dict[Key, Wanted]]:
        """Tuples and lists that hold all of these constants in their order, like those of splits."""
        runs: dict[tuple[str, str, int], dict[Key, Wanted]] = {}
        for wanted in constants:
            place = split_argument(wanted.constant or "")[1]
            for key in (key for path in stack for key in self._keys(path, wanted)):
                if place is not None and key[2] is not None:
                    runs.setdefault((*key[:2], key[2] - place), {})[key] = wanted
        yield from (run for run in runs.values() if len(run) == len(constants) > 1)

    def nearby(self, stack: list[str]) -> Iterator[dict[Key, Wanted]]:
        """Attributes that hold a length that changes in a module around the operation, alone and in pairs."""
        found: list[tuple[Key, Wanted]] = []
        for path in stack:
            for wanted in self._wanted(self.inside.get(path, [])):
                found += [(key, wanted) for key in self._keys(path, wanted)]
        for single in found:
            yield dict([single])
        for first, second in itertools.combinations(found[:8], 2):
            if first[0] != second[0]:
                yield dict([first, second])

    def _wanted(self, indices: list[int], *, constants_only: bool = False) -> list[Wanted]:
        """The numbers that change at these operations; outside of one operation's constants, each change
        once.
        """
        found: dict[Any, Wanted] = {}
        for i in indices:
            operation = self.cut.graph.operations[i]
            for constant in operation.constants:
                wanted = Wanted(constant.axis, self.cut.kept_length(constant.axis), i, constant.argument)
                found.setdefault(
                    constant.argument if constants_only else (constant.value, wanted.new), wanted
                )
            if constants_only:
                continue
            for o, axes in enumerate(operation.outputs):
                for d, axis in enumerate(axes):
                    wanted = Wanted(axis, self.cut.kept_length(axis), i, None, (o, d))
                    found.setdefault((axis.length, wanted.new), wanted)
        return [wanted for wanted in found.values() if wanted.new != wanted.axis.length]

    def _keys(self, path: str, wanted: Wanted) -> Iterator[Key]:
        """The attributes of a module that hold the old length and are not known to follow an axis."""
        for name, index, value in integers_of(self.modules[path]):
            if value == wanted.axis.length and (path, name, index) not in self.settled:
                yield path, name, index


def named_alike(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> dict[Key, Axis]:
    """Attributes named like the argument they are passed for; they need no trial."""
    return {key: constant.axis for _, constant, key in _by_name(graph, modules) if key is not None}


def followed_by_name(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], computed: Collection[int]
) -> dict[Key, Axis] | None:
    """:func:`named_alike`; None where that leaves a constant that can change, or an attribute would follow
    two axes. ``computed``: operations whose constants PyTorch computes.
    """
    found: dict[Key, Axis] = {}
    for i, constant, key in _by_name(graph, modules):
        if i in computed:
            continue
        if key is None or found.setdefault(key, constant.axis) is not constant.axis:
            return None
    return found


def _by_name(
    graph: ChannelGraph, modules: Mapping[str, nn.Module]
) -> Iterator[tuple[int, Constant, Key | None]]:
    """The number of the operation, constant and attribute named alike, of the constants that can change."""
    for i, operation in enumerate(graph.operations):
        for constant in operation.constants:
            if not constant.axis.parts:
                continue
            name, index = split_argument(constant.argument)
            name = "num_groups" if name == "group" else name
            held = item_of(getattr(modules[operation.module], name, None), index)
            alike = held == constant.value and not isinstance(held, bool)
            yield i, constant, (operation.module, name, index) if alike else None
