"""Budgets of time and memory met in truth: the thin network is measured, the plan solved until it fits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from torch import nn

from slimfast.arrays import Progress
from slimfast.errors import SlimfastError
from slimfast.graph import ChannelGraph
from slimfast.graph.recording.network import Network
from slimfast.latency import LatencyTable, latency_table, measure_latency
from slimfast.latency.clock import device_of
from slimfast.latency.runtimes import machine_name
from slimfast.latency.tabulate import thin_network
from slimfast.memory import memory_table, peak_memory
from slimfast.plans.limits import LATENCY, LATENCY_SECONDS, PEAK, is_latency
from slimfast.plans.plan_data import Plan
from slimfast.plans.request import Request

_log = logging.getLogger(__name__)
# Between which shares of its budget a plan is not solved again.
_CLOSE = (0.97, 1.0)
# The same where a clock of ours measures, and what plans aim at then, so that it finds them inside again.
_TIME_AIM, _TIME_CLOSE = 0.985, (0.975, 0.995)
_ROUNDS = 6
# Where the same widths are found outside again, the factors are made so much larger.
_PUSH = 1.02


def with_tables(
    request: Request, graph: ChannelGraph, model: nn.Module, example: Any, progress: Progress | None
) -> Request:
    """Measure the tables of a request that needs them and has none."""
    if request.latency_table is None and any(map(is_latency, request.budget)):
        table = latency_table(graph, model, _given(graph, example), progress=progress)
        request = replace(request, latency_table=table)
    if request.memory_table is None and PEAK in request.budget:
        request = replace(request, memory_table=memory_table(graph, model, _given(graph, example)))
    return request


def within_measured(
    solve: Callable[[Request], Plan], request: Request, graph: ChannelGraph, model: nn.Module, example: Any
) -> Plan:
    """Solve a request, and where it has a budget of time or of memory again, until the thin network is inside
    when it is measured.

    What is predicted is corrected by one factor, of what a thin network took and what was predicted. A
    latency table of another machine is taken at its word, with a warning.
    """
    meters = _meters(request, graph, model, example)
    if not meters:
        return solve(request)
    inside: tuple[float, Plan] | None = None
    outside: tuple[float, str, Plan] | None = None
    seen: set[tuple[int, ...]] = set()
    exact, aiming = request, False
    for _ in range(_ROUNDS):
        aims = [meter.aim if aiming else 1.0 for meter in meters]
        wanted = exact
        for meter, aim in zip(meters, aims, strict=True):
            wanted = meter.scaled(wanted, 1.0 / aim)
        try:
            found = solve(wanted)
        except SlimfastError:
            if inside is not None:
                break
            if not aiming:
                raise
            # What is aimed at is out of reach, and the budget itself may not be.
            aiming = False
            continue
        widths = tuple(found.widths().values())
        if widths in seen:
            if inside is not None:
                break
            for meter in meters:
                exact = meter.scaled(exact, _PUSH)
            continue
        seen.add(widths)
        thin = thin_network(Network.of(model), graph, found.widths())
        told, readings = found, []
        for meter, aim in zip(meters, aims, strict=True):
            reading = meter.read(found, thin, aim)
            _log.info(
                "%s: at %g of the budget, off by a factor of %g", meter.name, reading.share, reading.off
            )
            told = reading.told(told)
            exact = meter.scaled(exact, reading.off)
            readings.append((reading.share, meter))
        share, binding = max(readings, key=lambda one: one[0])
        off_aim = abs(share - binding.aim)
        if share <= 1.0 and (inside is None or off_aim < inside[0]):
            inside = off_aim, told
        elif share > 1.0 and (outside is None or share < outside[0]):
            outside = share, binding.name, told
        if binding.close[0] <= share <= binding.close[1]:
            break
        aiming = True
    if inside is not None:
        return inside[1]
    assert outside is not None
    remedy = (
        "measure the table again on a quiet machine, or ask for a little less"
        if outside[1] == LATENCY
        else "ask for a little less"
    )
    warnings.warn(
        f"plan: the thin network takes {outside[0] - 1.0:.1%} more than the budget of {outside[1]} when it "
        f"is measured; {remedy}",
        stacklevel=4,
    )
    return outside[2]


class _Reading(NamedTuple):
    """What a meter says of a thin network.

    Its ``share`` of the budget, how far the prediction is ``off``, and the plan ``told`` of it.
    """

    share: float
    off: float
    told: Callable[[Plan], Plan]


class _Meter(Protocol):
    """Measures what thin networks take of one budget."""

    @property
    def name(self) -> str: ...

    @property
    def aim(self) -> float: ...

    @property
    def close(self) -> tuple[float, float]: ...

    def read(self, plan: Plan, thin: nn.Module, aim: float) -> _Reading:
        """Measure a thin network whose plan was to take the share ``aim`` of the budget."""
        ...

    def scaled(self, request: Request, factor: float) -> Request: ...


def _meters(request: Request, graph: ChannelGraph, model: nn.Module, example: Any) -> list[_Meter]:
    """Make the meters of the budgets that can be measured here."""
    meters: list[_Meter] = []
    table = request.latency_table
    if table is not None and any(map(is_latency, request.budget)) and _is_here(table, model, example):
        meters.append(_Clock(request, table, model, _given(graph, example)))
    if request.memory_table is not None and PEAK in request.budget:
        meters.append(_Scales(request.budget[PEAK], _given(graph, example)))
    return meters


def _given(graph: ChannelGraph, example: Any) -> Any:
    """Return an example of arguments, made up to the graph's description where none was given."""
    if example is not None:
        return example
    args, kwargs = graph.inputs.example()
    return args or kwargs


