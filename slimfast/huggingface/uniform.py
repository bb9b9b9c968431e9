"""Plans for networks whose layers must stay equally wide: one share for each kind of layer."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from slimfast.calibration import Calibration, error_curves
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, UnsupportedGraph
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.network import Network
from slimfast.huggingface.knobs import Knobs
from slimfast.huggingface.stock import built_without_data
from slimfast.huggingface.turning import Turned, by_gain, by_variance
from slimfast.latency import LatencyTable
from slimfast.memory import MemoryTable
from slimfast.plans import Plan, plan_widths
from slimfast.plans.budget import amount_text
from slimfast.plans.costs import CostModel
from slimfast.plans.fingerprint import fingerprint
from slimfast.plans.language_models import warn_without_data
from slimfast.plans.limits import Limits
from slimfast.plans.measured import with_tables, within_measured
from slimfast.plans.multiples import Multiples
from slimfast.plans.predicted import PlanLatency, PlanMemory
from slimfast.plans.request import Choice, Request, check_request
from slimfast.plans.unreachable import why_unreachable
from slimfast.pruning import select
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.wrappers import unwrapped

# Halvings of the interval that holds tau.
_BISECTIONS = 40
# Of the kinds of layers that stay whole for one reason an error names so many.
_TOLD = 3


def plan_uniform(
    model: nn.Module,
    example: Any,
    *,
    params: float | str | Mapping[str, float | str] | None = None,
    macs: float | str | Mapping[str, float | str] | None = None,
    latency: float | str | None = None,
    latency_table: LatencyTable | str | os.PathLike[str] | None = None,
    peak_memory: float | str | None = None,
    memory_table: MemoryTable | None = None,
    within: str | Iterable[str] | None = None,
    calibration: Calibration | None = None,
    multiple_of: Multiples = 1,
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
    memory: int = MEMORY,
    backend: str = "auto",
) -> Plan:
    """Plan a Hugging Face transformer so that its stock class still describes it.

    Layers of the same kind keep the same number of units (attention heads, hidden units of the MLP, channels
    of the residual stream), each kind the share that the spectra of its groups give on average. With a
    calibration, which a language model needs, the shares are those that lower the output's error most for
    their cost (:func:`slimfast.error_curves`), and the units that stay are chosen by activations.

    What the configuration of the class cannot say stays whole: positions inside heads, and heads without the
    residual stream where the class takes the size of a head for a share of it, or computes a scale from a
    width. With few, large steps (heads) a plan stays further below the budget. What the class cannot hold is
    found before any weight is read.

    Args:
        model: A ``transformers.PreTrainedModel``.
        example: A tensor, a tuple or a dict of its arguments.
        params: Budget of parameters, as for :func:`slimfast.plan_widths`.
        macs: Budget of multiply-adds, likewise.
        latency: Budget of the time of one forward, as for :func:`slimfast.plan_widths`: a table is measured
            where none is given, and the thin network is measured until it is inside.
        latency_table: What the time is predicted by, of a graph traced with ``exclude=["head_dim"]``.
        peak_memory: Budget of the bytes that one forward holds at once, likewise.
        memory_table: What the memory follows from.
        within: The budget counts these layers alone, likewise.
        calibration: From :func:`slimfast.calibrate`; pass it to :func:`slimfast.prune_channels` for a repair.
        multiple_of: What widths are multiples of, or whole; a mapping has a multiple for each glob, as for
            :func:`slimfast.plan_widths`. Those of a mixture of experts are multiples of 16 bytes besides,
            where the class runs all experts by one grouped product.
        outputs: Which outputs stay as they are, as for :func:`slimfast.trace_channels`: an encoder's states,
            which a model for sequences to sequences returns as well, keep its residual stream whole.
        also: Examples of other calls, likewise.
        memory: Bytes of activations held at once for error curves.
        backend: The kernels to use.

    Returns:
        A plan that :func:`slimfast.save_pretrained` can write the thin network of.

    Raises:
        ValueError: Without a budget.
        TypeError: For what is no transformer.
        SlimfastError: Where no attribute of the configuration narrows anything, or not enough.

    Example:
        plan = slimfast.plan_uniform(model, example, params=0.6)
        thin = slimfast.prune_channels(model, plan)
        slimfast.save_pretrained(thin, "thin", example)   # AutoModel.from_pretrained("thin") from now on

        plan = slimfast.plan_uniform(model, example, params=0.6, calibration=calibration)
        thin = slimfast.prune_channels(model, plan, calibration=calibration)
    """
    model = unwrapped(model)
    if not hasattr(model, "config") or not hasattr(model.config, "to_dict"):
        raise ArgumentTypeError(f"plan_uniform: expected a transformers model, got {type(model).__name__}")
    if (params, macs, latency, peak_memory) == (None, None, None, None):
        raise ArgumentError("plan_uniform: expected params, macs, latency or peak_memory, got none of them")
    request = check_request(
        {
            "params": params,
            "macs": macs,
            "latency": latency,
            "latency_table": latency_table,
            "peak_memory": peak_memory,
            "memory_table": memory_table,
            "within": within,
        }
    )
    try:
        graph = trace_channels(model, example, exclude=["head_dim"], outputs=outputs, also=also)
    except ArgumentError:
        # There are no heads to leave whole; anything else that is wrong is said again.
        graph = trace_channels(model, example, outputs=outputs, also=also)
    knobs = Knobs(model, graph, multiple_of)
    if not knobs.chosen:
        raise SlimfastError(
            f"plan_uniform: no attribute of {type(model.config).__name__} narrows the layers of "
            f"{type(model).__name__}{_told(graph, knobs, request)}"
        )
    request = with_tables(request, graph, model, example, None)
    problem = _Problem(graph, knobs, request)
    spectra: dict[str, Spectrum] = {}
    if calibration is None:
        warn_without_data(model, "plan_uniform: widths are chosen")
        spectra = measure_spectra(model, graph, backend=backend)
        turned = by_variance(knobs.chosen, spectra)
    else:
        curves = error_curves(model, graph, calibration, memory=memory, backend=backend)
        turned = by_gain(knobs.chosen, curves, graph, problem.limits)
    made: dict[tuple[int, ...], dict[str, int]] = {}

    def solve(wanted: Request) -> Plan:
        problem = _Problem(graph, knobs, wanted)
        widths = problem.solved(turned)
        overrides = {glob.escape(name): width for name, width in widths.items()}
        solved = plan_widths(graph, spectra, overrides=overrides, multiple_of=multiple_of)
        made[tuple(solved.widths().values())] = widths
        return problem.told(solved)

    plan = within_measured(solve, request, graph, model, example)
    widths = made[tuple(plan.widths().values())]
    found = knobs.config_of_cut(widths)
    if found.config is None:
        raise SlimfastError(
            f"plan_uniform: no {type(model.config).__name__} describes the widths of the budget: {found.why}"
        )
    _check_stock(model, found.config, graph)
    plan = replace(plan, weights=fingerprint(model))
    if calibration is None:
        return plan
    return select(model, plan, method="activations", calibration=calibration, backend=backend)


def _check_stock(model: nn.Module, config: Any, graph: ChannelGraph) -> None:
    """Refuse widths that the stock class takes and its forward does not: kernels that want multiples of 8."""
    stock = built_without_data(model, config)
    if stock is None:
        return
    try:
        for call in (graph.inputs, *graph.also):
            record(Network.of(stock.eval()), *call.example())
    except UnsupportedGraph as error:
        raise SlimfastError(
            f"plan_uniform: with the widths of the budget the stock {error}; multiple_of=16 may help"
        ) from error


class _Problem:
    """The widths of a traced network that its knobs can turn to, under a budget.

    Raises:
        SlimfastError: Where the least of them are above it.
    """

    def __init__(self, graph: ChannelGraph, knobs: Knobs, request: Request) -> None:
        self._costs = CostModel(graph)
        self._knobs = knobs.chosen
        table, sizes = request.latency_table, request.memory_table
        self._latency = None if table is None else table.priced(graph, factor=request.latency_factor)
        self._memory = None if sizes is None else sizes.priced(graph, factor=request.memory_factor)
        self._request = request
        self.limits = Limits(graph, request.budget, self._latency, self._memory)
        least = [0] * len(self._knobs)
        if not self._fits(least):
            raise SlimfastError(
                f"plan_uniform: no widths that the configuration can say have "
                f"{self._missed(self._cost(least))}{_told(graph, knobs, request)}"
            )

    def _widths(self, steps: Sequence[int]) -> dict[str, int]:
        turned = zip(self._knobs, steps, strict=True)
        return {name: width for knob, step in turned for name, width in knob.widths(step).items()}

    def _cost(self, steps: Sequence[int]) -> dict[str, float]:
        return self.limits.price(self._costs.vector(self._widths(steps)))

    def _fits(self, steps: Sequence[int]) -> bool:
        cost = self._cost(steps)
        return all(cost[name] <= limit for name, limit in self.limits.most.items())

    def _missed(self, least: Mapping[str, float]) -> str:
        return ", ".join(
            f"{name} <= {amount_text(name, limit)} (at least {amount_text(name, least[name])} of "
            f"{amount_text(name, self.limits.whole[name])})"
            for name, limit in self.limits.most.items()
        )

    def told(self, plan: Plan) -> Plan:
        """Say in a plan what is predicted of the time and the memory of its widths."""
        widths = self._costs.vector(plan.widths())
        table, sizes = self._request.latency_table, self._request.memory_table
        if table is not None and self._latency is not None:
            latency = PlanLatency.of(table, self._latency.whole, self._latency.price(widths))
            plan = replace(plan, latency=latency)
        if sizes is not None and self._memory is not None:
            plan = replace(plan, peak_memory=PlanMemory.of(sizes, self._memory, widths))
        return plan

    def solved(self, turned: Turned) -> dict[str, int]:
        """Solve the widths with the knobs turned up as far as fits, then turn up any knob that still fits."""
        knobs = self._knobs
        low, high = 0.0, 1.0
        # Of a knob that nothing is known of all stays; where that is too much it is turned with the others.
        steps = turned(low)
        if not self._fits(steps):
            steps = [0] * len(knobs)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            found = turned(middle)
            if self._fits(found):
                low, steps = middle, found
            else:
                high = middle
        # Knobs take their steps at other places; those that come next are taken as long as they fit.
        further_up = turned(high)
        for k in sorted(range(len(knobs)), key=lambda k: further_up[k] == steps[k]):
            while steps[k] + 1 < len(knobs[k].steps):
                further = [step + (i == k) for i, step in enumerate(steps)]
                if not self._fits(further):
                    break
                steps = further
        return self._widths(steps)


def _told(graph: ChannelGraph, knobs: Knobs, request: Request) -> str:
    """Say what stays whole, in the class and in the network, and what may help."""
    kept: dict[str, list[str]] = {}
    for name, why in knobs.whole.items():
        kept.setdefault(why, []).append(name)
    parts = [f"{', '.join(names[:_TOLD])} stay whole: {why}" for why, names in kept.items()]
    choices = [Choice("tau", group.n) for group in graph]
    parts.append(why_unreachable(graph, choices, request))
    return "".join(f"; {part}" for part in parts if part)
