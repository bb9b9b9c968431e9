"""What a repair holds in memory, beside the calibration's moments: counted in bytes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from support.repair_cases import planned
from torch import nn

import slimfast
from slimfast.pruning.repair import activations
from slimfast.pruning.repair.activations import _bytes_of_moments


@pytest.mark.parametrize(("memory", "held"), [(1 << 20, "rest"), (1 << 17, "quarter")])
def test_moments_count_towards_what_is_held(memory: int, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(96, 96), nn.ReLU())))
    x = torch.randn(16, 128, 96)
    graph = slimfast.trace_channels(model, x[:1])
    # Without what it keeps for repair: that is held by the repair itself then.
    calibration = dataclasses.replace(slimfast.calibrate(model, graph, [x]), rows=None)
    moments = sum(8 * reading.covariance.numel() for reading in calibration.readings.values())
    assert _bytes_of_moments(calibration) == moments
    room = memory - moments if held == "rest" else memory // 4
    most = 0

    class Counted(activations.Store):
        def __setattr__(self, name: str, value: Any) -> None:
            nonlocal most
            if name == "held":
                most = max(most, value)
            super().__setattr__(name, value)

    monkeypatch.setattr(activations, "Store", Counted)
    plan = planned(model, x[:1], {graph.groups[1].name: list(range(40))})
    thin = slimfast.prune_channels(
        model, plan, repair="activations", calibration=calibration, memory=memory, verify=False
    )
    assert slimfast.repair_report(thin).fits
    # What is taken back is beside the rest for a moment: one layer's input of one slice.
    assert room // 2 < most <= room + x[0].nbytes


class Behind(nn.Module):
    """Notes how many samples come to it, in whatever copy of the network."""

    seen: ClassVar[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return x * 2.0


@pytest.mark.parametrize("norm", [False, True])
def test_what_comes_behind_the_last_layer_is_not_run(norm: bool) -> None:
    torch.manual_seed(0)
    last = nn.BatchNorm1d(5) if norm else nn.Identity()
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5), Behind(), last).eval()
    x = torch.randn(40, 6)
    graph = slimfast.trace_channels(model, x[:2])
    calibration = slimfast.calibrate(model, graph, [x])
    plan = planned(model, x[:2], {graph.groups[0].name: [0, 2, 3, 7]})
    Behind.seen.clear()
    thin = slimfast.prune_channels(
        model, plan, repair="activations", calibration=calibration, memory=2000, verify=False
    )
    report = slimfast.repair_report(thin)
    assert list(report.fits) == ["2.weight"]
    # The example of two samples is traced once more.
    assert Behind.seen == [2, *([4] * 10 if norm else [])]
    assert report.norms == (("4",) if norm else ())
