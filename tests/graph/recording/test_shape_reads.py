"""Sizes that a model's Python reads off a shape, and parts of them, tie the axes they are passed for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import random_keeps, reasons, summary
from torch import Tensor, nn

from slimfast import measure_spectra, plan_widths, prune_channels, select
from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording import network
from slimfast.graph.recording.shape_reads import ShapeReads, TracedLength
from slimfast.pruning.verification import verify


class Attention(nn.Module):
    """The dimensions of a head are the channels divided by the heads; ``front``: heads before tokens."""

    def __init__(self, c: int, heads: int, front: bool) -> None:
        super().__init__()
        self.num_heads, self.front = heads, front
        self.q, self.k, self.v, self.proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        shape = (b, n, self.num_heads, c // self.num_heads)
        q, k, v = (layer(x).reshape(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.front:
            q = q.reshape(b, self.num_heads, n, c // self.num_heads)
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).reshape(b, n, c))


class Network(nn.Module):
    def __init__(self, *layers: nn.Module, c: int = 12, head: bool = True) -> None:
        super().__init__()
        self.stem, self.layers = nn.Linear(5, c), nn.ModuleList(layers)
        self.head = nn.Linear(c, 3) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class SelfAttention(nn.Module):
    def __init__(self, c: int, heads: int, *, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(c, heads, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


def _check_cuts(model: nn.Module, example: Tensor) -> set[str]:
    """Random cuts run as predicted and compute what the masked network does; the groups compared."""
    graph = trace_channels(model, example)
    compared: set[str] = set()
    for seed in range(4):
        keeps = random_keeps(graph, seed)
        cut = Cut(graph, keeps)
        thin = cut.thin_copy(network.Network.of(model))
        assert check_thin(thin, cut) == []
        done = verify(model, thin, graph, keeps, example)
        assert done.max_error < 1e-13
        compared |= set(done.compared)
    return compared


@pytest.mark.parametrize("front", [False, True])
def test_a_quotient_of_the_channels_ties_heads_and_dimensions_to_the_stream(front):
    torch.manual_seed(0)
    model = Network(Attention(12, 3, front), Attention(12, 3, front)).double().eval()
    example = torch.randn(2, 7, 5, dtype=torch.float64)
    graph = trace_channels(model, example)
    expected = {"stem[residual]": ("residual", 3), "stem[residual]#2": ("residual", 4)}
    assert summary(graph) == expected
    heads, dims = (
        {(m.tensor, m.dim): m.units.tolist() for m in graph[name].members} for name in sorted(expected)
    )
    for layer in ("stem", "layers.0.q", "layers.0.k", "layers.1.v"):
        assert heads[f"{layer}.weight", 0] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
        assert dims[f"{layer}.weight", 0] == [0, 1, 2, 3] * 3
    assert _check_cuts(model, example) == set(expected)


def test_a_quotient_of_channels_that_stay_keeps_heads_and_dimensions():
    model = Network(Attention(12, 3, False), head=False)
    graph = trace_channels(model, torch.zeros(2, 7, 5))
    assert summary(graph) == {}
    assert "network output" in reasons(graph)["layers.0.q.weight", 0]


def test_the_number_of_parts_stays_where_no_axis_has_it():
    class Quarter(nn.Module):
        """Three of four quarters of the channels are dropped by a layer whose result has one quarter."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down, self.head = nn.Linear(5, 12), nn.Linear(12, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.down(x.relu()).reshape(x.shape[0], x.shape[1] // 4))

    model = Quarter().double().eval()
    example = torch.randn(7, 5, dtype=torch.float64)
    graph = trace_channels(model, example)
    assert summary(graph) == {"stem": ("channel", 3)}
    units = {(m.tensor, m.dim): m.units.tolist() for m in graph["stem"].members}
    assert units["stem.weight", 0] == [0, 1, 2] * 4
    assert units["down.weight", 0] == [0, 1, 2]
    assert _check_cuts(model, example) == {"stem"}


def test_a_tensor_without_elements_has_no_number_of_parts():
    class Filled(nn.Module):
        """A level of features without channels is made of the sizes of another, halved."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 2, stride=2), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            level = torch.empty(x.shape[0], 0, x.shape[2] // 2, x.shape[3] // 2, dtype=x.dtype)
            return self.head(torch.cat([self.stem(x), level], dim=1))

    model = Filled().double().eval()
    example = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    assert _check_cuts(model, example) == {"stem"}


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_attention_of_pytorch_is_cut_with_the_stream_it_stands_in(need_weights):
    """Its width is heads times dimensions of a head and the width of what it reads, in one number.

    Its default scale depends on the dimensions, and the weights it may return are a mean over the heads.
    """
    torch.manual_seed(0)
    layers = [SelfAttention(12, 3, need_weights=need_weights) for _ in range(2)]
    model = Network(*layers).double().eval()
    example = torch.randn(2, 7, 5, dtype=torch.float64)
    graph = trace_channels(model, example)
    assert summary(graph) == {"stem[residual]": ("residual", 3), "stem[residual]#2": ("residual", 4)}
    assert _check_cuts(model, example) == (set() if need_weights else {"stem[residual]"})
    plan = plan_widths(graph, measure_spectra(model, graph), params=0.4)
    thin = prune_channels(model, select(model, plan))
    attention = thin.layers[1].attention
    assert attention.embed_dim == thin.stem.out_features == attention.out_proj.in_features
    assert attention.embed_dim % attention.num_heads == 0
    assert attention.in_proj_weight.shape == (3 * attention.embed_dim, attention.embed_dim)


def test_lengths_know_their_axes_and_exact_quotients_of_them():
    given = []
    tensor = torch.zeros(2, 12)
    with ShapeReads(lambda found: 7 if found is tensor else 8, given.append):
        b, c = tensor.shape
        tensor.view(b, 3, c // 3)
        tensor.view(b, c // 3 // 2, 6)
        tensor.view(b, c + 0)
        torch.zeros(tensor.size(1) // 2)
        torch.zeros(2, 5).unflatten(0, (1, b))
    assert given[::2] == [
        ((7, 0, 1), None, (7, 1, 3)),
        ((7, 0, 1), None, None),
        ((7, 0, 1), None),
        ((7, 1, 2),),
        (None, (7, 0, 1), None),
    ]
    assert isinstance(c // 4, TracedLength)
    assert not any(isinstance(number, TracedLength) for number in (c // 5, c // 1, c * 2))
    assert (c // 5, c // 1, c * 2) == (2, 12, 24)
    assert c // 2.5 == 4.0
    assert c // torch.tensor(5) == torch.tensor(2)
    with pytest.raises(ZeroDivisionError):
        c // 0
