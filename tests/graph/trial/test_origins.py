"""Attributes are found by the origins of the numbers that operations are given, without a search."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.pruning_cases import plan_of
from torch import nn

from slimfast.graph import trace_channels
from slimfast.graph.trial.runner import TrialRunner
from slimfast.pruning.prune import prune_channels


@pytest.fixture
def trials(monkeypatch):
    """The number of forwards of cut networks so far, in a list."""
    counted = []
    record = TrialRunner._record
    monkeypatch.setattr(
        TrialRunner, "_record", lambda self, *given: (counted.append(1), record(self, *given))[1]
    )
    return counted


class Halves(nn.Module):
    """Two halves of one layer, and a third, whose sizes are all one attribute."""

    def __init__(self, how: str, config: bool = False) -> None:
        super().__init__()
        self.how, self.c, self.config = how, 8, SimpleNamespace(c=8)
        self.read = config
        self.one, self.two = nn.Conv2d(3, 24 if how == "three" else 16, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.out, self.third = nn.Conv2d(24, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x, c = self.one(x).relu(), self.config.c if self.read else self.c
        if self.how == "split":
            a, b = x.split((c, c), 1)
        elif self.how == "slices":
            a, b = x[:, :c], x[:, c:]
        else:
            a, b, d = x.split([c, c, c], 1)
            return self.out(torch.cat([a, b, self.two(b)], 1)) + self.third(d)
        return self.out(torch.cat([a, b, self.two(b)], 1))


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("how", ["split", "three"])
def test_one_attribute_as_several_sizes_of_one_split_joins_them(how, config, trials):
    torch.manual_seed(0)
    graph = trace_channels(Halves(how, config).eval(), torch.randn(1, 3, 6, 6))
    assert len(trials) == 1
    assert [(group.name, group.n) for group in graph] == [("one", 8), ("two", 8)]
    thin = prune_channels(Halves(how, config).eval(), plan_of(graph, {"one": [0, 3, 5], "two": [1, 2]}))
    assert thin.one.out_channels == (9 if how == "three" else 6)
    assert (thin.config.c if config else thin.c) == 3


def test_halves_by_slices_follow_the_first():
    torch.manual_seed(0)
    model = Halves("slices").eval()
    graph = trace_channels(model, torch.randn(1, 3, 6, 6))
    first, second, _ = [group.name for group in graph]
    thin = prune_channels(model, plan_of(graph, {first: [0, 3, 5], second: [1, 2, 3, 4]}))
    assert (thin.c, thin.one.out_channels) == (3, 7)


class Fused(nn.Module):
    """Queries, keys and values of one layer, whose sizes Python computes from three attributes."""

    def __init__(self, how: str, heads: int = 6, kv: int = 2, dim: int = 8) -> None:
        super().__init__()
        self.heads, self.kv, self.dim, self.how = heads, kv, dim, how
        self.first = nn.Linear(10, 24)
        self.qkv, self.o = nn.Linear(24, (heads + 2 * kv) * dim), nn.Linear(heads * dim, 5)

    def forward(self, x):
        y, n, m = self.qkv(self.first(x)), self.heads * self.dim, self.kv * self.dim
        if self.how == "split":
            q, k, v = y.split([n, m, m], -1)
        elif self.how == "slices":
            q, k, v = y[..., :n], y[..., n : n + m], y[..., n + m :]
        else:
            q, k, v = y[..., :n], y[..., n : n + self.kv * self.dim], y[..., -m:]
        q, k, v = (t.reshape(*x.shape[:2], -1, self.dim).transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, scale=0.25)
        return self.o(a.transpose(1, 2).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize("kv", [1, 2, 6])
@pytest.mark.parametrize("how", ["split", "slices"])
def test_sizes_that_are_products_of_attributes_are_taken_apart(how, kv):
    torch.manual_seed(0)
    model = Fused(how, kv=kv).eval()
    graph = trace_channels(model, torch.randn(2, 7, 10))
    widths = {group.kind: group.n for group in graph if group.kind != "channel"}
    assert widths["head_dim"] == 8
    heads = [group for group in graph if group.kind == "head"]
    assert sorted(group.n for group in heads) == sorted(n for n in (kv, 6 // kv) if n > 1)
    dims = next(group.name for group in graph if group.kind == "head_dim")
    keeps = {heads[0].name: range(heads[0].n - 1), dims: [0, 1, 2, 5, 7]}
    thin = prune_channels(model, plan_of(graph, keeps))
    assert thin.dim == 5
    assert thin.heads < 6
    assert thin.o.in_features == thin.heads * thin.dim


class Divided(nn.Module):
    """Only the quotient of two attributes is a size."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads = 24, 4
        self.value, self.o = nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x):
        v = self.value(x).view(*x.shape[:2], self.heads, self.width // self.heads)
        pooled = (v * torch.arange(1.0, 5.0)[:, None]).softmax(1)
        return self.o(pooled.flatten(2))


def test_an_attribute_of_which_only_a_quotient_is_a_size_follows_the_grid(trials):
    torch.manual_seed(0)
    model = Divided().eval()
    graph = trace_channels(model, torch.randn(2, 7, 5))
    assert [group.n for group in graph] == [6]
    assert len(trials) == 1
    thin = prune_channels(model, plan_of(graph, {graph[0].name: [0, 2, 5]}))
    assert (thin.width, thin.heads, thin.value.out_features) == (12, 4, 12)


class Grouped(nn.Module):
    """Queries with their key and value in each group; the number of groups is in a quotient alone."""

    def __init__(self, stays: bool) -> None:
        super().__init__()
        self.heads, self.kv, self.dim, self.stays = 6, 2, 4, stays
        self.first, self.qkv, self.o = nn.Linear(5, 8), nn.Linear(8, 10 * 4), nn.Linear(24, 3)

    def forward(self, x):
        b, n, _ = x.shape
        y = self.qkv(self.first(x)).view(b, n, -1, self.heads // self.kv + 2, self.dim)
        q, k, v = y[..., :-2, :], y[..., [-2], :], y[..., [-1], :]
        if self.stays:
            q = q * torch.arange(1.0, 4.0)[:, None]
        q, k, v = (t.expand_as(q).flatten(2, 3).transpose(1, 2) for t in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o(a.reshape(b, n, self.heads * self.dim))


@pytest.mark.parametrize("stays", [False, True])
def test_a_divisor_follows_where_the_quotient_and_the_dividend_are_known(stays, trials):
    torch.manual_seed(0)
    model = Grouped(stays).eval()
    graph = trace_channels(model, torch.randn(2, 7, 5))
    assert len(trials) == 1
    heads = [group for group in graph if group.kind == "head"]
    assert sorted(group.n for group in heads) == ([2] if stays else [2, 3])
    groups = next(group.name for group in heads if group.n == 2)
    thin = prune_channels(model, plan_of(graph, {groups: [1]}))
    assert (thin.heads, thin.kv, thin.qkv.out_features) == (3, 1, 20)
    if not stays:
        queries = next(group.name for group in heads if group.n == 3)
        thin = prune_channels(model, plan_of(graph, {queries: [0, 2]}))
        assert (thin.heads, thin.kv, thin.qkv.out_features) == (4, 2, 32)


class Stays(nn.Module):
    """One attribute is a size that can change and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 6
        self.free, self.last = nn.Linear(4, 12), nn.Linear(12, 6)

    def forward(self, x):
        x = self.free(x).view(-1, 2, self.c).relu().flatten(1)
        return self.last(x).view(-1, self.c)


def test_an_attribute_that_must_stay_keeps_what_it_is_the_length_of(trials):
    graph = trace_channels(Stays().eval(), torch.randn(2, 4))
    assert all(member.dim != 0 or group.n != 6 for group in graph for member in group.producers())
    assert "size[2] = 6 of aten.view cannot be made to follow its width" in {f.reason for f in graph.frozen}
    # the trial, the network as it is, and two to see that the number in the code is to blame
    assert len(trials) <= 4


class Otherwise(nn.Module):
    """Runs otherwise where its width is no plain integer."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 6
        self.free, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.free(x).view(-1, self.c)
        return self.last(x.relu() if type(self.c) is int else x.neg())


def test_a_network_that_looks_at_the_type_of_its_integers_is_traced_without_origins():
    torch.manual_seed(0)
    model = Otherwise().eval()
    graph = trace_channels(model, torch.randn(2, 4))
    assert [operation.name for operation in graph.operations].count("aten.relu") == 1
    assert [(group.name, group.n) for group in graph] == [("free", 6)]
    assert prune_channels(model, plan_of(graph, {"free": [1, 2]})).c == 2


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_a_batch_as_long_as_what_is_unflattened_asks_nothing_of_its_attribute(batch):
    """An operation is recorded with every size of its result, of which Python gave but some."""

    class Parted(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.up, self.down = 2, nn.Linear(5, 12), nn.Linear(12, 3)

        def forward(self, x):
            parts = self.up(x).unflatten(-1, (self.heads, -1)).relu()
            return self.down((parts * parts.sum(-1, keepdim=True)).flatten(-2))

    graph = trace_channels(Parted().eval(), torch.randn(batch, 4, 5))
    assert sorted(group.n for group in graph) == [2, 6]
    assert [frozen.reason for frozen in graph.frozen if "cannot be made" in frozen.reason] == []
