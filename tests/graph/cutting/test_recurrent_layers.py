"""The thin copy of a recurrent layer: attributes that follow, a list of parameters that is its own."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.recurrent_layers import recurrent_attributes
from slimfast.graph.recording.network import Network


class Net(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.a, self.r, self.b = nn.Linear(3, rnn.input_size), rnn, nn.Linear(width, 2)

    def forward(self, x):
        return self.b(self.r(self.a(x))[0])


def _thin(rnn: nn.RNNBase, *, share: bool = False, **widths: int) -> tuple[Net, nn.Module]:
    model = Net(rnn).eval()
    graph = trace_channels(model, torch.zeros(4, 2, 3))
    keeps = {group.name: np.arange(widths.get(group.name.split(".")[0], group.n - 1)) for group in graph}
    return model, Cut(graph, keeps).thin_copy(Network.of(model), share=share)


def test_sizes_follow():
    _, thin = _thin(nn.LSTM(5, 9, 2, bidirectional=True, proj_size=4), a=2)
    # of four projections with a cell each three stay, of five further cells four
    assert (thin.r.input_size, thin.r.hidden_size, thin.r.proj_size) == (2, 7, 3)
    assert thin.r.weight_ih_l1_reverse.shape == (28, 6)
    for kind, gates in ((nn.GRU, 3), (nn.RNN, 1)):
        _, thin = _thin(kind(5, 9), a=3, r=4)
        assert (thin.r.input_size, thin.r.hidden_size, thin.r.proj_size) == (3, 4, 0)
        assert thin.r.weight_hh_l0.shape == (gates * 4, 4)
        assert repr(thin.r).startswith(f"{kind.__name__}(3, 4")


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_sizes_of_cells_follow(kind, gates):
    cell = kind(6, 5)
    assert recurrent_attributes(cell, {"weight_ih": (gates * 3, 2), "weight_hh": (gates * 3, 3)}) == {
        "input_size": 2,
        "hidden_size": 3,
    }
    assert recurrent_attributes(cell, {"weight_hh": (gates * 3, 3)}) == {"hidden_size": 3}
    assert recurrent_attributes(cell, {"bias_hh": (gates * 3,)}) == {"hidden_size": 3}
    masked = prune.identity(kind(6, 5), "weight_ih")
    assert recurrent_attributes(masked, {"weight_ih_orig": (gates * 3, 2)}) == {
        "input_size": 2,
        "hidden_size": 3,
    }
    assert recurrent_attributes(cell, {}) == recurrent_attributes(nn.Linear(2, 2), {"weight": (1, 2)}) == {}


def test_a_cell_of_somebody_elses_has_as_many_gates_as_it_has():
    class Minimal(nn.RNNCellBase):
        """Two gates."""

        def __init__(self) -> None:
            super().__init__(6, 5, bias=True, num_chunks=2)

    cell = Minimal()
    assert recurrent_attributes(cell, {"weight_hh": (6, 3)}) == {"hidden_size": 3}


def test_the_list_of_parameters_is_the_copys_own_in_whatever_way_it_is_copied(tmp_path):
    model, thin = _thin(nn.LSTM(5, 9, 2, bidirectional=True))
    x = torch.randn(4, 2, 3)
    expected = thin(x)
    path = tmp_path / "thin.pt"
    torch.save(thin, path)
    copies = [
        thin,
        copy.deepcopy(thin),
        pickle.loads(pickle.dumps(thin)),
        torch.load(path, weights_only=False),
        copy.deepcopy(thin).double().float(),
    ]
    blank = copy.deepcopy(thin)
    for parameter in blank.parameters():
        nn.init.zeros_(parameter)
    blank.load_state_dict(thin.state_dict())
    assigned = copy.deepcopy(thin).to("meta")
    assigned.load_state_dict(thin.state_dict(), assign=True)
    for copied in (*copies, blank, assigned):
        held = copied.r._flat_weights
        assert len(held) == len(copied.r._flat_weights_names) == 16
        for name, tensor in zip(copied.r._flat_weights_names, held, strict=True):
            assert tensor is getattr(copied.r, name)
        assert torch.equal(copied(x), expected)
    assert [tuple(t.shape) for t in model.r._flat_weights[:2]] == [(36, 5), (36, 9)]


def test_a_training_step_moves_the_thin_layer_and_not_the_wide_one():
    model, thin = _thin(nn.GRU(5, 9, 2, dropout=0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(thin.train().parameters(), lr=0.1)
    was = {name: tensor.clone() for name, tensor in thin.state_dict().items()}
    thin(torch.randn(4, 2, 3)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(was[name], tensor) for name, tensor in thin.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_cudnn_gets_the_parameters_side_by_side_but_never_the_wide_networks(monkeypatch):
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self))
    _, thin = _thin(nn.LSTM(5, 9))
    assert flattened.count(thin.r) == 1
    flattened.clear()
    _, shared = _thin(nn.LSTM(5, 9), share=True)
    assert shared.r not in flattened
