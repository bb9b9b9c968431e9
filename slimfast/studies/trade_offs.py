"""What a network loses over what is left of its cost: one measurement, a plan for each budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from typing_extensions import Unpack

from slimfast.arrays import Progress
from slimfast.calibration import Calibration, ErrorCurve, error_curves
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, did_you_mean, one_line
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.latency import LatencyTable, latency_table
from slimfast.memory import memory_table
from slimfast.plans import Plan
from slimfast.plans import plan as make_plan
from slimfast.plans.amounts import amount_of, bytes_of, time_of
from slimfast.plans.controls import uniform_like
from slimfast.plans.limits import Priced
from slimfast.plans.measured import within_measured
from slimfast.plans.request import Request, WidthOptions, check_request, takes_width_options
from slimfast.plans.solving import solved_plan
from slimfast.pruning.choices import Given, Repair, chosen
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.repair import check_kind
from slimfast.pruning.selection import Method
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.studies.scoring import Evaluate, check_evaluate, score_of
from slimfast.studies.sensitivities import model_in_eval
from slimfast.studies.trade_off_data import Point, TradeOff
from slimfast.wrappers import unwrapped

__all__ = ["Point", "TradeOff", "trade_off"]

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
# What a budget may limit, as far as plans know it.
LIMITED = ("macs", "params", "latency", "peak_memory")
_VERB = "trade_off"


@takes_width_options
def trade_off(
    model: nn.Module,
    example: Any = None,
    *,
    graph: ChannelGraph | None = None,
    budgets: Iterable[float | str] = BUDGETS,
    budget: str = "macs",
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
    evaluate: Evaluate | None = None,
    uniform: bool = True,
    calibration: Calibration | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    curves: Mapping[str, ErrorCurve] | None = None,
    select: Method | None = None,
    repair: Repair = "auto",
    memory_at_once: int = MEMORY,
    backend: str = "auto",
    progress: Progress | None = None,
    **options: Unpack[WidthOptions],
) -> TradeOff:
    """Plan a network for several budgets from one measurement, and say what each is predicted to lose.

    The other keywords are those of :func:`slimfast.plan`, and hold for every plan. Beside each plan stands
    the yardstick: the same share of the units of every group, at no more of the same cost.

    Args:
        model: The network; it is untouched.
        example: A tensor, a tuple or a dict of its arguments.
        graph: What :func:`slimfast.trace_channels` found in this model, to save a trace.
        budgets: The budgets, as shares or amounts.
        budget: What they limit: "macs", "params", the time of a forward as "latency", for which one table is
            measured for all plans where no ``latency_table`` is given, or its "peak_memory"; each thin
            network is then measured too.
        outputs: As for :func:`slimfast.trace_channels`.
        also: Likewise.
        evaluate: From a network in eval mode to its score: every plan is cut and scored before any training,
            and so is its yardstick.
        uniform: With the yardstick.
        calibration: From :func:`slimfast.calibrate`: the plans are then those by marginal gain, and what they
            lose is told by the error curves.
        spectra: Saved ones, which save the measurement where there is no calibration.
        curves: From :func:`slimfast.calibration.error_curves`, which save that of the calibration.
        select: How units are chosen for ``evaluate``, as for :func:`slimfast.prune_channels`.
        repair: How thin networks are repaired for it, likewise.
        memory_at_once: Bytes of activations held at once.
        backend: The kernels to use.
        progress: Called with the number of budgets done and of all.

    Returns:
        A point for every budget, in descending order, and the knee.

    Raises:
        ValueError: For wrong arguments, and an ``evaluate`` that returns no finite number.
        SlimfastError: For a model that cannot be traced, and where none of the budgets can be reached.

    Example:
        found = slimfast.trade_off(model, example, budgets=(0.8, 0.6, 0.4), calibration=calibration)
        print(found)
        plan = found.knee().plan
    """
    check_evaluate(evaluate, _VERB)
    wanted = _checked(budgets, budget, options)
    how = chosen(Given(select, repair, 0.0), calibrated=calibration is not None)
    check_kind(how.repair, calibration)
    model = unwrapped(model)
    if graph is None:
        if example is None:
            raise ArgumentTypeError(f"{_VERB}: expected an example of the model's arguments, or its graph")
        graph = trace_channels(model, example, outputs=outputs, also=list(also))
    if curves is None and calibration is not None:
        curves = error_curves(model, graph, calibration, memory=memory_at_once, backend=backend)
    if spectra is None and curves is None:
        spectra = measure_spectra(model, graph, backend=backend)
    measured = _Measured(model, example, graph, curves, spectra if curves is None and spectra else {})
    if budget == "latency" and options.get("latency_table") is None:
        options["latency_table"] = latency_table(graph, model, measured.example)
    if budget == "peak_memory" and options.get("memory_table") is None:
        options["memory_table"] = memory_table(graph, model, measured.example)
    priced = _priced(budget, graph, options)

    def score(plan: Plan) -> float | None:
        if evaluate is None:
            return None
        thin = prune_channels(
            model,
            plan,
            select=how.select,
            repair=how.repair,
            calibration=calibration,
            memory=memory_at_once,
            verify=False,
            backend=backend,
        )
        return score_of(evaluate, thin, _VERB)

    points, refused = [], {}
    whole = score_of(evaluate, model_in_eval(model), _VERB)
    for done, amount in enumerate(wanted):
        try:
            plan = measured.plan(backend, {**options, budget: amount})
        except SlimfastError as error:
            refused[amount] = one_line(error)
        else:
            points.append(_point(amount, plan, measured, score, budget if uniform else None, priced))
        if progress is not None:
            progress(done + 1, len(wanted))
    if not points:
        raise SlimfastError(f"{_VERB}: none of the budgets can be reached: {next(iter(refused.values()))}")
    predicted_by = "error curves" if measured.curves is not None else "explained variance"
    return TradeOff(budget, tuple(points), predicted_by, whole, refused)


def _point(
    amount: float,
    plan: Plan,
    measured: _Measured,
    score: Callable[[Plan], float | None],
    yardstick: str | None,
    priced: Priced | None,
) -> Point:
    uniform = None
    if yardstick is not None:
        limited: Any = yardstick
        uniform = uniform_like(plan, measured.graph, measured.spectra, budget=limited, priced=priced)
    return Point(
        amount=amount,
        plan=plan,
        predicted=measured.predicted(plan, plan),
        score=score(plan),
        uniform=uniform,
        uniform_predicted=None if uniform is None else measured.predicted(uniform, plan),
        uniform_score=None if uniform is None else score(uniform),
    )


def _priced(budget: str, graph: ChannelGraph, options: WidthOptions) -> Priced | None:
    """Make what tells the time or the memory of a yardstick."""
    table, sizes = options.get("latency_table"), options.get("memory_table")
    if budget == "latency" and table is not None:
        return LatencyTable.of(table).priced(graph)
    return sizes.priced(graph) if budget == "peak_memory" and sizes is not None else None


class _Measured:
    """A network measured once: its error curves, or its spectra."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        graph: ChannelGraph,
        curves: Mapping[str, ErrorCurve] | None,
        spectra: Mapping[str, Spectrum],
    ) -> None:
        self.model, self.graph, self.curves, self.spectra = model, graph, curves, spectra
        args, kwargs = graph.inputs.example() if example is None else ((), {})
        self.example = (args or kwargs) if example is None else example

    def plan(self, backend: str, options: Any) -> Plan:
        """Plan for one budget; a network that has a budget of time is measured too."""
        curves = self.curves
        if curves is not None:

            def solved(request: Request) -> Plan:
                return solved_plan(self.graph, {}, request, curves)

            return within_measured(solved, check_request(options), self.graph, self.model, self.example)
        return make_plan(self.model, graph=self.graph, spectra=self.spectra, backend=backend, **options)

    def predicted(self, plan: Plan, of: Plan) -> float:
        """Predict what widths lose, over the groups that ``of`` solved for: the share of the error that all
        curves together can make, or the mean share of the variance that is not explained.
        """
        chosen = {group.name for group in of.groups if group.chosen in ("tau", "gain")}
        widths = {group.name: group.width for group in plan.groups if group.name in chosen}
        if self.curves is not None:
            known = [self.curves[name] for name in widths if name in self.curves]
            most = math.fsum(float(curve.residual[0]) for curve in known)
            left = math.fsum(float(curve.residual[widths[curve.name]]) for curve in known)
            return left / most if most > 0.0 else 0.0
        shares = [1.0 - self.spectra[name].ratio(width) for name, width in widths.items()]
        return math.fsum(shares) / len(shares) if shares else 0.0


