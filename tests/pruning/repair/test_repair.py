"""Repair in closed form, from weights and from activations: exact where it can be, honest reports."""

from __future__ import annotations

import pytest
import torch
from support.repair_cases import conv_net, planned, repaired
from torch import Tensor, nn

import slimfast


def copy_filter(model: nn.Sequential, source: int, target: int) -> None:
    """Make a unit of the first layer and its batch norm the copy of another."""
    with torch.no_grad():
        model[0].weight[target] = model[0].weight[source]
        for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
            tensor[target] = tensor[source]


@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_copies_of_kept_filters_make_the_thin_network_exact(kind: str) -> None:
    torch.manual_seed(0)
    model = conv_net()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.normal_()
    batch = torch.randn(16, 3, 8, 8)
    # Statistics as they are in training, so that measuring them again changes nothing but rounding.
    model.train()
    model[1].momentum = 1.0
    model(batch)
    copy_filter(model, 0, 3)
    copy_filter(model, 1, 5)
    thin = repaired(model, batch, {"0": [0, 1, 2, 4]}, kind)
    wide = model(batch)
    cut = slimfast.prune_channels(model, planned(model, batch[:2], {"0": [0, 1, 2, 4]}))
    assert (cut(batch) - wide).abs().max() > 0.1 * wide.abs().max()
    # Damping of the weights' repair leaves a hundredth of a mean variance.
    tolerance = 0.05 if kind == "weights" else 1e-4
    assert (thin(batch) - wide).abs().max() < tolerance * wide.abs().max()
    assert list(slimfast.repair_report(thin).fits) == ["3.weight"]


def test_an_mlp_behind_a_layer_norm_is_repaired_without_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 2.0)
        model[0].bias.normal_()
        model[1].weight.mul_(3.0)
        model[1].bias.sub_(0.5)
    batch = torch.randn(512, 8)
    keep = {"1": list(range(40))}
    thin = repaired(model, batch, keep, "weights")
    cut = slimfast.prune_channels(model, planned(model, batch[:2], keep))
    wide = model(batch)
    errors = [(network(batch) - wide).square().mean() for network in (thin, cut)]
    assert errors[0] < 0.5 * errors[1]
    assert set(slimfast.repair_report(thin).fits) == {"3.weight"}


def test_weights_repair_flattened_units_and_the_groups_of_a_convolution() -> None:
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 5))
    with torch.no_grad():
        flat[0].weight[3], flat[0].bias[3] = flat[0].weight[1], flat[0].bias[1]
    batch = torch.randn(8, 3, 5, 5)
    thin = repaired(flat, batch, {"0": [0, 1, 2]}, "weights")
    cut = slimfast.prune_channels(flat, planned(flat, batch[:2], {"0": [0, 1, 2]}))
    assert (thin(batch) - flat(batch)).abs().max() < 0.1 * (cut(batch) - flat(batch)).abs().max()
    grouped = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten())
    with torch.no_grad():
        for a, b in ((1, 2), (4, 5)):
            grouped[0].weight[b], grouped[0].bias[b] = grouped[0].weight[a], grouped[0].bias[a]
    graph = slimfast.trace_channels(grouped, batch[:2])
    inner = next(g.name for g in graph if g.n == 3)
    thin = repaired(grouped, batch, {inner: [0, 1]}, "weights")
    assert thin[1].weight.shape[1] == 2
    cut = slimfast.prune_channels(grouped, planned(grouped, batch[:2], {inner: [0, 1]}))
    assert (thin(batch) - grouped(batch)).abs().max() < 0.1 * (cut(batch) - grouped(batch)).abs().max()


def test_what_cannot_be_repaired_is_reported() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.first(x)))))))

    torch.manual_seed(0)
    model, batch = Twice(), torch.randn(16, 4)
    graph = slimfast.trace_channels(model, batch[:2])
    name = graph.groups[0].name
    thin = repaired(model, batch, {name: [0, 1, 2, 3]})
    report = slimfast.repair_report(thin)
    assert report.left == {"shared.weight": "shared is called 2 times as a module, not once"}
    assert "last.weight" in report.fits
    with pytest.raises(slimfast.SlimfastError, match="no repair was made"):
        slimfast.repair_report(model)


def test_the_repair_starts_after_the_verified_cut_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model, batch = conv_net(), torch.randn(8, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    repaired(model, batch, {"0": [0, 2, 4]})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_wrong_requests() -> None:
    model, batch = conv_net().eval(), torch.randn(4, 3, 8, 8)
    plan = planned(model, batch, {"0": [0, 1]})
    with pytest.raises(ValueError, match="expected 'weights', 'activations' or 'moments', got 'data'"):
        slimfast.prune_channels(model, plan, repair="data")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="expected a calibration for kind 'activations', got none"):
        slimfast.prune_channels(model, plan, repair="activations")
    with pytest.raises(
        ValueError, match=r"a damping is for repair from activations or moments, got .* with 'weights'"
    ):
        slimfast.prune_channels(model, plan, repair="weights", repair_damping=1.0)
    with pytest.raises(
        ValueError, match=r"a damping is for repair from activations or moments, got .* with None"
    ):
        slimfast.prune_channels(model, plan, repair_damping=1.0)
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, batch), [batch])
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"expected a damping of at least 0, got {wrong}"):
            slimfast.prune_channels(
                model, plan, repair="activations", calibration=calibration, repair_damping=wrong
            )
