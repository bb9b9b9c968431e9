"""The figures of a report as data: what is drawn, whatever draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from slimfast.arrays import FloatArray
from slimfast.calibration import ErrorCurve
from slimfast.plans import Plan
from slimfast.spectra import Spectrum
from slimfast.studies import Sensitivities, TradeOff

# What a series is, which decides its colour: the network before and after, a yardstick, what stands out, or
# the place of a group in the network (``depth``).
Role = Literal["before", "after", "yardstick", "accent", "depth"]
Kind = Literal["line", "points", "bars"]

# So many points draw a curve as well as all of its units.
_POINTS = 48


@dataclass(frozen=True, slots=True)
class Series:
    """Points, a line or bars; x are numbers or names, ``texts`` says of each what to show besides."""

    name: str
    kind: Kind
    role: Role
    x: tuple[float, ...] | tuple[str, ...]
    y: tuple[float, ...]
    texts: tuple[str, ...] = ()
    depth: float = 0.0


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure: its series over two axes, with what it says in a sentence."""

    name: str
    title: str
    says: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]


def widths_chart(plan: Plan) -> Chart:
    """Draw the units of each group before and after."""
    names = tuple(group.name for group in plan.groups)
    texts = tuple(f"{group.n} -> {group.width} ({group.chosen})" for group in plan.groups)
    return Chart(
        "widths",
        "Widths",
        "Units of each group before and after, in the order of the network.",
        "group",
        "units",
        (
            Series("before", "bars", "before", names, tuple(float(g.n) for g in plan.groups), texts),
            Series("after", "bars", "after", names, tuple(float(g.width) for g in plan.groups), texts),
        ),
    )


def costs_chart(plan: Plan) -> Chart:
    """Draw the multiply-adds that each group has a part in, before and after."""
    names = tuple(group.name for group in plan.groups)
    before = tuple(float(group.before.macs) for group in plan.groups)
    after = tuple(float(group.after.macs) for group in plan.groups)
    texts = tuple(
        f"{group.before.macs:,} -> {group.after.macs:,} MACs, "
        f"{group.before.params:,} -> {group.after.params:,} parameters"
        for group in plan.groups
    )
    return Chart(
        "costs",
        "Cost by layer",
        "Multiply-adds of the operations that each group takes part in; groups share operations, so that "
        "these add up to more than the network's.",
        "group",
        "MACs",
        (
            Series("before", "bars", "before", names, before, texts),
            Series("after", "bars", "after", names, after, texts),
        ),
    )


def curves_chart(plan: Plan, curves: Mapping[str, Spectrum] | Mapping[str, ErrorCurve]) -> Chart | None:
    """Draw what each group's units keep over their share, with the width of the plan on it; None where there
    is no curve of any of its groups.
    """
    drawn = [group for group in plan.groups if group.name in curves and curves[group.name].n == group.n]
    if not drawn:
        return None
    series, at, kept, texts = [], [], [], []
    for place, group in enumerate(drawn):
        curve = curves[group.name]
        units = _some(group.n, group.width)
        y = kept_by(curve, units)
        x = tuple(float(k) for k in units / group.n)
        told = tuple(f"{k} of {group.n} units" for k in units)
        depth = place / max(len(drawn) - 1, 1)
        series.append(Series(group.name, "line", "depth", x, tuple(map(float, y)), told, depth))
        at.append(group.width / group.n)
        kept.append(float(kept_by(curve, np.array([group.width]))[0]))
        texts.append(f"{group.name}: {group.n} -> {group.width} ({group.chosen})")
    series.append(Series("chosen", "points", "accent", tuple(at), tuple(kept), tuple(texts)))
    by_error = isinstance(curves[drawn[0].name], ErrorCurve)
    what = "share of the error that the units take away" if by_error else "explained variance"
    if plan.explained_variance is not None and not by_error:
        tau = plan.explained_variance
        series.append(Series(f"tau = {tau:.4g}", "line", "yardstick", (0.0, 1.0), (tau, tau)))
    says = (
        "What the output would lose without a group's units, as far as they take it away; the points are the "
        "widths of the plan."
        if by_error
        else "The share of a group's variance that so many of its units can explain; the points are the "
        "widths of the plan."
    )
    title = "Error curves" if by_error else "Explained variance"
    return Chart("curves", title, says, "share of the units that stay", what, tuple(series))


def kept_by(curve: Spectrum | ErrorCurve, units: Sequence[int] | np.ndarray) -> FloatArray:
    """Compute what so many units keep, as a share."""
    return np.array([curve.ratio(int(k)) for k in units], dtype=np.float64)


