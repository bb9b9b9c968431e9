"""Attention as decoders write it: several query heads to a key head, rotary positions, one attribute for the
head dimension of queries, keys and values.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.graph_helpers import random_keeps, summary
from torch import Tensor, nn

from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.network import Network
from slimfast.pruning.verification import verify


def _repeated(x: Tensor, times: int) -> Tensor:
    """(B, G, T, D) to (B, G * times, T, D), left out for one time as the usual code does."""
    b, g, t, d = x.shape
    if times == 1:
        return x
    return x[:, :, None].expand(b, g, times, t, d).reshape(b, g * times, t, d)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([-b, a], -1) * sin


class Grouped(nn.Module):
    def __init__(self, c: int, heads: int, key_heads: int, dim: int) -> None:
        super().__init__()
        self.head_dim, self.times, self.scaling = dim, heads // key_heads, dim**-0.5
        self.q, self.k = nn.Linear(c, heads * dim), nn.Linear(c, key_heads * dim)
        self.v, self.o = nn.Linear(c, key_heads * dim), nn.Linear(heads * dim, c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = _turned(self.q(x).view(b, t, -1, self.head_dim).transpose(1, 2), cos, sin)
        k = _turned(self.k(x).view(b, t, -1, self.head_dim).transpose(1, 2), cos, sin)
        v = self.v(x).view(b, t, -1, self.head_dim).transpose(1, 2)
        k, v = _repeated(k, self.times), _repeated(v, self.times)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


class Decoder(nn.Module):
    def __init__(self, heads: int, key_heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.3, 0.1]))
        self.layers = nn.ModuleList([Grouped(12, heads, key_heads, 6) for _ in range(2)])
        self.head = nn.Linear(12, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        angles = torch.arange(tokens.shape[1]).double()[:, None] * self.frequencies[None, :]
        cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
        for layer in self.layers:
            x = x + layer(x, cos, sin)
        return self.head(x)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (4, 1), (6, 2), (6, 3)])
def test_heads_queries_per_head_and_dimensions_are_cut_at_every_ratio(heads, key_heads):
    torch.manual_seed(0)
    model = Decoder(heads, key_heads).double().eval()
    tokens = torch.randint(0, 11, (2, 5))
    graph = trace_channels(model, tokens)
    expected = {"table[residual]": ("residual", 12), "layers.0.q[head_dim]": ("head_dim", 3)}
    for layer in range(2):
        name = f"layers.{layer}.q[head]"
        if 1 < key_heads < heads:
            expected |= {name: ("head", key_heads), f"{name}#2": ("head", heads // key_heads)}
        else:
            expected[name] = ("head", heads)
    assert summary(graph) == expected
    for seed in range(4):
        keeps = random_keeps(graph, seed)
        cut = Cut(graph, keeps)
        thin = cut.thin_copy(Network.of(model))
        assert check_thin(thin, cut) == []
        done = verify(model, thin, graph, keeps, tokens)
        assert set(done.compared) == set(expected)
        assert done.max_error < 1e-13


def test_the_dimensions_of_values_follow_the_pairs_of_queries_and_keys():
    """Rotary positions pair dimension j with j + 3; the values, read through the same attribute, go along."""
    graph = trace_channels(Decoder(4, 2).double().eval(), torch.randint(0, 11, (2, 5)))
    units = {(m.tensor, m.dim): m.units.tolist() for m in graph["layers.0.q[head_dim]"].members}
    pairs = [0, 1, 2, 0, 1, 2]
    for layer in range(2):
        assert units[f"layers.{layer}.q.weight", 0] == pairs * 4
        assert units[f"layers.{layer}.k.weight", 0] == pairs * 2
        assert units[f"layers.{layer}.v.weight", 0] == pairs * 2
        assert units[f"layers.{layer}.o.weight", 1] == pairs * 4
    assert units["frequencies", 0] == [0, 1, 2]


def test_a_repetition_left_out_must_be_one_that_became_a_single_time():
    """Views that disappear where nothing became 1 are another network."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y[:, None].squeeze(1) if y.shape[1] == 8 else y)

    model = Sometimes()
    graph = trace_channels(model, torch.zeros(2, 3), settle=False)
    (name,) = (g.name for g in graph)
    keeps = {name: torch.arange(5).numpy()}
    cut = Cut(graph, keeps)
    assert [m.operation for m in check_thin(cut.thin_copy(Network.of(model)), cut)][:1] == ["aten.unsqueeze"]


def test_an_encoder_of_as_many_heads_as_dimensions_is_cut_by_either():
    """With two samples the reshape to heads takes 2 * heads: which of two equal attributes counts the heads
    shows later."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(3, 16), encoder, nn.Linear(16, 2)).double().eval()
    example = torch.randn(2, 6, 3, dtype=torch.float64)
    graph = trace_channels(model, example)
    hidden = {f"1.layers.{i}.linear1": ("channel", 20) for i in range(2)}
    assert summary(graph) == {"0[residual]": ("residual", 4), "0[residual]#2": ("residual", 4), **hidden}
    for seed in range(4):
        keeps = random_keeps(graph, seed, exact=False)
        cut = Cut(graph, keeps)
        thin = cut.thin_copy(Network.of(model))
        assert check_thin(thin, cut) == []
        heads, dims = (len(keeps[name]) for name in ("0[residual]", "0[residual]#2"))
        attention = thin[1].layers[1].self_attn
        assert (attention.num_heads, attention.embed_dim) == (heads, heads * dims)
        assert thin(example[:1]).shape == (1, 6, 2)
