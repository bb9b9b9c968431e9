"""Recurrent layers and cells: hidden units are groups, cut alike in all layers and directions of a module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.graph_helpers import members, random_keeps, reasons, roles, summary, trace
from support.recurrent_cases import CASES
from torch import Tensor, nn

from slimfast.graph import ChannelGraph, trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.network import Network
from slimfast.pruning.verification import verify


class Between(nn.Module):
    """A layer in front of a recurrent one, and one behind it."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.a, self.r, self.b = nn.Linear(3, rnn.input_size), rnn, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.r(self.a(x).relu())[0])


def _double(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


def _check_cuts(
    model: nn.Module, arguments: tuple[Any, ...], other: tuple[Any, ...], seeds: int = 3
) -> ChannelGraph:
    """Cut at random, the thin network computes what the masked one does, with other arguments too."""
    model = model.double().eval()
    graph = trace_channels(model, _double(arguments))
    for seed in range(seeds):
        keeps = random_keeps(graph, seed, exact=False)
        cut = Cut(graph, keeps)
        thin = cut.thin_copy(Network.of(model))
        assert check_thin(thin, cut) == []
        for given_arguments in (arguments, other):
            found = verify(model, thin, graph, keeps, _double(given_arguments))
            assert found.max_error < 1e-12
            assert set(found.compared) == set(keeps)
    return graph


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
    graph = _check_cuts(Between(made), (torch.randn(shapes[0]),), (torch.randn(shapes[1]),), seeds=2)
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
    graph = _check_cuts(make(), arguments, other)
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


def test_an_axis_that_a_recurrent_layer_runs_along_stays():
    """Channels that are the steps of a sequence; behind it they cannot be cut either."""

    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r, self.b = nn.Linear(3, 8), nn.GRU(1, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.r(self.a(x).unsqueeze(2))[0])

    graph = trace(Across(), 2, 3)
    assert summary(graph) == {"r.weight_ih_l0": ("channel", 4)}
    assert reasons(graph)["a.weight", 0] == {"aten.gru runs along it"}


def test_channels_that_are_a_batch_of_sequences_are_cut():
    class Lanes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv1d(3, 8, 1)
            self.r, self.b = nn.GRU(1, 4, batch_first=True), nn.Conv1d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            lanes = self.a(x)[0].unsqueeze(2)
            return self.b(self.r(lanes)[0].transpose(1, 2).mean(1).unsqueeze(0))

    graph = trace(Lanes(), 1, 3, 5)
    assert summary(graph)["a"] == ("channel", 8)


def test_a_product_of_states_is_the_masked_one_only_where_removed_units_stay_at_zero():
    """From an initial state of zeros a removed unit stays at 0; from another it takes time to get there."""

    class Scores(nn.Module):
        def __init__(self, start: float) -> None:
            super().__init__()
            self.r, self.start = nn.LSTM(3, 6), start

        def forward(self, x: Tensor) -> Tensor:
            state = torch.full((1, x.shape[1], self.r.hidden_size), self.start)
            said = self.r(x, (torch.zeros_like(state), state))[0].transpose(0, 1)
            return said @ said.transpose(1, 2)

    zeros = trace(Scores(0.0), 5, 2, 3)
    assert [group.inexact for group in zeros] == [None]
    ones = trace(Scores(1.0), 5, 2, 3)
    assert "adds up along it what is not 0 for removed units" in str(ones.groups[0].inexact)


def test_what_fills_up_a_sequence_counts_in_a_product():
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    class Scores(nn.Module):
        def __init__(self, padding: float) -> None:
            super().__init__()
            self.r, self.padding = nn.GRU(3, 6), padding

        def forward(self, x: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, [5, 2])
            said = pad_packed_sequence(self.r(packed)[0], padding_value=self.padding)[0].transpose(0, 1)
            return said @ said.transpose(1, 2)

    assert trace(Scores(0.0), 5, 2, 3).groups[0].inexact is None
    assert "not 0 for removed units" in str(trace(Scores(2.0), 5, 2, 3).groups[0].inexact)


def test_more_projections_than_cells_are_left_whole():
    """PyTorch's function takes them, its layers do not."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(shape) for shape in ((12, 4), (12, 5), (5, 3)))

        def forward(self, x: Tensor) -> Tensor:
            states = (x.new_zeros(1, x.shape[1], 5), x.new_zeros(1, x.shape[1], 3))
            return torch.lstm(x, states, list(self.weights), False, 1, 0.0, False, False, False)[0]

    graph = trace(Wide(), 6, 2, 4)
    assert summary(graph) == {}
    assert "aten.lstm" in reasons(graph)["weights.1", 1]
