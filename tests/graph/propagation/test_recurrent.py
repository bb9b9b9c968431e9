"""Recurrent layers and cells: hidden units are groups, cut alike in all layers and directions of a module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.graph_helpers import members, reasons, roles, summary, trace
from support.recurrent_cases import CASES
from support.recurrent_checks import Between, check_cuts
from torch import Tensor, nn

from slimfast.graph import trace_channels


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["LSTM", "GRU", "tanh", "relu"]),
    layers=st.integers(1, 3),
    two=st.booleans(),
    first=st.booleans(),
    bias=st.booleans(),
    proj=st.integers(0, 6),
    batched=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(kind="LSTM", layers=2, two=True, first=True, bias=True, proj=6, batched=True, seed=0)
@example(kind="GRU", layers=3, two=True, first=False, bias=False, proj=0, batched=False, seed=1)
def test_every_kind_of_layer_cut_at_random_is_the_masked_one(
    kind, layers, two, first, bias, proj, batched, seed
):
    torch.manual_seed(seed)
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": two, "batch_first": first, "bias": bias}
    options["dropout"] = 0.2 if layers > 1 else 0.0
    if kind == "LSTM":
        options["proj_size"] = proj
    elif kind in ("tanh", "relu"):
        options["nonlinearity"] = kind
    made = getattr(nn, "RNN" if kind in ("tanh", "relu") else kind)(5, 7, **options)
    shapes = ((4, 2, 3), (5, 3, 3)) if batched else ((4, 3), (6, 3))
    graph = check_cuts(Between(made), (torch.randn(shapes[0]),), (torch.randn(shapes[1]),), seeds=2)
    names = {"a": ("channel", 5), "r.weight_ih_l0": ("channel", 7)}
    if kind == "LSTM" and proj:
        names["r.weight_ih_l0"] = ("channel", proj)
        if proj == 1:
            del names["r.weight_ih_l0"]
            names["r.weight_ih_l0"] = ("channel", 6)
        elif proj < 6:
            names["r.weight_ih_l0#2"] = ("channel", 7 - proj)
    assert summary(graph) == names
    assert all(group.inexact is None for group in graph)


@pytest.mark.parametrize("name", CASES)
def test_networks_with_recurrent_parts_are_the_masked_ones(name):
    torch.manual_seed(0)
    make, arguments, other = CASES[name]
    graph = check_cuts(make(), arguments, other)
    told = {frozen.reason for frozen in graph.frozen}
    assert told <= {"network input", "network output", "aten.embedding looks it up by value"}
    recurrent = {m.tensor for group in graph for m in group.members if "weight_hh" in m.tensor}
    assert recurrent == {n for n in graph.parameters if "weight_hh" in n}


def test_the_gates_of_a_unit_go_together_with_the_column_that_reads_it():
    graph = trace(Between(nn.GRU(4, 3)), 5, 2, 3)
    group = graph["r.weight_ih_l0"]
    assert members(group) == {
        ("r.weight_ih_l0", 0): [0, 1, 2] * 3,
        ("r.weight_hh_l0", 0): [0, 1, 2] * 3,
        ("r.weight_hh_l0", 1): [0, 1, 2],
        ("r.bias_ih_l0", 0): [0, 1, 2] * 3,
        ("r.bias_hh_l0", 0): [0, 1, 2] * 3,
        ("b.weight", 1): [0, 1, 2],
    }
    found = roles(group)
    assert found["r.weight_ih_l0", 0] == found["r.weight_hh_l0", 0] == "producer"
    assert found["r.weight_hh_l0", 1] == found["b.weight", 1] == "consumer"
    assert members(graph["a"])["r.weight_ih_l0", 1] == [0, 1, 2, 3]


def test_unit_u_of_all_layers_and_directions_is_one_unit():
    graph = trace(Between(nn.LSTM(4, 3, 2, bidirectional=True)), 5, 2, 3)
    found = members(graph["r.weight_ih_l0"])
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        assert found[f"r.weight_ih_{suffix}", 0] == [0, 1, 2] * 4
        assert found[f"r.weight_hh_{suffix}", 1] == [0, 1, 2]
    assert found["r.weight_ih_l1", 1] == found["r.weight_ih_l1_reverse", 1] == [0, 1, 2] * 2
    assert found["b.weight", 1] == [0, 1, 2] * 2


def test_projections_take_a_cell_each_with_them_and_the_other_cells_are_on_their_own():
    """So a layer has more cells than hidden units however it is cut, which PyTorch needs."""
    graph = trace(Between(nn.LSTM(4, 7, proj_size=3)), 5, 2, 3)
    projected, cells = graph["r.weight_ih_l0"], graph["r.weight_ih_l0#2"]
    assert members(projected)["r.weight_hr_l0", 0] == [0, 1, 2]
    assert members(projected)["r.weight_hr_l0", 1] == [0, 1, 2, -1, -1, -1, -1]
    assert members(cells)["r.weight_hr_l0", 1] == [-1, -1, -1, 0, 1, 2, 3]
    assert members(cells)["r.weight_ih_l0", 0] == [-1, -1, -1, 0, 1, 2, 3] * 4
    assert members(projected)["r.weight_hh_l0", 1] == members(projected)["b.weight", 1] == [0, 1, 2]
    assert ("r.weight_hh_l0", 1) not in members(cells)


def test_states_that_the_network_is_given_or_returns_stay_whole():
    class Stateful(Between):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.b(self.r(self.a(x), state)[0])

    class Telling(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            said, (_, cells) = self.r(self.a(x))
            return self.b(said), cells

    given_state = trace_channels(Stateful(nn.GRU(4, 6)), (torch.zeros(5, 2, 3), torch.zeros(1, 2, 6)))
    assert summary(given_state) == {"a": ("channel", 4)}
    assert reasons(given_state)["r.weight_hh_l0", 0] == {"network input"}
    told = trace_channels(Telling(nn.LSTM(4, 6)), torch.zeros(5, 2, 3))
    assert summary(told) == {"a": ("channel", 4)}
    assert reasons(told)["r.weight_hh_l0", 1] == {"network output"}
