"""Calibration, curves and repair go by what layers compute with, and write it back or say why not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import computed_weights as cw
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import slimfast
from slimfast.plans import Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated in favor of:FutureWarning")


class Net(nn.Module):
    """Convolutions with a batch norm, then linear layers behind a layer norm and a rectifier."""

    def __init__(self, a: int, b: int, hidden: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv1d(4, a, 3), nn.BatchNorm1d(a), nn.Conv1d(a, b, 2)
        self.before, self.up, self.down = nn.LayerNorm(b), nn.Linear(b, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).mean(-1)
        return self.down(self.up(self.before(x)).relu())


def layers_of(net: nn.Module) -> list[nn.Module]:
    return [net.first, net.second, net.up, net.down]


def halved(model: nn.Module, example: Tensor, calibration: slimfast.Calibration, method: str) -> Plan:
    """A plan that keeps half of every group, chosen by a method."""
    graph = slimfast.trace_channels(model, example)
    plan = slimfast.plan_widths(graph, {}, overrides={group.name: group.n // 2 for group in graph})
    return slimfast.select(model, plan, method=method, calibration=calibration)


@st.composite
def networks(draw, kinds=cw.KINDS):
    sizes = [draw(st.integers(4, 10)) for _ in range(3)]
    chosen = [draw(st.sampled_from(kinds)) for _ in range(4)]
    seed = draw(st.integers(0, 2**31))
    x = torch.randn(24, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return cw.twins(lambda: Net(*sizes), layers_of, chosen, seed, x), chosen, x


@settings(max_examples=25, deadline=None)
@given(networks())
def test_curves_and_choices_are_those_of_the_network_with_plain_weights(drawn):
    pair, _, x = drawn
    found = []
    for model in pair:
        graph = slimfast.trace_channels(model, x[:2])
        calibration = slimfast.calibrate(model, graph, [x])
        assert not calibration.left
        curves = slimfast.error_curves(model, graph, calibration)
        keeps = [g.keep for g in halved(model, x[:2], calibration, "activations").groups]
        found.append((list(curves.values()), list(calibration.readings.values()), keeps))
    (curves, readings, keeps), (plain_curves, plain_readings, plain_keeps) = found
    assert len(curves) == len(plain_curves) == 3
    for curve, plain in zip(curves, plain_curves, strict=True):
        np.testing.assert_allclose(curve.residual, plain.residual, rtol=1e-6, atol=1e-9)
    for reading, plain in zip(readings, plain_readings, strict=True):
        torch.testing.assert_close(reading.norms, plain.norms)
    assert keeps == plain_keeps


@pytest.mark.parametrize("repair", ["weights", "activations"])
@settings(max_examples=12, deadline=None)
@given(drawn=networks(cw.INVERTIBLE))
def test_a_repair_that_can_be_written_back_is_that_of_plain_weights(repair, drawn):
    pair, _, x = drawn
    outputs, fits = [], []
    for model in pair:
        calibration = slimfast.calibrate(model, slimfast.trace_channels(model, x[:2]), [x])
        plan = halved(model, x[:2], calibration, "l2")
        thin = slimfast.prune_channels(model, plan, repair=repair, calibration=calibration)
        report = slimfast.repair_report(thin)
        assert not report.left
        fits.append([(fit.damping, fit.after) for fit in report.fits.values()])
        with torch.no_grad():
            outputs.append(thin(x))
    assert len(fits[0]) == 3
    assert [damping for damping, _ in fits[0]] == [damping for damping, _ in fits[1]]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("repair", ["weights", "activations"])
@settings(max_examples=12, deadline=None)
@given(drawn=networks())
def test_what_cannot_be_written_back_is_left_as_it_was_cut_and_said(repair, drawn):
    (model, _), kinds, x = drawn
    before = copy_of(model)
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, x[:2]), [x])
    plan = halved(model, x[:2], calibration, "l2")
    cut = slimfast.prune_channels(model, plan)
    thin = slimfast.prune_channels(model, plan, repair=repair, calibration=calibration)
    report = slimfast.repair_report(thin)
    names = ["first.weight", "second.weight", "up.weight", "down.weight"]
    assert report.fits.keys() | report.left.keys() == set(names[1:])
    for name, kind in list(zip(names, kinds, strict=True))[1:]:
        if kind in cw.INVERTIBLE:
            assert name in report.fits
        if name in report.left:
            assert "its weight is computed" in report.left[name]
            assert "\n" not in report.left[name]
            assert torch.equal(weight_of(thin, name), weight_of(cut, name))
    for name, tensor in before.items():
        assert torch.equal(tensor, model.state_dict()[name])


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The weight that a layer computes with."""
    seen = []
    layer = model.get_submodule(name.rpartition(".")[0])
    handle = layer.register_forward_hook(
        lambda module, args, out: seen.append(module.weight.detach().clone())
    )
    with torch.no_grad():
        model(torch.zeros(2, 4, 7, dtype=torch.float64))
    handle.remove()
    return seen[0]


