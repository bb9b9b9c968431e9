"""Trade-offs: each point is the plan of its own call; the knee is where the curve bends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support.synthetic_device import Device
from torch import nn

import slimfast
from slimfast import Cost, SlimfastError
from slimfast.reports.charts import trade_off_chart
from slimfast.studies.trade_off_data import Point, TradeOff

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).eval()


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_each_point_is_the_plan_of_its_budget(budget: str) -> None:
    model = network()
    found = slimfast.trade_off(model, X, budgets=("40%", 0.8), budget=budget, multiple_of=2)
    assert [point.amount for point in found.points] == [0.8, 0.4]
    for point in found.points:
        assert point.plan == slimfast.plan(model, X, **{budget: point.amount}, multiple_of=2)
        assert point.left(budget) <= point.amount
        assert getattr(point.uniform.cost_after, budget) <= getattr(point.plan.cost_after, budget)
        spectra = slimfast.measure_spectra(model, slimfast.trace_channels(model, X))
        lost = [1 - spectra[g.name].ratio(g.width) for g in point.plan.groups]
        assert point.predicted == pytest.approx(sum(lost) / len(lost), abs=1e-6)


def test_a_calibration_is_measured_once_and_plans_by_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    graph = slimfast.trace_channels(model, X)
    calibration = slimfast.calibrate(model, graph, [torch.randn(64, 3, 8, 8)])
    curves = slimfast.error_curves(model, graph, calibration)
    calls = []

    def once(*args, **kwargs):
        calls.append(1)
        return slimfast.error_curves(*args, **kwargs)

    monkeypatch.setattr("slimfast.studies.trade_offs.error_curves", once)
    y = model(X).detach()
    found = slimfast.trade_off(
        model,
        graph=graph,
        budgets=(0.8, 0.5),
        calibration=calibration,
        evaluate=lambda thin: -float((thin(X).detach() - y).norm()),
    )
    assert len(calls) == 1
    assert found.score == 0.0
    for point in found.points:
        assert {group.chosen for group in point.plan.groups} == {"gain"}
        left = sum(curves[g.name].residual[g.width] for g in point.plan.groups)
        assert point.predicted == pytest.approx(left / sum(c.residual[0] for c in curves.values()))
        thin = slimfast.prune_channels(
            model, point.plan, select="activations", repair="activations", calibration=calibration
        )
        assert point.score == pytest.approx(-float((thin(X).detach() - y).norm()), rel=1e-4)
        assert point.uniform_score is not None
    assert found.points[0].predicted <= found.points[1].predicted


@pytest.mark.parametrize("calibrated", [False, True])
def test_budgets_of_time_are_met_on_one_table(calibrated: bool) -> None:
    model = network()
    graph = slimfast.trace_channels(model, X)
    table = slimfast.latency_table(graph, model, X, measure=Device())
    calibration = slimfast.calibrate(model, graph, [torch.randn(64, 3, 8, 8)]) if calibrated else None
    found = slimfast.trade_off(
        model,
        X,
        graph=graph,
        budget="latency",
        budgets=(0.9, "60%"),
        latency_table=table,
        calibration=calibration,
    )
    for point in found.points:
        latency = point.plan.latency
        assert latency is not None
        assert latency.measured is not None
        assert latency.measured <= point.amount * latency.before
        assert point.left("latency") == latency.measured / latency.before
        # Equal shares take no more time.
        assert point.uniform is not None
        uniform = table.predicted(graph, point.uniform.widths())
        assert uniform <= table.predicted(graph, point.plan.widths())
    written = json.loads(found.to_json())["points"][0]["latency"]
    assert written["measured"] == found.points[0].plan.latency.measured
    assert "time" in str(found).splitlines()[0]
    assert trade_off_chart(found).x_label == "share of the time of a forward that is left"
    with pytest.raises(ValueError, match="expected shares as budgets of latency, got '12ms'"):
        slimfast.trade_off(model, X, budget="latency", budgets=("12ms",), latency_table=table)


def test_budgets_out_of_reach_are_told_beside_the_others() -> None:
    found = slimfast.trade_off(network(), X, budgets=(0.5, 0.001), exclude=["0"])
    assert [point.amount for point in found.points] == [0.5]
    assert "cannot be reached" in found.refused[0.001]
    assert "macs = 0.001: budget: " in str(found)
    with pytest.raises(SlimfastError, match=r"none of the budgets can be reached: budget: .* cannot be"):
        slimfast.trade_off(network(), X, budgets=(0.001,), exclude=["0"])


def test_text_and_json_hold_every_point() -> None:
    found = slimfast.trade_off(network(), X, budgets=(0.9, 0.6, 0.3), evaluate=lambda thin: 1.0)
    document = json.loads(found.to_json())
    assert [point["amount"] for point in document["points"]] == [0.9, 0.6, 0.3]
    for point, written in zip(found.points, document["points"], strict=True):
        assert written["widths"] == point.plan.widths()
        assert written["macs"] == point.plan.cost_after.macs
        assert written["uniform"]["widths"] == point.uniform.widths()
    assert max(map(len, str(found).splitlines())) <= 80
    assert "uniform" not in str(slimfast.trade_off(network(), X, budgets=(0.5,), uniform=False))


def points(losses: list[float], scores: list[float] | None = None) -> TradeOff:
    plan = slimfast.plan(network(), X, macs=0.5)
    made = []
    for i, loss in enumerate(losses):
        left = replace(plan, cost_before=Cost(100, 100, 400), cost_after=Cost(90 - 10 * i, 90 - 10 * i, 0))
        made.append(Point(0.9 - i / 10, left, loss, None if scores is None else scores[i]))
    return TradeOff("macs", tuple(made), "error curves", None if scores is None else 1.0)


@pytest.mark.parametrize(
    ("losses", "knee"),
    [
        ([0.0, 0.01, 0.02, 0.5, 1.0], 2),
        ([0.0, 0.01, 0.5, 0.9, 1.0], 1),
        # Straight, or bent the other way: none.
        ([0.0, 0.25, 0.5, 0.75, 1.0], None),
        ([0.0, 0.9, 0.95, 0.97, 1.0], None),
        ([0.2, 0.2, 0.2, 0.2, 0.2], None),
        ([0.0, 1.0], None),
    ],
)
def test_the_knee_is_where_the_curve_bends(losses: list[float], knee: int | None) -> None:
    found = points(losses)
    assert found.knee() is (None if knee is None else found.points[knee])


def test_scores_decide_the_knee_where_there_are_any() -> None:
    found = points([0.0, 0.01, 0.02, 0.5, 1.0], [0.9, 0.89, 0.5, 0.4, 0.3])
    assert found.knee() is found.points[1]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"budgets": ()}, ValueError, "expected at least one budget, got none"),
        ({"budgets": 0.5}, TypeError, "expected budgets to be a sequence, got float"),
        ({"budgets": (0.5, -1)}, ValueError, r"expected macs in \(0, 1\] or up to 100% as a share"),
        ({"budgets": ("lots",)}, ValueError, "expected macs as a number"),
        ({"budget": "mac"}, ValueError, r"got 'mac' \(did you mean 'macs'\?\)"),
        ({"macs": 0.5}, ValueError, "expected budgets of macs in budgets=, got macs= too"),
        ({"explained_variance": 0.5}, ValueError, "got explained_variance= too"),
        ({"excludes": ["0"]}, TypeError, r"'excludes' \(did you mean 'exclude'\?\)"),
        ({"exclude": ["convv"]}, ValueError, "no group matches 'convv'"),
        ({"evaluate": lambda thin: {}}, TypeError, "expected evaluate to return a number, got dict"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, error, said: str) -> None:
    with pytest.raises(error, match=said):
        slimfast.trade_off(network(), X, **options)


def test_curves_that_are_there_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    graph = slimfast.trace_channels(model, X)
    calibration = slimfast.calibrate(model, graph, [torch.randn(64, 3, 8, 8)])
    curves = slimfast.error_curves(model, graph, calibration)
    how = {"graph": graph, "calibration": calibration}
    found = slimfast.trade_off(model, budgets=(0.8, 0.5), **how)
    alone = slimfast.sensitivity(model, shares=(0.5,), **how)
    for module in ("trade_offs", "sensitivities"):
        monkeypatch.delattr(f"slimfast.studies.{module}.error_curves")
    assert slimfast.trade_off(model, budgets=(0.8, 0.5), curves=curves, **how).to_json() == found.to_json()
    again = slimfast.sensitivity(model, shares=(0.5,), curves=curves, **how)
    assert [cut.predicted for cut in again.cuts] == [cut.predicted for cut in alone.cuts]
    # Without the calibration they are what plans are made from, too.
    known = slimfast.trade_off(model, graph=graph, budgets=(0.8, 0.5), curves=curves)
    assert [p.plan.widths() for p in known.points] == [p.plan.widths() for p in found.points]
    assert known.predicted_by == "error curves"
