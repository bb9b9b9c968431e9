"""Repair in closed form: hand-derived cases in which the thin network must become exact; honest reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.calibration.consumers import readers
from slimfast.plans import Plan
from slimfast.pruning.repair.heads import head_covariances
from slimfast.pruning.repair.rectified import moments_behind_relu


def planned(model: nn.Module, example: Any, keeps: dict[str, list[int]]) -> Plan:
    """A plan that keeps these units of these groups, and all of the others."""
    import dataclasses

    graph = slimfast.trace_channels(model, example)
    plan = slimfast.plan_widths(graph, {}, overrides={name: len(keep) for name, keep in keeps.items()})
    groups = [
        dataclasses.replace(g, keep=tuple(keeps[g.name])) if g.name in keeps else g for g in plan.groups
    ]
    return dataclasses.replace(plan, groups=tuple(groups))


def repaired(
    model: nn.Module, batch: Tensor, keeps: dict[str, list[int]], kind: Any = "activations"
) -> nn.Module:
    model.eval()
    plan = planned(model, batch[:2], keeps)
    graph = slimfast.trace_channels(model, batch[:2])
    calibration = slimfast.calibrate(model, graph, [batch]) if kind == "activations" else None
    return slimfast.prune_channels(model, plan, repair=kind, calibration=calibration)


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
    )


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


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.proj = nn.Linear(8, 8)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            f(x).reshape(b, t, self.heads, 2).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, -1))


def test_a_removed_head_that_copies_another_is_made_up_for() -> None:
    torch.manual_seed(0)
    model = Attention()
    with torch.no_grad():
        for layer in (model.query, model.key, model.value):
            layer.weight[6:8], layer.bias[6:8] = layer.weight[0:2], layer.bias[0:2]
    batch = torch.randn(16, 5, 8)
    graph = slimfast.trace_channels(model, batch[:2])
    head = next(g.name for g in graph if g.kind == "head")
    thin = repaired(model, batch, {head: [0, 1, 2]})
    assert thin.proj.weight.shape == (8, 6)
    assert torch.allclose(thin(batch), model(batch), atol=1e-4)
    data_free = repaired(model, batch, {head: [0, 1, 2]}, "weights")
    cut = slimfast.prune_channels(model, planned(model, batch[:2], {head: [0, 1, 2]}))
    assert (data_free(batch) - model(batch)).abs().max() < 0.1 * (cut(batch) - model(batch)).abs().max()


class Fused(Attention):
    """Key, value and query, in this order, from one layer."""

    def __init__(self) -> None:
        super().__init__()
        del self.query, self.key, self.value
        self.kvq = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        k, v, q = self.kvq(x).reshape(b, t, 3, self.heads, 2).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("kind", [Attention, Fused])
def test_heads_vary_together_as_their_values_and_their_patterns_are_alike(kind: Any) -> None:
    torch.manual_seed(0)
    model, example = kind().eval(), torch.randn(2, 5, 8)
    if kind is Fused:
        k, v, q = model.kvq.weight.detach().double().reshape(3, 4, 2, 8)
    else:
        layers = (model.key, model.value, model.query)
        k, v, q = (layer.weight.detach().double().reshape(4, 2, 8) for layer in layers)
    graph = slimfast.trace_channels(model, example)
    found = readers(model, graph)[0]
    tensors = dict(model.named_parameters())
    covariance = head_covariances(model, graph, found, tensors)["proj.weight"]
    assert isinstance(covariance, Tensor)
    for h, g in ((0, 0), (1, 3), (2, 0)):
        forms = [q[i].T @ k[i] for i in (h, g)]
        alike = (forms[0] * forms[1]).sum() / (forms[0].norm() * forms[1].norm())
        block = covariance[2 * h : 2 * h + 2, 2 * g : 2 * g + 2]
        assert torch.allclose(block, alike * v[h] @ v[g].T, atol=1e-12)


class WideValues(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.proj = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            f(x).reshape(b, t, self.heads, size).transpose(1, 2)
            for f, size in ((self.query, 2), (self.key, 2), (self.value, 3))
        )
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, -1))


def test_heads_of_another_build_are_left_with_the_reason() -> None:
    torch.manual_seed(0)
    model, batch = WideValues(), torch.randn(4, 5, 8)
    head = next(g.name for g in slimfast.trace_channels(model, batch[:2]) if g.kind == "head")
    thin = repaired(model, batch, {head: [0, 1, 3]}, "weights")
    report = slimfast.repair_report(thin)
    assert report.fits == {}
    assert report.left["proj.weight"] == "the heads of proj have no query, key and value of one shape"


def test_moments_behind_a_relu_against_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.5, -0.7, 0.0], dtype=torch.float64)
    rows = torch.tensor([[1.0, 0.5], [0.3, 1.0], [-0.6, 0.9]], dtype=torch.float64)
    z = torch.randn(2_000_000, 2, dtype=torch.float64, generator=generator)
    seen = (mean + z @ rows.T).relu()
    found = moments_behind_relu(mean, rows)
    assert torch.allclose(found.mean, seen.mean(0), atol=2e-3)
    # The series stops at its third term.
    assert torch.allclose(found.covariance, seen.T.cov(), atol=2e-2)
    assert torch.allclose(found.covariance.diagonal(), seen.var(0), atol=2e-3)


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
    with pytest.raises(ValueError, match="expected 'weights' or 'activations', got 'data'"):
        slimfast.prune_channels(model, plan, repair="data")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="from activations it needs a calibration, got none"):
        slimfast.prune_channels(model, plan, repair="activations")
    with pytest.raises(ValueError, match=r"a damping is for repair from activations, got .* with 'weights'"):
        slimfast.prune_channels(model, plan, repair="weights", repair_damping=1.0)
    with pytest.raises(ValueError, match=r"a damping is for repair from activations, got .* with None"):
        slimfast.prune_channels(model, plan, repair_damping=1.0)
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, batch), [batch])
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"expected a damping of at least 0, got {wrong}"):
            slimfast.prune_channels(
                model, plan, repair="activations", calibration=calibration, repair_damping=wrong
            )


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