def _is_here(table: LatencyTable, model: nn.Module, example: Any) -> bool:
    """Whether thin networks can be measured as the table was; a warning where its machine is another."""
    if table.runtime == "measure":
        return table.measure is not None
    here = machine_name(device_of(model, example))
    if here != table.machine:
        warnings.warn(
            f"latency_table: measured on {table.machine}, and this is {here}: the thin network is not "
            "measured",
            stacklevel=6,
        )
    return here == table.machine


class _Clock:
    """Measures a thin network and the whole one in turn, as a table was measured."""

    name = LATENCY

    def __init__(self, request: Request, table: LatencyTable, model: nn.Module, example: Any) -> None:
        # A clock of the user's own is taken at its word.
        own = table.measure is not None
        self.aim, self.close = (1.0, _CLOSE) if own else (_TIME_AIM, _TIME_CLOSE)
        self._budget, self._model, self._example = request.budget, model, example
        self._how: dict[str, Any] = {"measure": table.measure}
        if table.measure is None:
            self._how = {"runtime": table.runtime, "threads": table.threads}

    def read(self, plan: Plan, thin: nn.Module, aim: float) -> _Reading:
        """Measure both networks."""
        found = plan.latency
        assert found is not None
        predicted = found.predicted * aim
        both = measure_latency([self._model, thin], self._example, **self._how)
        whole = both[0].seconds
        cut = both[1].share_of(both[0]) * whole
        limits = []
        if LATENCY in self._budget:
            limits.append(self._budget[LATENCY] * whole)
        if LATENCY_SECONDS in self._budget:
            limits.append(self._budget[LATENCY_SECONDS])
        # A share of the whole network is one of what it takes now.
        scale = found.before / whole if LATENCY in self._budget else 1.0
        measured = replace(found, before=whole, predicted=predicted / scale, measured=cut)
        return _Reading(
            cut / min(limits), scale * cut / predicted, lambda told: replace(told, latency=measured)
        )

    def scaled(self, request: Request, factor: float) -> Request:
        """Correct what is predicted."""
        return replace(request, latency_factor=request.latency_factor * factor)


class _Scales:
    """Measures the peak memory of a thin network."""

    name, aim, close = PEAK, 1.0, _CLOSE

    def __init__(self, budget: float, example: Any) -> None:
        self._budget, self._example = budget, example

    def read(self, plan: Plan, thin: nn.Module, aim: float) -> _Reading:
        """Measure it."""
        found = plan.peak_memory
        assert found is not None
        predicted = found.predicted * aim
        taken = float(peak_memory(thin, self._example).total)
        most = self._budget * found.before if self._budget <= 1 else self._budget
        measured = replace(found, predicted=predicted, measured=taken)
        return _Reading(taken / most, taken / predicted, lambda told: replace(told, peak_memory=measured))

    def scaled(self, request: Request, factor: float) -> Request:
        """Correct what is predicted."""
        return replace(request, memory_factor=request.memory_factor * factor)
