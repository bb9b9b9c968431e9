"""Repair from activations: hand-derived cases in which the thin network must become exact."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from support.repair_cases import conv_net, planned, repaired
from torch import Tensor, nn

import slimfast
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.data import check_calibration
from slimfast.graph.recording.module_copies import named_tensors


def test_a_linear_combination_of_kept_units_is_made_up_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[4] = 2 * model[0].weight[0] - 0.5 * model[0].weight[2]
        model[0].bias[4] = 7.0
    batch = torch.randn(64, 9, dtype=torch.float64)
    thin = repaired(model, batch, {"0": [0, 1, 2, 3, 5]})
    # W[:, 0] += 2 W[:, 4], W[:, 2] -= 0.5 W[:, 4], and the constant part into the bias.
    expected = model[1].weight.detach()[:, [0, 1, 2, 3, 5]].clone()
    gone = model[1].weight.detach()[:, 4]
    expected[:, 0] += 2 * gone
    expected[:, 2] -= 0.5 * gone
    bias, first = model[1].bias.detach(), model[0].bias.detach()
    shift = gone * (7.0 - 2 * first[0] + 0.5 * first[2])
    assert torch.allclose(thin[1].weight, expected, atol=1e-4)
    assert torch.allclose(thin[1].bias, bias + shift, atol=1e-4)
    assert torch.allclose(thin(batch), model(batch), atol=1e-4)


def test_a_constant_unit_goes_into_the_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].bias[1] = 3.0
    batch = torch.randn(32, 4)
    thin = repaired(model, batch, {"0": [0, 2]})
    assert torch.allclose(thin[2].bias, model[2].bias + 3.0 * model[2].weight[:, 1], atol=1e-5)
    assert torch.allclose(thin(batch), model(batch), atol=1e-5)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.inner = nn.Conv2d(6, 5, 1)
        self.outer = nn.Conv2d(5, 6, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.outer(torch.relu(self.inner(x)))).relu())


def test_repair_goes_through_a_residual_join() -> None:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        for layer in (model.stem, model.outer):
            layer.weight[4], layer.bias[4] = layer.weight[1], layer.bias[1]
    batch = torch.randn(8, 3, 5, 5)
    thin = repaired(model, batch, {"stem[residual]": [0, 1, 2, 3, 5]})
    assert thin.stem.weight.shape[0] == thin.outer.weight.shape[0] == 5
    assert set(slimfast.repair_report(thin).fits) >= {"inner.weight", "head.weight"}
    assert torch.allclose(thin(batch), model(batch), atol=1e-4)


def test_repair_goes_through_a_depthwise_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for layer in (model[0], model[1]):
            layer.weight[2], layer.bias[2] = layer.weight[0], layer.bias[0]
    batch = torch.randn(8, 3, 6, 6)
    thin = repaired(model, batch, {"0": [0, 1, 3]})
    assert torch.allclose(thin(batch), model(batch), atol=1e-4)


def test_repair_inside_the_groups_of_a_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten())
    with torch.no_grad():
        # Positions 1 and 2 of both blocks of three.
        for a, b in ((1, 2), (4, 5)):
            model[0].weight[b], model[0].bias[b] = 3 * model[0].weight[a], 3 * model[0].bias[a]
    batch = torch.randn(8, 3, 6, 6)
    graph = slimfast.trace_channels(model, batch[:2])
    inner = next(g.name for g in graph if g.n == 3)
    thin = repaired(model, batch, {inner: [0, 1]})
    assert thin[1].weight.shape[1] == 2
    assert torch.allclose(thin(batch), model(batch), atol=1e-3)


def test_batch_norms_take_the_statistics_of_what_reaches_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Flatten()
    )
    batch = torch.randn(32, 3, 4, 4)
    thin = repaired(model, batch, {"0": [1, 3]})
    seen = thin[2](thin[1](thin[0](batch)))
    assert torch.allclose(thin[3].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(thin[3].running_var, seen.var((0, 2, 3)), rtol=1e-4)
    assert slimfast.repair_report(thin).norms == ("3",)


def test_a_damping_is_the_least_of_every_layer() -> None:
    torch.manual_seed(0)
    model, batch = conv_net().eval(), torch.randn(64, 3, 8, 8)
    plan = planned(model, batch[:2], {"0": [0, 1]})
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, batch[:2]), [batch])
    dampings = {}
    for least in (0.0, 1.0, 30.0, float("inf")):
        thin = slimfast.prune_channels(
            model, plan, repair="activations", calibration=calibration, repair_damping=least
        )
        fits = slimfast.repair_report(thin).fits.values()
        assert all(fit.damping >= least for fit in fits)
        dampings[least] = {fit.damping for fit in fits}
    assert min(dampings[0.0]) < 1.0
    assert 30.0 in dampings[30.0]
    assert dampings[float("inf")] == {float("inf")}


def batches_of(count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(("kept", "stages"), [(True, 4), (False, 7)])
def test_progress_is_told_of_every_stage_and_can_end_the_work(kept: bool, stages: int) -> None:
    torch.manual_seed(0)
    model, batches = conv_net().eval(), batches_of(3, 4)
    plan = planned(model, batches[0], {"0": [0, 1, 4]})
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, batches[0]), batches)
    if not kept:
        # The wide network runs too, slice by slice.
        calibration = dataclasses.replace(calibration, rows=None)
    seen: list[tuple[int, int]] = []
    slimfast.prune_channels(
        model, plan, repair="activations", calibration=calibration, progress=lambda *at: seen.append(at)
    )
    assert seen == sorted(seen)
    assert seen[-1] == (105, 105)
    assert len({done for done, _ in seen}) >= stages
    before = threading.active_count()
    for stop_at in range(1, len(seen) + 1):
        told = 0

        def stop(done: int, total: int, stop_at: int = stop_at) -> None:
            nonlocal told
            told += 1
            if told == stop_at:
                raise slimfast.Cancelled

        with pytest.raises(slimfast.Cancelled):
            slimfast.prune_channels(model, plan, repair="activations", calibration=calibration, progress=stop)
    assert threading.active_count() == before
    curves: list[tuple[int, int]] = []
    slimfast.error_curves(
        model, slimfast.trace_channels(model, batches[0]), calibration,
        progress=lambda *at: curves.append(at),
    )  # fmt: skip
    assert curves[-1] == (12, 12)


def test_a_calibration_of_another_model_is_refused() -> None:
    torch.manual_seed(0)
    model, (batch,) = conv_net().eval(), batches_of(1, 8)
    graph = slimfast.trace_channels(model, batch[:2])
    calibration = slimfast.calibrate(model, graph, [batch])
    plan = planned(model, batch[:2], {"0": [0, 1]})
    other = conv_net().eval()
    wider = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    named = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for found, message in (
        (slimfast.calibrate(other, graph, [batch]), r"3\.weight: expected the weights that were calibrated"),
        (calibrated(wider.eval(), batch), r"3\.weight: expected 6 variables, got 8; it is of another model"),
        (calibrated(named, torch.randn(9, 4)), r"expected layers of this model, got 1\.weight"),
    ):
        with pytest.raises(slimfast.SlimfastError, match=message):
            slimfast.prune_channels(model, plan, repair="activations", calibration=found)
        with pytest.raises(slimfast.SlimfastError, match=message):
            slimfast.error_curves(model, graph, found)
        with pytest.raises(slimfast.SlimfastError, match=message):
            slimfast.select(model, plan, method="activations", calibration=found)
    # The same weights, rounded.
    rounded = named_tensors(model.bfloat16())
    check_calibration(calibration, rounded, consumers_of(model, graph)[0])


def calibrated(model: nn.Module, batch: Tensor) -> slimfast.Calibration:
    return slimfast.calibrate(model, slimfast.trace_channels(model, batch[:2]), [batch])


class Remembering(nn.Module):
    """Keeps what it was given on itself while a layer runs, as some networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.relu(self.first(x))
        y = torch.relu(self.second(self.kept))
        out: Tensor = self.last(y + self.kept)
        return out


