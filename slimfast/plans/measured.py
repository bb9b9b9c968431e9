"""A budget of time met in truth: the thin network is measured, and the plan solved again until it fits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from slimfast.arrays import Progress
from slimfast.graph import ChannelGraph
from slimfast.graph.recording.network import Network
from slimfast.latency import LatencyTable, latency_table, measure_latency
from slimfast.latency.clock import device_of
from slimfast.latency.runtimes import machine_name
from slimfast.latency.tabulate import thin_network
from slimfast.plans.limits import LATENCY, LATENCY_SECONDS, is_latency
from slimfast.plans.plan_data import Plan
from slimfast.plans.request import Request

_log = logging.getLogger(__name__)
# A plan that is this close to its budget is not solved again.
_CLOSE = 0.97
_ROUNDS = 6
# Where the same widths are found outside again, the factor is made so much larger.
_PUSH = 1.02


def with_table(
    request: Request, graph: ChannelGraph, model: nn.Module, example: Any, progress: Progress | None
) -> Request:
    """Measure the latency table of a request that needs one and has none."""
    if request.latency_table is not None or not any(map(is_latency, request.budget)):
        return request
    table = latency_table(graph, model, _given(graph, example), progress=progress)
    return replace(request, latency_table=table)


def within_measured(
    solve: Callable[[Request], Plan], request: Request, graph: ChannelGraph, model: nn.Module, example: Any
) -> Plan:
    """Solve a request, and where it has a budget of time again, until the thin network is inside when it is
    measured.

    The table is corrected by one factor, of what a thin network took and what was predicted. A table of
    another machine is taken at its word, with a warning.
    """
    table = request.latency_table
    if table is None or not any(map(is_latency, request.budget)) or not _is_here(table, model, example):
        return solve(request)
    pair = _Pair(table, graph, model, _given(graph, example))
    inside: tuple[float, Plan] | None = None
    outside: tuple[float, Plan] | None = None
    seen: set[tuple[int, ...]] = set()
    factor = 1.0
    for _ in range(_ROUNDS):
        found = solve(replace(request, latency_factor=factor))
        widths = tuple(found.widths().values())
        if widths in seen:
            if inside is not None:
                break
            factor *= _PUSH
            continue
        seen.add(widths)
        whole, thin = pair.seconds(found)
        assert found.latency is not None
        share = thin / _most(request, whole)
        _log.info("latency: predicted %g, measured %g of %g s", found.latency.predicted, thin, whole)
        told = replace(found, latency=replace(found.latency, before=whole, measured=thin))
        if share <= 1.0 and (inside is None or share > inside[0]):
            inside = share, told
        elif share > 1.0 and (outside is None or share < outside[0]):
            outside = share, told
        if _CLOSE <= share <= 1.0:
            break
        # A share of the whole network is one of what it takes now.
        scale = found.latency.before / whole if LATENCY in request.budget else 1.0
        factor *= scale * thin / found.latency.predicted
    if inside is not None:
        return inside[1]
    assert outside is not None
    warnings.warn(
        f"plan: the thin network takes {outside[0] - 1.0:.1%} more than the budget of latency when it is "
        "measured; measure the table again on a quiet machine, or ask for a little less",
        stacklevel=4,
    )
    return outside[1]


def _given(graph: ChannelGraph, example: Any) -> Any:
    """Return an example of arguments, made up to the graph's description where none was given."""
    if example is not None:
        return example
    args, kwargs = graph.inputs.example()
    return args or kwargs


def _most(request: Request, whole: float) -> float:
    """Compute the seconds that a budget allows, from what the whole network takes now."""
    limits = []
    if LATENCY in request.budget:
        limits.append(request.budget[LATENCY] * whole)
    if LATENCY_SECONDS in request.budget:
        limits.append(request.budget[LATENCY_SECONDS])
    return min(limits)


def _is_here(table: LatencyTable, model: nn.Module, example: Any) -> bool:
    """Whether thin networks can be measured as the table was; a warning where its machine is another."""
    if table.runtime == "measure":
        return table.measure is not None
    here = machine_name(device_of(model, example))
    if here != table.machine:
        warnings.warn(
            f"latency_table: measured on {table.machine}, and this is {here}: the thin network is not "
            "measured",
            stacklevel=5,
        )
    return here == table.machine


class _Pair:
    """Measures a thin network and the whole one in turn, as a table was measured."""

    def __init__(self, table: LatencyTable, graph: ChannelGraph, model: nn.Module, example: Any) -> None:
        self._table, self._graph = table, graph
        self._network, self._example = Network.of(model), example

    def seconds(self, plan: Plan) -> tuple[float, float]:
        """Measure the whole network, and one as wide as the plan."""
        thin = thin_network(self._network, self._graph, plan.widths())
        table = self._table
        how: dict[str, Any] = {"measure": table.measure}
        if table.measure is None:
            how = {"runtime": table.runtime, "threads": table.threads}
        whole, cut = measure_latency([self._network.model, thin], self._example, **how)
        return whole.seconds, cut.seconds