def test_a_mask_that_hides_nothing_of_the_repaired_weight_takes_it():
    """Rows that are masked stay 0 through a repair."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model.eval()
    prune.ln_structured(model[2], "weight", 2, n=2, dim=0)
    x = torch.randn(40, 5, dtype=torch.float64)
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, x[:2]), [x])
    plan = slimfast.plan_widths(slimfast.trace_channels(model, x[:2]), {}, overrides={"0": 5})
    thin = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
    assert set(slimfast.repair_report(thin).fits) == {"2.weight", "4.weight"}
    cut = slimfast.prune_channels(model, plan)
    with torch.no_grad():
        assert (thin(x) - model(x)).norm() < (cut(x) - model(x)).norm()


def test_a_training_network_with_a_spectral_norm_is_not_moved_by_its_repair():
    """The power iteration of a layer in training mode stays where it was, in both networks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(8, 3)))
    x = torch.randn(30, 5)
    graph = slimfast.trace_channels(model, x[:2])
    calibration = slimfast.calibrate(model, graph, [x])
    plan = slimfast.plan_widths(graph, {}, overrides={group.name: 5 for group in graph})
    before = copy_of(model)
    cut = slimfast.prune_channels(model, plan, repair=None, calibration=calibration).state_dict()
    for repair in ("weights", "activations"):
        thin = slimfast.prune_channels(model, plan, repair=repair, calibration=calibration)
        assert "_SpectralNorm" in next(iter(slimfast.repair_report(thin).left.values()))
        assert all(torch.equal(cut[name], tensor) for name, tensor in thin.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_masked_bias_is_left_alone():
    """A bias that is computed is no place for a shift: the weights are fitted without one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    prune.random_unstructured(model[2], "bias", 1)
    x = torch.randn(30, 5, dtype=torch.float64)
    graph = slimfast.trace_channels(model, x[:2])
    calibration = slimfast.calibrate(model, graph, [x])
    plan = slimfast.plan_widths(graph, {}, overrides={"0": 5})
    for repair in ("weights", "activations"):
        thin = slimfast.prune_channels(model, plan, repair=repair, calibration=calibration)
        assert "2.weight" in slimfast.repair_report(thin).fits
        assert torch.equal(thin[2].bias_orig, model[2].bias_orig)


def test_a_calibration_of_other_masks_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    prune.random_unstructured(model[2], "weight", 4)
    x = torch.randn(30, 5)
    graph = slimfast.trace_channels(model, x[:2])
    calibration = slimfast.calibrate(model, graph, [x])
    with torch.no_grad():
        model[2].weight_mask.copy_(1 - model[2].weight_mask)
    with pytest.raises(slimfast.SlimfastError, match=r"2\.weight: expected the weights that were calibrated"):
        slimfast.error_curves(model, graph, calibration)


def test_a_weight_norm_of_old_goes_on_with_the_repaired_weight():
    """Its hook makes the weight before the layer runs: what comes behind has to see the repaired one."""
    x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

    kinds = [cw.nothing, cw.long_directions_of_old, cw.nothing]
    fits = []
    for model in cw.twins(build, lambda net: [net[0], net[2], net[4]], kinds, 0, x):
        graph = slimfast.trace_channels(model, x[:2])
        calibration = slimfast.calibrate(model, graph, [x])
        plan = slimfast.plan_widths(graph, {}, overrides={"0": 4})
        thin = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
        fits.append(slimfast.repair_report(thin).fits["4.weight"])
    assert fits[0].damping == fits[1].damping
    assert abs(fits[0].before - fits[1].before) < 1e-6
