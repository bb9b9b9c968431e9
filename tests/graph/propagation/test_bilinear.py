"""Bilinear layers, distances, bags of embeddings, and operations that read or write at sampled places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import random_keeps, reasons, summary
from torch import Tensor, nn

from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.network import Network
from slimfast.pruning.verification import verify


class Net(nn.Module):
    def __init__(self, forward, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.does = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor) -> Tensor:
        return self.does(self, *args)


def _check_cuts(model: nn.Module, example) -> dict[str, tuple[str, int]]:
    model = model.double().eval()
    graph = trace_channels(model, example)
    for seed in range(3):
        keeps = random_keeps(graph, seed, exact=False)
        cut = Cut(graph, keeps)
        thin = cut.thin_copy(Network.of(model))
        assert check_thin(thin, cut) == []
        assert verify(model, thin, graph, keeps, example).max_error < 1e-13
    return summary(graph)


def test_all_three_widths_of_a_bilinear_layer_are_cut():
    net = Net(lambda m, x, y: m.o(m.form(m.a(x), m.b(y))), a=nn.Linear(4, 8), b=nn.Linear(4, 6),
              form=nn.Bilinear(8, 6, 9), o=nn.Linear(9, 2))  # fmt: skip
    example = (torch.randn(2, 4).double(), torch.randn(2, 4).double())
    assert _check_cuts(net, example) == {"a": ("channel", 8), "b": ("channel", 6), "form": ("channel", 9)}
    graph = trace_channels(net, example)
    assert [group.inexact for group in graph] == [None] * 3
    roles = {(m.tensor, m.dim): m.role for group in graph for m in group.members}
    assert [roles["form.weight", dim] for dim in range(3)] == ["producer", "consumer", "consumer"]


def test_distances_to_prototypes_lose_coordinates_and_say_they_are_others():
    net = Net(lambda m, x: torch.cdist(m.a(x), m.p), a=nn.Linear(4, 8), p=nn.Parameter(torch.randn(3, 8)))
    assert _check_cuts(net, torch.randn(2, 4).double()) == {"a": ("channel", 8)}
    graph = trace_channels(net, torch.randn(2, 4).double())
    assert "norm along it" in graph["a"].inexact
    assert reasons(graph)["p", 0] == {"network output"}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_lose_columns(mode):
    net = Net(lambda m, x: m.o(m.e(x)), e=nn.EmbeddingBag(11, 8, mode=mode), o=nn.Linear(8, 2))
    tokens = torch.randint(0, 11, (3, 5))
    assert _check_cuts(net, tokens) == {"e": ("channel", 8)}


def test_channels_read_at_the_places_of_a_grid_and_the_grid_stays():
    def sampled(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.o(F.grid_sample(x, m.g(x).tanh().permute(0, 2, 3, 1), align_corners=False))

    net = Net(sampled, a=nn.Conv2d(3, 8, 1), g=nn.Conv2d(8, 2, 1), o=nn.Conv2d(8, 2, 1))
    example = torch.randn(2, 3, 6, 6).double()
    assert _check_cuts(net, example) == {"a": ("channel", 8)}
    assert reasons(trace_channels(net, example))["g.weight", 0] == {"aten.grid_sampler_2d samples along it"}


def test_channels_pass_the_undoing_of_a_pool():
    def unpooled(m: Net, x: Tensor) -> Tensor:
        return m.o(F.max_unpool2d(*F.max_pool2d(m.a(x), 2, return_indices=True), 2))

    net = Net(unpooled, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(8, 2, 1))
    assert _check_cuts(net, torch.randn(2, 3, 6, 6).double()) == {"a": ("channel", 8)}
