"""Error curves: what is left of a consumer's input when units go, and what the output feels of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.calibration_cases import read_by
from torch import Tensor, nn

import slimfast


def test_error_curves_are_what_least_squares_leave() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
    x = torch.randn(200, 5)
    graph = slimfast.trace_channels(model, x[:1])
    calibration = slimfast.calibrate(model, graph, [x], dtype=torch.float64)
    curve = slimfast.error_curves(model, graph, calibration)["0"]
    columns = read_by(model, 2, x)
    a = (columns - columns.mean(1, keepdim=True)).numpy() * model[2].weight.detach().norm(dim=0).numpy()[
        :, None
    ]
    # The output is linear in what layer 2 reads: it feels just the deviation of a, in all 200 samples.
    variance = (a**2).sum() / 200
    whole = np.sqrt(variance)
    assert curve.residual[0] == pytest.approx(whole, rel=1e-5)
    kept: list[int] = []
    for k in range(6):
        rest = a - (a @ np.linalg.pinv(a[kept]) @ a[kept] if kept else 0)
        share = (rest**2).sum() / 200 / variance
        assert curve.residual[k] == pytest.approx(share * whole, abs=1e-5 * whole)
        kept.append(int((rest**2).sum(1).argmax()))
    assert curve.residual[6] == 0.0
    plan = slimfast.plan(model, x[:1], macs=0.6, calibration=calibration)
    chosen = slimfast.select(model, plan, method="activations", calibration=calibration).groups[0]
    assert chosen.keep == tuple(sorted(kept[: chosen.width]))
    assert plan.allocation == "marginal_gain"


def test_what_the_output_feels_through_several_layers_adds_up_as_deviations() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        """Units of ``first`` that two layers read, on outputs of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            return torch.cat([self.a(y), self.b(y)], 1)

    model, x = Twice(), torch.randn(200, 5)
    graph = slimfast.trace_channels(model, x[:1])
    calibration = slimfast.calibrate(model, graph, [x], dtype=torch.float64)
    (curve,) = slimfast.error_curves(model, graph, calibration).values()
    with torch.no_grad():
        y = model.first(x).relu()
        y = y - y.mean(0)
        each = [(y * layer.weight).square().sum(1).mean().sqrt() for layer in (model.a, model.b)]
    assert curve.residual[0] == pytest.approx(float(each[0] + each[1]), rel=1e-5)
