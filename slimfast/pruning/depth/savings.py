"""What goes with a layer, of what a budget limits."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from slimfast.graph.channel_graph import ChannelGraph
from slimfast.plans.limits import part_model


class Part(Protocol):
    """What can go: its name, and the modules that go."""

    @property
    def name(self) -> str: ...
    @property
    def modules(self) -> tuple[str, ...]: ...


class Savings:
    """The limits of a budget, and what goes with parts of the network; one of each where nothing is limited,
    so that all parts save the same.
    """

    def __init__(self, graph: ChannelGraph | None, budget: Mapping[str, float]) -> None:
        self._graph = graph
        self._parts = {name: name.partition(" of ")[::2] for name in budget}
        self._whole = {name: self._count(name, ("*",)) for name in budget}
        self._most = {
            name: amount * self._whole[name] if amount <= 1 else amount for name, amount in budget.items()
        }
        self._of = functools.cache(self._saved)

    def _count(self, name: str, inside: Iterable[str]) -> float:
        assert self._graph is not None, "a budget is one of a graph"
        cost, globs = self._parts[name]
        model = part_model(self._graph, globs, inside)
        return float(getattr(model.cost(np.array(model.full)), cost))

    def _saved(self, modules: tuple[str, ...]) -> dict[str, float]:
        return {name: self._count(name, modules) for name in self._most}

    def of(self, part: Part) -> float:
        """Sum the shares that a part saves of what is too much under each limit; 1 where none is."""
        if not self._most:
            return 1.0
        excess = {name: self._whole[name] - most for name, most in self._most.items()}
        saved = self._of(part.modules)
        return sum(saved[name] / over for name, over in excess.items() if over > 0)

    def left(self, parts: Iterable[Part]) -> dict[str, float]:
        """Count what is left without these parts, under each limit."""
        saved = [self._of(part.modules) for part in parts]
        return {name: whole - sum(each[name] for each in saved) for name, whole in self._whole.items()}

    def met(self, parts: Iterable[Part]) -> bool:
        """Say whether the budget is met without these parts."""
        left = self.left(parts)
        # Counts are whole: what is less than half of one above a share is its rounding.
        return all(left[name] < most + 0.5 for name, most in self._most.items())

    def missed(self, parts: Iterable[Part]) -> str:
        """Say what is too much without these parts."""
        left = self.left(parts)
        return ", ".join(
            f"{name} <= {most:,.0f} (at least {left[name]:,.0f} of {self._whole[name]:,.0f})"
            for name, most in self._most.items()
            if left[name] > most
        )
