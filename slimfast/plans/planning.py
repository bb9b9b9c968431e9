"""The verbs of plans: widths from spectra under a budget, and whether a plan fits a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from slimfast.arrays import IntArray, Progress
from slimfast.calibration.curves import ErrorCurve, error_curves
from slimfast.calibration.moments import Calibration
from slimfast.errors import ArgumentError, SlimfastError, did_you_mean
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.plans.budget import Rounding, Solution, settled, widths_at, widths_within
from slimfast.plans.costs import Cost, CostModel
from slimfast.plans.gains import widths_by_gain
from slimfast.plans.plan_data import ALLOCATIONS, Allocation, GroupPlan, Plan
from slimfast.plans.request import (
    Choice,
    Request,
    WidthOptions,
    check_request,
    choose,
    rounding_of,
    takes_width_options,
)
from slimfast.spectra import measure_again, measure_spectra, until_settled
from slimfast.spectra.eigenvalues import Scaling
from slimfast.spectra.spectrum import Spectrum

_log = logging.getLogger(__name__)


@takes_width_options
def plan_widths(
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    *,
    curves: Mapping[str, ErrorCurve] | None = None,
    **options: Unpack[WidthOptions],
) -> Plan:
    """One width for each channel group of a traced network, from its spectra; takes milliseconds.

    Either ``explained_variance``, the share of its variance that every group keeps, or a budget of ``params``
    or ``macs`` or both: a share of the original in (0, 1], or above 1 an absolute number. A budget is met by
    the largest share that all groups can keep; groups that would take their next unit at the same share take
    it one by one in the order of the graph. What the next unit is too dear for goes to the other groups in
    equal shares, as does a budget above what keeping everything needs: no group's next unit would fit.

    ``multiple_of`` rounds widths up to multiples, or to the whole group; for heads and blocks of channels,
    which are cut whole, it is the number of channels that is a multiple. No group gets fewer than
    ``min_width`` units (or all it has). ``overrides`` sets widths by hand: globs of group names or kinds to a
    number of units, or as a float to a share of them; the first glob that matches counts, and it counts as it
    is. Groups that an ``exclude`` glob matches, or no ``include`` glob, are left alone, as are those without
    weights of their own and those of only one position per unit, whose variance says nothing.

    With ``curves`` (:func:`slimfast.error_curves`) a budget is spent by marginal gain instead: the units that
    lower the output's summed error most for their cost come first, and groups without a curve are left
    alone. Spectra are then only shown.

    Raises ``ValueError`` for wrong arguments, and :class:`SlimfastError` for spectra that are missing or not
    of this network, and for a budget that cannot be reached, with the nearest that can.
    """
    request = check_request(options)
    if curves is not None and request.explained_variance is not None:
        raise ArgumentError("plan: error curves spend a budget of params or macs, got explained_variance")
    problem = _problem(graph, spectra, request, curves)
    return _plan(problem, spectra, _solve(problem, spectra))


@takes_width_options
def plan(
    model: nn.Module,
    example: Any,
    *,
    allocation: Allocation | None = None,
    calibration: Calibration | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    dtype: torch.dtype | None = None,
    scaling: Scaling = "raw",
    member_scaling: bool = False,
    backend: str = "auto",
    progress: Progress | None = None,
    **options: Unpack[WidthOptions],
) -> Plan:
    """A plan in one call: the model traced with ``example``, its spectra measured, its widths solved.

    Groups whose width float32 does not settle at the tau that is found are measured again in float64, and the
    widths solved again until all are settled, so that the plan is the one that float64 LAPACK gives.
    ``spectra`` saves the first measurement where it was made before; ``progress`` counts what is settled.
    Arguments as for :func:`plan_widths` and :func:`measure_spectra`.

    ``allocation`` is how a budget is spent: by one ``explained_variance`` for all groups, or by
    ``marginal_gain``, from the error curves of a ``calibration`` (:func:`slimfast.calibrate`) and without
    spectra. By default it is the latter where there is a calibration.
    """
    request = check_request(options)
    by_gain = _by_gain(allocation, calibration, request)
    graph = trace_channels(model, example)
    _log.info("traced %s: %d groups, %d frozen", type(model).__name__, len(graph.groups), len(graph.frozen))
    if by_gain is not None:
        problem = _problem(graph, {}, request, error_curves(model, graph, by_gain, backend=backend))
        return _plan(problem, {}, _solve(problem, {}))
    if spectra is None:
        spectra = measure_spectra(
            model,
            graph,
            dtype=dtype,
            scaling=scaling,
            member_scaling=member_scaling,
            backend=backend,
            progress=progress,
        )

    def again(measured: Mapping[str, Spectrum], names: Sequence[str]) -> dict[str, Spectrum]:
        if progress is not None:
            progress(len(measured) - len(names), len(measured))
        return measure_again(model, measured, names, graph, backend=backend)

    return settled_plan(graph, spectra, request, again)


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
        found = _plan(problem, measured, _solve(problem, measured))
        return found, [group.name for group in found.groups if not group.certified]

    return until_settled(spectra, solve, again)


def _by_gain(
    allocation: Allocation | None, calibration: Calibration | None, request: Request
) -> Calibration | None:
    """The calibration to spend the budget by; None where one explained variance does."""
    if allocation not in (None, *ALLOCATIONS):
        raise ArgumentError(
            f"plan: expected allocation {' or '.join(ALLOCATIONS)}, got {allocation!r}"
            f"{did_you_mean(allocation, ALLOCATIONS)}"
        )
    if allocation == "marginal_gain" and calibration is None:
        raise ArgumentError(
            "plan: marginal_gain needs a calibration: slimfast.calibrate(model, graph, batches)"
        )
    if request.explained_variance is not None:
        if allocation == "marginal_gain":
            raise ArgumentError(
                "plan: marginal_gain spends a budget of params or macs, got explained_variance"
            )
        return None
    return None if allocation == "explained_variance" else calibration


def check_plan(plan: Plan, model: nn.Module) -> None:
    """:class:`SlimfastError` naming the first tensor in which ``model`` is not the plan's."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, shape in plan.shapes.items():
        if name not in found:
            raise SlimfastError(f"plan: expected a model with {name} of shape {shape}, got one without it")
        if found[name] != shape:
            raise SlimfastError(
                f"plan: expected a model with {name} of shape {shape}, got shape {found[name]}"
            )
    for name, shape in found.items():
        if name not in plan.shapes:
            raise SlimfastError(f"plan: expected a model without {name}, got one with it, of shape {shape}")