def _share_of_time(name: str, amount: float | str) -> float:
    share, in_seconds = time_of(name, amount)
    if in_seconds:
        raise ArgumentError(f"{_VERB}: expected shares as budgets of {name}, got {amount!r}")
    return share


def _checked(budgets: Iterable[float | str], budget: str, options: Mapping[str, Any]) -> list[float]:
    if budget not in LIMITED:
        raise ArgumentError(
            f"{_VERB}: expected budget to be one of {', '.join(LIMITED)}, got {budget!r}"
            f"{did_you_mean(budget, LIMITED)}"
        )
    if options.get(budget) is not None or options.get("explained_variance") is not None:
        given = budget if options.get(budget) is not None else "explained_variance"
        raise ArgumentError(f"{_VERB}: expected budgets of {budget} in budgets=, got {given}= too")
    if isinstance(budgets, (str, Mapping)) or not isinstance(budgets, Iterable):
        raise ArgumentTypeError(f"{_VERB}: expected budgets to be a sequence, got {type(budgets).__name__}")
    read = {"latency": _share_of_time, "peak_memory": bytes_of}.get(budget, amount_of)
    found = {read(budget, amount) for amount in budgets}
    if not found:
        raise ArgumentError(f"{_VERB}: expected at least one budget, got none")
    # Shares before amounts, for 1 is all and 2 next to nothing.
    shares: Sequence[float] = sorted((a for a in found if a <= 1), reverse=True)
    return [*shares, *sorted((a for a in found if a > 1), reverse=True)]
