"""Latency tables on a device of known stairs: what they predict is what the device takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic_device import Device, stairs_of_8
from torch import nn

import slimfast
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError
from slimfast.graph.recording.network import Network
from slimfast.latency import LatencyTable, latency_table
from slimfast.latency.surfaces import points_of
from slimfast.latency.tabulate import thin_network


class Block(nn.Module):
    """Two convolutions around a residual stream."""

    def __init__(self, stream: int, inside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(stream, inside, 3, padding=1, bias=False, device="cpu")
        self.norm = nn.BatchNorm2d(inside, device="cpu")
        self.second = nn.Conv2d(inside, stream, 3, padding=1, bias=False, device="cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class Small(nn.Module):
    """Two equal blocks behind a stem, and a classifier."""

    def __init__(self, stream: int = 24, inside: int = 40) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, padding=1, device="cpu")
        self.blocks = nn.Sequential(Block(stream, inside), Block(stream, inside))
        self.head = nn.Linear(stream, 5, device="cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


EXAMPLE = torch.zeros(2, 3, 6, 6, device="cpu")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = Small().eval()
    return model, slimfast.trace_channels(model, EXAMPLE)


@pytest.fixture(scope="module")
def table(small):
    model, graph = small
    return latency_table(graph, model, EXAMPLE, measure=Device())


def taken(model: nn.Module, graph: slimfast.ChannelGraph, widths: dict[str, int], device: Device) -> float:
    return device(thin_network(Network.of(model), graph, widths), EXAMPLE)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_width_is_predicted_with_the_stairs_of_the_device(small, table, data):
    model, graph = small
    widths = {group.name: data.draw(st.integers(1, group.n), group.name) for group in graph}
    assert table.predicted(graph, widths) == pytest.approx(taken(model, graph, widths, Device()), rel=1e-9)


def test_a_network_of_plain_layers_is_predicted_too():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(7, 30, device="cpu"), nn.ReLU(), nn.Linear(30, 13, device="cpu"), nn.ReLU(),
        nn.Linear(13, 4, device="cpu"),
    )  # fmt: skip
    x = torch.zeros(3, 7, device="cpu")
    graph = slimfast.trace_channels(model, x)

    def price(into: int, out: int) -> float:
        return 1e-6 * (3 + into) * (2 + out)

    found = latency_table(graph, model, x, measure=Device(price))
    for widths in ({"0": 9}, {"0": 17, "2": 5}, {"0": 1, "2": 1}, {}):
        thin = thin_network(Network.of(model), graph, widths)
        assert found.predicted(graph, widths) == pytest.approx(Device(price)(thin, x), rel=1e-9)


def test_equal_pieces_are_measured_once(small):
    model, graph = small
    device = Device()
    found = latency_table(graph, model, EXAMPLE, measure=device)
    # The stem, two convolutions of the blocks of which the last reads on, the end.
    assert sum(len(piece.places) for piece in found.pieces) == 6
    assert {len(piece.places) for piece in found.pieces} == {1, 2}
    points = sum(len(points_of(piece.full)) for piece in found.pieces)
    assert sum(len(piece.seconds) for piece in found.pieces) == points
    # And four whole networks.
    assert device.calls == points + 4


def test_whole_networks_correct_what_the_pieces_add_up_to(small):
    model, graph = small

    class Slow(Device):
        def __call__(self, module: nn.Module, example: object) -> float:
            seconds = super().__call__(module, example)
            return 1.5 * seconds if hasattr(module, "stem") else seconds

    found = latency_table(graph, model, EXAMPLE, measure=Slow())
    assert found.predicted(graph, {}) == pytest.approx(1.5 * taken(model, graph, {}, Device()))
    half = {group.name: group.n // 2 for group in graph}
    assert found.predicted(graph, half) == pytest.approx(1.5 * taken(model, graph, half, Device()))


def test_the_network_stays_as_it_was(small):
    model, graph = small
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    model.train()
    try:
        latency_table(graph, model, EXAMPLE, measure=Device())
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_table_is_read_as_it_was_written(table, small, tmp_path):
    path = tmp_path / "table.json"
    table.save(path)
    found = LatencyTable.of(path)
    assert found == table
    assert found.predicted(small[1], {"stem[residual]": 9}) == table.predicted(
        small[1], {"stem[residual]": 9}
    )
    assert str(found) == str(table)


def test_the_table_of_another_graph_is_refused_in_one_line(table, small):
    model, _ = small
    graph = slimfast.trace_channels(model, EXAMPLE[:1])
    with pytest.raises(SlimfastError, match=r"expected the table of this network .* another \(batch 2\)"):
        table.predicted(graph, {})


def test_a_graph_of_another_model_is_refused(small):
    with pytest.raises(SlimfastError):
        latency_table(small[1], Small(32, 40), EXAMPLE, measure=Device())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(kind="slimfast.plan"), "expected a document of kind"),
        (lambda d: d.update(finished=False), "not finished"),
        (lambda d: d.update(more=1), "unknown field 'more'"),
        (lambda d: d["pieces"][0].update(seconds=[]), "seconds"),
        (lambda d: d["pieces"][0]["seconds"].pop(0), "missing"),
        (lambda d: d["pieces"][0]["seconds"][0].__setitem__(1, -1.0), "seconds above 0"),
        (lambda d: d["pieces"][0]["groups"][0][0].__setitem__(1, 0), "expected an integer in 1"),
        (lambda d: d["pieces"][0]["places"][0].append([]), "expected a list"),
        (lambda d: d.update(whole=[]), "whole"),
        (lambda d: d.update(threads="two"), "threads"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(table, change, said):
    document = json.loads(table.to_json())
    change(document)
    with pytest.raises(SlimfastError, match=said) as caught:
        LatencyTable.from_json(json.dumps(document))
    assert "\n" not in str(caught.value)


def test_a_measurement_is_gone_on_with(small, tmp_path, monkeypatch):
    model, graph = small
    path = tmp_path / "table.json"
    monkeypatch.setattr("slimfast.latency.resuming._EVERY_SECONDS", 0.0)

    class Stopped(Exception):
        pass

    class Failing(Device):
        def __call__(self, module: nn.Module, example: object) -> float:
            if self.calls == 100:
                raise Stopped
            return super().__call__(module, example)

    with pytest.raises(Stopped):
        latency_table(graph, model, EXAMPLE, measure=Failing(), resume=path)
    with pytest.raises(SlimfastError, match="not finished"):
        LatencyTable.of(path)
    whole, rest = Device(), Device()
    expected = latency_table(graph, model, EXAMPLE, measure=whole)
    found = latency_table(graph, model, EXAMPLE, measure=rest, resume=path)
    assert found == expected
    assert rest.calls == whole.calls - 100
    assert LatencyTable.of(path) == expected
    with pytest.raises(SlimfastError, match="finished"):
        latency_table(graph, model, EXAMPLE, measure=rest, resume=path)


def test_another_network_does_not_go_on_with_it(small, tmp_path, monkeypatch):
    model, graph = small
    path = Path(tmp_path / "table.json")
    monkeypatch.setattr("slimfast.latency.resuming._EVERY_SECONDS", 0.0)

    def fails(module: nn.Module, example: object) -> float:
        if hasattr(module, "stem"):
            raise ArgumentError("stop")
        return 1.0

    with pytest.raises(ArgumentError, match="stop"):
        latency_table(graph, model, EXAMPLE, measure=fails, resume=path)
    other = Small(16, 40).eval()
    with pytest.raises(SlimfastError, match="expected what was measured of this network here"):
        latency_table(slimfast.trace_channels(other, EXAMPLE), other, EXAMPLE, measure=Device(), resume=path)


def test_too_few_minutes_are_said_with_how_many(small):
    model, graph = small
    with pytest.raises(SlimfastError, match=r"expected minutes=1 or more"):
        latency_table(graph, model, EXAMPLE, measure=Device(), minutes=1e-9)


@pytest.mark.parametrize("minutes", [0, -1, True, "ten"])
def test_minutes_are_above_0(small, minutes):
    with pytest.raises(ArgumentError, match="expected minutes above 0"):
        latency_table(small[1], small[0], EXAMPLE, measure=Device(), minutes=minutes)


@pytest.mark.parametrize("seconds", [0, -1.0, None, float("nan"), "1"])
def test_a_clock_that_tells_no_time_is_refused(small, seconds):
    with pytest.raises(SlimfastError, match="expected measure to return seconds above 0"):
        latency_table(small[1], small[0], EXAMPLE, measure=lambda module, example: seconds)


def test_progress_counts_the_points(small):
    model, graph = small
    told: list[tuple[int, int]] = []
    found = latency_table(
        graph, model, EXAMPLE, measure=Device(), progress=lambda done, total: told.append((done, total))
    )
    total = sum(len(piece.seconds) for piece in found.pieces)
    assert told == [(i, total) for i in range(1, total + 1)]


def test_what_is_no_table_is_a_wrong_argument():
    with pytest.raises(ArgumentTypeError, match="expected a LatencyTable or the path of one, got int"):
        LatencyTable.of(3)  # type: ignore[arg-type]


def test_stairs():
    assert [stairs_of_8(n) for n in (1, 8, 9, 16)] == [8, 8, 16, 16]


@pytest.mark.parametrize(
    "points", ["3", '[["a", [1]]]', '[["a", 1, 2.0]]', '[["a", ["x"], 2.0]]', '{"a": 1}']
)
def test_damaged_points_are_named(small, tmp_path, monkeypatch, points):
    model, graph = small
    path = Path(tmp_path / "table.json")
    monkeypatch.setattr("slimfast.latency.resuming._EVERY_SECONDS", 0.0)
    calls = []

    def fails(module: nn.Module, example: object) -> float:
        calls.append(1)
        if len(calls) > 40:
            raise ArgumentError("stop")
        return 1.0

    with pytest.raises(ArgumentError, match="stop"):
        latency_table(graph, model, EXAMPLE, measure=fails, resume=path)
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "points": json.loads(points)}))
    with pytest.raises(SlimfastError, match="points") as caught:
        latency_table(graph, model, EXAMPLE, measure=Device(), resume=path)
    assert "\n" not in str(caught.value)
