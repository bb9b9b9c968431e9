"""Repair from activations: hand-derived cases in which the thin network must become exact."""

from __future__ import annotations

import torch
from support.repair_cases import conv_net, planned, repaired
from torch import Tensor, nn

import slimfast


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
