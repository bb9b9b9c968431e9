"""Layers of any width are measured, as long as the moments of one layer fit; what does not is named."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import slimfast
from slimfast.calibration import consumers

WIDTH = 40


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5), nn.ReLU(), nn.Linear(5, 3)
    ).eval()


def _measured(memory: int = 1 << 20) -> tuple[nn.Module, torch.Tensor, slimfast.Calibration]:
    model, example = _mlp(), torch.randn(64, 6)
    graph = slimfast.trace_channels(model, example)
    return model, example, slimfast.calibrate(model, graph, [example], memory=memory)


def test_a_long_layer_has_moments_a_curve_and_a_repair(monkeypatch):
    """The length beyond which flattened positions count as samples leaves no other layer out."""
    model, example, known = _measured()
    plan = slimfast.plan(model, example, params=0.5, calibration=known)
    monkeypatch.setattr(consumers, "LONGEST", 7)
    _, _, found = _measured()
    assert torch.equal(found.readings["2.weight"].covariance, known.readings["2.weight"].covariance)
    again = slimfast.plan(model, example, params=0.5, calibration=found)
    assert [g.width for g in again.groups] == [g.width for g in plan.groups]
    thin = slimfast.prune_channels(
        model, again, select="activations", repair="activations", calibration=found
    )
    assert "2.weight" in slimfast.repair_report(thin).fits


def test_flattened_positions_count_as_samples_from_the_length_on(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 4)).eval()
    example = torch.randn(8, 2, 6, 6)
    graph = slimfast.trace_channels(model, example)
    assert len(slimfast.calibrate(model, graph, [example]).readings["2.weight"].mean) == 96
    monkeypatch.setattr(consumers, "LONGEST", 50)
    reading = slimfast.calibrate(model, graph, [example]).readings["2.weight"]
    assert (len(reading.mean), reading.count) == (6, 8 * 16)


def test_moments_that_do_not_fit_are_named_with_the_memory_that_they_need(monkeypatch):
    monkeypatch.setattr(consumers, "LARGEST", 8 * (WIDTH - 1) ** 2)
    model, example, small = _measured(memory=0)
    reason = small.left["2.weight"]
    assert reason.startswith(f"2 reads {WIDTH} variables, whose moments take ")
    assert "4.weight" in small.readings
    assert "2.weight" not in small.readings
    thin = slimfast.prune_channels(
        model,
        slimfast.plan_widths(slimfast.trace_channels(model, example), {}, overrides={"0": 9}),
        select="activations",
        repair="activations",
        calibration=small,
    )
    assert slimfast.repair_report(thin).left["2.weight"] == reason
    told = re.search(r"memory=(\d+) allows it", reason)
    assert told is not None
    _, _, large = _measured(memory=int(told[1]))
    assert "2.weight" in large.readings
    assert "2.weight" not in _measured(memory=int(told[1]) - 1)[2].readings


def test_repair_from_weights_leaves_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(consumers, "LARGEST", 8 * (WIDTH - 1) ** 2)
    model = _mlp()
    thin = slimfast.slim(model, torch.randn(4, 6), params=0.5, repair="weights")
    report = slimfast.repair_report(thin)
    assert f"2 reads {WIDTH} variables" in report.left["2.weight"]
    assert "allows it" not in report.left["2.weight"]


@pytest.mark.parametrize("fits", [True, False])
def test_a_folder_of_moments_goes_by_the_same_bound(fits, monkeypatch, tmp_path):
    monkeypatch.setattr(consumers, "LARGEST", 8 * (WIDTH - (0 if fits else 1)) ** 2)
    model, example = _mlp(), torch.randn(16, 6)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    graph = slimfast.trace_channels(model, example)
    found = slimfast.calibrate_checkpoint(
        tmp_path / "weights.pth", model, graph, [example], tmp_path / "state", memory=0
    )
    assert ("2.weight" in found.readings) is fits
    assert ("2.weight" in found.left) is not fits
