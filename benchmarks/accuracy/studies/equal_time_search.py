"""Thin networks that take the same time: a clock for widths, and the search for the share of the MACs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.accuracy.studies.study import Allocation, Study
from slimfast.errors import SlimfastError
from slimfast.graph.recording.network import Network
from slimfast.latency import LatencyTable, latency_table, measure_latency
from slimfast.latency.tabulate import thin_network
from slimfast.plans import Plan

EQUAL = 0.02
"""Times that are no further apart, as a share of the first plan's, are the same."""
LONGER = 3.0
"""How many times as long what is shown is measured."""
# What the search looks for, so that measuring longer finds it within what is equal.
_CLOSE = 0.01
_ROUNDS = 10


class Clock:
    """Times thin networks in turn with the whole one, and predicts them; ``how`` they are timed is as for
    :func:`slimfast.measure_latency`.
    """

    def __init__(self, study: Study, example: Any, seconds: float, **how: Any) -> None:
        self._study, self._example, self._seconds, self._how = study, example, seconds, how
        self.table: LatencyTable = latency_table(study.graph, study.model, example, **how)
        self._priced = self.table.priced(study.graph)

    def predicted(self, widths: Mapping[str, int]) -> float:
        """The share of the whole network's time that the table says, uncorrected."""
        return self.table.predicted(self._study.graph, widths) / self._priced.whole

    def measured(self, *several: Mapping[str, int], longer: float = 1.0) -> list[float]:
        """The shares of the whole network's time that networks of these widths take, all in turn."""
        network = Network.of(self._study.model)
        thin = [thin_network(network, self._study.graph, widths) for widths in several]
        options = {"seconds": longer * self._seconds, **self._how}
        whole, *cut = measure_latency([self._study.model, *thin], self._example, **options)
        return [one.share_of(whole) for one in cut]


def moved(
    study: Study, allocate: Allocation, first: Mapping[str, int], clock: Clock
) -> tuple[Plan, float, float]:
    """The plan of the allocation that takes the same time as widths ``first``, or comes nearest to it.

    The share of the time that it takes, measured, and how much longer than the first, as a share of that.
    """
    low, high = 0.0, 1.0
    seen: dict[tuple[int, ...], tuple[float, float]] = {}
    nearest: tuple[Plan, float, float] | None = None
    for _ in range(_ROUNDS):
        share = (low + high) / 2
        try:
            found = allocate(study, share)
        except SlimfastError:
            # No widths cost so little.
            low = share
            continue
        widths = found.widths()
        key = tuple(widths.values())
        if key not in seen:
            seen[key] = _beside(clock, first, widths, 1.0)
            if abs(seen[key][1]) <= _CLOSE:
                seen[key] = _beside(clock, first, widths, LONGER)
        measured, apart = seen[key]
        if nearest is None or abs(apart) < abs(nearest[2]):
            nearest = found, measured, apart
        if abs(apart) <= _CLOSE:
            break
        low, high = (low, share) if apart > 0 else (share, high)
    if nearest is None:
        raise SlimfastError(f"equal_time: no budget of MACs up to {high:g} of the whole can be reached")
    return nearest


def _beside(
    clock: Clock, first: Mapping[str, int], widths: Mapping[str, int], longer: float
) -> tuple[float, float]:
    ours, theirs = clock.measured(first, widths, longer=longer)
    return theirs, theirs / ours - 1.0
