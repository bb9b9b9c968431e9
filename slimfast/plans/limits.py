"""Budgets as limits: on the parameters and multiply-adds of the network or a part of it, and on its time
and its memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np

from slimfast.arrays import IntArray
from slimfast.errors import ArgumentError, ArgumentTypeError, did_you_mean
from slimfast.graph import ChannelGraph
from slimfast.graph.recording.attributes import stack_of
from slimfast.plans.amounts import amount_of, bytes_of, time_of
from slimfast.plans.costs import CostModel

COSTS = ("params", "macs")
# What a forward takes: as a share of what the whole network takes, or in seconds.
LATENCY, LATENCY_SECONDS = "latency", "latency_seconds"
# The bytes that a forward holds at once: as a share of those of the whole network, or above 1 as bytes.
PEAK = "peak_memory"
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
    if options.get(LATENCY) is not None:
        amount, in_seconds = time_of(LATENCY, options[LATENCY])
        found[LATENCY_SECONDS if in_seconds else LATENCY] = amount
    if options.get(PEAK) is not None:
        found[PEAK] = bytes_of(PEAK, options[PEAK])
    return found


def options_of(budget: Mapping[str, float]) -> dict[str, Any]:
    """Make the width options ``params`` and ``macs`` that :func:`budget_of` reads as this budget."""
    options: dict[str, Any] = {}
    for name, amount in budget.items():
        cost, of, globs = name.partition(_OF)
        if of:
            options.setdefault(cost, {})[globs] = amount
        else:
            options[cost] = amount
    return options


def is_latency(name: str) -> bool:
    """Whether a budget of that name limits the time of a forward."""
    return name in (LATENCY, LATENCY_SECONDS)


def is_budget(name: str) -> bool:
    """Whether something is the name of a budget of the whole network or of a part."""
    return (
        is_latency(name) or name == PEAK or re.fullmatch(f"({'|'.join(COSTS)})({_OF}.+)?", name) is not None
    )


class Priced(Protocol):
    """What a forward costs at widths, beyond what can be counted; ``whole`` is what the network does."""

    @property
    def whole(self) -> float: ...

    def price(self, widths: IntArray) -> float: ...

    def takes_part(self, group: int) -> bool: ...


class Limits:
    """The limits of a budget on a traced network, and what widths cost under each of them."""

    def __init__(
        self,
        graph: ChannelGraph,
        budget: Mapping[str, float],
        latency: Priced | None = None,
        memory: Priced | None = None,
    ) -> None:
        if latency is None and any(map(is_latency, budget)):
            raise ArgumentError(
                "plan: expected a latency_table for a budget of latency, got none; make one with "
                "slimfast.latency_table(graph, model, example)"
            )
        if memory is None and PEAK in budget:
            raise ArgumentError(
                "plan: expected a memory_table for a budget of peak_memory, got none; make one with "
                "slimfast.memory_table(graph, model, example)"
            )
        self._priced = {name: latency for name in budget if latency is not None and is_latency(name)}
        if memory is not None and PEAK in budget:
            self._priced[PEAK] = memory
        # What is limited and of which part; a part that has several limits is counted once.
        self._limited = {name: name.partition(_OF)[::2] for name in budget if name not in self._priced}
        self._parts = {globs: part_model(graph, globs) for _, globs in self._limited.values()}
        full = np.array([group.n for group in graph.groups], dtype=np.int64)
        self.whole = self.price(full) | {name: priced.whole for name, priced in self._priced.items()}
        shares = {name for name, amount in budget.items() if amount <= 1 and name != LATENCY_SECONDS}
        self.most = {k: v * self.whole[k] if k in shares else v for k, v in budget.items()}

    def price(self, widths: IntArray) -> dict[str, float]:
        """Count what these widths (g,) cost under each limit."""
        costs = {globs: part.cost(widths) for globs, part in self._parts.items()}
        counted = {name: float(getattr(costs[globs], cost)) for name, (cost, globs) in self._limited.items()}
        return counted | {name: priced.price(widths) for name, priced in self._priced.items()}

    def told_of(self, group: int) -> bool:
        """Whether a group has a say in what is limited."""
        parts: list[CostModel | Priced] = [*self._parts.values(), *self._priced.values()]
        return any(part.takes_part(group) for part in parts)


def part_model(graph: ChannelGraph, text: str, inside: Iterable[str] = ("*",)) -> CostModel:
    """Make the costs of the part that the globs in ``text`` name, of all where there are none, as far as it
    lies ``inside`` of what these globs name; ``ValueError`` for a glob that means nothing of the network.
    """
    inner = list(inside)
    globs = text.split(", ") if text else []
    if not globs and inner == ["*"]:
        return CostModel(graph)
    paths = {path for tensor in graph.axes for path in _around(tensor)}
    paths |= {path for operation in graph.operations for path in stack_of(operation.module)}
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise ArgumentError(
                f"plan: within: {glob} is no layer and no tensor of the model{did_you_mean(glob, paths)}"
            )

    def counts(path: str) -> bool:
        return all(any(_meant(path, glob) for glob in some) for some in (globs or ["*"], inner))

    return CostModel(graph, within=counts)


def _meant(path: str, glob: str) -> bool:
    return any(fnmatchcase(around, glob) for around in _around(path))


def _around(path: str) -> Iterable[str]:
    """List a path and those of the modules around it."""
    parts = path.split(".")
    return (".".join(parts[:i]) for i in range(len(parts), 0, -1))
