"""The trial cut: attributes that follow the widths, groups that are joined, and what cannot be cut."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from support.channel_graphs import hidden_graph, hidden_model
from support.pruning_cases import Attention, OptionA, build, plan_of, random_keeps
from torch import nn
from torch.nn import functional

from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.network import Network
from slimfast.graph.trial.trial_cut import settle
from slimfast.pruning.prune import prune_channels


class Holder(nn.Module):
    """Two blocks that read their sizes from one shared configuration object."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(heads=4, layers=2)
        self.blocks = nn.ModuleList(ConfiguredAttention(self.config) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class ConfiguredAttention(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.config.heads, 2).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_shared_configuration_is_copied_before_one_module_changes_it():
    torch.manual_seed(0)
    model, x = Holder().eval(), torch.randn(1, 3, 8)
    graph = trace_channels(model, x)
    heads = [group.name for group in graph if group.kind == "head"]
    assert len(heads) == 2
    thin = prune_channels(model, plan_of(graph, {heads[0]: [1, 3]}))
    assert [block.config.heads for block in thin.blocks] == [2, 4]
    assert thin.config.heads == 4
    assert model.config.heads == 4


def test_every_attribute_that_a_derived_one_needs_is_patched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Attention(8, 4), nn.Linear(8, 2)).eval()
    graph = trace_channels(model, torch.randn(2, 3, 5))
    kinds = {group.kind: group.name for group in graph}
    thin = prune_channels(model, plan_of(graph, {kinds["head"]: [0, 2, 3], kinds["head_dim"]: [1]}))
    attention = thin[1]
    assert (attention.num_heads, attention.head_dim, attention.inner_dim) == (3, 1, 3)
    assert tuple(attention.qkv.weight.shape) == (9, attention.qkv.in_features)


def test_two_equal_numbers_are_told_apart():
    torch.manual_seed(0)
    model, x = OptionA().eval(), torch.randn(2, 3, 8, 8)
    graph = trace_channels(model, x)
    padded = next(g for g in graph if g.name == "second")
    before = sorted(set(range(padded.n)) - {3})
    thin = prune_channels(model, plan_of(graph, {"second": before}))
    units = padded.producers()[0].units
    order = [u for u in units if u >= 0]
    left = sum(u in before for u in order[:2])
    assert thin.pads == [0, 0, 0, 0, left, len(before) - left]
    assert left != len(before) - left


class SharedSize(nn.Module):
    """One attribute holds the widths of two layers that nothing else couples."""

    def __init__(self, second: int) -> None:
        super().__init__()
        self.width = 6
        self.first, self.second = nn.Linear(4, 6), nn.Linear(4, second)
        self.last = nn.Linear(6 + second, 2)

    def forward(self, x):
        one = self.first(x).view(2, 3, self.width).relu()
        two = self.second(x).view(2, 3, self.width).cos()
        return self.last(torch.cat([one, two], 2))


def test_groups_whose_widths_one_attribute_holds_are_joined():
    torch.manual_seed(0)
    model, x = SharedSize(6).eval(), torch.randn(2, 3, 4)
    graph = trace_channels(model, x)
    assert [(group.name, group.n) for group in graph] == [("first", 6)]
    produced = {member.tensor for member in graph["first"].producers()}
    assert produced == {"first.weight", "second.weight"}
    thin = prune_channels(model, plan_of(graph, {"first": [0, 5]}))
    assert (thin.width, thin.first.out_features, thin.second.out_features) == (2, 2, 2)


