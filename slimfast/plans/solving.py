"""A request for a graph, solved: one width for each group, and the plan that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimfast.arrays import IntArray
from slimfast.calibration.curves import ErrorCurve
from slimfast.errors import SlimfastError
from slimfast.graph import ChannelGraph
from slimfast.latency.pricing import PricedLatency
from slimfast.latency.timing import seconds_text
from slimfast.memory.measuring import bytes_text
from slimfast.memory.table import PricedMemory
from slimfast.plans.budget import BudgetUnreachable, Rounding, Solution, settled, widths_at, widths_within
from slimfast.plans.costs import CostModel
from slimfast.plans.gains import widths_by_gain
from slimfast.plans.limits import PEAK, Limits, is_latency
from slimfast.plans.narrow import warn_of_few
from slimfast.plans.plan_data import GroupPlan, Plan
from slimfast.plans.predicted import PlanLatency, PlanMemory
from slimfast.plans.request import Choice, Request, choose, rounding_of
from slimfast.plans.stairs import with_stairs
from slimfast.plans.unreachable import remedies, why_unreachable
from slimfast.plans.unseen import warn_of_unseen
from slimfast.spectra import until_settled
from slimfast.spectra.spectrum import Spectrum


def solved_plan(
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    request: Request,
    curves: Mapping[str, ErrorCurve] | None = None,
) -> Plan:
    """Solve the widths from spectra, or where there are error curves by what each unit gains."""
    plan = _plan(_problem(graph, spectra, request, curves), spectra)
    warn_of_few(plan.groups)
    warn_of_unseen(graph, plan.groups)
    return plan


def settled_plan(
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    request: Request,
    again: Callable[[Mapping[str, Spectrum], Sequence[str]], Mapping[str, Spectrum]],
) -> Plan:
    """Solve the widths from spectra until every one is certified; ``again`` measures those that leave one
    open.
    """
    problem = _problem(graph, spectra, request)

    def solve(measured: Mapping[str, Spectrum]) -> tuple[Plan, list[str]]:
        found = _plan(problem, measured)
        return found, [group.name for group in found.groups if not group.certified]

    plan = until_settled(spectra, solve, again)
    warn_of_unseen(graph, plan.groups)
    return plan


@dataclass(frozen=True, slots=True)
class _Problem:
    """A request for a graph: ``free`` are the indices of the groups that tau or the ``curves`` decide,
    ``fixed`` (g,) all widths with those at full.
    """

    graph: ChannelGraph
    request: Request
    costs: CostModel
    limits: Limits
    choices: list[Choice]
    fixed: IntArray
    free: IntArray
    rounding: Rounding
    curves: Mapping[str, ErrorCurve] | None
    latency: PricedLatency | None
    memory: PricedMemory | None

    def spectra(self, spectra: Mapping[str, Spectrum]) -> list[Spectrum]:
        """Return the spectra of the free groups."""
        return [spectra[self.graph.groups[i].name] for i in self.free]

    def widths(self, free: IntArray) -> IntArray:
        """Return all widths, with those of the free groups."""
        widths: IntArray = self.fixed.copy()
        widths[self.free] = free
        return widths


def _problem(
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    request: Request,
    curves: Mapping[str, ErrorCurve] | None = None,
) -> _Problem:
    if not graph.groups:
        reasons = sorted({f.reason for f in graph.frozen})
        told = [f": {'; '.join(reasons[:3])}"] if reasons else []
        help_for = [f"; {remedy}" for remedy in remedies(reasons, request)]
        raise SlimfastError(f"plan: the model has no channel group that can be cut{''.join(told + help_for)}")
    table = request.latency_table
    latency = None if table is None else table.priced(graph, factor=request.latency_factor)
    sizes = request.memory_table
    memory = None if sizes is None else sizes.priced(graph, factor=request.memory_factor)
    limits = Limits(graph, request.budget, latency, memory)
    choices = [
        # What no budget counts is left alone.
        Choice("excluded", choice.width)
        if request.budget and choice.chosen in ("tau", "gain") and not limits.told_of(i)
        else choice
        for i, choice in enumerate(choose(graph, spectra, request, curves))
    ]
    free = [i for i, choice in enumerate(choices) if choice.chosen in ("tau", "gain")]
    return _Problem(
        graph=graph,
        request=request,
        costs=CostModel(graph),
        limits=limits,
        choices=choices,
        fixed=np.array([choice.width for choice in choices], dtype=np.int64),
        free=np.array(free, dtype=np.int64),
        rounding=_rounding(graph, free, request, latency),
        curves=curves,
        latency=latency,
        memory=memory,
    )


def _rounding(
    graph: ChannelGraph, free: Sequence[int], request: Request, latency: PricedLatency | None
) -> Rounding:
    """Say what the widths of the free groups may be: with a budget of time, none that is slower than a wider
    one.
    """
    rounding = rounding_of(graph, [graph.groups[i] for i in free], request)
    if latency is None or not any(map(is_latency, request.budget)):
        return rounding
    return with_stairs(rounding, latency, free)


def _solve(problem: _Problem, spectra: Mapping[str, Spectrum]) -> Solution | None:
    """Solve the widths of the free groups; None where every width was given by hand."""
    request = problem.request
    if request.explained_variance is not None:
        return widths_at(problem.spectra(spectra), request.explained_variance, problem.rounding)
    if not request.budget:
        return None
    limits, whole = problem.limits.most, problem.limits.whole

    def price(widths: IntArray) -> Mapping[str, float]:
        return problem.limits.price(problem.widths(widths))

    try:
        if problem.curves is not None:
            curves = [problem.curves[problem.graph.groups[i].name] for i in problem.free]
            return widths_by_gain(curves, limits, price, problem.rounding, whole=whole)
        return widths_within(problem.spectra(spectra), limits, price, problem.rounding, whole=whole)
    except BudgetUnreachable as error:
        why = why_unreachable(problem.graph, problem.choices, request)
        if problem.latency is not None and any(map(is_latency, request.budget)):
            error = BudgetUnreachable(
                f"{error}; {seconds_text(problem.latency.fixed_seconds())} of it no width changes"
            )
        if problem.memory is not None and PEAK in request.budget:
            error = BudgetUnreachable(
                f"{error}; {bytes_text(problem.memory.least())} are there at one unit of every group"
            )
        raise SlimfastError(f"{error}{f'; {why}' if why else ''}") from None


def _unsettled(problem: _Problem, spectra: Mapping[str, Spectrum], solution: Solution | None) -> list[str]:
    """Name the free groups whose measurement leaves the width at this tau open."""
    if solution is None or solution.explained_variance is None:
        return []
    free = problem.spectra(spectra)
    sure = settled(free, solution.explained_variance, problem.rounding)
    return [s.name for s, ok in zip(free, sure, strict=True) if not ok]


def _plan(problem: _Problem, spectra: Mapping[str, Spectrum]) -> Plan:
    graph, costs = problem.graph, problem.costs
    solution = _solve(problem, spectra)
    widths = problem.fixed if solution is None else problem.widths(solution.widths)
    unsettled = set(_unsettled(problem, spectra, solution))
    before, after = costs.group_costs(costs.full), costs.group_costs(widths)
    groups = []
    for i, group in enumerate(graph.groups):
        width, chosen = int(widths[i]), problem.choices[i].chosen
        spectrum = spectra.get(group.name)
        curve = problem.curves[group.name] if problem.curves is not None and chosen == "gain" else None
        groups.append(
            GroupPlan(
                name=group.name,
                kind=group.kind,
                n=group.n,
                width=width,
                explained_variance=curve.ratio(width) if curve else _share(spectrum, group.n, width),
                certified=curve is None and group.name not in unsettled,
                dtype=spectrum.dtype if spectrum and curve is None else None,
                chosen=chosen,
                before=before[i],
                after=after[i],
            )
        )
    return Plan(
        groups=tuple(groups),
        explained_variance=None if solution is None else solution.explained_variance,
        budget=problem.request.asked(),
        multiple_of=problem.request.multiple_of,
        cost_before=costs.cost(costs.full),
        cost_after=costs.cost(widths),
        shapes={name: tuple(axis.length for axis in axes) for name, axes in graph.axes.items()},
        inputs=graph.inputs,
        allocation="explained_variance" if problem.curves is None else "marginal_gain",
        outputs=graph.outputs,
        also=graph.also,
        graph=graph,
        latency=_latency(problem, widths),
        peak_memory=_memory(problem, widths),
    )


def _latency(problem: _Problem, widths: IntArray) -> PlanLatency | None:
    """Say what the table predicts, where there is one."""
    table = problem.request.latency_table
    if table is None or problem.latency is None:
        return None
    return PlanLatency.of(table, problem.latency.whole, problem.latency.price(widths))


def _memory(problem: _Problem, widths: IntArray) -> PlanMemory | None:
    """Say what is predicted of the memory, where there is a table."""
    table = problem.request.memory_table
    if table is None or problem.memory is None:
        return None
    return PlanMemory.of(table, problem.memory, widths)


def _share(spectrum: Spectrum | None, n: int, width: int) -> float:
    """Return F(width) where the group was measured, else 0; 1 for a whole group."""
    if width == n:
        return 1.0
    return spectrum.ratio(width) if spectrum is not None and spectrum.n == n else 0.0