def test_forwards_side_by_side_do_not_meet() -> None:
    torch.manual_seed(0)
    model, x = Remembering().eval(), torch.randn(60, 5)
    name = slimfast.trace_channels(model, x[:2]).groups[0].name
    graph = slimfast.trace_channels(model, x[:2])
    keep = {name: list(range(graph.groups[0].n - 3))}
    plan = planned(model, x[:2], keep)
    thin = []
    for batches in ([x], list(x.split(13))):
        calibration = slimfast.calibrate(model, graph, batches)
        # One sample at a time of the second: neither the weights nor what is kept may depend on it.
        memory = 0 if len(batches) > 1 else 1 << 30
        thin.append(
            slimfast.prune_channels(model, plan, repair="activations", calibration=calibration, memory=memory)
        )
    with torch.no_grad():
        assert torch.allclose(thin[0](x), thin[1](x), atol=1e-4)


def test_what_is_not_finite_in_the_thin_network_is_named() -> None:
    torch.manual_seed(0)
    model, batches = conv_net().eval(), batches_of(2, 4)
    plan = planned(model, batches[0], {"0": [0, 1]})
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, batches[0]), batches)
    wrong = calibration.batches[1][0][0].clone()
    wrong[2, 1, 3, 3] = float("inf")
    calibration = dataclasses.replace(calibration, batches=(calibration.batches[0], ((wrong,), {})))
    with pytest.raises(slimfast.SlimfastError, match=r"finite.*3 reads in the thin network, slice \d of \d"):
        slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