@dataclass(frozen=True, slots=True)
class _Problem:
    """A request for a graph: ``free`` are the indices of the groups that tau or the ``curves`` decide,
    ``fixed`` (g,) all widths with those at full.
    """

    graph: ChannelGraph
    request: Request
    costs: CostModel
    choices: list[Choice]
    fixed: IntArray
    free: IntArray
    rounding: Rounding
    curves: Mapping[str, ErrorCurve] | None

    def spectra(self, spectra: Mapping[str, Spectrum]) -> list[Spectrum]:
        """The spectra of the free groups."""
        return [spectra[self.graph.groups[i].name] for i in self.free]

    def widths(self, free: IntArray) -> IntArray:
        """All widths, with those of the free groups."""
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
        reasons = "; ".join(sorted({f.reason for f in graph.frozen})[:3])
        raise SlimfastError(
            f"plan: the model has no channel group that can be cut{f': {reasons}' if reasons else ''}"
        )
    choices = choose(graph, spectra, request, curves)
    free = [i for i, choice in enumerate(choices) if choice.chosen in ("tau", "gain")]
    return _Problem(
        graph=graph,
        request=request,
        costs=CostModel(graph),
        choices=choices,
        fixed=np.array([choice.width for choice in choices], dtype=np.int64),
        free=np.array(free, dtype=np.int64),
        rounding=rounding_of([graph.groups[i] for i in free], request),
        curves=curves,
    )


def _solve(problem: _Problem, spectra: Mapping[str, Spectrum]) -> Solution | None:
    """The widths of the free groups; None where every width was given by hand."""
    request = problem.request
    if request.explained_variance is not None:
        return widths_at(problem.spectra(spectra), request.explained_variance, problem.rounding)
    if not request.budget:
        return None
    whole = problem.costs.cost(problem.costs.full)
    limits = request.limits(whole)

    def price(widths: IntArray) -> Cost:
        return problem.costs.cost(problem.widths(widths))

    if problem.curves is not None:
        curves = [problem.curves[problem.graph.groups[i].name] for i in problem.free]
        return widths_by_gain(curves, limits, price, problem.rounding, whole=whole)
    return widths_within(problem.spectra(spectra), limits, price, problem.rounding, whole=whole)


def _unsettled(problem: _Problem, spectra: Mapping[str, Spectrum], solution: Solution | None) -> list[str]:
    """The free groups whose measurement leaves the width at this tau open."""
    if solution is None or solution.explained_variance is None:
        return []
    free = problem.spectra(spectra)
    sure = settled(free, solution.explained_variance, problem.rounding)
    return [s.name for s, ok in zip(free, sure, strict=True) if not ok]


def _plan(problem: _Problem, spectra: Mapping[str, Spectrum], solution: Solution | None) -> Plan:
    graph, costs = problem.graph, problem.costs
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
        graph=graph,
    )


def _share(spectrum: Spectrum | None, n: int, width: int) -> float:
    """F(width) where the group was measured, else 0; 1 for a whole group."""
    if width == n:
        return 1.0
    return spectrum.ratio(width) if spectrum is not None and spectrum.n == n else 0.0
