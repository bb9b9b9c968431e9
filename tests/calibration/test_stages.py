"""Every stage of the calibrated road tells how far it is, can be stopped, and says what is not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.arrays import Progress

MEMORY = 20_000


class Net(nn.Module):
    """Three convolutions and a head; ``spoilt`` adds to what the second one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)
        self.norm, self.third, self.head = nn.BatchNorm2d(10), nn.Conv2d(10, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu())).relu()
        return self.head(self.third(x).relu().mean((2, 3)))


def images(count: int = 12) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def roads(model: nn.Module) -> dict[str, Callable[[Progress], Any]]:
    """Each stage as a call with a progress."""
    graph = slimfast.trace_channels(model, images(1))
    found = slimfast.calibrate(model, graph, images().split(5), memory=MEMORY)
    plan = slimfast.plan(model, images(1), macs=0.5, calibration=found)
    how: dict[str, Any] = {"calibration": found, "memory": MEMORY}
    return {
        "calibrate": lambda p: slimfast.calibrate(model, graph, images().split(5), memory=MEMORY, progress=p),
        "curves": lambda p: slimfast.error_curves(model, graph, found, memory=MEMORY, progress=p),
        "plan": lambda p: slimfast.plan(model, images(1), macs=0.5, progress=p, **how),
        "prune": lambda p: slimfast.prune_channels(
            model, plan, select="activations", repair="activations", progress=p, **how
        ),
        "slim": lambda p: slimfast.slim(
            model, images(1), macs=0.5, select="activations", repair="activations", progress=p, **how
        ),
    }


@pytest.mark.parametrize("stage", ["calibrate", "curves", "plan", "prune", "slim"])
def test_a_stage_tells_how_far_it_is_and_stops_anywhere(stage: str) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = roads(model)[stage]
    told: list[tuple[int, int]] = []
    run(lambda done, total: told.append((done, total)))
    assert len(told) > 2
    ends = [done for done, total in told if done == total]
    assert told[-1][0] == told[-1][1]
    assert len(ends) >= 1
    for stop in sorted({0, 1, len(told) // 2, len(told) - 1}):
        calls = 0

        def progress(done: int, total: int, at: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > at:
                raise slimfast.Cancelled

        with pytest.raises(slimfast.Cancelled):
            run(progress)
        assert calls == stop + 1
        assert all(not module._forward_pre_hooks for module in model.modules())
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_with_layer_and_batch(value: float) -> None:
    torch.manual_seed(0)
    model, batches = Net().eval(), list(images().split(5))
    graph = slimfast.trace_channels(model, images(1))
    batches[1] = batches[1].clone()
    batches[1][2, 0, 3, 3] = value
    with pytest.raises(slimfast.SlimfastError, match=r"^calibrate: .*read by second, batch 1"):
        slimfast.calibrate(model, graph, batches)
    found = slimfast.calibrate(model, graph, [batches[0], images(5)])
    found.batches[1][0][0][2, 0, 3, 3] = value
    found = slimfast.Calibration(
        found.readings, found.left, found.batches, found.samples, found.masks, 1e9, 1e9
    )
    with pytest.raises(ValueError, match=r"^plan: expected finite derivatives.*slice 7"):
        slimfast.error_curves(model, graph, found)


def test_what_is_held_and_where_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    with caplog.at_level(logging.INFO, logger="slimfast"):
        roads(model)["prune"](lambda done, total: None)
    lines = [record.getMessage() for record in caplog.records]
    assert any("3 moments of" in line and "bytes on cpu" in line for line in lines)
    assert any(
        line.startswith("repair: what 3 layers read at") and "bytes in memory" in line for line in lines
    )
