"""Axes that recurrent layers meet: steps, batches, states, packed rows, and weights that are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.graph_helpers import members, reasons, summary, trace, trace_example
from support.recurrent_cases import CASES
from support.recurrent_checks import Between, check_cuts
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.network import Network
from slimfast.pruning.verification import verify


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


class Lanes(nn.Module):
    """Channels that are the batch of a recurrent layer; ``start``: the state that each begins with."""

    def __init__(self, start: Tensor | None = None, *, packed: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 2, 1)
        self.r, self.one = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1)
        self.start = None if start is None else nn.Parameter(start)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        lanes = self.a(x)[0].unsqueeze(2)
        if self.packed:
            lanes = pack_padded_sequence(lanes, [5] * 8, batch_first=True)
        said = self.r(lanes, self.start)[0]
        if self.packed:
            said = pad_packed_sequence(said, batch_first=True)[0]
        return self.b(self.one(said).squeeze(2).unsqueeze(0))


@pytest.mark.parametrize("start", [None, torch.randn(1, 8, 4)])
def test_channels_that_are_a_batch_of_sequences_are_cut(start):
    x = torch.randn(1, 3, 5)
    graph = check_cuts(Lanes(start), (x,), (torch.randn(1, 3, 7),))
    assert summary(graph) == {"a": ("channel", 8), "r.weight_ih_l0": ("channel", 4)}
    if start is not None:
        assert members(graph["a"])["start", 1] == list(range(8))


def test_channels_that_are_packed_as_a_batch_stay():
    for start in (None, torch.randn(1, 8, 4)):
        graph = trace(Lanes(start, packed=True), 1, 3, 5)
        assert summary(graph) == {"r.weight_ih_l0": ("channel", 4)}
        assert reasons(graph)["a.weight", 0] == {"aten._pack_padded_sequence runs along it"}


@pytest.mark.parametrize("reads", [False, True])
def test_channels_that_are_the_rows_of_a_packed_sequence_stay(reads):
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r, self.b = nn.Linear(3, 6), nn.GRU(2, 4), nn.Linear(4 if reads else 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            packed = PackedSequence(self.a(x).t(), torch.tensor([2, 2, 2]))
            if reads:
                packed = self.r(packed)[0]
            return self.b(pad_packed_sequence(packed)[0])

    graph = trace(Rows(), 2, 3)
    assert "a" not in summary(graph)
    op = "aten.gru" if reads else "aten._pad_packed_sequence"
    assert reasons(graph)["a.weight", 0] == {f"{op} runs along it"}


def test_states_of_a_packed_batch_keep_their_lanes():
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r, self.b = nn.Linear(3, 8), nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor, states: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, [5] * 8, batch_first=True)
            return self.b(self.r(packed, self.a(states).t().unsqueeze(0))[1])

    graph = trace_example(Given(), (torch.zeros(8, 5, 2), torch.zeros(4, 3)))
    assert summary(graph) == {}
    assert reasons(graph)["a.weight", 0] == {"aten.gru runs along it"}


def test_layers_are_no_units_where_a_layer_makes_the_states_of_all():
    """One vector has the states of two layers: what makes it is cut unit by unit in both."""
    make, arguments, _ = CASES["captioner"]
    graph = trace_channels(make(), arguments)
    assert summary(graph) == {
        "conv": ("channel", 8),
        "hidden": ("channel", 10),
        "embed": ("channel", 6),
    }
    found = members(graph["hidden"])
    assert found["hidden.weight", 0] == found["cells.bias", 0] == [*range(10), *range(10)]
    assert found["rnn.weight_hh_l1", 1] == list(range(10))


def test_states_of_a_decoder_are_no_heads_of_the_attention_that_reads_them():
    make, arguments, _ = CASES["translator"]
    assert summary(trace_channels(make(), arguments))["encoder.weight_ih_l0"] == ("channel", 12)


@pytest.mark.parametrize("wrapped", ["weight_ih", "weight_hh"])
def test_weights_that_are_not_zero_for_masked_units_make_a_group_inexact(wrapped):
    """A sigmoid makes 1/2 of a removed unit's weight: what it reads counts, and what it says is not 0."""

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.cell = nn.Linear(3, 5), nn.GRUCell(5, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            weights = {name: getattr(self.cell, name) for name in ("weight_ih", "weight_hh")}
            weights[wrapped] = weights[wrapped].sigmoid()
            state = x.new_zeros(len(x), 6)
            for _ in range(2):
                state = torch.gru_cell(self.a(x), state, weights["weight_ih"], weights["weight_hh"])
            return state @ state.t()

    graph = trace(Computed(), 4, 3)
    reads, states = graph["a"].inexact, graph["cell.weight_ih"].inexact
    assert ("adds up along it what is not 0" in str(reads)) == (wrapped == "weight_ih")
    assert "adds up along it what is not 0" in str(states)


def _masked(rnn: nn.RNNBase) -> nn.RNNBase:
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
        prune.l1_unstructured(rnn, name, 0.3)
    return rnn


WRAPPED = {
    "weight norm": lambda rnn: parametrizations.weight_norm(rnn, "weight_hh_l0"),
    "weight norm of both": lambda rnn: parametrizations.weight_norm(
        parametrizations.weight_norm(rnn, "weight_hh_l0"), "weight_ih_l0"
    ),
    "spectral norm": lambda rnn: parametrizations.spectral_norm(rnn, "weight_hh_l0"),
    "weight norm by a hook": lambda rnn: nn.utils.weight_norm(rnn, "weight_ih_l0"),
    "masks": _masked,
}


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of")
@pytest.mark.parametrize("name", WRAPPED)
def test_weights_that_are_computed_of_others_are_cut_too(name):
    """A layer lists its weights, computed ones among them, which Python's own copy refuses."""
    torch.manual_seed(0)
    model = Between(WRAPPED[name](nn.LSTM(5, 7))).double().eval()
    x, other = torch.randn(4, 2, 3).double(), torch.randn(6, 1, 3).double()
    model(x)
    graph = trace_channels(model, x)
    assert [group.n for group in graph] == [5, 7]
    keeps = {group.name: np.arange(group.n - 2) for group in graph}
    cut = Cut(graph, keeps)
    thin = cut.thin_copy(Network.of(model))
    assert check_thin(thin, cut) == []
    assert (thin.r.input_size, thin.r.hidden_size) == (3, 5)
    for given_input in (x, other):
        assert verify(model, thin, graph, keeps, given_input).max_error < 1e-12
    thin.train()(x).sum().backward()


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
