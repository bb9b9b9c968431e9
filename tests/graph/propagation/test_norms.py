"""What norms couple: whole groups, single channels, and statistics over the channels, which are inexact."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net, conv
from support.graph_helpers import members, summary, trace, units
from torch import nn


def test_group_norm_goes_by_whole_groups():
    net = nn.Sequential(conv(3, 6), nn.GroupNorm(3, 6), conv(6, 2))
    graph = trace(net, 1, 3, 4, 4)
    assert summary(graph) == {"0[block]": ("block", 3)}
    assert members(graph["0[block]"])["0.weight", 0] == units(3, 2)
    assert members(graph["0[block]"])["1.weight", 0] == units(3, 2)
    assert graph["0[block]"].inexact is None


@pytest.mark.parametrize("norm", [nn.GroupNorm(6, 6), nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6)])
def test_norms_of_single_channels_are_exact(norm):
    graph = trace(nn.Sequential(conv(3, 6), norm, conv(6, 2)), 2, 3, 4, 4)
    assert summary(graph) == {"0": ("channel", 6)}
    assert members(graph["0"])["1.weight", 0] == list(range(6))
    assert graph["0"].inexact is None


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6)])
def test_norms_over_the_channels_are_allowed_but_inexact(norm):
    net = nn.Sequential(nn.Linear(3, 6), norm, nn.Linear(6, 2))
    graph = trace(net, 2, 4, 3)
    assert members(graph["0"])["1.weight", 0] == list(range(6))
    assert "along it at 1" in graph["0"].inexact
    one_group = trace(nn.Sequential(conv(3, 6), nn.GroupNorm(1, 6), conv(6, 2)), 1, 3, 4, 4)
    assert one_group["0"].inexact is not None


@pytest.mark.parametrize("name", ["sum", "prod", "amax", "amin", "mean", "var", "logsumexp", "softmax"])
def test_statistics_over_the_channels_are_allowed_but_inexact(name):
    net = Net(lambda m, x: m.b(m.a(x) - _over_channels(m.a(x), name)), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    graph = trace(net, 2, 3)
    assert summary(graph) == {"a": ("channel", 4)}
    told = graph["a"].inexact
    assert name in told
    assert "along it" in told


def _over_channels(x, name):
    return x.softmax(-1) if name == "softmax" else getattr(torch, name)(x, -1, keepdim=True)
