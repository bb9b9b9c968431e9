"""A recording leaves no tensor without data in what a program remembers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.graph.recording.leftovers import leaves_nothing, note_made


@functools.lru_cache(maxsize=8)
def bounded(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(0.5, n, dtype=dtype, device=device) / n


@functools.cache
def unbounded(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(0.5, n, dtype=dtype, device=device) / n


@functools.cache
def two(n: int, dtype: torch.dtype, device: torch.device) -> tuple[tuple[Tensor, str], Tensor]:
    angle = torch.arange(0.5, n, dtype=dtype, device=device) / n
    return (angle.cos(), "cos"), angle.sin()


def of_two(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return two(n, dtype, device)[0][0]


TABLE: dict[int, Tensor] = {}


def table(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Remembers without a look at the device."""
    if n not in TABLE:
        TABLE[n] = torch.arange(0.5, n, dtype=dtype, device=device) / n
    return TABLE[n]


ROWS: list[Tensor] = []


def listed(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Remembers in a list, without a look at the device."""
    for row in ROWS:
        if len(row) == n:
            return row
    ROWS.append(torch.arange(0.5, n, dtype=dtype, device=device) / n)
    return ROWS[-1]


class Remembering:
    last: Tensor | None = None

    @classmethod
    def of_class(cls, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        if cls.last is None or len(cls.last) != n:
            cls.last = torch.arange(0.5, n, dtype=dtype, device=device) / n
        return cls.last


class Memory:
    """An object outside the network."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}

    def __call__(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        if n not in self.kept:
            self.kept[n] = (n, torch.arange(0.5, n, dtype=dtype, device=device) / n)
        return self.kept[n][1]


MEMORY = Memory()
MEMOISED: dict[str, Callable[..., Tensor]] = {
    "lru_cache": bounded,
    "cache": unbounded,
    "tuples": of_two,
    "table of a module": table,
    "list of a module": listed,
    "attribute of a class": Remembering.of_class,
    "table of an object": MEMORY,
}


def forget() -> None:
    for function in (bounded, unbounded, two):
        function.cache_clear()
    TABLE.clear()
    ROWS.clear()
    MEMORY.kept.clear()
    Remembering.last = None


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    forget()


class Net(nn.Module):
    def __init__(self, remembered: str, asks: bool) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 4)
        self.remembered, self.asks = remembered, asks

    def forward(self, x: Tensor) -> Tensor:
        # Where it asks for a value, no recording on the meta device is possible, only one on fake tensors.
        n = int(torch.tensor([x.shape[1]], device=x.device)[0]) if self.asks else x.shape[1]
        h = self.a(x) + MEMOISED[self.remembered](n, x.dtype, x.device)[:, None]
        # Any reshape, so that a trial cut is made.
        return self.b(self.up(h.view(x.shape[0], x.shape[1], -1)).relu())


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("remembered", MEMOISED)
def test_the_network_runs_afterwards_and_every_recording_is_whole(remembered: str, asks: bool) -> None:
    torch.manual_seed(0)
    model, x = Net(remembered, asks).eval(), torch.randn(2, 5, 8)
    expected = model(x)
    forget()
    groups = [[group.name for group in slimfast.trace_channels(model, x)] for _ in range(2)]
    assert groups == [["a", "up"]] * 2
    assert torch.equal(model(x), expected)
    thin = slimfast.slim(model, x, params=0.5)
    assert torch.equal(model(x), expected)
    assert thin(x).shape == expected.shape


@pytest.mark.parametrize("remembered", MEMOISED)
def test_the_first_call_of_all_may_be_a_recording(remembered: str) -> None:
    torch.manual_seed(0)
    model, x = Net(remembered, False).eval(), torch.randn(2, 5, 8)
    groups = [[group.name for group in slimfast.trace_channels(model, x)] for _ in range(2)]
    assert groups == [["a", "up"]] * 2
    assert type(model(x)) is Tensor
    assert model(x).isfinite().all()


@pytest.mark.parametrize("remembered", ["table of a module", "table of an object", "attribute of a class"])
def test_what_was_remembered_before_of_other_calls_is_not_touched(remembered: str) -> None:
    torch.manual_seed(0)
    model, x = Net(remembered, False).eval(), torch.randn(2, 5, 8)
    device = torch.device("cpu")
    n = 5 if remembered == "attribute of a class" else 6
    before = MEMOISED[remembered](n, x.dtype, device)
    assert [group.name for group in slimfast.trace_channels(model, x)] == ["a", "up"]
    assert MEMOISED[remembered](n, x.dtype, device) is before


def test_what_a_living_copy_holds_is_taken_out_of_a_table_as_well() -> None:
    copied, known = nn.Module(), {}

    @leaves_nothing
    def recorded() -> None:
        tensor = torch.empty(3, device="meta")
        copied.register_buffer("positions", tensor)
        known["positions"] = tensor
        note_made([tensor], [copied])

    recorded()
    assert known == {}


def test_what_a_living_copy_alone_holds_stays() -> None:
    copied = nn.Module()

    @leaves_nothing
    def recorded() -> None:
        tensor = torch.empty(3, device="meta")
        copied.register_buffer("positions", tensor)
        note_made([tensor], [copied])

    recorded()
    assert copied.positions is not None


def test_a_forward_that_fails_leaves_nothing_either() -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("no")

    with pytest.raises(slimfast.UnsupportedGraph, match="no"):
        slimfast.trace_channels(Fails("table of a module", False).eval(), torch.randn(2, 5, 8))
    assert all(type(tensor) is Tensor and not tensor.is_meta for tensor in TABLE.values())


def test_a_network_that_remembers_nothing_costs_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from slimfast.graph.recording import leftovers

    def refuse(*things: Any) -> list[Any]:
        raise AssertionError("nothing is left to be searched for")

    monkeypatch.setattr(leftovers.gc, "get_referrers", refuse)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Unflatten(1, (4, 4)), nn.Flatten(), nn.Linear(16, 3)).eval()
    assert slimfast.trace_channels(model, torch.randn(2, 8)).operations
