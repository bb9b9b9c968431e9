"""Widths by marginal gain: the best networks of a budget, found by trying all of them."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from support.channel_graphs import chain

from slimfast.calibration import ErrorCurve
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.plans import Plan, plan_widths
from slimfast.plans.costs import count

SIZES = [6, 5, 4, 3]


def curve(name: str, residual: list[float]) -> ErrorCurve:
    return ErrorCurve(name, len(residual) - 1, np.array(residual, dtype=np.float64))


def curves_of(seed: int) -> dict[str, ErrorCurve]:
    """Convex curves for the groups of ``chain(SIZES, inputs=7)``."""
    generator = np.random.default_rng(seed)
    found = {}
    for i, n in enumerate(SIZES[:-1]):
        gains = np.sort(generator.exponential(size=n))[::-1]
        found[f"{i}"] = curve(f"{i}", [*(np.cumsum(gains[::-1])[::-1] / gains.sum()).tolist(), 0.0])
    return found


@pytest.fixture
def graph() -> ChannelGraph:
    return chain(SIZES, inputs=7)


def error(curves: dict[str, ErrorCurve], widths: dict[str, int]) -> float:
    return sum(float(c.residual[widths[name]]) for name, c in curves.items())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", ["macs", "params"])
def test_the_error_is_close_to_the_best_of_all_networks_that_fit(
    graph: ChannelGraph, seed: int, budget: str
) -> None:
    curves = curves_of(seed)
    limit = 0.55 * getattr(count(graph, {}), budget)
    found = plan_widths(graph, {}, curves=curves, **{budget: 0.55})
    assert getattr(found.cost_after, budget) <= limit
    best = math.inf
    for widths in itertools.product(*(range(1, n + 1) for n in SIZES[:-1])):
        named = {f"{i}": w for i, w in enumerate(widths)}
        if getattr(count(graph, named), budget) <= limit:
            best = min(best, error(curves, named))
    # Greedy is not the optimum of a knapsack, but it is within what the last unit is worth.
    last = max(float(c.gains()[w - 1]) for c, w in zip(curves.values(), found.widths().values(), strict=True))
    assert best <= error(curves, found.widths()) <= best + last
    for name, width in found.widths().items():
        wider = {**found.widths(), name: width + 1}
        if width < curves[name].n:
            assert getattr(count(graph, wider), budget) > limit


def test_units_without_gain_come_last_and_in_equal_shares(graph: ChannelGraph) -> None:
    flat = {f"{i}": curve(f"{i}", [1.0, *[0.0] * n]) for i, n in enumerate(SIZES[:-1])}
    flat["1"] = curve("1", [1.0, 0.5, 0.4, 0.3, 0.2, 0.0])
    assert plan_widths(graph, {}, curves=flat, macs=1.0).widths() == {"0": 6, "1": 5, "2": 4}
    narrow = count(graph, {"0": 1, "1": 5, "2": 1}).macs
    assert plan_widths(graph, {}, curves=flat, macs=float(narrow)).widths() == {"0": 1, "1": 5, "2": 1}
    wider = count(graph, {"0": 3, "1": 5, "2": 2}).macs
    assert plan_widths(graph, {}, curves=flat, macs=float(wider)).widths() == {"0": 3, "1": 5, "2": 2}


def test_a_curve_with_a_late_drop_is_followed_along_its_hull() -> None:
    # Nothing until the third unit: the way there is worth 0.8 / 3 a unit.
    assert curve("a", [1.0, 1.0, 1.0, 0.2, 0.1]).gains() == pytest.approx([0.8 / 3] * 3 + [0.1])
    assert curve("a", [1.0, 0.4, 0.1, 0.0]).gains() == pytest.approx([0.6, 0.3, 0.1])


def test_the_plan_says_how_its_budget_was_spent(graph: ChannelGraph) -> None:
    curves = curves_of(0)
    del curves["2"]
    found = plan_widths(graph, {}, curves=curves, macs=0.6, overrides={"0": 2})
    assert [g.chosen for g in found.groups] == ["override", "gain", "excluded"]
    assert (found.allocation, found.explained_variance) == ("marginal_gain", None)
    group = found.groups[1]
    assert group.explained_variance == curves["1"].ratio(group.width)
    assert (group.dtype, group.certified) == (None, False)
    assert "gain:" in str(found)
    assert Plan.from_json(found.to_json()) == found


def test_a_plan_of_schema_1_is_read(graph: ChannelGraph) -> None:
    found = plan_widths(graph, {}, overrides={"0": 2})
    document = json.loads(found.to_json())
    del document["allocation"], document["weights"], document["latency"], document["peak_memory"]
    document["schema"] = 1
    assert Plan.from_json(json.dumps(document)) == found


def test_what_a_curve_cannot_be() -> None:
    with pytest.raises(SlimfastError, match=r"expected 4 float64 values for 3 units, got float64 .*\(a\)"):
        ErrorCurve("a", 3, np.zeros(3))
    for wrong in ([1.0, 1.1, 0.0], [1.0, 0.5, -0.1], [math.nan, 0.5, 0.0]):
        with pytest.raises(SlimfastError, match=r"expected finite values >= 0 that never rise \(a\)"):
            curve("a", wrong)


def test_curves_that_do_not_fit_the_request(graph: ChannelGraph) -> None:
    with pytest.raises(
        ValueError, match="a budget of params or macs for error curves, got explained_variance"
    ):
        plan_widths(graph, {}, curves=curves_of(0), explained_variance=0.9)
    with pytest.raises(SlimfastError, match=r"expected 6 units, got 2 \(0\)"):
        plan_widths(graph, {}, curves={**curves_of(0), "0": curve("0", [1.0, 0.5, 0.0])}, macs=0.5)
    with pytest.raises(SlimfastError, match="cannot be reached"):
        plan_widths(graph, {}, curves=curves_of(0), macs=1e-6)
