"""What calibration keeps of what layers read: repair from it is repair with the wide network run again."""

from __future__ import annotations

import copy
import dataclasses
import errno
import logging
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.repair_cases import conv_net, planned
from torch import Tensor, nn

import slimfast
from slimfast.calibration import positions, row_keeper
from slimfast.pruning.repair import activations

KEEP = [0, 1, 4]


class Tokens(nn.Module):
    """Tokens through a block whose layers share what they read, and one of which gets a massive token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(5, 8), nn.Linear(8, 12), nn.Linear(8, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat([x[:, :1] * 300, x[:, 1:]], 1)
        return self.last(torch.tanh(self.left(x)) + self.right(x).relu())


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def tokens(count: int) -> Tensor:
    return torch.randn(count, 9, 5, generator=torch.Generator().manual_seed(count))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "convolutions": (conv_net, images),
    "tokens": (Tokens, tokens),
}


def made(name: str, batches: list[int]) -> tuple[nn.Module, Any, slimfast.Calibration]:
    torch.manual_seed(0)
    build, samples = CASES[name]
    model = build().eval()
    graph = slimfast.trace_channels(model, samples(2))
    plan = planned(model, samples(2), {graph.groups[0].name: KEEP})
    return model, plan, slimfast.calibrate(model, graph, [samples(count) for count in batches])


def repaired(
    model: nn.Module, plan: Any, calibration: slimfast.Calibration, **options: Any
) -> dict[str, Tensor]:
    thin = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration, **options)
    assert slimfast.repair_report(thin).fits
    return dict(thin.state_dict())


def without_the_wide_network(patch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("the wide network runs again")

    patch.setattr(activations, "read_wide", refuse)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("memory", [1 << 30, 40_000])
@pytest.mark.parametrize("room", ["all", "some", "none"])
@pytest.mark.parametrize("name", CASES)
def test_repair_from_what_was_kept_is_repair_with_another_forward(
    name: str, room: str, memory: int, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of it in memory, a part of it, or none.
    make = row_keeper.RowKeeper.make_room
    bytes_in_memory = {"all": 1 << 30, "some": 500 if few else 1600, "none": 0}[room]

    def allow(keeper: row_keeper.RowKeeper, waiting: float) -> None:
        make(keeper, keeper._memory - bytes_in_memory - keeper._moments)

    monkeypatch.setattr(row_keeper.RowKeeper, "make_room", allow)
    if few:
        # Positions are picked: of some slices few, of others none.
        monkeypatch.setattr(positions, "POSITIONS", 40)
        monkeypatch.setattr(positions, "POSITIONS_PER_VARIABLE", 0)
    model, plan, calibration = made(name, [7, 1, 16, 2])
    assert calibration.rows is not None
    assert (calibration.rows.held > 0) == (room != "none")
    assert (calibration.rows.bytes > 0) == (room != "all")
    expected = repaired(model, plan, dataclasses.replace(calibration, rows=None), memory=memory)
    with monkeypatch.context() as patch:
        without_the_wide_network(patch)
        found = [repaired(model, plan, calibration, memory=memory) for _ in range(2)]
    assert len(list(calibration.slices(memory // 4))) > 4 or memory == 1 << 30
    for tensor, other, again in zip(found[0].values(), expected.values(), found[1].values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-5)
        assert torch.equal(tensor, again)


def test_what_is_not_for_repair_keeps_moments_alone() -> None:
    model, plan, calibration = made("convolutions", [8])
    graph = slimfast.trace_channels(model, images(2))
    bare = slimfast.calibrate(model, graph, [images(8)], for_repair=False)
    assert bare.rows is None
    for name, reading in calibration.readings.items():
        assert torch.equal(bare.readings[name].covariance, reading.covariance)
    found, expected = (repaired(model, plan, one) for one in (bare, calibration))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_a_changed_network_runs_again(caplog: pytest.LogCaptureFixture) -> None:
    model, plan, calibration = made("tokens", [8, 8])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    with caplog.at_level(logging.INFO, logger="slimfast"):
        found = repaired(model, plan, calibration)
    assert any("the model has changed" in record.getMessage() for record in caplog.records)
    expected = repaired(model, plan, dataclasses.replace(calibration, rows=None))
    assert all(torch.equal(found[name], expected[name]) for name in found)


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.again(self.first(x)).relu()))


class Turned(nn.Module):
    """Layers that read (positions, samples, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.movedim(1, 0)).relu()).movedim(0, 1)


class Padded(nn.Module):
    """Tokens with a mask of those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.last(self.first(x).relu()) * attention_mask[..., None]


def padded(count: int) -> dict[str, Tensor]:
    mask = torch.ones(count, 9, dtype=torch.int64)
    mask[0, 7:] = 0
    return {"x": tokens(count), "attention_mask": mask}


@pytest.mark.parametrize(
    ("model", "batches", "why"),
    [
        (Twice(), [tokens(4), tokens(2)], "again is called several times"),
        (Turned(), [tokens(4), tokens(2)], "reads (9, 4) positions of 4 samples"),
        (Padded(), [padded(4)], "some positions are padding"),
        (nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2)), [tokens(4), tokens(2)[:, :3]], "several shapes"),
    ],
)
def test_where_what_comes_is_not_known_nothing_is_kept(
    model: nn.Module, batches: list[Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    graph = slimfast.trace_channels(model.eval(), batches[0])
    with caplog.at_level(logging.INFO, logger="slimfast"):
        calibration = slimfast.calibrate(model, graph, batches)
    assert calibration.rows is None
    assert calibration.readings
    assert any("is not kept" in text and why in text for text in (r.getMessage() for r in caplog.records))


def test_a_full_disk_or_too_much_for_it_keeps_nothing_and_calibrates(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing of it in memory.
    monkeypatch.setattr(row_keeper.RowKeeper, "make_room", lambda keeper, waiting: None)
    whole = made("convolutions", [8])[2]

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        found = made("convolutions", [8])[2]
    assert found.rows is None
    assert found.readings.keys() == whole.readings.keys()
    assert whole.rows is not None
    # What all layers read, and no byte less, is what has to have room.
    assert whole.rows.held == 0
    assert whole.rows.bytes > 0
    model, graph = conv_net().eval(), slimfast.trace_channels(conv_net().eval(), images(2))
    monkeypatch.setattr(row_keeper, "_ON_DISK", 1)
    room = whole.rows.bytes
    assert slimfast.calibrate(model, graph, [images(8)], memory=room).rows is not None
    assert slimfast.calibrate(model, graph, [images(8)], memory=room - 1).rows is None


def test_it_stays_where_it_was_made() -> None:
    calibration = made("tokens", [4])[2]
    assert pickle.loads(pickle.dumps(calibration.rows)) is None
    assert copy.deepcopy(calibration).rows is calibration.rows
