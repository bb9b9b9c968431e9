"""What a repair holds in memory, beside the calibration's moments: counted in bytes."""

from __future__ import annotations

from typing import Any

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
    calibration = slimfast.calibrate(model, graph, [x])
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
