"""Long tensors in files: operations on some of their rows at a time, which give what whole ones give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.shard_cases import write_shards
from torch import Tensor, nn

from slimfast.storage import long_tensors
from slimfast.storage.stored_tensors import (
    Entry,
    Shelf,
    StoredTensor,
    entry_of,
    is_long,
    left_on_shelves,
    sizes_alone,
    write_rows,
)
from slimfast.storage.weights import open_weights

WORDS, WIDTH, AT_ONCE = 500, 12, 32


class Long:
    """A long matrix, its values and the rows that were read at once."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        self.read: list[int] = []
        self.written: list[Tensor] = []
        shape = self.values.shape
        entry = Entry("head", shape, dtype, self.whole, self.written.append, self.rows, self.write)
        self.tensor = StoredTensor(entry, Shelf(1 << 10))

    def whole(self) -> Tensor:
        raise AssertionError("nobody needs all of it")

    def rows(self, first: int, last: int) -> Tensor:
        self.read.append(last - first)
        return self.values[first:last].clone()

    def write(self, pieces: Any) -> None:
        self.written += pieces


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_tensors, "_SLICE", AT_ONCE * WIDTH * 4)


def test_what_is_long() -> None:
    long = Long()
    assert is_long(long.tensor)
    assert is_long(long.tensor.detach())
    assert not is_long(long.values)
    assert not is_long(StoredTensor(long.tensor.entry, Shelf(WORDS * WIDTH * 4)))
    short = Entry("short", torch.Size((WIDTH, WIDTH)), torch.float32, long.whole, rows=long.rows)
    assert not is_long(StoredTensor(short, Shelf(0)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_linear_layers_and_their_derivatives(bias: bool, shape: tuple[int, ...]) -> None:
    long = Long(torch.float64)
    b = torch.randn(WORDS).double() if bias else None
    xs = [torch.linspace(-1, 1, WIDTH * torch.Size(shape).numel()).double().reshape(*shape, WIDTH)
          .requires_grad_() for _ in range(2)]  # fmt: skip
    with left_on_shelves([long.tensor.shelf]):
        outputs = [nn.functional.linear(xs[0], long.tensor, b), nn.functional.linear(xs[1], long.values, b)]
    torch.testing.assert_close(*outputs)
    slope = torch.randn(outputs[0].shape).double()
    for out in outputs:
        out.backward(slope)
    torch.testing.assert_close(xs[0].grad, xs[1].grad)
    assert max(long.read) <= AT_ONCE
    assert sum(long.read) == 2 * WORDS


def test_products_from_either_side() -> None:
    long = Long(torch.float64)
    w, values = long.tensor, long.values
    x, y, z = (torch.randn(*shape).double() for shape in ((4, WIDTH), (WIDTH, 3), (WORDS, 3)))
    for found, wanted in ((x @ w.t(), x @ values.T), (w @ y, values @ y), (w.t() @ z, values.T @ z),
                          (z.T @ w, z.T @ values), (x @ w.t().t().t(), x @ values.T)):  # fmt: skip
        torch.testing.assert_close(found, wanted)
    assert max(long.read) <= AT_ONCE


def test_sums_over_slices_of_half_precision_are_rounded_once() -> None:
    long = Long(torch.bfloat16)
    slope = torch.randn(3, WORDS).bfloat16()
    exact = slope.double() @ long.values.double()
    off = (slope @ long.tensor).double() - exact
    parts = torch.stack([s.double().abs() @ w.double().abs() for s, w in
                         zip(slope.split(64, 1), long.values.split(64), strict=True)])  # fmt: skip
    # Half a unit of the result, and of each slice's own product.
    assert bool((off.abs() <= 2**-8 * (exact.abs() + parts.sum(0))).all())


def test_tokens_are_looked_up_and_rows_cut_out() -> None:
    long = Long()
    index = torch.tensor([[7, 8, 499], [0, 8, 7]])
    assert torch.equal(nn.functional.embedding(index, long.tensor), long.values[index])
    # Those that stand side by side are read at once, and each of them once.
    assert long.read == [1, 2, 1]
    assert torch.equal(long.tensor[10:25], long.values[10:25])
    assert torch.equal(long.tensor[490:510], long.values[490:])
    assert len(long.tensor[20:10]) == 0
    assert torch.equal(long.tensor[torch.tensor([3, -1, 4])], long.values[[3, -1, 4]])
    assert len(long.tensor[torch.zeros(0, dtype=torch.int64)]) == 0


def test_what_slices_cannot_do_is_done_with_all_of_it(tmp_path: Path) -> None:
    values = Long().values
    weights = open_weights(write_shards(tmp_path, {"head": values}, 1))
    stored = StoredTensor(entry_of(weights, "head", torch.float32), Shelf(1 << 10))
    assert is_long(stored)
    assert torch.equal(stored[3:7], values[3:7])
    assert torch.equal(stored.sum(0), values.sum(0))
    assert torch.equal(stored.t()[:, ::2], values.T[:, ::2])
    assert torch.equal(stored.t() + 1.0, values.T + 1.0)
    assert torch.equal(stored[:, 2:4], values[:, 2:4])
    with pytest.raises(IndexError, match="out of range"):
        nn.functional.embedding(torch.tensor([WORDS]), stored)


def test_sizes_alone_read_nothing() -> None:
    long = Long()
    x = torch.randn(4, WIDTH)
    with sizes_alone([long.tensor]):
        assert torch.equal(nn.functional.linear(x, long.tensor), torch.zeros(4, WORDS))
    assert long.read == []
    assert bool(nn.functional.linear(x, long.tensor).any())


def test_rows_are_written_some_after_the_others() -> None:
    long = Long()
    write_rows(long.tensor, iter(long.values.double().split(200)))
    assert [len(piece) for piece in long.written] == [200, 200, 100]
    assert torch.equal(torch.cat(long.written), long.values)
    plain = torch.zeros(WORDS, WIDTH)
    write_rows(plain, iter(long.values.split(200)))
    assert torch.equal(plain, long.values)
