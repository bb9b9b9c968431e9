"""Integers that a recording traces work like plain ones and say where they came from."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slimfast.graph.recording.forward import record
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.number_origins import (
    AttributeRead,
    Computed,
    TracedInt,
    evaluate,
    numbers_in,
    reads_of,
    telling_equal,
    traced,
)


def _read(number: int, name: str = "c") -> TracedInt:
    return traced(number, AttributeRead(0, name, None, number))


@given(st.integers(2, 99), st.integers(2, 99), st.integers(-9, 9))
def test_arithmetic_is_that_of_plain_integers_and_can_be_computed_again(a, b, c):
    x, y = _read(a, "x"), _read(b, "y")
    results = [(x * y, a * b), (x + y, a + b), (x - y, a - b), (x // y, a // b), (c + x, c + a)]
    results += [(c - x, c - a), (c * x, c * a), (c // x, c // a), (x * y // 2 + c, a * b // 2 + c)]
    for now, plain in results:
        assert now == plain
        assert hash(now) == hash(plain)
        assert repr(now) == repr(plain)
        assert evaluate(now.origin) == plain
    later = evaluate((x * y + c).origin, lambda read: read.number + 1)
    assert later == (a + 1) * (b + 1) + c
    assert {read.name for read in reads_of((x * y).origin)} == {"x", "y"}


def test_other_arithmetic_makes_plain_numbers():
    x = _read(12)
    for plain in (x / 4, x % 5, x**2, -x, int(x), float(x), x * 1.5, abs(x)):
        assert type(plain) in (int, float)
    assert [1] * _read(3) == [1, 1, 1]
    assert list(range(_read(3))) == [0, 1, 2]
    assert torch.equal(x * torch.ones(2), torch.full((2,), 12.0))
    assert np.array([x]).dtype == np.int64
    assert json.dumps({"c": x}) == '{"c": 12}'
    assert copy.deepcopy(x) == 12
    with pytest.raises(ZeroDivisionError):
        x // 0
    with pytest.raises(TypeError):
        x + "a"


def test_a_number_of_very_many_steps_is_plain():
    number = _read(2)
    for _ in range(1000):
        number = number + 1
    assert number == 1002
    assert not isinstance(number, TracedInt) or number.origin.depth <= 32


def test_the_numbers_of_a_call_are_listed_in_order():
    x = _read(5)
    found = numbers_in((torch.zeros(2), [1, (x, 2)], slice(None, x, 3), {"a": 7, "b": None}, True, 1.5))
    assert found == (1, 5, 2, 5, 3, 7)
    assert [isinstance(number, TracedInt) for number in found] == [False, True, False, True, False, False]


class Holder(nn.Module):
    """Holds sizes in every way."""

    def __init__(self, shared) -> None:
        super().__init__()
        self.c, self.sizes, self.rows = 8, (2, 4), [4, 2]
        self.config = SimpleNamespace(width=8, inner=SimpleNamespace(parts=4))
        self.shared = shared

    def forward(self, x):
        x = x.view(2, self.c).view(2, *self.sizes).view(2, *self.rows).view(2, self.config.width)
        x = x.view(2, self.config.inner.parts, 2)
        return x.reshape(2, self.shared.left * self.shared.right)


def test_each_way_of_holding_a_size_is_named_and_the_network_stays_as_it_is():
    shared = SimpleNamespace(left=2, right=4)
    model = nn.Sequential(Holder(shared), Holder(shared)).eval()
    recording = record(Network.of(model), (torch.zeros(2, 8),), {}, trace_numbers=True)
    assert recording.reads is not None
    found = {
        recording.reads.keys_of(read, call.module)
        for call in recording.calls
        for number in call.numbers
        if isinstance(number, TracedInt)
        for read in reads_of(number.origin)
        if isinstance(read, AttributeRead)
    }
    own = {("c", None), ("sizes", 0), ("sizes", 1), ("rows", 0), ("rows", 1), ("config.width", None),
           ("config.inner.parts", None), ("shared.left", None), ("shared.right", None)}  # fmt: skip
    assert found == {(path, *attribute) for path in ("0", "1") for attribute in own}
    for holder in model:
        held = [holder.c, *holder.sizes, *holder.rows, holder.config.width, holder.config.inner.parts]
        assert {type(number) for number in (*held, shared.left, shared.right)} == {int}


class Kept:
    """An object that is not copied with what holds it."""

    def __init__(self) -> None:
        self.width, self.rows = 8, [2, 4]

    def __deepcopy__(self, memo):
        return self


def test_what_a_copy_shares_with_the_network_holds_plain_integers():
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = Kept()

        def forward(self, x):
            return x.view(*self.kept.rows).view(self.kept.width)

    model = Shares()
    record(Network.of(model), (torch.zeros(8),), {}, trace_numbers=True)
    assert type(model.kept.width) is int
    assert {type(row) for row in model.kept.rows} == {int}


def test_code_that_refuses_other_than_plain_integers_is_recorded_with_these():
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = 4

        def forward(self, x):
            assert type(self.c) is int, "expected a plain integer"
            return x.view(2, self.c)

    recording = record(Network.of(Strict()), (torch.zeros(8),), {}, trace_numbers=True)
    assert recording.reads is None
    assert [call.op for call in recording.calls] == ["aten.view"]


def test_a_product_is_told_by_what_was_multiplied():
    product = _read(3, "h") * 4
    assert isinstance(product.origin, Computed)
    assert (product.origin.operator, product.origin.right) == ("*", 4)


def test_equal_numbers_are_told_and_compare_and_hash_as_plain_ones():
    told = []
    a, b = (traced(n, AttributeRead(0, name, None, n)) for n, name in ((4, "a"), (4, "b")))
    other = traced(5, AttributeRead(0, "c", None, 5))
    with telling_equal(lambda *origins: told.append([origin.name for origin in origins])):
        assert a == b
        assert (a != b) is False
        assert a != other
        assert (a == other) is False
        assert [a == n for n in (4, 4.0, 5, "4", None)] == [True, True, False, False, False]
        assert [a != n for n in (4, 4.0, 5, "4", None)] == [False, False, True, True, True]
        assert {4: "four"}[a] == "four"
    assert told == [["a", "b"], ["a", "b"]]
    assert a == b
    assert len(told) == 2
