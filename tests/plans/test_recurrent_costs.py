"""Multiply-adds of recurrent layers and cells: by hand, by the operations they are made of, after a cut."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from support.recurrent_cases import CASES
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import slimfast
from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.network import Network
from slimfast.plans.costs import count, count_kept

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _by_hand(rnn: nn.RNNBase, rows: int) -> int:
    """What the documentation's formulas multiply for so many steps of so many sequences."""
    directions = 2 if rnn.bidirectional else 1
    told = rnn.proj_size or rnn.hidden_size
    total = 0
    for layer, _ in itertools.product(range(rnn.num_layers), range(directions)):
        read = directions * told if layer else rnn.input_size
        total += GATES[type(rnn).__name__] * rnn.hidden_size * (read + told)
        total += rnn.hidden_size * rnn.proj_size
    return rows * total


def _by_operation(module: nn.Module, x: torch.Tensor) -> int:
    """What PyTorch's own counter finds in the products that a layer in float64 is made of."""
    with torch.no_grad(), FlopCounterMode(display=False) as found:
        copy.deepcopy(module).double()(x.double())
    return found.get_total_flops() // 2


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_layers_count_what_they_multiply(kind, layers, two, first):
    for proj in (0, 3) if kind == "LSTM" else (0,):
        options = {"proj_size": proj} if proj else {}
        rnn = getattr(nn, kind)(6, 8, layers, bidirectional=two, batch_first=first, **options)
        x = torch.randn(5, 4, 6)
        found = slimfast.count_module(rnn, x).macs
        assert found == _by_hand(rnn, rows=20) == _by_operation(rnn, x)
        assert slimfast.count_module(rnn, x[0]).macs == _by_hand(rnn, rows=4)


@pytest.mark.parametrize(("kind", "gates"), [("LSTMCell", 4), ("GRUCell", 3), ("RNNCell", 1)])
def test_cells_count_each_call(kind, gates):
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(nn, kind)(6, 8)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state

    x = torch.randn(5, 4, 6)
    assert slimfast.count_module(Loop(), x).macs == 4 * 5 * gates * 8 * (6 + 8) == _by_operation(Loop(), x)
    assert slimfast.count_module(getattr(nn, kind)(6, 8), x[:, 0]).macs == 5 * gates * 8 * (6 + 8)


def test_steps_of_a_packed_sequence_count_without_what_would_fill_them_up():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True)

        def forward(self, x):
            return self.rnn(pack_padded_sequence(x, [7, 4, 1], batch_first=True))[1][0]

    model, x = Packed(), torch.randn(3, 7, 6)
    assert slimfast.count_module(model, x).macs == _by_hand(model.rnn, rows=7 + 4 + 1)


@pytest.mark.parametrize("name", CASES)
def test_a_thin_network_costs_what_was_said(name):
    make, arguments, _ = CASES[name]
    model = make().eval()
    graph = trace_channels(model, arguments)
    widths = {group.name: max(1, group.n // 3) for group in graph}
    keeps = {name: np.arange(width) for name, width in widths.items()}
    said = count(graph, widths)
    thin = Cut(graph, keeps).thin_copy(Network.of(model))
    assert said == count_kept(graph, keeps) == slimfast.count_module(thin, arguments)


def test_a_budget_of_multiply_adds_is_met_by_hidden_units():
    model = nn.Sequential(nn.Linear(6, 16), nn.LSTM(16, 32, 2, proj_size=8, bidirectional=True))
    plan = slimfast.plan(Tail(model), torch.randn(9, 2, 6), macs=0.3, multiple_of=2)
    assert plan.cost_after.macs <= 0.3 * plan.cost_before.macs
    assert any(group.width < group.n for group in plan.groups if "weight_ih" in group.name)


class Tail(nn.Module):
    """What layers say at last, classified."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers, self.out = layers, nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.layers(x)[0][-1])
