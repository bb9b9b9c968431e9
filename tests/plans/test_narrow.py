"""A wide layer that hardly anything is left of is told of in one line, with the floor that there is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import slimfast
from slimfast import GroupPlan
from slimfast.plans.narrow import warn_of_few


def group(name: str, n: int, width: int, chosen: str = "gain") -> GroupPlan:
    return GroupPlan(name, "channel", n, width, 1.0, True, chosen=chosen)  # type: ignore[arg-type]


def test_the_narrowest_is_named_and_the_others_counted() -> None:
    groups = [group("a", 512, 15), group("b", 256, 2), group("c", 512, 200), group("d", 64, 1)]
    with pytest.warns(UserWarning, match="b keeps 2 of 256 units, and 1 more groups as few: ") as found:
        warn_of_few(groups)
    assert len(found) == 1
    assert "min_width=16)" in str(found[0].message)


@pytest.mark.parametrize(
    "one", [group("a", 512, 16), group("a", 255, 1), group("a", 512, 1, "override"), group("a", 512, 512)]
)
def test_others_are_not(one: GroupPlan) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few([one])


def test_a_plan_of_a_layer_that_reads_one_thing_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 512), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    x = torch.randn(200, 1)
    graph = slimfast.trace_channels(model, x)
    calibration = slimfast.calibrate(model, graph, [x])
    with pytest.warns(UserWarning, match=r"^plan: 0 keeps \d+ of 512 units: "):
        slimfast.plan(model, x, params=0.02, calibration=calibration)
    curves = slimfast.error_curves(model, graph, calibration)
    with pytest.warns(UserWarning, match=r"^plan: 0 keeps \d+ of 512 units: "):
        slimfast.plan_widths(graph, {}, params=0.02, curves=curves)
    with pytest.warns(UserWarning, match=r"^plan: 0 keeps \d+ of 512 units: "):
        slimfast.plan_checkpoint(model, model, x, params=0.02, calibration=calibration)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        floored = slimfast.plan(model, x, params=0.3, calibration=calibration, min_width=32)
    assert floored.widths()["0"] >= 32
