"""Choose which layers go, one after another: those whose absence the output feels least for their cost."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from slimfast.errors import ArgumentError, did_you_mean
from slimfast.pruning.depth.shorter import Dropped
from slimfast.pruning.depth.stacks import Branch, Stack

# What goes at once: whole layers, or attention and MLP apart.
Parts: TypeAlias = Literal["layers", "branches"]


@dataclass(frozen=True, slots=True)
class Unit:
    """A layer or a branch that can go: its name, the modules it is made of, and its layer and stack."""

    name: str
    modules: tuple[str, ...]
    block: str
    stack: str


def units_of(stacks: Sequence[Stack], parts: Parts) -> dict[str, Unit]:
    """List what can go, by name."""
    if parts == "layers":
        return {name: Unit(name, (name,), name, stack.path) for stack in stacks for name in stack.blocks}
    return {
        branch.name: Unit(branch.name, branch.modules, block.name, stack.path)
        for stack in stacks
        for block in stack.blocks.values()
        for branch in block.branches
        if branch.alone or len(block.branches) == 1
    }


def named_units(stacks: Sequence[Stack], names: Sequence[str]) -> list[Unit]:
    """Look up layers and branches that were named; ``ValueError`` for what cannot go, with the reason."""
    known = units_of(stacks, "branches") | units_of(stacks, "layers")
    found = []
    for name in names:
        if name in known:
            found.append(known[name])
            continue
        reason = next((stack.kept[name] for stack in stacks if name in stack.kept), None)
        branches = {b.name for s in stacks for block in s.blocks.values() for b in block.branches}
        if reason is None and name in branches:
            reason = "it is not computed by modules of its own"
        if reason is None:
            reason = "it is no residual block of a list of such, and no branch of one"
        raise ArgumentError(f"drop_layers: {name} cannot go: {reason}{did_you_mean(name, known)}")
    return found


def dropped_of(
    stacks: Sequence[Stack], units: Sequence[Unit], returns: Mapping[str, int]
) -> tuple[list[Dropped], set[str]]:
    """Say what becomes of which module when these go, and which branches those are.

    Of a block whose last branch goes nothing stays. ``returns``: how many values a module returns.
    """
    names = {unit.name for unit in units}
    dropped: list[Dropped] = []
    gone: set[str] = set()
    for stack in stacks:
        for block in stack.blocks.values():
            going = [b for b in block.branches if block.name in names or b.name in names]
            gone.update(branch.name for branch in going)
            if len(going) == len(block.branches):
                dropped.append(Dropped(block.name, "gone"))
                continue
            for branch in going:
                dropped += _stubs(branch, returns)
    return dropped, gone


def _stubs(branch: Branch, returns: Mapping[str, int]) -> list[Dropped]:
    *before, last = branch.modules
    return [Dropped(name, "input", returns[name]) for name in before] + [
        Dropped(last, "zeros", returns[last])
    ]


def emptied(stacks: Sequence[Stack], dropped: Iterable[Dropped]) -> str | None:
    """Find a list of which nothing stays, which no class can be built with; None where there is none."""
    gone = {one.name for one in dropped if one.fate == "gone"}
    return next((stack.path for stack in stacks if gone.issuperset(stack.names)), None)


class Least:
    """The next unit to go: of the least rise in divergence for the share of the excess that it saves.

    What a unit costs when others are gone already is at least what it costs alone, so that of the units only
    the first in line is measured again (lazy greedy: Minoux, 1978); where one costs less than before, it is
    what was measured last that counts.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        alone: Mapping[str, float],
        saving: Callable[[Unit], float],
        measure: Callable[[Sequence[Unit]], float] | None,
    ) -> None:
        self._saving, self._measure = saving, measure
        self._at = 0.0
        self.taken: list[Unit] = []
        self._line = [
            (alone[unit.name] / saving(unit), place, unit)
            for place, unit in enumerate(units)
            if saving(unit) > 0
        ]
        heapq.heapify(self._line)

    def take(self, allowed: Callable[[Unit], bool]) -> bool:
        """Take the next unit that is ``allowed``; False where there is none."""
        measured: set[str] = set()
        while self._line:
            rise, place, unit = heapq.heappop(self._line)
            if not allowed(unit):
                continue
            if self._measure is not None and self.taken and unit.name not in measured:
                measured.add(unit.name)
                now = self._measure([*self.taken, unit])
                fresh = (now - self._at) / self._saving(unit)
                heapq.heappush(self._line, (fresh, place, unit))
                continue
            self._at += rise * self._saving(unit) if math.isfinite(rise) else 0.0
            self.taken.append(unit)
            return True
        return False
