"""Ranges that count from the end and positions that Python says: what they do not touch can be cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import slimfast
from slimfast.graph import trace_channels


class OneKey(nn.Module):
    """Queries of several heads and one key and value, of one layer, taken apart by position."""

    def __init__(self, how: str, heads: int = 5, dim: int = 4) -> None:
        super().__init__()
        self.how, self.heads, self.dim = how, heads, dim
        self.first, self.qkv = nn.Linear(6, 8), nn.Linear(8, (heads + 2) * dim)
        self.o = nn.Linear(heads * dim, 3)

    def forward(self, x):
        b, n, _ = x.shape
        y = self.qkv(self.first(x)).view(b, n, self.heads + 2, self.dim)
        if self.how == "behind":
            q, k, v = y[..., :-2, :], y[..., [-2], :], y[..., [-1], :]
        elif self.how == "range":
            q, k, v = y[..., :-2, :], y[..., [-2], :], y[..., -1:, :]
        elif self.how == "fake":
            # the number is known without data, but not on the meta device
            assert float(torch.tensor(1.0)) == 1
            q, (k, v) = y[..., :-2, :], y[..., [-2, -1], :].split(1, -2)
        else:
            q, k, v = y[..., 2:, :], y[..., [0], :], y[..., [1], :]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o(a.reshape(b, n, self.heads * self.dim))


@pytest.mark.parametrize("how", ["behind", "range", "fake", "before"])
def test_heads_beside_a_key_that_is_taken_by_position_are_cut(how):
    torch.manual_seed(0)
    model, x = OneKey(how).eval(), torch.randn(2, 7, 6)
    graph = trace_channels(model, x)
    heads = next(group for group in graph if group.kind == "head")
    assert heads.n == 5
    thin = slimfast.slim(model, x, overrides={heads.name: 3, "first": 8})
    assert (thin.heads, thin.qkv.out_features, thin.o.in_features) == (3, 20, 12)
    assert thin(torch.randn(1, 3, 6)).shape == (1, 3, 3)


class Picks(nn.Module):
    """Some of the features of a layer are used once more."""

    def __init__(self, pick) -> None:
        super().__init__()
        self.pick, self.a, self.b = pick, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.a(x).relu()
        return self.b(y) + self.pick(y).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("pick", "free"),
    [
        (lambda y: y[..., [0]], 7),
        (lambda y: y[..., [2, 1]], 5),
        (lambda y: y[..., [-1]], 7),
        (lambda y: y[..., [-1, -3]], 5),
        (lambda y: y[..., [0, -1]], 6),
        (lambda y: y[..., [5, -6]], 0),
        (lambda y: y[..., -2:], 6),
        (lambda y: y[..., y.argmax(-1).flatten()], 0),
        (lambda y: y[..., torch.arange(3)], 0),
        (lambda y: y[..., torch.tensor([0])], 0),
        (lambda y: y[..., [True] + 7 * [False]], 0),
        (lambda y: y[:, [0]][:, [0]], 7),
    ],
)
def test_what_is_taken_stays_and_what_it_is_counted_over(pick, free):
    torch.manual_seed(0)
    model, x = Picks(pick).eval(), torch.randn(2, 4)
    graph = trace_channels(model, x)
    assert [group.n for group in graph] == ([free] if free else [])
    if free:
        thin = slimfast.slim(model, x, overrides={graph[0].name: 2})
        assert thin.a.out_features == 8 - free + 2


def test_a_range_up_to_the_end_leaves_what_is_behind_it():
    torch.manual_seed(0)
    model, x = Picks(lambda y: y[..., :-3]).eval(), torch.randn(2, 4)
    (group,) = trace_channels(model, x)
    assert group.n == 5
    assert slimfast.slim(model, x, overrides={group.name: 1}).a.out_features == 4


def test_numbers_of_a_width_freeze_it_without_a_trial_that_fails():
    torch.manual_seed(0)
    model, x = Picks(lambda y: y * torch.arange(y.shape[-1])).eval(), torch.randn(2, 4)
    graph = trace_channels(model, x)
    reasons = {(f.tensor, f.dim): f.reason for f in graph.frozen}
    assert reasons["a.weight", 0] == "aten.arange computes values from the numbers of its indices"


class Biased(nn.Module):
    """An attention with a bias for each head that is computed from the number of heads, as in BLOOM."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.o = 4, nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, 2).transpose(1, 2)
        slopes = torch.pow(0.5, torch.arange(1, self.heads + 1))
        bias = slopes[:, None, None] * torch.arange(n)
        a = F.scaled_dot_product_attention(q, q, q, attn_mask=bias)
        return self.o(a.transpose(1, 2).reshape(b, n, self.heads * 2))


def test_heads_with_a_bias_each_that_is_computed_stay_and_the_reason_says_so():
    graph = trace_channels(Biased().eval(), torch.randn(2, 5, 8))
    assert not [group for group in graph if group.kind == "head"]
    reasons = {f.reason for f in graph.frozen if f.tensor == "q.weight"}
    assert "aten.arange computes values from the numbers of its indices" in reasons