class Literal(nn.Module):
    """A reshape whose sizes are written in the code: nothing can change them."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.fixed, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.fixed(self.free(x).relu()).view(2, 3, 6))


def test_what_no_attribute_explains_is_frozen_with_the_reason_and_the_rest_proceeds():
    model, x = Literal().eval(), torch.randn(2, 3, 4)
    graph = trace_channels(model, x)
    assert [group.name for group in graph] == ["free"]
    reasons = {(f.tensor, f.dim): f.reason for f in graph.frozen}
    told = "size[2] = 6 of aten.view cannot be made to follow its width"
    assert reasons["fixed.weight", 0] == told
    assert reasons["last.weight", 1] == told
    assert all(name != "fixed" for axes in graph.axes.values() for axis in axes for name, _ in axis.parts)
    prune_channels(model, plan_of(graph, {"free": [3]}))


def settled_again(model, graph):
    """The graph of one network, settled with another one."""
    network, arguments = Network.of(model), graph.inputs.example()
    return settle(network, graph, (record(network, *arguments, trace_numbers=True), arguments))


def test_a_check_in_the_models_code_freezes_what_it_checks():
    model, graph = hidden_model(), hidden_graph()
    settled = settled_again(model, graph)
    assert (len(settled), settled.frozen, settled.attributes) == (1, (), ())

    class Checked(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            assert x.shape[-1] == 4, "four wide"
            return self[1](x)

    settled = settled_again(Checked(*model), graph)
    assert len(settled) == 0
    assert {(f.tensor, f.dim) for f in settled.frozen} == {("0.weight", 0), ("1.weight", 1)}
    assert all(not axis.parts for axes in settled.axes.values() for axis in axes)


def test_a_check_at_the_end_of_a_forward_freezes_what_it_checks():
    class Checked(nn.Sequential):
        def forward(self, x):
            hidden = self[0](x)
            output = self[1](hidden)
            assert hidden.shape[-1] == 4, "four wide"
            return output

    graph = trace_channels(Checked(*hidden_model()), torch.zeros(5, 3))
    assert len(graph) == 0
    assert {(f.tensor, f.dim) for f in graph.frozen} >= {("0.weight", 0), ("1.weight", 1)}


class Scaled(nn.Module):
    """A product divided by the square root of an attribute that a reshape needs too."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 4
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x).view(-1, self.size).relu() / self.size**0.5)


def test_a_width_that_changes_a_factor_is_inexact():
    graph = trace_channels(Scaled().eval(), torch.randn(5, 3))
    (group,) = graph
    assert "its width changes a factor: 2 to " in group.inexact


def test_widths_of_one_where_reshapes_need_no_copy():
    model, x = build("transformer")
    graph = trace_channels(model, x)
    keeps = {group.name: np.array([group.n - 1]) for group in graph}
    prune_channels(model, plan_of(graph, keeps))


def test_tracing_leaves_the_model_as_it_is():
    model, x = build("transformer")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, heads = torch.random.get_rng_state(), model.attention.num_heads
    graph = trace_channels(model, x)
    assert random_keeps(graph, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert model.attention.num_heads == heads
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Einsum(nn.Module):
    """Products that PyTorch carries out by other operations where a length is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.last = nn.Linear(4, 3 * 2 * 5), nn.Linear(2 * 5, 3)
        self.table = nn.Parameter(torch.randn(2, 6, 6))
        self.heads, self.dim = 2, 5

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.dim).unbind(2)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k) + self.table
        return self.last(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, -1))


def test_products_that_run_by_other_operations_at_a_length_of_one():
    torch.manual_seed(0)
    model, x = Einsum().eval(), torch.randn(2, 6, 4)
    graph = trace_channels(model, x)
    kinds = {group.kind: group.name for group in graph}
    assert set(kinds) == {"head", "head_dim"}
    for keeps in ({"head": [1]}, {"head_dim": [2]}, {"head": [0], "head_dim": [4]}):
        thin = prune_channels(model, plan_of(graph, {kinds[kind]: keep for kind, keep in keeps.items()}))
        assert thin.heads == len(keeps.get("head", range(2)))


class SplitList(nn.Module):
    """A split whose sizes are one list, two of them the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 4, 3]
        self.first, self.last = nn.Linear(5, 11), nn.Linear(11, 2)

    def forward(self, x):
        a, b, c = torch.split(self.first(x), self.sizes, -1)
        return self.last(torch.cat([a.relu(), b.cos(), c.sigmoid()], -1))


def test_the_sizes_of_a_split_are_found_in_their_order():
    torch.manual_seed(0)
    model, x = SplitList().eval(), torch.randn(2, 5)
    graph = trace_channels(model, x)
    keeps = random_keeps(graph, 0, 0.5)
    thin = prune_channels(model, plan_of(graph, keeps))
    kept = Cut(graph, keeps).tensor_cuts["first.weight"][0]
    parts = [(kept < 4).sum(), ((kept >= 4) & (kept < 8)).sum(), (kept >= 8).sum()]
    assert thin.sizes == [int(n) for n in parts]
    assert isinstance(thin.sizes, list)


class Caching(nn.Module):
    """Caches a tensor that it makes, and is then refused by a reshape that nothing can change."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, torch.Tensor] = {}
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x)
        self.cache["made"] = x.relu()
        return self.last(x.view(2, 3, 6))


def test_a_trial_that_fails_holds_nothing_that_the_forward_has_cached(monkeypatch):
    """Else every such trial has all objects of the process gone through to find what holds it."""

    def refuse(*_):
        raise AssertionError("a tensor of a trial that is over is still held")

    monkeypatch.setattr("slimfast.graph.recording.leftovers._take_out_of_holders", refuse)
    assert len(trace_channels(Caching(), torch.randn(2, 3, 4))) == 0
