"""Units are ranked by what layers compute with, whatever it is kept as, and dead ones go first."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import slimfast
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.pruning.unit_scores import unit_scores

METHODS = ["l1", "l2", "lookahead", "geometric_median", "pivoted_cholesky"]
X = torch.randn(3, 5, 7)
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated in favor of:FutureWarning")


def mask(layer: nn.Module, generator: torch.Generator) -> None:
    kept = torch.rand(layer.weight.shape, generator=generator) < 0.7
    prune.custom_from_mask(layer, "weight", kept)


def long_directions(layer: nn.Module, generator: torch.Generator) -> None:
    """A weight norm whose v has any length, which changes nothing."""
    parametrizations.weight_norm(layer)
    v = layer.parametrizations.weight.original1
    with torch.no_grad():
        v *= torch.exp(3 * torch.randn(v.shape[0], *[1] * (v.dim() - 1), generator=generator))


def long_directions_of_old(layer: nn.Module, generator: torch.Generator) -> None:
    weight_norm(layer)
    with torch.no_grad():
        layer.weight_v *= torch.exp(3 * torch.randn(layer.weight_g.shape, generator=generator))


def spectral(layer: nn.Module, generator: torch.Generator) -> None:
    parametrizations.spectral_norm(layer)


def spectral_of_old(layer: nn.Module, generator: torch.Generator) -> None:
    spectral_norm(layer)


def nothing(layer: nn.Module, generator: torch.Generator) -> None:
    pass


KINDS = [nothing, mask, long_directions, long_directions_of_old, spectral, spectral_of_old]


def plain_twin(model: nn.Sequential) -> nn.Sequential:
    """A network of plain layers that computes the same."""
    model(X)
    layers = []
    for layer in model:
        if not isinstance(layer, nn.Conv1d):
            layers.append(copy.deepcopy(layer))
            continue
        twin = nn.Conv1d(layer.in_channels, layer.out_channels, layer.kernel_size[0])
        with torch.no_grad():
            twin.weight.copy_(layer.weight)
            twin.bias.copy_(layer.bias)
        layers.append(twin)
    return nn.Sequential(*layers).eval()


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=3, max_size=3),
    widths=st.lists(st.integers(3, 9), min_size=2, max_size=2),
    seed=st.integers(0, 2**31),
    method=st.sampled_from(METHODS),
)
def test_the_same_units_stay_as_of_the_network_with_plain_weights(kinds, widths, seed, method):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    a, b = widths
    model = nn.Sequential(
        nn.Conv1d(5, a, 3), nn.ReLU(), nn.Conv1d(a, b, 2), nn.Tanh(), nn.Conv1d(b, 2, 1)
    ).eval()
    for kind, layer in zip(kinds, (model[0], model[2], model[4]), strict=True):
        kind(layer, generator)
    model.eval()
    twin = plain_twin(model)
    planned = [slimfast.plan(net, X, explained_variance=0.7) for net in (model, twin)]
    assert [g.width for g in planned[0].groups] == [g.width for g in planned[1].groups]
    chosen = [
        slimfast.select(net, plan, method=method) for net, plan in zip((model, twin), planned, strict=True)
    ]
    assert [g.keep for g in chosen[0].groups] == [g.keep for g in chosen[1].groups]
    slimfast.prune_channels(model, chosen[0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", [*METHODS, "bn_scale"])
def test_dead_units_go_before_live_ones(method, masked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(5, 12, 3), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 2, 1)).eval()
    dead = [0, 3, 5, 7, 8, 11]
    with torch.no_grad():
        # large where they are dead, small where they live
        model[0].weight[dead] *= 100
        model[3].weight[:, dead] *= 100
        model[1].weight[:] = torch.rand(12) * 1e-3
        if not masked:
            model[1].weight[dead[:3]] = 0
        model[0].weight[dead[3:]] = 0
    if masked:
        mask = torch.ones(12)
        mask[dead[:3]] = 0
        prune.custom_from_mask(model[1], "weight", mask)
    plan = slimfast.plan(model, X, overrides={"0": 6})
    (group,) = slimfast.select(model, plan, method=method).groups
    assert group.keep == tuple(sorted(set(range(12)) - set(dead)))


@pytest.mark.parametrize("method", METHODS)
def test_what_dies_behind_a_depthwise_filter_goes_first(method):
    torch.manual_seed(0)
    layers = [nn.Conv1d(5, 8, 1), nn.BatchNorm1d(8), nn.ReLU6(inplace=True), nn.Conv1d(8, 8, 3, groups=8)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[[1, 2, 5]] *= 100
        model[3].weight[1] = 0
        model[4].weight[[2, 5]] = 0
    plan = slimfast.plan(model, X, overrides={"0": 5})
    assert slimfast.select(model, plan, method=method).groups[0].keep == (0, 3, 4, 6, 7)


def test_a_unit_that_reads_nothing_but_is_alive_goes_after_the_dead():
    """The least score there is among live units is that of one nobody reads; the dead still go first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[2].weight[:, [0, 1, 2]] = 0
        model[0].weight[[3, 4]] = 0
    graph = slimfast.trace_channels(model, torch.randn(2, 5))
    scores = unit_scores(model, graph, [graph["0"]], "lookahead")(graph["0"])
    assert scores[:5].tolist() == [0, 0, 0, -1, -1]
    assert scores[5] > 0


def test_a_scale_of_zero_counts_only_where_the_norm_is_all_that_reads_the_layer():
    """Behind an addition the norm silences what is read there, not the unit."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(5, 8, 1), nn.Conv1d(5, 8, 1)
            self.norm = nn.BatchNorm1d(8)
            self.last = nn.Conv1d(8, 2, 1)

        def forward(self, x):
            stream = self.a(x) + self.b(x)
            return self.last(self.norm(stream).relu() + stream)

    model = Stream().eval()
    with torch.no_grad():
        model.norm.weight[:4] = 0
    graph = slimfast.trace_channels(model, X)
    (group,) = graph
    scores = unit_scores(model, graph, [group], "l1")(group)
    rows = [named_tensors(model)[f"{name}.weight"].detach().abs().sum((1, 2)) for name in "ab"]
    assert np.allclose(scores, (rows[0] + rows[1]).numpy())