def _some(n: int, width: int) -> np.ndarray:
    """Choose some of 0, ..., n, the ends and the width among them."""
    even = np.linspace(0, n, min(n + 1, _POINTS)).round().astype(np.int64)
    return np.unique(np.append(even, width))


def trade_off_chart(found: TradeOff) -> Chart:
    """Draw what is lost over what is left of the cost, by the scores where there are any."""
    scored = found.score is not None
    left = tuple(point.left(found.budget) for point in found.points)
    texts = tuple(f"{found.budget} = {point.amount:g}" for point in found.points)
    lost = tuple(float(p.score or 0.0) if scored else p.predicted for p in found.points)
    series = [Series("plan", "line", "after", left, lost, texts)]
    yardsticks = [p for p in found.points if p.uniform is not None and p.uniform_predicted is not None]
    if yardsticks:
        series.append(
            Series(
                "equal shares",
                "line",
                "yardstick",
                tuple(p.left(found.budget) for p in yardsticks),
                tuple(float((p.uniform_score if scored else p.uniform_predicted) or 0.0) for p in yardsticks),
                tuple(f"{found.budget} = {p.amount:g}, equal shares" for p in yardsticks),
            )
        )
    knee = found.knee()
    if knee is not None:
        place = found.points.index(knee)
        series.append(Series("knee", "points", "accent", (left[place],), (lost[place],), (texts[place],)))
    says = (
        "The score of each plan before any training"
        if scored
        else f"What each plan is predicted to lose, by {found.predicted_by}"
    )
    label = {
        "macs": "MACs",
        "params": "parameters",
        "latency": "time of a forward",
        "peak_memory": "peak memory",
    }[found.budget]
    return Chart(
        "trade-off",
        "Trade-off",
        f"{says}; equal shares of all groups at the same cost beside it.",
        f"share of the {label} that is left",
        "score" if scored else "predicted loss",
        tuple(series),
    )


def sensitivity_chart(found: Sensitivities) -> Chart:
    """Draw the error of the output when each group alone is cut, for every share."""
    series = []
    for number, share in enumerate(found.shares):
        cuts = found.cuts[number :: len(found.shares)]
        series.append(
            Series(
                f"cut to {share:g}",
                "points",
                "depth",
                tuple(cut.group for cut in cuts),
                tuple(cut.error for cut in cuts),
                tuple(
                    f"{cut.n} -> {cut.width}"
                    + ("" if cut.predicted is None else f", predicted {cut.predicted:.4g}")
                    + ("" if cut.score is None else f", score {cut.score:.4f}")
                    for cut in cuts
                ),
                number / max(len(found.shares) - 1, 1),
            )
        )
    return Chart(
        "sensitivities",
        "Sensitivities",
        "How far the output moves, as a share of it, when one group alone is cut.",
        "group",
        "error of the output",
        tuple(series),
    )


def agreement_chart(found: Sensitivities) -> Chart:
    """Draw measured errors over predicted ones, for every share."""
    series = []
    for number, share in enumerate(found.shares):
        cuts = [c for c in found.cuts[number :: len(found.shares)] if c.predicted is not None]
        series.append(
            Series(
                f"cut to {share:g}",
                "points",
                "depth",
                tuple(float(cut.predicted or 0.0) for cut in cuts),
                tuple(cut.error for cut in cuts),
                tuple(f"{cut.group}: {cut.n} -> {cut.width}" for cut in cuts),
                number / max(len(found.shares) - 1, 1),
            )
        )
    agreement = found.agreement()
    told = "" if agreement is None else f" The two orders agree to {agreement:.2f} (Spearman; 1 is all)."
    return Chart(
        "agreement",
        "Predicted and measured",
        f"The same errors over those that were predicted by {found.predicted_by}.{told}",
        f"predicted by {found.predicted_by}",
        "error of the output",
        tuple(series),
    )


def charts_of(
    plan: Plan | None,
    curves: Mapping[str, Spectrum] | Mapping[str, ErrorCurve] | None = None,
    trade_off: TradeOff | None = None,
    sensitivities: Sensitivities | None = None,
) -> list[Chart]:
    """List all figures that there is something to draw for."""
    found = [] if plan is None else [widths_chart(plan), curves_chart(plan, curves or {}), costs_chart(plan)]
    found += [] if trade_off is None else [trade_off_chart(trade_off)]
    if sensitivities is not None:
        found += [sensitivity_chart(sensitivities), agreement_chart(sensitivities)]
    return [chart for chart in found if chart is not None]
