"""Peak memory: what is measured is what tensors take, and what is predicted is what thin networks take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.memory_networks import NETWORKS
from torch import nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph.recording.network import Network
from slimfast.latency.tabulate import thin_network
from slimfast.memory.measuring import bytes_text
from slimfast.memory.tabulate import copies_in

FLOAT = 4


def linear(n: int, m: int) -> nn.Linear:
    return nn.Linear(n, m, device="cpu")


def test_a_chain_holds_two_of_its_tensors_at_a_time():
    model = nn.Sequential(linear(8, 32), nn.ReLU(), linear(32, 64), nn.ReLU(), linear(64, 4))
    x = torch.zeros(128, 8, device="cpu")
    found = slimfast.peak_memory(model, x)
    assert found.weights == FLOAT * (8 * 32 + 32 + 32 * 64 + 64 + 64 * 4 + 4)
    assert found.inputs == FLOAT * 128 * 8
    # The activation of the widest layer is made of its 64 outputs.
    assert found.activations == FLOAT * 128 * (64 + 64)
    assert found.total == found.weights + found.inputs + found.activations
    assert found.batch == 128


def test_an_activation_in_place_takes_nothing():
    def peak(inplace: bool) -> int:
        layers = (linear(8, 32), nn.ReLU(inplace=inplace), linear(32, 24), nn.ReLU(inplace=inplace))
        return slimfast.peak_memory(nn.Sequential(*layers), torch.zeros(64, 8, device="cpu")).activations

    assert peak(False) == FLOAT * 64 * (32 + 32)
    # The second layer reads what the first has made.
    assert peak(True) == FLOAT * 64 * (32 + 24)


def test_a_view_takes_nothing_and_keeps_what_it_shows():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(6, 40)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.layer(x).chunk(2, dim=1)[0]
            return first.exp()

    found = slimfast.peak_memory(Halves(), torch.zeros(50, 6, device="cpu"))
    assert found.activations == FLOAT * 50 * (40 + 20)


def test_shared_weights_count_once_and_plain_tensors_count():
    first, second = linear(16, 16), linear(16, 16)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    model.table = torch.zeros(100, device="cpu")
    found = slimfast.peak_memory(model, torch.zeros(2, 16, device="cpu"))
    assert found.weights == FLOAT * (16 * 16 + 16 + 16 + 100)


def test_the_network_stays_as_it_was():
    model = nn.Sequential(linear(4, 4), nn.BatchNorm1d(4, device="cpu"), nn.Dropout(0.5))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slimfast.peak_memory(model, torch.ones(3, 4, device="cpu"))
    assert [module.training for module in model] == [True, False, True]
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_cannot_be_measured_is_said_in_one_line():
    model = nn.Sequential(linear(4, 4))
    with pytest.raises(SlimfastError, match="memory: the forward failed: mat1 and mat2") as caught:
        slimfast.peak_memory(model, torch.zeros(2, 5, device="cpu"))
    assert "\n" not in str(caught.value)
    assert model.training
    with pytest.raises(SlimfastError, match="expected weights with data, got some on the meta device"):
        slimfast.peak_memory(nn.Linear(4, 4, device="meta"), torch.zeros(2, 4, device="cpu"))
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        pytest.raises(SlimfastError, match="expected no other profiler"),
    ):
        slimfast.peak_memory(model, torch.zeros(2, 4, device="cpu"))
    # And afterwards it can be.
    assert slimfast.peak_memory(model, torch.zeros(2, 4, device="cpu")).activations == FLOAT * 8


@pytest.mark.parametrize("name", NETWORKS)
def test_thin_networks_take_what_is_predicted(name):
    model, example = NETWORKS[name]()
    model.eval()
    graph = slimfast.trace_channels(model, example)
    assert graph.groups
    table = slimfast.memory_table(graph, model, example)
    assert table.predicted(graph, {}) == pytest.approx(slimfast.peak_memory(model, example).total, rel=0.01)
    for share in (0.75, 0.5, 0.25):
        widths = {group.name: max(1, round(group.n * share)) for group in graph}
        thin = thin_network(Network.of(model), graph, widths)
        measured = slimfast.peak_memory(thin, example)
        assert table.predicted(graph, widths) == pytest.approx(measured.total, rel=0.05), share


def test_the_peak_moves_to_another_layer_where_one_gets_narrow():
    model = nn.Sequential(linear(8, 32), nn.Tanh(), linear(32, 64), nn.Tanh(), linear(64, 4)).eval()
    example = torch.zeros(512, 8, device="cpu")
    graph = slimfast.trace_channels(model, example)
    priced = slimfast.memory_table(graph, model, example).priced(graph)
    assert [group.name for group in graph] == ["0", "2"]
    assert priced.where(np.array([32, 64])) == ("aten.tanh", "3")
    assert priced.where(np.array([32, 5])) == ("aten.tanh", "1")
    weights = 8 * 32 + 32 + 32 * 5 + 5 + 5 * 4 + 4
    assert priced.price(np.array([32, 5])) == FLOAT * (weights + 512 * (8 + 32 + 32))
    assert priced.least() == FLOAT * (8 + 1 + 1 + 1 + 4 + 4 + 512 * (8 + 1 + 4))


def test_the_table_of_another_network_is_refused():
    model, example = NETWORKS["chain"]()
    graph = slimfast.trace_channels(model.eval(), example)
    table = slimfast.memory_table(graph, model, example)
    other, other_example = NETWORKS["concatenation"]()
    other_graph = slimfast.trace_channels(other.eval(), other_example)
    with pytest.raises(SlimfastError, match="memory_table: expected the table of this network"):
        table.predicted(other_graph, {})
    with pytest.raises(SlimfastError, match="memory: expected the graph of this model"):
        slimfast.memory_table(other_graph, model, example)


def test_copies_are_told_by_their_bytes():
    assert copies_in(100, {1: 60, 2: 40, 3: 7}) == (1, 2)
    assert copies_in(41, {1: 60, 2: 40, 3: 7}) == (2,)
    # Nothing comes close: all of them.
    assert copies_in(20, {1: 60, 2: 40, 3: 7}) == (1, 2, 3)
    assert copies_in(20, {1: 0}) == ()


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 bytes"), (1_536_000, "1.54 MB"), (999_700, "1.00 MB"), (2.5e9, "2.50 GB")]
)
def test_bytes_are_written_in_three_digits(count, text):
    assert bytes_text(count) == text
