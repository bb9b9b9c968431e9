"""What attention couples, its heads and their dims, in small networks whose groups are derived by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.graph_cases import Net
from support.graph_helpers import members, summary, trace, trace_example, units
from torch import nn


class Attention(nn.Module):
    """Self attention over (B, T, C) with a fused or separate projection and ``kv`` key/value heads."""

    def __init__(self, c, heads, kv=None, *, fused=False, scale=None):
        super().__init__()
        self.heads, self.kv, self.dim, self.scale = heads, kv or heads, c // heads, scale
        if fused:
            self.qkv = nn.Linear(c, 3 * c)
        else:
            self.q = nn.Linear(c, c)
            self.k = nn.Linear(c, self.kv * self.dim)
            self.v = nn.Linear(c, self.kv * self.dim)
        self.proj = nn.Linear(c, c)

    def forward(self, x):
        b, t, _ = x.shape
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.q(x).view(b, t, self.heads, self.dim).transpose(1, 2)
            k = self.k(x).view(b, t, self.kv, self.dim).transpose(1, 2)
            v = self.v(x).view(b, t, self.kv, self.dim).transpose(1, 2)
            repeats = self.heads // self.kv
            if repeats > 1:
                k = k[:, :, None].expand(b, self.kv, repeats, t, self.dim).reshape(b, -1, t, self.dim)
                v = v[:, :, None].expand(b, self.kv, repeats, t, self.dim).reshape(b, -1, t, self.dim)
        if self.scale is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, -1))


def _attend(attention, c=12):
    net = nn.Sequential(nn.Linear(5, c), attention, nn.Linear(c, 3))
    return trace(net, 2, 7, 5)


def test_heads_of_a_fused_projection():
    graph = _attend(Attention(12, 3, fused=True))
    assert summary(graph) == {"0": ("channel", 12), "1.qkv[head]": ("head", 3), "1.proj": ("channel", 12)}
    assert members(graph["1.qkv[head]"]) == {
        ("1.qkv.weight", 0): units(3, 4) * 3,
        ("1.qkv.bias", 0): units(3, 4) * 3,
        ("1.proj.weight", 1): units(3, 4),
    }
    # the head dims of q, k and v shrink together here and the default scale holds them


def test_head_dims_with_a_scale_of_the_models_own():
    graph = _attend(Attention(12, 3, fused=True, scale=0.5))
    assert members(graph["1.qkv[head_dim]"])["1.proj.weight", 1] == [0, 1, 2, 3] * 3
    assert members(graph["1.qkv[head_dim]"])["1.qkv.weight", 0] == [0, 1, 2, 3] * 9


def test_as_many_heads_as_dims_are_still_two_groups():
    graph = _attend(Attention(9, 3, fused=True, scale=0.5), 9)
    assert members(graph["1.qkv[head]"])["1.proj.weight", 1] == units(3, 3)
    assert members(graph["1.qkv[head_dim]"])["1.proj.weight", 1] == [0, 1, 2] * 3


def test_heads_and_dims_of_separate_projections():
    graph = _attend(Attention(12, 3))
    assert members(graph["1.q[head]"]) == {
        ("1.q.weight", 0): units(3, 4),
        ("1.k.weight", 0): units(3, 4),
        ("1.v.weight", 0): units(3, 4),
        ("1.q.bias", 0): units(3, 4),
        ("1.k.bias", 0): units(3, 4),
        ("1.v.bias", 0): units(3, 4),
        ("1.proj.weight", 1): units(3, 4),
    }
    # those of q and k are held by the default scale, those of v are free
    assert members(graph["1.v[head_dim]"]) == {
        ("1.v.weight", 0): [0, 1, 2, 3] * 3,
        ("1.v.bias", 0): [0, 1, 2, 3] * 3,
        ("1.proj.weight", 1): [0, 1, 2, 3] * 3,
    }
    assert not any(("1.q.weight", 0) in members(group) for group in graph if group.kind == "head_dim")


@pytest.mark.parametrize("kv", [2, 3])
def test_grouped_queries_go_by_key_value_head_or_by_query_of_all(kv):
    heads = 6
    graph = _attend(Attention(12, heads, kv))
    by_kv = next(group for group in graph if group.kind == "head" and ("1.k.weight", 0) in members(group))
    assert by_kv.n == kv
    assert members(by_kv)["1.q.weight", 0] == units(kv, 12 // kv)
    assert members(by_kv)["1.k.weight", 0] == units(kv, 2)
    assert members(by_kv)["1.proj.weight", 1] == units(kv, 12 // kv)
    by_query = next(
        group for group in graph if group.kind == "head" and ("1.k.weight", 0) not in members(group)
    )
    assert members(by_query)["1.q.weight", 0] == units(heads // kv, 2) * kv


def test_grouped_queries_of_the_fused_attention():
    def forward(m, x):
        q = m.q(x).view(2, 7, 4, 3).transpose(1, 2)
        k, v = (p(x).view(2, 7, 2, 3).transpose(1, 2) for p in (m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(2, 7, -1))

    net = Net(forward, q=nn.Linear(5, 12), k=nn.Linear(5, 6), v=nn.Linear(5, 6), o=nn.Linear(12, 3))
    graph = trace_example(net, torch.zeros(2, 7, 5))
    shared = next(group for group in graph if ("k.weight", 0) in members(group) and group.kind == "head")
    assert members(shared)["q.weight", 0] == units(2, 6)
    assert members(shared)["v.weight", 0] == units(2, 3)


def test_multi_head_attention_of_pytorch():
    net = Net(lambda m, x: m.o(m.a(m.i(x), m.i(x), m.i(x))[0]), i=nn.Linear(5, 8),
              a=nn.MultiheadAttention(8, 2, batch_first=True), o=nn.Linear(8, 3))  # fmt: skip
    graph = trace_example(net, torch.zeros(2, 4, 5))
    heads = next(group for group in graph if group.kind == "head")
    assert members(heads)["a.in_proj_weight", 0] == units(2, 4) * 3
    assert members(heads)["a.out_proj.weight", 1] == units(2, 4)


def test_a_shape_that_is_read_and_passed_on_ties_two_axes():
    def forward(m, x):
        x = m.a(x)
        b, t, c = x.shape
        y = m.v(x).view(b, t, m.h, m.d).transpose(1, 2)
        return m.o(y.transpose(1, 2).reshape(b, t, c))

    net = Net(forward, a=nn.Linear(5, 6), v=nn.Linear(6, 6), o=nn.Linear(6, 3))
    net.h, net.d = 2, 3
    graph = trace_example(net, torch.zeros(2, 4, 5))
    by_size = {group.n: group for group in graph}
    assert members(by_size[2])["a.weight", 0] == units(2, 3)
    assert members(by_size[3])["a.weight", 0] == [0, 1, 2] * 2
    assert members(by_size[2])["v.weight", 0] == units(2, 3)


def test_attention_costs_both_of_its_products():
    graph = _attend(Attention(12, 3))
    (attention,) = (op for op in graph.operations if op.name.endswith("scaled_dot_product_attention"))
    product = 1
    for factor in attention.macs:
        product *= factor if isinstance(factor, int) else factor.length
    # 2 samples, 3 heads, 7 x 7 pairs, 4 dims of q and 4 of v
    assert product == 2 * 3 * 49 * 8


def test_the_same_network_gives_the_same_graph():
    first, second = (_attend(Attention(12, 6, 2)) for _ in range(2))
    assert [(g.name, g.kind, members(g)) for g in first] == [(g.name, g.kind, members(g)) for g in second]
    assert first.frozen == second.frozen


class Biased(nn.Module):
    """Scores with a slope for each head that Python computes, as BLOOM has them."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.qkv, self.proj = nn.Linear(10, 3 * heads * dim), nn.Linear(heads * dim, 4)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, self.heads, 3, self.dim).transpose(1, 2).unbind(3)
        q, k, v = (each.reshape(b * self.heads, t, self.dim) for each in (q, k, v))
        slopes = torch.arange(1.0, 1.0 + self.heads)[:, None, None] * torch.arange(t)
        scores = slopes.repeat(b, 1, 1).baddbmm(q, k.transpose(1, 2), beta=1.0, alpha=0.3)
        y = scores.softmax(-1).bmm(v).view(b, self.heads, t, self.dim)
        return self.proj(y.transpose(1, 2).reshape(b, t, self.heads * self.dim))


def test_a_bias_that_is_computed_for_every_head_keeps_the_heads_and_leaves_their_dims():
    for heads in (4, 6):
        graph = trace_example(Biased(heads, 8), torch.randn(2, 5, 10))
        assert [(group.kind, group.n) for group in graph] == [("head_dim", 8)]
        # That query, key and value are three is no reason worth telling.
        told = {f.reason for f in graph.frozen if (f.tensor, f.dim) == ("qkv.weight", 0)}
        assert told == {"aten.arange computes values from the numbers of its indices"}


def test_a_fused_projection_of_which_heads_and_dims_go_leaves_nothing_to_tell():
    graph = _attend(Attention(12, 3, fused=True, scale=0.3))
    assert {"head", "head_dim"} <= {group.kind for group in graph}
    assert [f for f in graph.frozen if (f.tensor, f.dim) == ("1.qkv.weight", 0)] == []
