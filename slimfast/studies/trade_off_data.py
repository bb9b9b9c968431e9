"""The points of a trade-off as data, a table and JSON; where its knee is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slimfast.errors import printable
from slimfast.latency.timing import seconds_text
from slimfast.memory.measuring import bytes_text
from slimfast.plans import Plan
from slimfast.plans.plan_fields import cost_to_json
from slimfast.plans.plan_table import quantity

KIND = "slimfast.trade_off"
SCHEMA = 1
# A knee is a bend: of fewer points there is none.
_FEWEST = 3


@dataclass(frozen=True, slots=True)
class Point:
    """One budget of a trade-off.

    Attributes:
        amount: The budget that was asked for.
        plan: The plan for it.
        predicted: The share that it is predicted to lose: of the error that all curves together can make, or
            of the variance of a group on average.
        score: What ``evaluate`` gave before any training.
        uniform: The yardstick: the same share of every group at no more of the same cost.
        uniform_predicted: What that is predicted to lose.
        uniform_score: Its score.

    Example:
        found.points[0].plan.widths()
    """

    amount: float
    plan: Plan
    predicted: float
    score: float | None = None
    uniform: Plan | None = None
    uniform_predicted: float | None = None
    uniform_score: float | None = None

    def left(self, limited: str) -> float:
        """Return the share of what is limited that this plan leaves."""
        latency = self.plan.latency
        if limited == "latency" and latency is not None:
            return (latency.predicted if latency.measured is None else latency.measured) / latency.before
        memory = self.plan.peak_memory
        if limited == "peak_memory" and memory is not None:
            return (memory.predicted if memory.measured is None else memory.measured) / memory.before
        measure = limited if limited in ("macs", "params") else "macs"
        before, after = getattr(self.plan.cost_before, measure), getattr(self.plan.cost_after, measure)
        return float(after / before) if before else 1.0


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Plans for several budgets from one measurement.

    Attributes:
        budget: What is limited.
        points: One for each budget that can be reached, the widest first.
        predicted_by: What predictions are from: "error curves" or "explained variance".
        score: That of the network as it is; None without ``evaluate``.
        refused: Why budgets cannot be reached.

    Example:
        print(slimfast.trade_off(model, example))
    """

    budget: str
    points: tuple[Point, ...]
    predicted_by: str
    score: float | None = None
    refused: Mapping[float, str] = field(default_factory=dict)

    def knee(self) -> Point | None:
        """Find the point past which a further cut costs most: the one furthest below the straight line from
        the first point to the last, by the scores where there are any; None where nothing bends.
        """
        if len(self.points) < _FEWEST:
            return None
        x = [point.left(self.budget) for point in self.points]
        scores = [point.score for point in self.points]
        known = [score for score in scores if score is not None]
        y = [-score for score in known] if len(known) == len(x) else [p.predicted for p in self.points]
        width, height = x[0] - x[-1], y[-1] - y[0]
        if not width > 0 or not height > 0:
            return None
        # Both axes from 0 to 1: how much is cut, and how much of the loss that costs.
        bend = [(x[0] - a) / width - (b - y[0]) / height for a, b in zip(x, y, strict=True)]
        best = max(range(len(bend)), key=bend.__getitem__)
        return self.points[best] if bend[best] > 1e-9 else None

    def __str__(self) -> str:
        scored = self.score is not None
        yardstick = any(point.uniform is not None for point in self.points)
        measured = {"latency": ["time", "left"], "peak_memory": ["peak", "left"]}.get(self.budget, [])
        head = ["budget", *measured, "MACs", "left", "params", "left", "loss"]
        head += ["uniform"] * yardstick + ["score"] * scored + ["uniform"] * (scored and yardstick)
        rows = [head, *(self._row(point, scored=scored, yardstick=yardstick) for point in self.points)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        knee = self.knee()
        notes = [f"loss: predicted by {self.predicted_by}, as a share of all there is to lose"]
        if yardstick:
            notes.append("uniform: the same share of every group, at the same cost")
        if self.score is not None:
            notes.append(f"score: before any training; of the whole network {self.score:.4f}")
        if knee is not None:
            notes.append(f"knee: {self.budget} = {knee.amount:g}")
        notes += [f"{self.budget} = {amount:g}: {why}" for amount, why in self.refused.items()]
        return "\n".join(map(printable, [lines[0], "-" * len(lines[0]), *lines[1:], *notes]))

    def _row(self, point: Point, *, scored: bool, yardstick: bool) -> list[str]:
        before, after = point.plan.cost_before, point.plan.cost_after
        row = [f"{point.amount:g}"]
        if self.budget == "latency":
            taken = point.plan.latency
            seconds = None if taken is None else taken.measured or taken.predicted
            row += ["-" if seconds is None else seconds_text(seconds), f"{point.left(self.budget):.1%}"]
        if self.budget == "peak_memory":
            held = point.plan.peak_memory
            count = None if held is None else held.measured or held.predicted
            row += ["-" if count is None else bytes_text(count), f"{point.left(self.budget):.1%}"]
        for name in ("macs", "params"):
            old, new = getattr(before, name), getattr(after, name)
            row += [quantity(new), f"{new / old:.1%}" if old else "-"]
        row.append(f"{point.predicted:.4f}")
        if yardstick:
            row.append("-" if point.uniform_predicted is None else f"{point.uniform_predicted:.4f}")
        if scored:
            row.append("-" if point.score is None else f"{point.score:.4f}")
        if scored and yardstick:
            row.append("-" if point.uniform_score is None else f"{point.uniform_score:.4f}")
        return row

    def to_json(self) -> str:
        """Write a JSON document, with the widths of every point."""
        knee = self.knee()
        document = {
            "kind": KIND,
            "schema": SCHEMA,
            "budget": self.budget,
            "predicted_by": self.predicted_by,
            "score": self.score,
            "knee": None if knee is None else knee.amount,
            "before": cost_to_json(self.points[0].plan.cost_before),
            "points": [_point_to_json(point) for point in self.points],
            "refused": [{"amount": amount, "why": why} for amount, why in self.refused.items()],
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _point_to_json(point: Point) -> dict[str, Any]:
    found: dict[str, Any] = {
        "amount": point.amount,
        **cost_to_json(point.plan.cost_after),
        "latency": None if point.plan.latency is None else point.plan.latency.to_json(),
        "peak_memory": None if point.plan.peak_memory is None else point.plan.peak_memory.to_json(),
        "predicted": point.predicted,
        "score": point.score,
        "widths": point.plan.widths(),
    }
    if point.uniform is not None:
        found["uniform"] = {
            **cost_to_json(point.uniform.cost_after),
            "predicted": point.uniform_predicted,
            "score": point.uniform_score,
            "widths": point.uniform.widths(),
        }
    return found
