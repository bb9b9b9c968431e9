"""Networks in quantisation-aware training: fake quantisation leaves elements where they are."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from support.graph_cases import Net
from support.graph_helpers import members, reasons, summary, trace
from torch import nn

import slimfast

X = torch.randn(2, 3, 8, 8)


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU(),
        nn.Conv2d(16, 5, 3),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
@pytest.mark.parametrize("how", ["fx", "eager"])
def test_a_network_in_quantisation_aware_training_is_cut(backend, how):
    from torch.ao import quantization
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "fx":
            mapping = quantization.get_default_qat_qconfig_mapping(backend)
            model = prepare_qat_fx(_network().train(), mapping, (X,))
        else:
            model = _network().train()
            model.qconfig = quantization.get_default_qat_qconfig(backend)
            model = quantization.prepare_qat(model)
    model(X)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    thin = slimfast.slim(model, X, params=0.5)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(thin) <= 0.52 * count(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    thin.train()(X).sum().backward()
    assert thin.eval()(X).shape == model.eval()(X).shape


def _rounded(self, x):
    weight = torch.fake_quantize_per_channel_affine(self.a.weight, self.scale, self.zero, 0, -128, 127)
    x = torch.fake_quantize_per_tensor_affine(nn.functional.linear(x, weight), 0.05, 0, -128, 127)
    return self.b(x)


def test_the_scales_of_channels_go_along_with_them():
    torch.manual_seed(0)
    parts = {"scale": torch.full((16,), 0.1), "zero": torch.zeros(16, dtype=torch.int32)}
    model = Net(_rounded, a=nn.Linear(8, 16, bias=False), b=nn.Linear(16, 4), **parts).eval()
    graph = trace(model, 2, 8)
    assert summary(graph) == {"a": ("channel", 16)}
    assert set(members(graph["a"])) == {("a.weight", 0), ("b.weight", 1), ("scale", 0), ("zero", 0)}
    assert graph["a"].inexact is None
    thin = slimfast.slim(model, torch.randn(2, 8), params=0.5)
    assert len(thin.scale) == len(thin.zero) == thin.a.out_features


def test_observers_make_it_inexact_for_they_see_fewer_elements():
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

    torch.manual_seed(0)
    observer = FusedMovingAvgObsFakeQuantize()
    model = nn.Sequential(nn.Linear(8, 16), observer, nn.Linear(16, 4))
    model(torch.randn(2, 8))
    graph = trace(model.eval(), 2, 8)
    assert summary(graph) == {"0": ("channel", 16)}
    assert "takes statistics along it" in graph["0"].inexact
    assert copy.deepcopy(model)(torch.randn(2, 8)).shape == (2, 4)


def test_scales_that_nothing_has_set_yet_leave_the_channels_whole():
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAveragePerChannelMinMaxObserver

    torch.manual_seed(0)

    def forward(self, x):
        return self.b(nn.functional.linear(x, self.observer(self.a.weight)))

    by_channel = {"observer": MovingAveragePerChannelMinMaxObserver, "ch_axis": 0, "dtype": torch.qint8}
    observer = FusedMovingAvgObsFakeQuantize(**by_channel, quant_min=-128, quant_max=127)
    model = Net(forward, a=nn.Linear(8, 16), b=nn.Linear(16, 4), observer=observer).eval()
    assert not len(trace(model, 2, 8))
    assert any("_fused_moving_avg" in why for why in reasons(trace(model, 2, 8))["a.weight", 0])
