"""Budgets as limits: of the whole network, or of a part of it, on its parameters and its multiply-adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from slimfast.arrays import IntArray
from slimfast.errors import ArgumentError, ArgumentTypeError, did_you_mean
from slimfast.graph import ChannelGraph
from slimfast.graph.recording.attributes import stack_of
from slimfast.plans.amounts import amount_of
from slimfast.plans.costs import Cost, CostModel

COSTS = ("params", "macs")
# Stands between what is limited and the globs of the part in a budget's name.
_OF = " of "


def budget_of(options: Mapping[str, Any]) -> dict[str, float]:
    """Read the budgets of width options: by ``params``, ``macs``, or as ``params of GLOB`` for a part.

    An option is an amount, of the part ``within`` where that is given, or a mapping from globs to amounts.
    """
    within = options.get("within")
    if within is not None:
        globs = [within] if isinstance(within, str) else list(within)
        if not globs or not all(isinstance(glob, str) and glob for glob in globs):
            raise ArgumentError(f"plan: expected within to be a glob or several, got {within!r}")
        within = ", ".join(globs)
    found: dict[str, float] = {}
    for name in COSTS:
        value = options.get(name)
        if isinstance(value, Mapping):
            if within is not None:
                raise ArgumentError(f"plan: expected within, or globs in {name}, got both")
            for glob, amount in value.items():
                if not isinstance(glob, str) or not glob:
                    raise ArgumentTypeError(f"plan: expected globs in {name}, got {glob!r}")
                found[f"{name}{_OF}{glob}"] = amount_of(f"{name}[{glob!r}]", amount)
        elif value is not None:
            found[name if within is None else f"{name}{_OF}{within}"] = amount_of(name, value)
    if within is not None and not found:
        raise ArgumentError("plan: expected params or macs for the part that within names, got none of them")
    return found


def is_budget(name: str) -> bool:
    """Whether something is the name of a budget of the whole network or of a part."""
    return re.fullmatch(f"({'|'.join(COSTS)})({_OF}.+)?", name) is not None


class Limits:
    """The limits of a budget on a traced network, and what widths cost under each of them."""

    def __init__(self, graph: ChannelGraph, budget: Mapping[str, float]) -> None:
        self._parts = {name: _part(graph, name) for name in budget}
        self.whole = {name: self._cost(name, costs.full) for name, costs in self._parts.items()}
        self.most = {k: v * self.whole[k] if v <= 1 else v for k, v in budget.items()}

    def price(self, widths: IntArray) -> dict[str, float]:
        """Count what these widths (g,) cost under each limit."""
        return {name: self._cost(name, widths) for name in self._parts}

    def told_of(self, group: int) -> bool:
        """Whether a group has a say in what is limited."""
        return any(costs.takes_part(group) for costs in self._parts.values())

    def _cost(self, name: str, widths: IntArray) -> float:
        found: Cost = self._parts[name].cost(widths)
        return float(getattr(found, name.partition(_OF)[0]))


def _part(graph: ChannelGraph, name: str) -> CostModel:
    """Make the costs of what a budget counts; ``ValueError`` for a glob that means nothing of the network."""
    _, of, text = name.partition(_OF)
    if not of:
        return CostModel(graph)
    globs = text.split(", ")
    paths = {path for tensor in graph.axes for path in _around(tensor)}
    paths |= {path for operation in graph.operations for path in stack_of(operation.module)}
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise ArgumentError(
                f"plan: within: {glob} is no layer and no tensor of the model{did_you_mean(glob, paths)}"
            )
    return CostModel(graph, within=lambda path: any(_meant(path, glob) for glob in globs))


def _meant(path: str, glob: str) -> bool:
    return any(fnmatchcase(around, glob) for around in _around(path))


def _around(path: str) -> Iterable[str]:
    """List a path and those of the modules around it."""
    parts = path.split(".")
    return (".".join(parts[:i]) for i in range(len(parts), 0, -1))
