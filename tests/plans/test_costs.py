"""Costs of a graph at any widths, against arithmetic by hand and against real modules of those widths."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.channel_graphs import chain, units_of
from torch import nn

from slimfast.graph import InputSpec, trace_channels
from slimfast.graph.channel_graph import Axis, ChannelGraph, ChannelGroup, Operation
from slimfast.plans import plan
from slimfast.plans.costs import Cost, CostModel, count, count_kept, count_module
from slimfast.pruning import prune_channels


def test_chain_by_hand() -> None:
    # 3 -> 6 -> 5 -> 4 on a batch of 2, cut to 3 -> 4 -> 1 -> 4
    graph = chain([6, 5, 4])
    assert count(graph, {}) == Cost(
        params=3 * 6 + 6 + 6 * 5 + 5 + 5 * 4 + 4, macs=2 * (3 * 6 + 6 * 5 + 5 * 4), bytes=4 * 83
    )
    assert count(graph, {"0": 4, "1": 1}) == Cost(
        params=3 * 4 + 4 + 4 * 1 + 1 + 1 * 4 + 4, macs=2 * (12 + 4 + 4), bytes=4 * 29
    )


def test_tied_parameters_count_once_and_buffers_not_at_all() -> None:
    graph = chain([6, 5, 4])
    axes = {**graph.axes, "alias": graph.axes["1.weight"], "buffer": (Axis(1000),)}
    tied = dataclasses.replace(
        graph, axes=axes, parameters=graph.parameters | {"alias"}, tied={"alias": "1.weight"}
    )
    assert count(tied, {"0": 2}) == count(graph, {"0": 2})


def test_bytes_follow_the_element_sizes() -> None:
    graph = dataclasses.replace(chain([6, 5, 4]), itemsize={"0.weight": 2, "1.weight": 8})
    cost = count(graph, {"0": 3})
    assert cost.bytes == 2 * 9 + 4 * 3 + 8 * 15 + 4 * 5 + 4 * 20 + 4 * 4


def heads_and_positions() -> ChannelGraph:
    """A projection 10 -> 3 heads of 4 positions, joined with 2 channels of a fixed kind."""
    heads = np.concatenate([units_of(3, 4), [-1, -1]])
    positions = np.concatenate([np.tile(np.arange(4), 3), [-1, -1]])
    axis = Axis.of(14, (("heads", heads), ("positions", positions)))
    groups = (ChannelGroup("heads", "head", 3, ()), ChannelGroup("positions", "head_dim", 4, ()))
    operation = Operation("aten.linear", "", ((axis,),), (7, axis, Axis(10)))
    return ChannelGraph(
        groups, {"w": (axis, Axis(10))}, frozenset({"w"}), (operation,), (), InputSpec.of(torch.zeros(7, 10))
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("positions", [1, 3, 4])
def test_an_axis_of_two_groups_is_their_product(heads: int, positions: int) -> None:
    rows = heads * positions + 2
    cost = count(heads_and_positions(), {"heads": heads, "positions": positions})
    assert cost == Cost(params=10 * rows, macs=70 * rows, bytes=40 * rows)


def test_a_group_that_stands_twice_on_an_axis_counts_wherever_it_stands() -> None:
    """As where units of one group lie beside and upon each other."""
    first, second = np.array([0, 1, -1, -1, 0, -1]), np.array([-1, -1, 0, 1, 1, -1])
    axis = Axis.of(6, [("a", first), ("a", second)])
    terms = axis.terms()
    # the pair, w (w - 1) / 2 of it, is 2 (w / 2)^2 - w / 2
    assert terms == {(): 1, ("a",): 4 - 1, ("a", "a"): 2}
    for keep in ([0], [1], [0, 1]):
        share = len(keep) / 2
        assert sum(n * share ** len(names) for names, n in terms.items()) == len(
            axis.kept({"a": np.array(keep)})
        )


def test_costs_of_groups_are_those_of_what_they_take_part_in() -> None:
    model = CostModel(chain([6, 5, 4]))
    first, second = model.group_costs(model.vector({"0": 2}))
    assert (first.params, first.macs) == (3 * 2 + 2 + 2 * 5, 2 * (3 * 2 + 2 * 5))
    assert (second.params, second.macs) == (2 * 5 + 5 + 5 * 4, 2 * (2 * 5 + 5 * 4))


def test_wrong_widths() -> None:
    model = CostModel(chain([6, 5, 4]))
    with pytest.raises(ValueError, match=r"widths: no group 'x'"):
        model.vector({"x": 1})
    with pytest.raises(ValueError, match=r"widths: expected 0..6, got 7 \(0\)"):
        model.vector({"0": 7})


def test_shares_that_no_float_holds_still_give_whole_lengths() -> None:
    # 1 / 49 * 49 is below 1 in floating point, and 49 is the first such size.
    for n in (49, 98, 103):
        model = CostModel(chain([n, 4]))
        for width in range(1, n + 1):
            assert model.cost(model.vector({"0": width})).params == 3 * width + width + 4 * width + 4


def test_large_counts_are_exact() -> None:
    cost = count(chain([99_991, 99_989, 7], inputs=99_971), {"0": 99_990})
    assert cost.params == 99_990 * 99_972 + 99_989 * 99_991 + 7 * 99_990


class Small(nn.Module):
    """Convolutions with a residual join, a depthwise one, and a head, of any widths."""

    def __init__(self, stream: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, padding=1)
        self.norm = nn.BatchNorm2d(stream)
        self.conv = nn.Conv2d(stream, inner, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out = nn.Conv2d(inner, stream, 1)
        self.pool = nn.Conv2d(stream, stream, 2, stride=2, groups=stream)
        self.first = nn.Linear(stream, hidden)
        self.second = nn.Linear(hidden, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.pool(x) + self.out(self.depthwise(self.conv(x)).relu())
        return self.second(self.first(x.mean((2, 3))).relu())


EXAMPLE = torch.zeros(1, 3, 8, 8)
GRAPH = trace_channels(Small(8, 12, 6), EXAMPLE)


def by_hand(stream: int, inner: int, hidden: int) -> tuple[int, int]:
    """Parameters and MACs of :class:`Small` on one 8 x 8 image."""
    params = stream * 27 + stream + 2 * stream + inner * stream * 9 + inner + inner * 9 + inner
    params += stream * inner + stream + stream * 4 + stream + hidden * stream + hidden + 5 * hidden
    macs = 64 * 27 * stream + 16 * (9 * stream * inner + 9 * inner + inner * stream + 4 * stream)
    return params, macs + stream * hidden + 5 * hidden


def test_modules_are_counted_as_they_are() -> None:
    for sizes in [(8, 12, 6), (5, 7, 3)]:
        cost = count_module(Small(*sizes), EXAMPLE)
        assert (cost.params, cost.macs) == by_hand(*sizes)
        assert cost.bytes == 4 * cost.params
    assert count_module(Small(8, 12, 6).bfloat16(), EXAMPLE.bfloat16()).bytes == 2 * by_hand(8, 12, 6)[0]


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 6))
def test_a_traced_network_at_any_widths_costs_what_a_module_of_them_does(a: int, b: int, c: int) -> None:
    size = {8: a, 12: b, 6: c}
    assert sorted(group.n for group in GRAPH) == [6, 8, 12]
    cost = count(GRAPH, {group.name: size[group.n] for group in GRAPH})
    assert (cost.params, cost.macs) == by_hand(a, b, c)


@pytest.mark.parametrize("groups", [3, 63, 64, 65, 130])
def test_an_axis_that_many_groups_share_is_as_long_as_what_they_keep(groups: int) -> None:
    """A concatenation of groups of different sizes, with some indices that are in none and some in two."""
    rng = np.random.default_rng(groups)
    sizes = rng.integers(1, 5, groups)
    length = int(sizes.sum()) + 3
    parts, start = [], 0
    for g, size in enumerate(sizes):
        units = np.full(length, -1, dtype=np.int64)
        units[start : start + size] = np.arange(size)
        parts.append((f"g{g}", units))
        start += int(size)
    both = np.full(length, -1, dtype=np.int64)
    both[:2] = np.arange(2)
    axis = Axis.of(length, (*parts, ("both", both)))
    graph = ChannelGraph(
        groups=(*(ChannelGroup(f"g{g}", "channel", int(n), ()) for g, n in enumerate(sizes)),
                ChannelGroup("both", "channel", 2, ())),
        axes={"w": (axis, Axis(7))},
        parameters=frozenset({"w"}),
        operations=(Operation("aten.linear", "", ((axis,),), (axis, Axis(7))),),
        frozen=(),
        inputs=InputSpec.of(torch.zeros(1, 7)),
    )  # fmt: skip
    widths = {f"g{g}": int(rng.integers(0, n + 1)) for g, n in enumerate(sizes)}
    # By hand: no unit of `both` goes, and with one of its two gone an index that is in a group as well.
    left = 3 + sum(widths.values())
    assert count(graph, widths) == Cost(7 * left, 7 * left, 28 * left)
    assert count_kept(graph, {n: np.arange(w) for n, w in widths.items()}) == count(graph, widths)
    assert sum(axis.terms().values()) == length


@pytest.mark.parametrize("layers", [60, 66, 90])
def test_a_dense_block_of_many_layers_reaches_its_budget(layers: int) -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(5 + 3 * i, 3) for i in range(layers))
            self.head = nn.Linear(5 + 3 * layers, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.cat([x, layer(x).relu()], -1)
            return self.head(x)

    torch.manual_seed(0)
    model, x = Dense(), torch.randn(2, 5)
    made = plan(model, x, params=0.5)
    thin = prune_channels(model, made)
    assert count_module(thin, x) == made.cost_after
    whole = sum(p.numel() for p in model.parameters())
    assert 0.45 * whole < made.cost_after.params <= 0.5 * whole
